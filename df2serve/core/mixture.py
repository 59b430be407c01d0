"""Sufficient statistics of the ensemble's predictive distribution.

The samples are the outputs of M members under T test-time views. Their mean gives the prediction
and the whole of eq. 3; one more number per pixel, the mean of the sum of squares over the classes,
splits the variance into its two parts. Nothing of size M x T is ever kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mixture"]


@dataclass(eq=False)
class Mixture:
    """Sums over samples; adding mixtures pools their samples."""

    probs: NDArray[np.float32]
    """Sum over samples of the class probabilities, axes (N, K, Y, X)."""
    squares: NDArray[np.float32]
    """Sum over samples of the sum over classes of squared probabilities, axes (N, Y, X)."""
    count: int
    """Number of samples."""
    distance: NDArray[np.float32] | None = None
    """Sum over samples of the relative distance to the boundary, axes (N, Y, X), where the members
    have such a channel."""

    @classmethod
    def from_samples(
        cls, samples: Iterable[NDArray[np.float32]], *, distance: bool = False
    ) -> Mixture:
        """Return the mixture of what a member gives, sample by sample.

        Args:
            samples: class probabilities, each (N, K, Y, X), or (N, K + 1, Y, X) with the distance.
            distance: whether the last map of every sample is the distance.
        """
        parts = (cls._of_sample(sample, distance=distance) for sample in samples)
        mixture = next(parts)
        for part in parts:
            mixture += part
        return mixture

    @classmethod
    def _of_sample(cls, maps: NDArray[np.float32], *, distance: bool) -> Mixture:
        probs = maps[:, :-1] if distance else maps
        return cls(
            probs=probs.copy(),
            squares=_sum_of_squares(probs),
            count=1,
            distance=maps[:, -1].copy() if distance else None,
        )

    def __iadd__(self, other: Mixture) -> Mixture:
        """Pool the samples of another mixture into this one."""
        self.probs += other.probs
        self.squares += other.squares
        self.count += other.count
        if self.distance is not None and other.distance is not None:
            self.distance += other.distance
        return self

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean class probabilities (eq. 1), axes (N, K, Y, X)."""
        return self.probs / np.float32(self.count)

    @property
    def mean_square(self) -> NDArray[np.float32]:
        """Mean over samples of the sum over classes of squared probabilities, axes (N, Y, X)."""
        return self.squares / np.float32(self.count)

    @property
    def mean_distance(self) -> NDArray[np.float32] | None:
        """Mean relative distance to the boundary, axes (N, Y, X), where there is one."""
        return None if self.distance is None else self.distance / np.float32(self.count)


def _sum_of_squares(probs: NDArray[np.float32]) -> NDArray[np.float32]:
    total: NDArray[np.float32] = np.einsum("nkyx,nkyx->nyx", probs, probs)
    return total
