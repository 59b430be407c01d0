"""Intensities to network input.

Every mode is one affine map per channel, ``(x - offset) / scale`` in float32, found once per image
and applied to tiles. Integers are never changed in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from df2serve.config import (
    ImageNormalization,
    NoNormalization,
    Normalization,
    PercentileNormalization,
    TrainingNormalization,
)
from df2serve.errors import ImageMismatchError, InputError
from df2serve.types import ImageArray, PixelSource

__all__ = ["Affine", "affine_of", "fit_training_normalization", "row_bands"]

_BAND_BYTES = 64 << 20
_HISTOGRAM_LEVELS = {np.uint8: 1 << 8, np.uint16: 1 << 16}


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``(x - offset) / scale`` per channel."""

    offset: NDArray[np.float32]
    """Subtracted, axes (C,), in raw intensities."""
    scale: NDArray[np.float32]
    """Divided by, axes (C,), positive, in raw intensities."""

    def __call__(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return normalised pixels.

        Args:
            pixels: raw intensities of any real type, axes (..., C, Y, X).

        Returns:
            Network input as float32, same axes.
        """
        values = pixels.astype(np.float32)
        values -= self.offset[:, None, None]
        values /= self.scale[:, None, None]
        return values


def fit_training_normalization(images: Iterable[ImageArray]) -> TrainingNormalization:
    """Return the channel statistics of a training set.

    Args:
        images: raw intensities, axes (C, Y, X), one channel count for all.

    Returns:
        Per channel the mean over images of the image's mean, and the square root of the mean over
        images of the image's variance; variation between images does not enter.

    Raises:
        InputError: no image, differing channel counts, or a channel that is constant everywhere.

    Source:
        deepflash2, ``data.py``; reproduces the published constants of the paper.

    Example:
        >>> pair = [np.array([[[0.0, 2.0]]]), np.array([[[10.0, 16.0]]])]
        >>> stats = fit_training_normalization(pair)
        >>> stats.means, tuple(round(s, 4) for s in stats.stds)
        ((7.0,), (2.2361,))
    """
    moments = [_mean_and_variance(image) for image in images]
    if not moments:
        message = "got no image to take statistics from; at least one is needed"
        raise InputError(message)
    counts = {len(mean) for mean, _ in moments}
    if len(counts) > 1:
        message = f"got images with {sorted(counts)} channels; all need the same number"
        raise InputError(message)
    means = np.mean([mean for mean, _ in moments], axis=0)
    stds = np.sqrt(np.mean([variance for _, variance in moments], axis=0))
    _require_contrast(stds, "the training set")
    return TrainingNormalization(
        means=tuple(float(value) for value in means), stds=tuple(float(value) for value in stds)
    )


def affine_of(normalization: Normalization, image: PixelSource) -> Affine:
    """Return the affine map that a normalisation means for one image.

    Args:
        normalization: the mode of the ensemble's manifest.
        image: raw intensities, axes (C, Y, X). Modes per image read it once, band by band; only
            percentiles of types other than 8 and 16 bit hold one channel in memory.

    Raises:
        ImageMismatchError: the number of channels differs from the training set's, or a channel has
            no contrast so that a mode per image is undefined.
    """
    match normalization:
        case TrainingNormalization(means=means, stds=stds):
            if image.shape[0] != len(means):
                message = (
                    f"got an image with {image.shape[0]} channels, expected {len(means)} as in "
                    "training; choose channels to match"
                )
                raise ImageMismatchError(message)
            return _affine(np.array(means), np.array(stds))
        case ImageNormalization():
            mean, variance = _mean_and_variance(image)
            return _affine(mean, _require_contrast(np.sqrt(variance), "the image"))
        case PercentileNormalization(low=low, high=high):
            bounds = np.array([_percentiles(image, c, low, high) for c in range(image.shape[0])])
            return _affine(
                bounds[:, 0], _require_contrast(bounds[:, 1] - bounds[:, 0], "the image")
            )
        case NoNormalization():
            return _affine(np.zeros(image.shape[0]), np.ones(image.shape[0]))
        case _:
            assert_never(normalization)


def row_bands(image: PixelSource) -> Iterator[NDArray[np.generic]]:
    """Yield an image in bands of whole rows, axes (C, rows, X), of bounded size."""
    channels, height, width = image.shape
    rows = max(1, _BAND_BYTES // max(1, channels * width * image.dtype.itemsize))
    for top in range(0, height, rows):
        yield image[:, top : top + rows, 0:width]


def _affine(offset: NDArray[np.float64], scale: NDArray[np.float64]) -> Affine:
    return Affine(offset=offset.astype(np.float32), scale=scale.astype(np.float32))


def _mean_and_variance(image: PixelSource) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and population variance per channel, axes (C,), in two passes over the bands."""
    channels, height, width = image.shape
    if height * width == 0:
        message = f"got an image of shape {tuple(image.shape)}; it has no pixels"
        raise InputError(message)
    total = np.zeros(channels)
    for band in row_bands(image):
        total += band.sum(axis=(1, 2), dtype=np.float64)
    mean = total / (height * width)
    squares = np.zeros(channels)
    for band in row_bands(image):
        squares += ((band.astype(np.float64) - mean[:, None, None]) ** 2).sum(axis=(1, 2))
    return mean, squares / (height * width)


def _percentiles(image: PixelSource, channel: int, low: float, high: float) -> NDArray[np.float64]:
    """Return two percentiles of a channel, interpolated linearly between ranks."""
    height, width = image.shape[1:]
    window = slice(channel, channel + 1)
    levels = _HISTOGRAM_LEVELS.get(image.dtype.type)
    if levels is None:
        plane = image[window, 0:height, 0:width]
        result: NDArray[np.float64] = np.percentile(plane.astype(np.float64), [low, high])
        return result
    counts = np.zeros(levels, dtype=np.int64)
    for top in range(0, height, 1024):
        band = image[window, top : top + 1024, 0:width]
        counts += np.bincount(band.ravel(), minlength=counts.size)
    ranks = np.array([low, high]) / 100 * (height * width - 1)
    floor = np.floor(ranks).astype(np.int64)
    cumulative = np.cumsum(counts)
    below = np.searchsorted(cumulative, floor, side="right")
    above = np.searchsorted(cumulative, np.minimum(floor + 1, height * width - 1), side="right")
    weighted: NDArray[np.float64] = below + (above - below) * (ranks - floor)
    return weighted


def _require_contrast(scale: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    flat = [int(c) for c in np.flatnonzero(~(scale > 0))]
    if flat:
        message = (
            f"channel {', '.join(map(str, flat))} of {where} has no contrast, so that it cannot be "
            "normalised; leave the channel out or choose normalisation by training statistics"
        )
        raise ImageMismatchError(message)
    return scale
