"""The most doubtful images with their predictions as masks to start from."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from df2serve.config import ReviewConfig
from df2serve.errors import ConfigError, InputError
from df2serve.files import new_folder
from df2serve.io import Image, PixelSize, open_image, read_image
from df2serve.types import AnyMask, PixelMap
from df2serve.writers.annotation._manifest import (
    MANIFEST,
    AnnotationItem,
    AnnotationManifest,
)
from df2serve.writers.folder import read_results
from df2serve.writers.records import Record, RunInfo
from df2serve.writers.review import review
from df2serve.writers.tiff import TiffRowWriter

__all__ = ["Window", "export_for_annotation", "most_uncertain_window", "write_classes"]

_IMAGEJ_TYPES = (np.uint8, np.uint16, np.float32)
_DISPLAYED = (0.5, 99.8)
"""Percentiles of the intensities that viewers show as black and white."""
_PLACES = ("images", "masks", "predicted")
_NOT_PORTABLE = re.compile(r'[\x00-\x1f/\\:*?"<>|]+')
_LONGEST_NAME = 120
_README = """\
# Masks to correct

Open an image of `images/` and the mask of the same name in `masks/`, correct the mask and save it
under its name. Values of a mask:

{classes}

Leave `images/`, `predicted/` and `manifest.json` as they are. Then:

    df2serve review TRAINING_FOLDER --accept THIS_FOLDER
"""


@dataclass(frozen=True)
class Window:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


def export_for_annotation(
    results: str | Path,
    target: str | Path,
    *,
    images: str | Path,
    count: int,
    crop: int | None = None,
) -> AnnotationManifest:
    """Write the most doubtful images of a folder of results with their masks.

    Args:
        results: folder of results.
        target: folder to create.
        images: folder that the names of the results' images start at.
        count: how many images, fewer where there are fewer.
        crop: rows and columns of the part of each image that is most uncertain; whole images when
            absent.

    Raises:
        ConfigError: the count or the crop is less than 1.
        SourceNotFoundError: an image or a result is missing.
        InputError: an image is not the one that was predicted.
        OutputError: the target exists, or cannot be written.
    """
    for name, value in (("count", count), ("crop", crop)):
        if value is not None and value < 1:
            message = f"got {name} = {value}; expected 1 or more"
            raise ConfigError(message)
    root = Path(results)
    run, records = read_results(root)
    listed = review(records, run, config=ReviewConfig()).places
    chosen = [place.record for place in listed[:count]]
    with new_folder(Path(target), empty_ok=True) as folder:
        writer = _Writer(folder, root, Path(images), run)
        names = _flat_names(chosen)
        manifest = AnnotationManifest(
            ensemble_id=run.ensemble_id,
            ensemble_sha256=run.ensemble_sha256,
            classes=tuple(item.name for item in run.classes),
            items=tuple(
                writer.write(record, name, crop) for record, name in zip(chosen, names, strict=True)
            ),
        )
        content = manifest.model_dump_json(indent=2) + "\n"
        (folder / MANIFEST).write_text(content, encoding="utf-8")
        classes = "\n".join(f"- {value}: {name}" for value, name in enumerate(manifest.classes))
        (folder / "README.md").write_text(_README.format(classes=classes), encoding="utf-8")
    return manifest


def most_uncertain_window(total: PixelMap, *, side: int) -> Window:
    """Return the square with the largest mean uncertainty, the first one of several.

    Args:
        total: total uncertainty, axes (Y, X).
        side: rows and columns; the image's own where it is smaller.

    Example:
        >>> uncertainty = np.zeros((5, 6), np.float32)
        >>> uncertainty[3, 4] = 1
        >>> most_uncertain_window(uncertainty, side=2)
        Window(top=2, left=3, height=2, width=2)
    """
    height, width = (min(side, length) for length in total.shape)
    sums = np.pad(total, ((1, 0), (1, 0))).cumsum(0, dtype=np.float64).cumsum(1)
    rows = sums[height:] - sums[:-height]
    inside = rows[:, width:] - rows[:, :-width]
    # sums of equal pixels may differ in their last digits
    top, left = np.unravel_index(np.argmax(inside.round(6)), inside.shape)
    return Window(int(top), int(left), height, width)


@dataclass(frozen=True)
class _Writer:
    folder: Path
    results: Path
    images: Path
    run: RunInfo

    def write(self, record: Record, name: str, crop: int | None) -> AnnotationItem:
        """Write the files of one image."""
        window = self._window(record, crop)
        mask = read_image(self.results / record.files["mask"].path)
        with self._open(record) as image:
            channels = image.shape[0]
            pixels = np.asarray(image.data[(slice(channels), *window.slices)])
            size = image.pixel_size_um
        classes = np.asarray(mask.data)[0][window.slices]
        end = "" if crop is None else f"_{window.top}_{window.left}"
        paths = {place: self.folder / place / f"{name}{end}.tif" for place in _PLACES}
        for path in paths.values():
            path.parent.mkdir(exist_ok=True)
        _write_image(paths["images"], pixels, size)
        write_classes(paths["masks"], classes, num_classes=len(self.run.classes), size=size)
        shutil.copyfile(paths["masks"], paths["predicted"])
        return AnnotationItem(
            file=paths["masks"].name,
            image_sha256=_sha256(paths["images"]),
            mask_sha256=_sha256(paths["masks"]),
            name=record.name,
            u=record.scores.u,
            source=record.provenance.source,
            source_sha256=record.provenance.source_sha256,
            top=window.top,
            left=window.left,
            height=window.height,
            width=window.width,
        )

    def _window(self, record: Record, crop: int | None) -> Window:
        height, width = record.provenance.image_shape[1:]
        if crop is None:
            return Window(0, 0, height, width)
        total = read_image(self.results / record.files["uncertainty"].path)
        return most_uncertain_window(np.asarray(total.data)[0], side=crop)

    @contextmanager
    def _open(self, record: Record) -> Iterator[Image]:
        """Open the image of a result as it was opened for the prediction."""
        known = record.provenance
        axes = None if "_" in (known.image_axes or "_") else known.image_axes
        path = self.images / known.source
        with open_image(
            path, axes=axes, selection=known.selection, pixel_size_um=known.pixel_size_um
        ) as image:
            if known.source_sha256 is not None and image.sha256 != known.source_sha256:
                message = (
                    f"{path} is not the image that was predicted (sha256 {known.source_sha256[:12]}"
                    f", got {(image.sha256 or 'none')[:12]}); predict it again"
                )
                raise InputError(message)
            yield image


def write_classes(
    path: Path, classes: AnyMask, *, num_classes: int, size: PixelSize | None
) -> None:
    """Write class indices, axes (Y, X), as TIFF."""
    with TiffRowWriter(
        path,
        shape=classes.shape,
        dtype=np.min_scalar_type(num_classes - 1),
        display_range=(0, num_classes - 1),
        pixel_size_um=size,
    ) as writer:
        writer.append(classes)


def _write_image(path: Path, pixels: NDArray[Any], size: PixelSize | None) -> None:
    """Write intensities, axes (C, Y, X), in their own type: for ImageJ where that has it."""
    if pixels.dtype in _IMAGEJ_TYPES:
        low, high = np.percentile(pixels, _DISPLAYED)
        with TiffRowWriter(
            path,
            shape=pixels.shape,
            dtype=pixels.dtype,
            display_range=(float(low), float(high)),
            pixel_size_um=size,
        ) as writer:
            writer.append(pixels)
        return
    metadata: dict[str, Any] = {"axes": "CYX"}
    if size is not None:
        metadata |= {"PhysicalSizeY": size.y_um, "PhysicalSizeX": size.x_um}
    stored = pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels
    tifffile.imwrite(path, stored, ome=True, metadata=metadata, compression="zlib")


def _flat_names(records: Sequence[Record]) -> list[str]:
    """Return names of files that every system takes, each once.

    They come without folders, since a training folder has none.
    """
    names: list[str] = []
    for record in records:
        plain = _NOT_PORTABLE.sub("_", record.name)[:_LONGEST_NAME].strip(" .") or "image"
        name, number = plain, 1
        while name.casefold() in {other.casefold() for other in names}:
            number += 1
            name = f"{plain}~{number}"
        names.append(name)
    return names


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
