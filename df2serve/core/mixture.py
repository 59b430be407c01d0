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

    @classmethod
    def from_samples(cls, samples: Iterable[NDArray[np.float32]]) -> Mixture:
        """Return the mixture of class probabilities given one by one, each (N, K, Y, X)."""
        iterator = iter(samples)
        first = next(iterator)
        mixture = cls(probs=first.copy(), squares=_sum_of_squares(first), count=1)
        for probs in iterator:
            mixture += cls(probs=probs, squares=_sum_of_squares(probs), count=1)
        return mixture

    def __iadd__(self, other: Mixture) -> Mixture:
        """Pool the samples of another mixture into this one."""
        self.probs += other.probs
        self.squares += other.squares
        self.count += other.count
        return self

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean class probabilities (eq. 1), axes (N, K, Y, X)."""
        return self.probs / np.float32(self.count)

    @property
    def mean_square(self) -> NDArray[np.float32]:
        """Mean over samples of the sum over classes of squared probabilities, axes (N, Y, X)."""
        return self.squares / np.float32(self.count)


def _sum_of_squares(probs: NDArray[np.float32]) -> NDArray[np.float32]:
    total: NDArray[np.float32] = np.einsum("nkyx,nkyx->nyx", probs, probs)
    return total
