"""Test-time views of a tile and their exact inverses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["View", "views"]


@dataclass(frozen=True)
class View:
    """A symmetry of the square: transpose the last two axes, then reverse rows and columns."""

    transpose: bool
    """Exchange rows and columns first; turns tiles, which therefore have to be square."""
    flip_y: bool
    """Reverse the rows."""
    flip_x: bool
    """Reverse the columns."""

    @property
    def flipped_axes(self) -> tuple[int, ...]:
        """The axes to reverse, counted from the end: -2 for rows, -1 for columns."""
        return (-2,) * self.flip_y + (-1,) * self.flip_x

    def apply(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """Return the view of tiles, axes (..., Y, X)."""
        turned = tiles.swapaxes(-2, -1) if self.transpose else tiles
        return np.flip(turned, self.flipped_axes)

    def invert(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Bring maps of the view, axes (..., Y, X), back to the tile's own orientation.

        Example:
            >>> tile = np.arange(4).reshape(2, 2)
            >>> quarter_turn = View(transpose=True, flip_y=False, flip_x=True)
            >>> quarter_turn.apply(tile).tolist()
            [[2, 0], [3, 1]]
            >>> quarter_turn.invert(quarter_turn.apply(tile)).tolist()
            [[0, 1], [2, 3]]
        """
        restored = np.flip(maps, self.flipped_axes)
        return restored.swapaxes(-2, -1) if self.transpose else restored


def views(count: int) -> tuple[View, ...]:
    """Return the first ``count`` (1, 4 or 8) views.

    1 is the identity; 4 adds the vertical flip, the horizontal flip and both, as the paper's
    original code does; 8 adds the same four of the transposed tile.
    """
    every = [
        View(transpose=transpose, flip_y=flip_y, flip_x=flip_x)
        for transpose in (False, True)
        for flip_x in (False, True)
        for flip_y in (False, True)
    ]
    return tuple(every[:count])
