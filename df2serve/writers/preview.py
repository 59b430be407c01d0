"""Pictures for people: outlines on the image, and the uncertainty on a fixed scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageColor
from PIL.PngImagePlugin import PngInfo

from df2serve.inference import Band
from df2serve.types import PixelSource

__all__ = ["UNCERTAINTY_COLORS", "Preview"]

UNCERTAINTY_COLORS = "inferno"
"""Matplotlib's name of the color scale of uncertainty pictures."""

_LONGEST_SIDE = 2048
_CONTRAST = (0.5, 99.8)
"""Percentiles of the intensities that become black and white."""
_JPEG_QUALITY = 90
_TWO_CHANNELS = np.array([[0, 1, 0], [1, 0, 1]], np.float32)
"""Green and magenta."""


class Preview:
    """Gathers the pixels of the pictures while a prediction goes by.

    Images with a side beyond 2048 pixels are shown by every second, third, … row and column.
    """

    def __init__(self, image: PixelSource, *, colors: Sequence[str], largest: float) -> None:
        """Prepare.

        Args:
            image: raw intensities, axes (C, Y, X).
            colors: ``#rrggbb`` of each class, background first.
            largest: uncertainty that is shown brightest.
        """
        self._image = image
        self._colors = np.array([ImageColor.getrgb(color) for color in colors], np.float32) / 255
        self._largest = largest
        self._step = math.ceil(max(image.shape[1:]) / _LONGEST_SIDE)
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def append(self, band: Band) -> None:
        """Add the next rows."""
        channels, _, width = self._image.shape
        rows = slice(-band.top % self._step, None, self._step)
        every = np.s_[..., rows, :: self._step]
        below = band.top + len(band.mask)
        pixels = self._image[slice(min(channels, 3)), slice(band.top, below), slice(width)]
        self._parts.append((pixels[every], band.mask[every], band.total[every]))

    def save_image(self, path: Path) -> None:
        """Write the image alone, as JPEG."""
        _picture(self._displayed).save(path, "JPEG", quality=_JPEG_QUALITY, subsampling=0)

    def save_overlay(self, path: Path) -> None:
        """Write the image with the outlines of the classes, as PNG."""
        from skimage.segmentation import find_boundaries

        picture = self._displayed.copy()
        mask = np.concatenate([part[1] for part in self._parts])
        outline = find_boundaries(mask, mode="inner")  # type: ignore[no-untyped-call]
        picture[outline] = self._colors[mask[outline]]
        _picture(picture).save(path, "PNG")

    def save_uncertainty(self, path: Path) -> None:
        """Write the total uncertainty in color, as PNG; the same color means the same value."""
        import matplotlib as mpl

        total = np.concatenate([part[2] for part in self._parts])
        levels = (total / self._largest * 255).round().clip(0, 255).astype(np.uint8)
        picture = PillowImage.fromarray(levels)
        palette = mpl.colormaps[UNCERTAINTY_COLORS](np.arange(256), bytes=True)[:, :3]
        picture.putpalette(palette.tobytes())
        text = PngInfo()
        text.add_text("Description", f"total uncertainty, darkest 0, brightest {self._largest:g}")
        picture.save(path, "PNG", pnginfo=text)

    @cached_property
    def _displayed(self) -> NDArray[np.float32]:
        return _displayed(np.concatenate([part[0] for part in self._parts], axis=1))


def _picture(colors: NDArray[np.float32]) -> PillowImage.Image:
    return PillowImage.fromarray((colors * 255).round().astype(np.uint8))


def _displayed(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return red, green and blue in [0, 1], axes (Y, X, 3), of up to three channels (C, Y, X)."""
    if len(pixels) == 3 and pixels.dtype == np.uint8:
        return np.moveaxis(pixels, 0, -1).astype(np.float32) / np.float32(255)
    values = pixels.astype(np.float32)
    low, high = np.percentile(values, _CONTRAST, axis=(1, 2), keepdims=True)
    stretched = ((values - low) / np.maximum(high - low, 1e-6)).clip(0, 1)
    if len(pixels) == 2:
        mixed: NDArray[np.float32] = np.einsum("cyx,cd->yxd", stretched, _TWO_CHANNELS).clip(0, 1)
        return mixed
    return np.moveaxis(np.broadcast_to(stretched, (3, *stretched.shape[1:])), 0, -1).copy()
