"""The training set: images with one mask each, as facts and as pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from df2serve.core.resolution import zoom_out as coarse_image
from df2serve.errors import InputError
from df2serve.io import (
    ClassMask,
    Image,
    InstanceMask,
    PixelSize,
    Selection,
    read_image,
    read_mask,
)
from df2serve_training.pairing import FilePair
from df2serve_training.settings import DataSettings
from df2serve_training.targets import training_target, zoom_out_mask

__all__ = [
    "IntensityRange",
    "LabeledImage",
    "TrainingImage",
    "TrainingSet",
    "label_image",
    "read_pair_image",
    "read_pair_mask",
]


@dataclass(frozen=True)
class IntensityRange:
    """Intensities between which nearly all pixels lie, per channel."""

    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class LabeledImage:
    """Pixels and what they are, at the resolution of the training."""

    pixels: NDArray[Any]
    """Raw intensities in the file's type, or standardized ones, axes (C, Y, X)."""
    target: NDArray[np.uint8]
    """Class indices, axes (Y, X); ``IGNORED`` where pixels do not count."""
    labels: NDArray[np.int32] | None
    """Instances, axes (Y, X), 0 = background, where masks hold them."""


@dataclass(frozen=True)
class TrainingImage:
    """What is known of one image of the training set."""

    name: str
    """Stem of the file name; unique."""
    image_path: Path
    mask_path: Path
    ignore_path: Path | None
    image_sha256: str
    mask_sha256: str
    shape: tuple[int, int, int]
    """Channels, rows and columns at the resolution of the training."""
    dtype: str
    """Type of the intensities."""
    pixel_size_um: PixelSize | None
    """Of the file."""
    class_pixels: tuple[int, ...]
    """Pixels of every class of the target; those that do not count are left out."""
    intensities: IntensityRange
    group: str | None = None
    """Its group or stratum in the table, where one was given."""

    @property
    def present_classes(self) -> tuple[int, ...]:
        """Classes besides the background that have a pixel."""
        return tuple(k for k, count in enumerate(self.class_pixels) if k and count)

    @property
    def foreground_share(self) -> float:
        """Share of the pixels that count and are not background."""
        return 1 - self.class_pixels[0] / sum(self.class_pixels)

    @property
    def ignored_share(self) -> float:
        """Share of the pixels that do not count."""
        return 1 - sum(self.class_pixels) / math.prod(self.shape[1:])


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Images with one mask each, in natural order of their names."""

    images: tuple[TrainingImage, ...]
    settings: DataSettings
    remarks: tuple[str, ...]
    """What may be meant but should be known."""
    cached: Mapping[str, LabeledImage] = field(repr=False)
    """Pixels by name, as far as they are kept in memory."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def num_channels(self) -> int:
        """C."""
        return self.images[0].shape[0]

    def take(self, names: Iterable[str]) -> TrainingSet:
        """Return the part of the training set with these names, in their order."""
        by_name = {image.name: image for image in self.images}
        return replace(self, images=tuple(by_name[name] for name in names))

    def load(self, image: TrainingImage) -> LabeledImage:
        """Return the pixels of one of the images.

        Raises:
            InputError: the files changed since they were checked, or cannot be read any more.
        """
        if image.name in self.cached:
            return self.cached[image.name]
        pair = FilePair(image.name, image.image_path, image.mask_path, image.ignore_path)
        pixels, mask = read_pair_image(pair, self.settings), read_pair_mask(pair, self.settings)
        if (pixels.sha256, mask.sha256) != (image.image_sha256, image.mask_sha256):
            message = f"image or mask of {image.name} changed during the training; start anew"
            raise InputError(message)
        return label_image(pixels, mask, self.settings.zoom_out)

    def intensity_range(self) -> IntensityRange:
        """Return the range per channel that holds nearly all intensities of all images."""
        ranges = [image.intensities for image in self.images]
        return IntensityRange(
            low=tuple(map(min, zip(*(r.low for r in ranges), strict=True))),
            high=tuple(map(max, zip(*(r.high for r in ranges), strict=True))),
        )


def read_pair_image(pair: FilePair, settings: DataSettings) -> Image:
    """Return the image of a pair; errors are those of ``read_image``."""
    selection = Selection(channels=settings.channels)
    return read_image(pair.image, axes=settings.axes, selection=selection)


def read_pair_mask(pair: FilePair, settings: DataSettings) -> ClassMask | InstanceMask:
    """Return the mask of a pair; errors are those of ``read_mask``."""
    if settings.masks == "instances":
        return read_mask(
            pair.mask, kind="instances", ignore=pair.ignore, ignore_value=settings.ignore_value
        )
    return read_mask(
        pair.mask,
        kind=settings.masks,
        num_classes=settings.num_classes if settings.masks == "classes" else None,
        ignore=pair.ignore,
        ignore_value=settings.ignore_value,
    )


def label_image(image: Image, mask: ClassMask | InstanceMask, zoom_out: float) -> LabeledImage:
    """Return pixels and targets at the resolution of the training.

    Args:
        image: with all pixels in memory.
        mask: of the same size.
        zoom_out: pixels of the file per pixel of the training, along each axis.
    """
    valid = None if mask.valid is None else zoom_out_mask(mask.valid, zoom_out)
    coarse: ClassMask | InstanceMask
    if isinstance(mask, ClassMask):
        coarse = replace(mask, classes=zoom_out_mask(mask.classes, zoom_out), valid=valid)
    else:
        coarse = replace(mask, labels=zoom_out_mask(mask.labels, zoom_out), valid=valid)
    return LabeledImage(
        pixels=coarse_image(np.asarray(image.data), zoom_out),
        target=training_target(coarse),
        labels=coarse.labels if isinstance(coarse, InstanceMask) else None,
    )
