"""Names for the arrays that travel between the rooms.

Axes are channel-first. ``c`` image channels, ``k`` classes with background at 0, ``n`` tiles of a
batch, ``s`` samples of the predictive distribution (members times test-time views), ``y`` rows,
``x`` columns. The tests check shapes and dtypes against these names.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Integer, Num, UInt8

__all__ = [
    "AnyLabels",
    "AnyMask",
    "ImageArray",
    "LabelMap",
    "MaskArray",
    "PixelMap",
    "PixelSource",
    "ProbMap",
    "SampleProbs",
    "TileBatch",
    "TileProbs",
    "ValidMap",
    "Vector",
]

ImageArray: TypeAlias = Num[np.ndarray, "c y x"]
"""Raw intensities in the file's own dtype, axes (C, Y, X)."""

TileBatch: TypeAlias = Float32[np.ndarray, "n c y x"]
"""Normalised tiles, axes (N, C, Y, X)."""

TileProbs: TypeAlias = Float32[np.ndarray, "n k y x"]
"""Class probabilities per tile, axes (N, K, Y, X), in [0, 1], summing to 1 over K; members with a
distance channel append the relative distance to the boundary, in [0, 1], as map K + 1."""

SampleProbs: TypeAlias = Float32[np.ndarray, "s k y x"] | Float64[np.ndarray, "s k y x"]
"""Class probabilities of every sample (member and view), axes (S, K, Y, X)."""

ProbMap: TypeAlias = Float32[np.ndarray, "k y x"] | Float64[np.ndarray, "k y x"]
"""Class probabilities of an image or of a band of its rows, axes (K, Y, X)."""

PixelMap: TypeAlias = Float32[np.ndarray, "y x"] | Float64[np.ndarray, "y x"]
"""One real number per pixel, axes (Y, X)."""

MaskArray: TypeAlias = UInt8[np.ndarray, "y x"] | Integer[np.ndarray, "y x"]
"""Class indices, axes (Y, X), 0 = background."""

AnyMask: TypeAlias = Integer[np.ndarray, "y x"] | Bool[np.ndarray, "y x"]
"""Class indices or a binary mask, axes (Y, X), 0 or False = background."""

LabelMap: TypeAlias = Int32[np.ndarray, "y x"]
"""Instance labels, axes (Y, X), 0 = background."""

AnyLabels: TypeAlias = Integer[np.ndarray, "y x"]
"""Instance labels of any integer type, axes (Y, X), 0 = background."""

ValidMap: TypeAlias = Bool[np.ndarray, "y x"]
"""True where a pixel counts, False where it is to be ignored, axes (Y, X)."""

Vector: TypeAlias = Float32[np.ndarray, " n"] | Float64[np.ndarray, " n"]
"""One real number per row or per column."""


@runtime_checkable
class PixelSource(Protocol):
    """An image (C, Y, X) that hands out windows as arrays; it may live on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, rows and columns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the intensities."""

    def __getitem__(self, window: tuple[slice, slice, slice], /) -> np.ndarray[Any, Any]:
        """Return the window of channels, rows and columns."""
