"""Connected regions of an image that passes by in bands of rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64
from scipy import ndimage, sparse

from df2serve.types import ValidMap

__all__ = ["ComponentCounter"]


class ComponentCounter:
    """Counts 4-connected components and their pixels; memory grows with their number alone."""

    def __init__(self) -> None:
        """Start with no rows."""
        self._areas: list[Int64[np.ndarray, " n"]] = []
        self._joined: list[Int64[np.ndarray, "pair n"]] = []
        self._count = 0
        self._last_row: Int64[np.ndarray, " x"] | None = None

    def update(self, inside: ValidMap) -> None:
        """Add the next rows.

        Args:
            inside: True where a pixel belongs to a region, axes (Y, X).
        """
        labels, found = ndimage.label(inside)
        self._areas.append(np.bincount(labels.ravel(), minlength=found + 1)[1:])
        numbered = np.where(labels[[0, -1]] > 0, labels[[0, -1]].astype(np.int64) + self._count, 0)
        if self._last_row is not None:
            touching = (self._last_row > 0) & (numbered[0] > 0)
            self._joined.append(np.stack([self._last_row[touching], numbered[0][touching]]) - 1)
        self._last_row = numbered[1]
        self._count += found

    def areas(self) -> Int64[np.ndarray, " n"]:
        """Return the pixels of every component of all rows added, in no particular order.

        Example:
            >>> counter = ComponentCounter()
            >>> counter.update(np.array([[True, False, True]]))
            >>> counter.update(np.array([[True, True, True], [False, False, False]]))
            >>> counter.areas()
            array([5])
        """
        if not self._count:
            return np.zeros(0, dtype=np.int64)
        parts = np.concatenate(self._areas)
        pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *self._joined], axis=1)
        touching = sparse.coo_array(
            (np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(self._count, self._count)
        )
        owners = sparse.csgraph.connected_components(touching, directed=False)[1]
        areas: Int64[np.ndarray, " n"] = np.bincount(owners, weights=parts).astype(np.int64)
        return areas
