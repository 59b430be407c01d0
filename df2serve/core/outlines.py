"""Outlines of regions along the sides of pixels, and the regions inside of outlines.

Pixel (row, column) is the square between the corners (column, row) and (column + 1, row + 1). An
outline is a closed loop of corners, axes (N, 2), each a column and a row, with the region on its
right as seen on a screen: outer outlines run clockwise there, those of holes the other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from skimage.measure import label

from df2serve.core.instances import Box
from df2serve.types import AnyLabels

__all__ = ["Outline", "enclosed_area", "fill_outlines", "trace_outlines"]

Outline: TypeAlias = Int64[np.ndarray, "_ 2"]
"""Corners in order, the first not repeated at the end."""

_AHEAD = ((0, 0), (0, 1), (1, 1), (1, 0))
"""How far the pixel on the right lies above and left of a corner's lower right one, for outlines
that leave the corner to the right, down, to the left and up."""
_SHIFT = 1e-8
"""By how much ImageJ moves outlines to the right before it rounds."""
_CROSSINGS = 1 << 21
"""Crossings of outlines and rows that are computed at a time."""


def trace_outlines(labels: AnyLabels) -> dict[int, list[list[Outline]]]:
    """Return the outlines of all objects.

    No outline meets itself, not even at a corner; those of an object enclose exactly its pixels.

    Args:
        labels: objects, axes (Y, X), 0 = background; numbers may be missing.

    Returns:
        For each number, in order, its parts of pixels that are connected by their sides; for each
        part its outer outline and then those of its holes.

    Example:
        >>> ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        >>> [[outer, hole]] = trace_outlines(ring)[1]
        >>> outer.tolist(), hole.tolist()
        ([[0, 0], [3, 0], [3, 3], [0, 3]], [[1, 2], [2, 2], [2, 1], [1, 1]])
    """
    parts = label(labels, background=0, connectivity=1)  # type: ignore[no-untyped-call]
    outlines: dict[tuple[int, int], list[Outline]] = {}
    for pixel, outline in _loops(parts):
        of_part = outlines.setdefault((int(labels.flat[pixel]), int(parts.flat[pixel])), [])
        of_part.insert(0 if enclosed_area(outline) > 0 else len(of_part), outline)
    objects: dict[int, list[list[Outline]]] = {}
    for (number, _), of_part in sorted(outlines.items(), key=itemgetter(0)):
        objects.setdefault(number, []).append(of_part)
    return objects


def enclosed_area(outline: Outline) -> int:
    """Return the number of pixels inside of an outline, negative for that of a hole.

    Example:
        >>> enclosed_area(np.array([[0, 0], [3, 0], [3, 2], [0, 2]]))
        6
    """
    column, row = outline.T
    following = np.roll(outline, -1, axis=0)
    return int((column * following[:, 1] - following[:, 0] * row).sum()) // 2


def fill_outlines(
    outlines: Sequence[Float[np.ndarray, "_ 2"] | Outline], shape: tuple[int, int]
) -> tuple[Box, Bool[np.ndarray, "y x"]]:
    """Return the pixels inside of outlines: those whose middle an odd number of outlines encloses.

    Args:
        outlines: closed loops, axes (N, 2), each point a column and a row, fractions too.
        shape: rows and columns of the image; what is outside of it is left out.

    Returns:
        Rows and columns that hold the region, and where it is in there.

    Source:
        Middles that lie on an outline count as ImageJ counts them (documentation of its class
        PolygonFiller): outside on the left and at the top, inside on the right and at the bottom.

    Example:
        >>> box, inside = fill_outlines([np.array([[1.0, 0.0], [3.6, 0.0], [1.0, 2.0]])], (5, 5))
        >>> box, inside.tolist()
        ((slice(0, 2, None), slice(1, 4, None)), [[True, True, False], [True, False, False]])
    """
    points = np.concatenate(outlines).astype(np.float64)
    limits = shape[::-1]
    low = np.clip(np.floor(points.min(axis=0)), 0, limits).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)), low, limits).astype(int)
    width, height = (high - low).tolist()
    toggles = np.zeros(height * (width + 1), np.int64)
    following = np.concatenate([np.roll(outline, -1, axis=0) for outline in outlines])
    edges = np.stack([points, following.astype(np.float64)], axis=1) - low
    for row, column in _crossings(edges, height):
        toggles += np.bincount(row * (width + 1) + column.clip(0, width), minlength=len(toggles))
    parity = toggles.reshape(height, width + 1).cumsum(axis=1)[:, :width] % 2
    box = slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))
    return box, parity.astype(bool)


@dataclass(frozen=True, eq=False)
class _Runs:
    """The straight parts of all outlines."""

    corner: list[int]
    """Where each begins: corners are counted row by row."""
    following: list[int]
    """The run that goes on where each ends."""
    pixel: list[int]
    """A pixel on the right of each, counted row by row."""
    columns: int
    """Corners per row."""


def _loops(labels: AnyLabels) -> Iterator[tuple[int, Outline]]:
    """Yield a pixel inside, and an outline; cut where an outline meets itself."""
    runs = _runs(labels)
    used = [False] * len(runs.corner)
    for first in range(len(used)):
        path: list[int] = []
        place: dict[int, int] = {}
        run = first
        while not used[run]:
            used[run] = True
            if (corner := runs.corner[run]) in place:
                closed = path[place[corner] :]
                del path[place[corner] :]
                for met in closed:
                    del place[met]
                yield runs.pixel[first], _corners(closed, runs.columns)
            place[corner] = len(path)
            path.append(corner)
            run = runs.following[run]
        if path:
            yield runs.pixel[first], _corners(path, runs.columns)


def _corners(path: Sequence[int], columns: int) -> Outline:
    row, column = np.divmod(np.array(path, np.int64), columns)
    return np.stack([column, row], axis=1)


def _runs(labels: AnyLabels) -> _Runs:
    """Find the runs of all outlines; pixels that only share a corner are not connected."""
    wide = np.pad(labels, 1)
    columns = wide.shape[1] - 1
    count = (wide.shape[0] - 1) * columns
    # the pixels around each corner, clockwise from the one at its lower right
    around = wide[1:, 1:], wide[1:, :-1], wide[:-1, :-1], wide[:-1, 1:]
    begins, ends, pixels = [], [], []
    for direction in range(4):
        ahead, behind, behind_left, ahead_left = (around[(direction + i) % 4] for i in range(4))
        leaves = (ahead > 0) & (ahead != ahead_left)
        arrives = (behind > 0) & (behind != behind_left)
        straight = leaves & arrives & (ahead == behind)
        # runs of a line do not overlap, so that its k-th beginning belongs to its k-th end
        begin = _in_lines(leaves & ~straight, direction)
        ends.append(_in_lines(arrives & ~straight, direction))
        begins.append(begin + direction * count)
        row, column = np.divmod(begin, columns)
        up, left = _AHEAD[direction]
        pixels.append((row - up) * labels.shape[1] + column - left)
    keys = np.concatenate(begins)
    order = np.argsort(keys)
    turned = [
        _find(
            keys,
            order,
            [end + (direction + turn) % 4 * count for direction, end in enumerate(ends)],
        )
        for turn in (1, -1)
    ]
    return _Runs(
        corner=(keys % count).tolist(),
        following=np.where(turned[0] >= 0, *turned).tolist(),
        pixel=np.concatenate(pixels).tolist(),
        columns=columns,
    )


def _find(
    keys: NDArray[np.int64], order: NDArray[np.int64], wanted: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Return the places of values among keys, -1 for those that are absent."""
    values = np.concatenate(wanted)
    found = order[np.searchsorted(keys, values, sorter=order).clip(max=len(keys) - 1)]
    return np.where(keys[found] == values, found, -1)


def _in_lines(corners: Bool[np.ndarray, "y x"], direction: int) -> NDArray[np.int64]:
    """Return the numbers of corners along rows, or along columns for vertical directions."""
    if direction % 2 == 0:
        return np.flatnonzero(corners)
    column, row = np.nonzero(corners.T)
    numbers: NDArray[np.int64] = row * corners.shape[1] + column
    return numbers


def _crossings(
    edges: Float[np.ndarray, "n 2 2"], height: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the rows whose middle an edge crosses, and the first column right of the crossing."""
    rows = np.ceil(edges[:, :, 1] - 0.5)
    top = np.clip(rows.min(axis=1), 0, height).astype(np.int64)
    counts = np.clip(rows.max(axis=1), 0, height).astype(np.int64) - top
    crossing = counts > 0
    edges, top, counts = edges[crossing], top[crossing], counts[crossing]
    (x1, y1), (x2, y2) = edges[:, 0].T, edges[:, 1].T
    slope = (x2 - x1) / (y2 - y1)
    total = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, done + _CROSSINGS, side="right")))
        edge = np.repeat(np.arange(start, stop), counts[start:stop])
        row = (
            np.arange(len(edge))
            - np.repeat(total[start:stop] - counts[start:stop] - done, counts[start:stop])
            + top[edge]
        )
        column = np.floor(x1[edge] + (row + 0.5 - y1[edge]) * slope[edge] + _SHIFT + 0.5)
        yield row, np.clip(column, -1, np.iinfo(np.int64).max >> 1).astype(np.int64)
        start = stop
