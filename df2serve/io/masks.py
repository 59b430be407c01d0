"""Masks: class maps and instance maps, with pixels that do not count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from df2serve.config import DecodeLimits
from df2serve.errors import ConfigError, DecodeError
from df2serve.io.image import Image
from df2serve.io.reading import read_image

__all__ = ["ClassMask", "InstanceMask", "read_mask"]

Source: TypeAlias = str | Path | bytes | BinaryIO
Color: TypeAlias = tuple[int, int, int]

_LISTED = 8
"""Values that a message lists at most."""
_LISTED_COLORS = 5


@dataclass(frozen=True, eq=False)
class ClassMask:
    """Which class every pixel has."""

    classes: NDArray[np.uint8]
    """Class indices, axes (Y, X), 0 = background."""
    valid: NDArray[np.bool_] | None
    """False where a pixel is to be ignored, axes (Y, X); absent where all count."""
    source: str
    """Name shown to people."""
    sha256: str | None
    """Hash of the file's bytes."""


@dataclass(frozen=True, eq=False)
class InstanceMask:
    """Which object every pixel belongs to."""

    labels: NDArray[np.int32]
    """Instance labels, axes (Y, X), 0 = background."""
    valid: NDArray[np.bool_] | None
    """False where a pixel is to be ignored, axes (Y, X); absent where all count."""
    source: str
    """Name shown to people."""
    sha256: str | None
    """Hash of the file's bytes."""


@overload
def read_mask(
    source: Source,
    *,
    kind: Literal["binary", "classes"],
    num_classes: int | None = ...,
    colors: Mapping[Color, int] | None = ...,
    ignore: Source | None = ...,
    ignore_value: int | None = ...,
    limits: DecodeLimits = ...,
) -> ClassMask: ...


@overload
def read_mask(
    source: Source,
    *,
    kind: Literal["instances"],
    num_classes: None = ...,
    colors: None = ...,
    ignore: Source | None = ...,
    ignore_value: int | None = ...,
    limits: DecodeLimits = ...,
) -> InstanceMask: ...


def read_mask(
    source: Source,
    *,
    kind: Literal["binary", "classes", "instances"],
    num_classes: int | None = None,
    colors: Mapping[Color, int] | None = None,
    ignore: Source | None = None,
    ignore_value: int | None = None,
    limits: DecodeLimits = DecodeLimits(),  # noqa: B008 - frozen
) -> ClassMask | InstanceMask:
    """Read a mask of one plane in any format of ``read_image``.

    A color file whose three samples are equal everywhere is taken as gray.

    Args:
        source: a file, an OME-Zarr folder, the bytes of a file or a file object.
        kind: ``binary``: 0 and one other value, which becomes 1; ``classes``: class indices;
            ``instances``: one label per object.
        num_classes: number of classes with the background, for ``classes``; with two of them the
            file may hold 0 and any one other value.
        colors: class index of each color (R, G, B), for ``classes`` drawn in color.
        ignore: a mask of the same size; pixels that are not 0 there do not count.
        ignore_value: value in the mask itself of pixels that do not count; they become background.
        limits: what the files may ask for.

    Raises:
        ConfigError: the arguments do not fit each other.
        DecodeError: the values are not those of such a mask.
        InputError: as in ``read_image``.
    """
    _check_arguments(kind, num_classes, colors, ignore_value)
    image = read_image(source, limits=limits)
    valid = None if ignore is None else _valid(image, read_image(ignore, limits=limits))
    classes: NDArray[Any]
    if colors is not None:
        classes = _classes_of_colors(image, colors)
    else:
        classes, valid = _without(_integers(image), ignore_value, valid)
    if kind == "instances":
        return InstanceMask(_labels(image.source, classes), valid, image.source, image.sha256)
    if colors is None and (kind == "binary" or num_classes == 2):
        classes = _binary(image.source, classes)
    if num_classes is not None:
        _check_classes(image.source, classes, num_classes)
    return ClassMask(classes.astype(np.uint8), valid, image.source, image.sha256)


def _check_arguments(
    kind: str,
    num_classes: int | None,
    colors: Mapping[Color, int] | None,
    ignore_value: int | None,
) -> None:
    if kind not in ("binary", "classes", "instances"):
        message = f"got kind={kind!r}; expected 'binary', 'classes' or 'instances'"
        raise ConfigError(message)
    if kind == "classes" and num_classes is None:
        message = "kind='classes' needs num_classes, the number of classes with the background"
        raise ConfigError(message)
    if kind != "classes" and (num_classes is not None or colors is not None):
        message = f"kind={kind!r} takes neither num_classes nor colors; use kind='classes'"
        raise ConfigError(message)
    if num_classes is not None and not 2 <= num_classes <= 256:
        message = f"got num_classes={num_classes}; expected 2 to 256"
        raise ConfigError(message)
    if ignore_value == 0:
        message = "got ignore_value=0, which is the background; use another value, or ignore="
        raise ConfigError(message)
    if ignore_value is not None and colors is not None:
        message = "colors and ignore_value do not go together; give what to ignore with ignore="
        raise ConfigError(message)


def _gray(image: Image) -> NDArray[Any]:
    """Return the only plane (Y, X), or one of three equal ones."""
    pixels: NDArray[Any] = np.asarray(image.data)
    if len(pixels) == 1 or (len(pixels) == 3 and (pixels == pixels[:1]).all()):
        plane: NDArray[Any] = pixels[0]
        return plane
    message = (
        f"{image.source} has {len(pixels)} channels that differ, a mask has one; for a mask drawn "
        "in color give the class of each color with colors="
    )
    raise DecodeError(message)


def _integers(image: Image) -> NDArray[Any]:
    """Return the values of the mask (Y, X) as integers."""
    values = _gray(image)
    if values.dtype.kind == "f" and (values != np.trunc(values)).any():
        message = (
            f"{image.source} holds fractions such as {values[values != np.trunc(values)][0]:g}; a "
            "mask holds whole numbers"
        )
        raise DecodeError(message)
    return values.astype(np.int64) if values.dtype.kind == "f" else values


def _binary(name: str, values: NDArray[Any]) -> NDArray[np.bool_]:
    foreground: NDArray[np.bool_] = values != 0
    found = np.unique(values[foreground])
    if len(found) > 1:
        message = (
            f"{name} holds {len(found)} values besides 0 ({_list(found)}), a binary mask has one; "
            "read it with kind='classes' or kind='instances', and never store masks as JPEG"
        )
        raise DecodeError(message)
    return foreground


def _check_classes(name: str, classes: NDArray[Any], num_classes: int) -> None:
    found = np.unique(classes)
    wrong = found[(found < 0) | (found >= num_classes)]
    if len(wrong):
        message = (
            f"{name} holds the values {_list(wrong)}, expected classes 0 to {num_classes - 1}; "
            "renumber them or correct num_classes"
        )
        raise DecodeError(message)


def _labels(name: str, values: NDArray[Any]) -> NDArray[np.int32]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        message = f"{name} holds labels from {low} to {high}; expected 0 to 2147483647"
        raise DecodeError(message)
    return values.astype(np.int32)


def _classes_of_colors(image: Image, colors: Mapping[Color, int]) -> NDArray[np.int64]:
    pixels = np.asarray(image.data)
    if len(pixels) != 3:
        message = f"{image.source} has {len(pixels)} channels; colors= is for masks in RGB"
        raise DecodeError(message)
    classes = np.full(pixels.shape[1:], -1, np.int64)
    for color, index in colors.items():
        classes[(pixels == np.reshape(color, (3, 1, 1))).all(axis=0)] = index
    unknown = pixels[:, classes < 0]
    if unknown.size:
        found, counts = np.unique(unknown, axis=1, return_counts=True)
        frequent = np.argsort(-counts, kind="stable")[:_LISTED_COLORS]
        listed = ", ".join(f"{tuple(found[:, i].tolist())} x {counts[i]}" for i in frequent)
        more = ", ..." if len(counts) > _LISTED_COLORS else ""
        message = (
            f"{image.source} has {unknown.shape[1]} pixels of {len(counts)} colors without a "
            f"class: {listed}{more}; add them to colors"
        )
        raise DecodeError(message)
    return classes


def _without(
    values: NDArray[Any], ignored: int | None, valid: NDArray[np.bool_] | None
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Turn pixels of a value into background that does not count."""
    if ignored is None:
        return values, valid
    counts: NDArray[np.bool_] = values != ignored
    return np.where(counts, values, 0), counts if valid is None else counts & valid


def _valid(image: Image, ignore: Image) -> NDArray[np.bool_]:
    if ignore.shape[1:] != image.shape[1:]:
        message = (
            f"{ignore.source} has {ignore.shape[1:]} rows and columns, the mask {image.source} "
            f"{image.shape[1:]}; an ignore mask has the size of its mask"
        )
        raise DecodeError(message)
    counts: NDArray[np.bool_] = _gray(ignore) == 0
    return counts


def _list(values: NDArray[Any]) -> str:
    more = ", ..." if len(values) > _LISTED else ""
    return ", ".join(str(value) for value in values[:_LISTED].tolist()) + more
