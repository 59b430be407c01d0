"""To a coarser resolution by averaging, and back by interpolation; both row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from df2serve.types import PixelSource

__all__ = ["CoarseSource", "RowInterpolator", "coarse_shape", "zoom_out"]


def coarse_shape(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return rows and columns at a coarser resolution.

    Args:
        shape: rows and columns.
        factor: pixels per coarse pixel along each axis, 1 or more.

    Example:
        >>> coarse_shape((1024, 1), 1.5)
        (682, 1)
    """
    rows, columns = (max(1, int(length / factor)) for length in shape)
    return rows, columns


def zoom_out(pixels: NDArray[Any], factor: float) -> NDArray[Any]:
    """Return an image at a coarser resolution, each pixel the mean over the area that it covers.

    Args:
        pixels: intensities, axes (C, Y, X).
        factor: pixels of the image per coarse pixel along each axis, 1 or more.

    Returns:
        Intensities in the same type, integers rounded, axes (C, Y, X), see :func:`coarse_shape`.

    Example:
        >>> zoom_out(np.array([[[0, 2, 9, 9], [4, 6, 9, 9]]], np.uint8), 2.0)
        array([[[3, 9]]], dtype=uint8)
    """
    source = CoarseSource(pixels, factor)
    channels, height, width = source.shape
    return source[0:channels, 0:height, 0:width]


class CoarseSource:
    """An image at a coarser resolution that is read, and averaged, when it is asked for."""

    def __init__(self, source: PixelSource, factor: float) -> None:
        """Wrap an image.

        Args:
            source: intensities, axes (C, Y, X).
            factor: its pixels per coarse pixel along each axis, 1 or more.
        """
        channels, height, width = source.shape
        self._source = source
        self._factor = factor
        self.shape = (channels, *coarse_shape((height, width), factor))
        """Channels, rows and columns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the intensities."""
        return self._source.dtype

    def __getitem__(self, window: tuple[slice, slice, slice], /) -> NDArray[Any]:
        """Return a window of channels, rows and columns."""
        if self._factor == 1:
            return self._source[window]
        channels = window[0]
        row_edges, rows = self._edges(window[1], axis=1)
        column_edges, columns = self._edges(window[2], axis=2)
        fine = np.asarray(self._source[channels, rows, columns], np.float64)
        coarse = _means(np.moveaxis(_means(fine, column_edges), 1, 2), row_edges)
        coarse = np.moveaxis(coarse, 1, 2)
        return (coarse if self.dtype.kind == "f" else np.rint(coarse)).astype(self.dtype)

    def _edges(self, window: slice, *, axis: int) -> tuple[NDArray[np.float64], slice]:
        """Return where coarse pixels begin and end within the pixels to read, and these."""
        length, count = self._source.shape[axis], self.shape[axis]
        start, stop, _ = window.indices(count)
        edges = np.arange(start, stop + 1) * (length / count)
        first, last = int(edges[0]), min(length, int(np.ceil(edges[-1])))
        return np.minimum(edges, length) - first, slice(first, last)


class RowInterpolator:
    """Bilinear interpolation of maps whose coarse rows come from top to bottom.

    Source:
        ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``.
    """

    def __init__(self, coarse: tuple[int, int], fine: tuple[int, int]) -> None:
        """Lay out both grids.

        Args:
            coarse: rows and columns of what is pushed, all in all.
            fine: rows and columns of what is returned, all in all.
        """
        self._above, self._below, self._row_shares = _neighbors(coarse[0], fine[0])
        self._left, self._right, self._column_shares = _neighbors(coarse[1], fine[1])
        self._pushed = 0
        self._returned = 0
        self._kept: NDArray[np.float32] | None = None

    def push(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the fine rows that are final now.

        Args:
            rows: the next coarse rows, axes (C, rows, X).
        """
        kept = rows if self._kept is None else np.concatenate([self._kept, rows], axis=1)
        self._pushed += rows.shape[1]
        first = self._pushed - kept.shape[1]
        start = self._returned
        stop = int(np.searchsorted(self._below, self._pushed))
        above, below = self._above[start:stop] - first, self._below[start:stop] - first
        share = self._row_shares[start:stop, None]
        tall = kept[:, above] * (1 - share) + kept[:, below] * share
        self._returned = stop
        needed = self._above[stop] - first if stop < len(self._above) else kept.shape[1]
        self._kept = kept[:, needed:]
        left, right = tall[:, :, self._left], tall[:, :, self._right]
        fine: NDArray[np.float32] = left * (1 - self._column_shares) + right * self._column_shares
        return fine


def _means(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return means of the last axis between edges, which may lie within a value."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    whole = np.minimum(edges.astype(np.intp), values.shape[-1] - 1)
    until = sums[..., whole] + values[..., whole] * (edges - whole)
    means: NDArray[np.float64] = np.diff(until, axis=-1) / np.diff(edges)
    return means


def _neighbors(
    coarse: int, fine: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return the coarse pixels on both sides of each fine one, and the share of the latter."""
    places = np.clip((np.arange(fine) + 0.5) * (coarse / fine) - 0.5, 0, coarse - 1)
    before = places.astype(np.intp)
    return before, np.minimum(before + 1, coarse - 1), (places - before).astype(np.float32)
