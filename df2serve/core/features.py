"""How far an image's deep features are from those of reference images.

Uncertainty cannot see everything: members may agree on what none of them knows. The deepest feature
map of a member's encoder tells what the member sees. Its mean over the pixels of a tile, and over
the tiles of an image, is one *vector* per member and image; vectors of images that the member
was not trained on are its *bank*; the distance of a new image to its nearest neighbors in the bank
is a score.

Source:
    Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors" (arXiv 2204.06507).
    Departures: the features are an encoder's, pooled over pixels and tiles, because there is no
    penultimate layer of a classifier; the mean over the k nearest vectors is taken instead of the
    distance to the k-th one, because banks are small; an image is never its own neighbor; distances
    are averaged over members.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64

__all__ = ["NEAREST", "FeatureMeans", "inside_shares", "nearest_distance"]

NEAREST = 5
"""Neighbors whose distances are averaged, or all where a bank has fewer."""

_TINY = np.finfo(np.float32).tiny


def inside_shares(kept: slice, *, side: int, cells: int) -> Float32[np.ndarray, " cells"]:
    """Return the weights of the cells of a feature map along one axis of a tile.

    Args:
        kept: samples of the tile that lie in the image, at least one.
        side: samples of the tile.
        cells: entries of the feature map, each of which stands for ``side / cells`` samples.

    Returns:
        Share of the kept samples that lie in each cell; sums to 1. The product of a weight per row
        and one per column makes of a feature map the mean over the tile's pixels in the image, each
        of which has the features of its cell.

    Example:
        >>> inside_shares(slice(3, 8), side=8, cells=4).tolist()
        [0.0, 0.20000000298023224, 0.4000000059604645, 0.4000000059604645]
    """
    edges = np.linspace(0, side, cells + 1)
    covered = np.minimum(edges[1:], kept.stop) - np.maximum(edges[:-1], kept.start)
    shares: Float32[np.ndarray, " cells"] = (covered.clip(0) / (kept.stop - kept.start)).astype(
        np.float32
    )
    return shares


class FeatureMeans:
    """Averages the features of tiles, member by member, in float64."""

    def __init__(self) -> None:
        """Start with no tiles."""
        self._sums: list[Float64[np.ndarray, " channels"]] = []
        self._tiles = 0

    def update(self, features: Sequence[Float32[np.ndarray, "tile _"]]) -> None:
        """Add some tiles.

        Args:
            features: of each member, axes (tile, channel); members may differ in their channels.
        """
        sums = [one.sum(axis=0, dtype=np.float64) for one in features]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._tiles else sums
        self._tiles += len(features[0])

    def compute(self) -> tuple[Float32[np.ndarray, " _"], ...]:
        """Return the vector of each member, of length 1, all tiles counting alike.

        A mean of zeros stays what it is; features that are infinite give what is not finite.
        """
        means = [total / self._tiles for total in self._sums]
        return tuple((mean / max(np.linalg.norm(mean), _TINY)).astype(np.float32) for mean in means)


def nearest_distance(
    vector: Float32[np.ndarray, " channels"], bank: Float32[np.ndarray, "image channels"]
) -> float:
    """Return the mean Euclidean distance of a vector to its nearest ones in a bank.

    Args:
        vector: of an image, of length 1.
        bank: of other images, at least one.

    Returns:
        Mean over the ``min(NEAREST, images)`` smallest distances, in [0, 2]; higher is odder.

    Example:
        >>> bank = np.array([[1, 0], [0, 1]], np.float32)
        >>> round(nearest_distance(np.array([1, 0], np.float32), bank), 4)
        0.7071
    """
    distances = np.linalg.norm(bank.astype(np.float64) - vector, axis=1)
    return float(np.sort(distances)[:NEAREST].mean())
