"""Where tiles lie, which pixels they see, and how their results are blended.

A plan is the product of two independent axes, so that the blending weights are separable as well:
the sum of all windows over a pixel is the product of one number per row and one per column, and no
weight map of the image's size exists. Tiles are visited row by row; rows that no later tile can
touch are final and leave the :class:`Stitcher` at once, which bounds memory by the image's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from df2serve.config import CentreGrid, Grid, OverlapGrid

__all__ = ["AxisPlan", "Stitcher", "TilePlan", "TileSpec", "gaussian_window", "plan_tiles"]


@dataclass(frozen=True, eq=False)
class AxisPlan:
    """The tiles along one axis of an image."""

    length: int
    """Pixels of the image along the axis."""
    side: int
    """Pixels of a tile along the axis."""
    samples: NDArray[np.intp]
    """Image index that each sample of each tile shows, axes (tile, sample)."""
    kept: tuple[slice, ...]
    """Per tile: samples that lie inside the image."""
    placed: tuple[slice, ...]
    """Per tile: where the kept samples belong in the image, ascending."""

    def __len__(self) -> int:
        """Return the number of tiles along the axis."""
        return len(self.placed)

    def cell(self, tile: int) -> slice:
        """Return the samples of a tile that no other tile sees closer to its middle.

        The cells of all tiles divide the pixels of the axis among them.
        """
        start, stop = self.placed[tile].start, self.placed[tile].stop
        if tile > 0:
            start = max(start, self._border(tile))
        if tile + 1 < len(self):
            stop = min(stop, self._border(tile + 1))
        origin = self.placed[tile].start - self.kept[tile].start
        return slice(start - origin, max(start, stop) - origin)

    def _border(self, tile: int) -> int:
        """Return the first pixel of a tile's cell: halfway between two middles."""
        here, before = (
            int(self.placed[i].start - self.kept[i].start) + self.side / 2 for i in (tile, tile - 1)
        )
        return int(min(self.length, max(0, round((here + before) / 2))))

    def total_weight(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the sum of all tiles' windows over each pixel, axes (length,)."""
        total = np.zeros(self.length)
        for kept, placed in zip(self.kept, self.placed, strict=True):
            total[placed] += window[kept]
        return total.astype(np.float32)


@dataclass(frozen=True)
class TileSpec:
    """One tile: its place in the plan, counted from 0."""

    row: int
    column: int


@dataclass(frozen=True, eq=False)
class TilePlan:
    """All tiles of an image."""

    rows: AxisPlan
    columns: AxisPlan

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.rows) * len(self.columns)

    def cell(self, spec: TileSpec) -> tuple[slice, slice]:
        """Return the rows and columns of a tile that no other tile sees closer to its middle."""
        return self.rows.cell(spec.row), self.columns.cell(spec.column)

    def kept(self, spec: TileSpec) -> tuple[slice, slice]:
        """Return the rows and columns of a tile that lie in the image."""
        return self.rows.kept[spec.row], self.columns.kept[spec.column]

    def row_span(self, row: int) -> slice:
        """Return the image rows that the tiles of one tile row see."""
        samples = self.rows.samples[row]
        return slice(int(samples.min()), int(samples.max()) + 1)

    def cut(self, band: NDArray[np.generic], spec: TileSpec) -> NDArray[np.generic]:
        """Cut a tile, reflecting where it reaches beyond the image.

        Args:
            band: the image rows ``row_span(spec.row)``, axes (C, Y, X).
            spec: which tile.

        Returns:
            The tile, axes (C, tile rows, tile columns), in the band's type; a view where possible.
        """
        rows = self.rows.samples[spec.row]
        columns = self.columns.samples[spec.column]
        return _take(_take(band, rows - rows.min(), axis=1), columns, axis=2)


def gaussian_window(side: int, sigma: float) -> NDArray[np.float32]:
    """Return the blending window along one axis, with maximum 1.

    Args:
        side: pixels of a tile.
        sigma: standard deviation as a share of the side.

    Returns:
        ``exp(-(i - (side - 1) / 2)^2 / (2 (sigma * side)^2))`` over its maximum, axes (side,).

    Source:
        Griebel et al. 2023, "Semantic segmentation"; deepflash2 ``gaussian_kernel_2d``, whose
        kernel is the outer product of two such windows.

    Example:
        >>> [round(float(w), 4) for w in gaussian_window(4, 0.25)]
        [0.3679, 1.0, 1.0, 0.3679]
    """
    offsets = np.arange(side) - (side - 1) / 2
    window = np.exp(-(offsets**2) / (2 * (sigma * side) ** 2))
    normalized: NDArray[np.float32] = (window / window.max()).astype(np.float32)
    return normalized


@lru_cache(maxsize=8)  # images of a stack or a request are often of one size
def plan_tiles(shape: tuple[int, int], tile_shape: tuple[int, int], grid: Grid) -> TilePlan:
    """Return the plan of an image.

    Args:
        shape: rows and columns of the image.
        tile_shape: rows and columns of a tile.
        grid: rule of the tile positions.

    Source:
        :class:`~df2serve.config.CentreGrid`: deepflash2, ``inference.py`` ``TileModule``.

    Example:
        >>> plan = plan_tiles((1024, 1280), (512, 512), OverlapGrid(overlap=0.5))
        >>> len(plan), [span.start for span in plan.columns.placed]
        (12, [0, 256, 512, 768])
        >>> len(plan_tiles((1024, 1280), (512, 512), CentreGrid()))
        42
    """
    match grid:
        case OverlapGrid():
            rows, columns = (
                _overlap_axis(length, side, grid.overlap)
                for length, side in zip(shape, tile_shape, strict=True)
            )
        case CentreGrid():
            rows, columns = (
                _centre_axis(length, side, grid)
                for length, side in zip(shape, tile_shape, strict=True)
            )
        case _:
            assert_never(grid)
    return TilePlan(rows=rows, columns=columns)


class Stitcher:
    """Blends tile results with a Gaussian window and hands out rows as they become final.

    Tiles must come tile row by tile row; within a row the order is free.
    """

    def __init__(self, plan: TilePlan, *, channels: int, sigma: float) -> None:
        """Allocate the band.

        Args:
            plan: the tiles that will come.
            channels: maps per tile to blend.
            sigma: standard deviation of the window as a share of the tile's side.
        """
        rows, columns = plan.rows, plan.columns
        row_window = gaussian_window(rows.side, sigma)
        column_window = gaussian_window(columns.side, sigma)
        self._plan = plan
        self._window = row_window[:, None] * column_window
        self._row_weight = rows.total_weight(row_window)
        self._column_weight = columns.total_weight(column_window)
        height = max(placed.stop - placed.start for placed in rows.placed)
        self._band = np.zeros((channels, height, columns.length), dtype=np.float32)
        self._top = 0

    def add(self, spec: TileSpec, values: NDArray[np.float32]) -> None:
        """Add the maps of one tile, axes (channels, tile rows, tile columns)."""
        rows, columns = self._plan.rows, self._plan.columns
        kept = self._plan.kept(spec)
        placed = rows.placed[spec.row]
        target = slice(placed.start - self._top, placed.stop - self._top)
        self._band[:, target, columns.placed[spec.column]] += (
            values[(slice(None), *kept)] * self._window[kept]
        )

    def finish_row(self, row: int) -> NDArray[np.float32]:
        """Return the rows that became final with a tile row.

        Args:
            row: the tile row of which all tiles were added.

        Returns:
            Blended maps of the next image rows, axes (channels, rows, X); possibly no rows.
        """
        rows = self._plan.rows
        bottom = rows.length if row + 1 == len(rows) else rows.placed[row + 1].start
        count = bottom - self._top
        weight = self._row_weight[self._top : bottom, None] * self._column_weight
        final: NDArray[np.float32] = self._band[:, :count] / weight
        rest = self._band.shape[1] - count
        self._band[:, :rest] = self._band[:, count:]
        self._band[:, rest:] = 0
        self._top = bottom
        return final


def _take(
    array: NDArray[np.generic], indices: NDArray[np.intp], *, axis: int
) -> NDArray[np.generic]:
    """Return ``np.take``, as a view where the indices are consecutive."""
    first, last = int(indices[0]), int(indices[-1])
    if last - first + 1 == len(indices) and bool((np.diff(indices) == 1).all()):
        window = [slice(None)] * array.ndim
        window[axis] = slice(first, last + 1)
        return array[tuple(window)]
    return np.take(array, indices, axis=axis)


def _reflect(positions: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Return positions mirrored into the image with the edge pixel repeated (``dcba|abcd|dcba``).

    Example:
        >>> _reflect(np.arange(-3, 6), 3).tolist()
        [2, 1, 0, 0, 1, 2, 2, 1, 0]
    """
    folded: NDArray[np.intp] = np.mod(positions, 2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)


def _overlap_axis(length: int, side: int, overlap: float) -> AxisPlan:
    """Spread as few tiles as the overlap allows evenly from edge to edge."""
    if length <= side:
        origins = np.array([-((side - length) // 2)])
    else:
        step = max(1, int(side * (1 - overlap)))
        count = -(-(length - side) // step) + 1
        origins = np.rint(np.linspace(0, length - side, count)).astype(np.intp)
    positions = origins[:, None] + np.arange(side)
    return _axis_plan(length, side, origins, _reflect(positions, length))


def _centre_axis(length: int, side: int, grid: CentreGrid) -> AxisPlan:
    """Apply deepflash2's centre rule; centres may lie outside images smaller than a tile."""
    padding = side * grid.border_padding_factor
    first = side / 2 - padding
    count = int((length + 2 * padding) // (side * grid.max_tile_shift)) + 1
    centres = _integer_linspace(int(first), int(length - first), count)
    samples = np.stack([_resampled(int(centre), length, side) for centre in centres])
    return _axis_plan(length, side, centres - side // 2, samples)


def _axis_plan(
    length: int, side: int, origins: NDArray[np.intp], samples: NDArray[np.intp]
) -> AxisPlan:
    starts = [(max(int(o), 0), min(int(o) + side, length)) for o in origins]
    order = sorted(range(len(origins)), key=lambda i: starts[i])
    return AxisPlan(
        length=length,
        side=side,
        samples=samples[order],
        kept=tuple(
            slice(starts[i][0] - int(origins[i]), starts[i][1] - int(origins[i])) for i in order
        ),
        placed=tuple(slice(*starts[i]) for i in order),
    )


def _integer_linspace(start: int, end: int, count: int) -> NDArray[np.intp]:
    """Return ``torch.linspace(start, end, count, dtype=torch.int64)``.

    The first half steps from the start and the second half back from the end; every value is cut
    toward zero.

    Example:
        >>> _integer_linspace(128, 896, 6).tolist()
        [128, 281, 435, 588, 742, 896]
    """
    if count == 1:
        return np.array([start], dtype=np.intp)
    index = np.arange(count)
    step = (end - start) / (count - 1)
    forward = start + step * index
    backward = end - step * (count - 1 - index)
    return np.trunc(np.where(index < count // 2, forward, backward)).astype(np.intp)


def _resampled(centre: int, length: int, side: int) -> NDArray[np.intp]:
    """Return the image index behind each sample of a tile as deepflash2 resamples it.

    deepflash2 reads tiles with ``grid_sample`` on ``linspace(-1, 1, side)``, which puts sample i
    at ``i / (side - 1) - 1/2`` pixels from its own position. All inner samples round to the exact
    pixel; the first and the last sit on a rounding edge and may be off by one, decided by float32
    arithmetic, which is followed here step by step, fused multiply-adds included.
    """
    half_length = np.float32(length / 2)
    index = np.arange(side, dtype=np.float32)
    step = np.float32(2) / np.float32(side - 1)
    first_half = np.arange(side) < side // 2
    field = np.where(first_half, _fused(step, index, -1.0), -_fused(step, index[::-1], -1.0))
    relative = (np.float32(centre) - half_length) / half_length
    grid = field * np.float32(side / length) + relative
    position = _fused(half_length, grid + np.float32(1), -0.5)
    half = np.float32(0.5)
    span = np.float32(2 * length)
    folded = np.mod(np.abs(position + half), span)
    reflected = np.minimum(folded, span - folded) - half
    indices: NDArray[np.intp] = np.rint(np.clip(reflected, 0, length - 1)).astype(np.intp)
    return indices


def _fused(factor: np.float32, values: NDArray[np.float32], addend: float) -> NDArray[np.float32]:
    """Return ``factor * values + addend`` rounded once: a product of two float32 fits float64."""
    exact = np.float64(factor) * values.astype(np.float64) + addend
    return exact.astype(np.float32)
