"""Everything that is wrong with a training set, found before anything is computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from df2serve.errors import InputError
from df2serve.io import ClassMask, Image, InstanceMask
from df2serve_training.dataset import (
    IntensityRange,
    LabeledImage,
    TrainingImage,
    TrainingSet,
    label_image,
    read_pair_image,
    read_pair_mask,
)
from df2serve_training.folds import find_fold_problems
from df2serve_training.pairing import FilePair, pair_files
from df2serve_training.settings import DataSettings, FoldSettings
from df2serve_training.table import read_column
from df2serve_training.targets import IGNORED

__all__ = ["check_training_set"]

_RANGE_PERCENTILES = (0.1, 99.9)
_MOSTLY = 0.5
"""Share of an image's pixels from which on it is remarked that they are ignored."""


def check_training_set(
    images: str | Path,
    masks: str | Path,
    *,
    settings: DataSettings,
    folds: FoldSettings,
    ignore: str | Path | None = None,
    table: str | Path | None = None,
) -> TrainingSet:
    """Read a training set as a whole and find everything that is wrong with it at once.

    Args:
        images: folder of images.
        masks: folder of masks, named after the images.
        settings: how files are read.
        folds: how images will be divided; checked, not done.
        ignore: folder of masks of pixels that do not count, where they are not 0; images may be
            without one.
        table: CSV or XLSX file with the column of ``folds``.

    Raises:
        SourceNotFoundError: a folder does not exist or holds no images.
        InputError: names every problem and all files that have it.
    """
    pairing = pair_files(images, masks, ignore=ignore, mask_suffix=settings.mask_suffix)
    with ThreadPoolExecutor() as pool:
        checked = list(pool.map(lambda pair: _check(pair, settings), pairing.pairs))
    facts = [entry.facts for entry in checked if entry.facts is not None]
    groups, fold_problems = _check_folds([pair.name for pair in pairing.pairs], folds, table)
    problems = [
        *pairing.problems,
        *_gather(finding for entry in checked for finding in entry.problems),
        *_find_common_problems(facts),
        *fold_problems,
    ]
    if problems:
        message = f"{images} and {masks} make no training set:"
        raise InputError("\n- ".join([message, *problems]))
    return TrainingSet(
        images=tuple(replace(image, group=groups.get(image.name)) for image in facts),
        settings=settings,
        remarks=tuple(_remarks(facts, settings)),
        cached={entry.name: entry.pixels for entry in checked if entry.pixels is not None},
    )


# -- one image ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Finding:
    """Something about one image."""

    what: str
    """The same for all images that have it."""
    offender: str


@dataclass(frozen=True, eq=False)
class _Checked:
    """One image after its check."""

    name: str
    problems: Sequence[_Finding]
    facts: TrainingImage | None = None
    """Absent where there are problems."""
    pixels: LabeledImage | None = None
    """Absent where they are not kept."""


def _check(pair: FilePair, settings: DataSettings) -> _Checked:
    read: dict[str, Any] = {}
    problems = []
    for what, read_file in (("image", read_pair_image), ("mask", read_pair_mask)):
        try:
            read[what] = read_file(pair, settings)
        except InputError as error:
            problems.append(_Finding(f"{what} of {pair.name}", str(error)))
    if problems:
        return _Checked(pair.name, problems)
    image: Image = read["image"]
    mask: ClassMask | InstanceMask = read["mask"]
    (height, width), (rows, columns) = image.shape[1:], _plane(mask).shape
    if (height, width) != (rows, columns):
        offender = f"{pair.name} ({height} x {width}, mask {rows} x {columns})"
        return _Checked(pair.name, [_Finding("masks of another size than their image", offender)])
    pixels = label_image(image, mask, settings.zoom_out)
    facts = _facts(pair, image, mask, pixels, settings)
    if facts.intensities.low == facts.intensities.high:
        problems.append(_Finding("images of one constant intensity, to be left out", pair.name))
    if not sum(facts.class_pixels):
        problems.append(_Finding("images without a pixel that counts, to be left out", pair.name))
    if problems:
        return _Checked(pair.name, problems)
    return _Checked(pair.name, (), facts, pixels if settings.cache else None)


def _plane(mask: ClassMask | InstanceMask) -> NDArray[np.uint8] | NDArray[np.int32]:
    return mask.classes if isinstance(mask, ClassMask) else mask.labels


def _facts(
    pair: FilePair,
    image: Image,
    mask: ClassMask | InstanceMask,
    pixels: LabeledImage,
    settings: DataSettings,
) -> TrainingImage:
    counts = np.bincount(pixels.target.ravel(), minlength=IGNORED + 1)
    channels, height, width = pixels.pixels.shape
    return TrainingImage(
        name=pair.name,
        image_path=pair.image,
        mask_path=pair.mask,
        ignore_path=pair.ignore,
        image_sha256=image.sha256 or "",
        mask_sha256=mask.sha256 or "",
        shape=(channels, height, width),
        dtype=str(pixels.pixels.dtype),
        pixel_size_um=image.pixel_size_um,
        class_pixels=tuple(counts[: settings.num_classes].tolist()),
        intensities=_intensity_range(pixels.pixels),
    )


def _intensity_range(pixels: NDArray[Any]) -> IntensityRange:
    """Return low and high percentiles per channel, or minima and maxima where those coincide."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    low, high = np.percentile(flat, _RANGE_PERCENTILES, axis=1)
    sparse = low == high
    low[sparse], high[sparse] = flat[sparse].min(axis=1), flat[sparse].max(axis=1)
    return IntensityRange(tuple(low.tolist()), tuple(high.tolist()))


# -- all images ---------------------------------------------------------------------------------


def _find_common_problems(images: Sequence[TrainingImage]) -> list[str]:
    problems = []
    if counts := _differing({image.name: f"{image.shape[0]} channels" for image in images}):
        problems.append(f"images differ in their number of channels: {counts}")
    elif flat := _constant_channels(images):
        problems.append(
            f"channel {', '.join(map(str, flat))} is constant in every image; choose channels "
            "without it"
        )
    if images and not any(image.present_classes for image in images):
        problems.append("every mask is empty, so that there is nothing to learn")
    return problems


def _constant_channels(images: Sequence[TrainingImage]) -> list[int]:
    ranges = [image.intensities for image in images]
    channels = images[0].shape[0] if images else 0
    return [c for c in range(channels) if all(r.low[c] == r.high[c] for r in ranges)]


def _check_folds(
    names: Sequence[str], folds: FoldSettings, table: str | Path | None
) -> tuple[dict[str, str], list[str]]:
    """Return groups or strata by name, and what prevents the folds."""
    groups: dict[str, str] = {}
    if (table is None) != (folds.column is None):
        return groups, ["a table needs the title of a column for the folds, and a column a table"]
    if table is not None and folds.column is not None:
        try:
            groups = read_column(table, folds.column, names=names, file_column=folds.file_column)
        except InputError as error:
            return groups, [str(error)]
    return groups, find_fold_problems(names, groups, folds) if names else []


def _remarks(images: Sequence[TrainingImage], settings: DataSettings) -> list[str]:
    findings = []
    same = defaultdict(list)
    for image in images:
        same[image.image_sha256].append(image.name)
        if not image.present_classes:
            findings.append(_Finding("empty masks", image.name))
        if image.ignored_share >= _MOSTLY:
            share = f"{image.name} ({image.ignored_share:.0%})"
            findings.append(_Finding("images of which most pixels are ignored", share))
        for channel in _constant_channels([image]):
            findings.append(_Finding("constant channels", f"{channel} of {image.name}"))
    for names in same.values():
        if len(names) > 1:
            what = "the same image twice, which may lie in different folds"
            findings.append(_Finding(what, " and ".join(names)))
    remarks = _gather(findings)
    if types := _differing({image.name: image.dtype for image in images}):
        remarks.append(f"intensities differ in type: {types}")
    sizes = {image.name: image.pixel_size_um for image in images}
    if known := _differing(
        {name: f"{s.y_um:.4g} x {s.x_um:.4g} um" for name, s in sizes.items() if s}
    ):
        remarks.append(f"pixel sizes differ: {known}")
    totals = np.sum([image.class_pixels for image in images], axis=0)
    if absent := np.flatnonzero(totals == 0).tolist():
        remarks.append(f"no mask has a pixel of class {', '.join(map(str, absent))}")
    return remarks


def _gather(findings: Iterable[_Finding]) -> list[str]:
    """Return one line per kind of finding, with all that it was found at."""
    offenders = defaultdict(list)
    for finding in findings:
        offenders[finding.what].append(finding.offender)
    return [f"{what}: {'; '.join(where)}" for what, where in offenders.items()]


def _differing(values: Mapping[str, str]) -> str | None:
    """Say which images have another value than most; nothing where all have the same.

    Example:
        >>> _differing({"a": "uint8", "b": "uint16", "c": "uint8"})
        'uint8 in 2 images, uint16 in b'
    """
    names = defaultdict(list)
    for name, value in values.items():
        names[value].append(name)
    if len(names) < 2:
        return None
    common = max(names, key=lambda value: len(names[value]))
    rest = [f"{value} in {', '.join(where)}" for value, where in names.items() if value != common]
    return ", ".join([f"{common} in {len(names[common])} images", *rest])
