"""Which mask belongs to which image."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from natsort import natsort_key

from df2serve.errors import InputError
from df2serve.io import list_images

__all__ = ["FilePair", "Pairing", "image_name", "natural_order", "pair_files"]

_CONTAINERS = {".ome", ".zarr"}
"""Inner suffixes of names such as ``a.ome.tif`` and ``a.zarr.zip``."""


@dataclass(frozen=True)
class FilePair:
    """The files of one image."""

    name: str
    """Stem of the image's file name; the same on every file system."""
    image: Path
    mask: Path
    ignore: Path | None
    """Mask of pixels that do not count, where they are not 0."""


@dataclass(frozen=True)
class Pairing:
    """What could be paired, and what is wrong with the rest."""

    pairs: tuple[FilePair, ...]
    """In natural order of the names."""
    problems: tuple[str, ...]
    """One sentence per kind of problem, with all files that have it."""


def image_name(path: str | Path) -> str:
    """Return the stem of a file name, in composed Unicode characters.

    Example:
        >>> image_name("slides/a.1.ome.tif"), image_name("0001.png")
        ('a.1', '0001')
    """
    stem = Path(unicodedata.normalize("NFC", Path(path).stem))
    while stem.suffix.lower() in _CONTAINERS:
        stem = stem.with_suffix("")
    return stem.name


def natural_order(names: Iterable[str]) -> list[str]:
    """Return names in natural order, whatever order they come in.

    Example:
        >>> natural_order(["b10", "b9", "b09"])
        ['b09', 'b9', 'b10']
    """
    return sorted(names, key=lambda name: (natsort_key(name), name))


def pair_files(
    images: str | Path,
    masks: str | Path,
    *,
    ignore: str | Path | None = None,
    mask_suffix: str | None = None,
) -> Pairing:
    """Pair every image with the mask of the same stem plus one suffix, the same for all.

    Args:
        images: folder of images.
        masks: folder of masks, another one.
        ignore: folder of masks of pixels that do not count; images may be without.
        mask_suffix: what mask names have after the image's stem; inferred when absent.

    Raises:
        SourceNotFoundError: a folder does not exist or holds no images.
        InputError: images and masks are in one folder.
    """
    if Path(images).resolve() == Path(masks).resolve():
        message = f"images and masks are both {images}; put the masks into a folder of their own"
        raise InputError(message)
    problems: list[str] = []
    of_image = _by_name("image", list_images(images), problems)
    of_mask = _by_name("mask", list_images(masks), problems)
    mask_of, suffix = _match("mask", of_image, of_mask, mask_suffix, problems)
    missing = [name for name in of_image if name not in mask_of]
    if missing:
        problems.append(
            f"no mask for {_counted(missing, 'image')}, expected {_expected(suffix)}: "
            f"{', '.join(natural_order(missing))}"
        )
    ignore_of: Mapping[str, Path] = {}
    if ignore is not None:
        of_ignore = _by_name("ignore mask", list_images(ignore), problems)
        ignore_of, _ = _match("ignore mask", of_image, of_ignore, None, problems)
    return Pairing(
        pairs=tuple(
            FilePair(name, of_image[name], mask_of[name], ignore_of.get(name))
            for name in natural_order(mask_of)
        ),
        problems=tuple(problems),
    )


def _by_name(kind: str, paths: Sequence[Path], problems: list[str]) -> dict[str, Path]:
    """Return files by the stems of their names; stems that occur twice become a problem.

    Stems that differ in upper and lower case alone count as the same, as on many file systems.
    """
    alike = defaultdict(list)
    for path in paths:
        alike[image_name(path).casefold()].append(path)
    doubled = [group for group in alike.values() if len(group) > 1]
    if doubled:
        listed = "; ".join(" and ".join(sorted(path.name for path in group)) for group in doubled)
        problems.append(f"{kind} names that are the same but for the file type: {listed}")
    return {image_name(path): path for path in reversed(paths)}


def _match(
    kind: str,
    of_image: Mapping[str, Path],
    of_mask: Mapping[str, Path],
    suffix: str | None,
    problems: list[str],
) -> tuple[dict[str, Path], str]:
    """Return masks by the name of their image, and their suffix; the rest becomes problems."""
    if suffix is None:
        suffix = _infer_suffix(of_image, of_mask)
    matched = {name: of_mask[name + suffix] for name in of_image if name + suffix in of_mask}
    rest = natural_order(set(of_mask) - {name + suffix for name in matched})
    if rest:
        files = ", ".join(of_mask[name].name for name in rest)
        problems.append(
            f"no image for {_counted(rest, kind)}, expected {_expected(suffix)}: {files}"
        )
    return matched, suffix


def _infer_suffix(of_image: Collection[str], of_mask: Collection[str]) -> str:
    """Return the suffix with which most masks have an image, the shortest of several such.

    Example:
        >>> _infer_suffix(["img_1", "img_10"], ["img_10_mask", "img_1_mask"])
        '_mask'
    """
    counts = Counter(
        name[length:]
        for name in of_mask
        for length in range(1, len(name) + 1)
        if name[:length] in of_image
    )
    return min(counts, key=lambda suffix: (-counts[suffix], len(suffix), suffix), default="")


def _expected(suffix: str) -> str:
    return f"the image's stem followed by {suffix!r}" if suffix else "the stem of an image"


def _counted(items: Sequence[str], noun: str) -> str:
    return f"{len(items)} {noun}" + "s" * (len(items) > 1)
