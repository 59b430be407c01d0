"""Corrected masks into a training folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from df2serve.errors import DecodeError, Df2ServeError, InputError, SourceNotFoundError
from df2serve.io import read_image, read_mask
from df2serve.writers._staging import staging
from df2serve.writers.annotation._export import write_classes
from df2serve.writers.annotation._manifest import (
    AnnotationItem,
    AnnotationManifest,
    read_manifest,
)

__all__ = ["AcceptedMask", "accept_annotations"]


@dataclass(frozen=True)
class AcceptedMask:
    """What was done with one mask."""

    file: str
    """Name of its file."""
    accepted: bool
    """It is in the training folder now, or was already."""
    changed_px: int
    """Pixels with another class than was predicted."""
    before_px: tuple[int, ...]
    """Predicted pixels of every class."""
    after_px: tuple[int, ...]
    """Pixels of every class in the mask."""


def accept_annotations(
    folder: str | Path, training: str | Path, *, confirmed: bool = False
) -> tuple[tuple[str, ...], list[AcceptedMask]]:
    """Add corrected masks and their images to a training folder, all of them or none.

    Nothing that is there is overwritten; what is there already, byte by byte, counts as accepted.

    Args:
        folder: written by ``export_for_annotation``, with corrected masks.
        training: gets ``images/`` and ``masks/``; created where it does not exist.
        confirmed: take masks without a change as well, which somebody found right.

    Returns:
        Names of the classes, and what was done with every mask.

    Raises:
        SourceNotFoundError: the folder holds nothing to accept.
        DecodeError: its manifest is damaged.
        InputError: masks or images cannot be accepted; all reasons are listed.
        OutputError: files cannot be written.
    """
    source, target = Path(folder), Path(training)
    manifest = read_manifest(source)
    problems: list[str] = []
    masks: dict[AnnotationItem, NDArray[np.uint8]] = {}
    found = []
    for item in manifest.items:
        try:
            before, after = _masks(source, manifest, item)
        except Df2ServeError as error:
            problems.append(str(error))
            continue
        result = _compared(item, before, after, len(manifest.classes), confirmed=confirmed)
        found.append(result)
        if result.accepted:
            masks[item] = after
    with staging() as files:
        for item, classes in masks.items():
            image, mask = (target / place / item.file for place in ("images", "masks"))
            size = read_image(source / "images" / item.file).pixel_size_um
            files.path(image).write_bytes((source / "images" / item.file).read_bytes())
            draft = files.path(mask)
            write_classes(draft, classes, num_classes=len(manifest.classes), size=size)
            for path in (image, mask):
                problems += _collisions(path, files.sha256(path))
        if problems:
            listed = "\n".join(f"- {problem}" for problem in problems)
            message = f"nothing was accepted, since {len(problems)} things are wrong:\n{listed}"
            raise InputError(message)
    return manifest.classes, found


def _masks(
    folder: Path, manifest: AnnotationManifest, item: AnnotationItem
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the predicted and the corrected classes of an item, axes (Y, X).

    Raises:
        InputError: a file is missing or damaged, was changed though it should not be, or the mask
            has another size or other values.
    """
    for place, known in (("images", item.image_sha256), ("predicted", item.mask_sha256)):
        if _sha256(folder / place / item.file) != known:
            message = f"{place}/{item.file} was changed; restore it, only masks are to be corrected"
            raise InputError(message)
    path, count = folder / "masks" / item.file, len(manifest.classes)
    predicted = read_mask(folder / "predicted" / item.file, kind="classes", num_classes=count)
    try:
        corrected = read_mask(path, kind="classes", num_classes=count)
    except DecodeError as error:
        message = f"masks/{item.file} does not hold the classes 0 to {count - 1}: {error}"
        raise DecodeError(message) from error
    if corrected.classes.shape != (item.height, item.width):
        got = " x ".join(map(str, corrected.classes.shape))
        message = (
            f"masks/{item.file} has {got} pixels, its image {item.height} x {item.width}; save the "
            "mask in the size of the image"
        )
        raise InputError(message)
    return predicted.classes, corrected.classes


def _compared(
    item: AnnotationItem,
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    count: int,
    *,
    confirmed: bool,
) -> AcceptedMask:
    changed = int(np.count_nonzero(before != after))
    return AcceptedMask(
        file=item.file,
        accepted=changed > 0 or confirmed,
        changed_px=changed,
        before_px=tuple(np.bincount(before.ravel(), minlength=count).tolist()),
        after_px=tuple(np.bincount(after.ravel(), minlength=count).tolist()),
    )


def _collisions(path: Path, sha256: str) -> Iterator[str]:
    """Yield what is in the way of a new file: other files of its name, whatever their type."""
    stem = path.stem.casefold()
    for other in sorted(path.parent.iterdir()):
        if other.name.startswith(".") or other.stem.casefold() != stem:
            continue
        if other.name != path.name or _sha256(other) != sha256:
            yield f"{other} is there already and differs; rename or remove it"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}; restore it"
        raise SourceNotFoundError(message) from error
