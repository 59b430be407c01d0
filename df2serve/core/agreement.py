"""How far the members of an ensemble agree on where objects are.

The total uncertainty sees the mean of the members alone; that they contradict each other shows in
the overlap of their masks. Every pixel is counted once, in its *cell*: the tile whose window is
largest there. Member maps are therefore never stitched, and cost no memory of the image's size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Integer

from df2serve.types import MaskArray, ProbMap

__all__ = ["MemberAgreement", "most_probable"]


def most_probable(probs: ProbMap) -> MaskArray:
    """Return the class of every pixel (eq. 2), the lowest index on ties.

    Args:
        probs: class probabilities, axes (K, Y, X).

    Returns:
        Axes (Y, X), smallest unsigned type that holds K - 1.

    Example:
        >>> most_probable(np.array([[[0.5, 0.2]], [[0.5, 0.8]]]))
        array([[0, 1]], dtype=uint8)
    """
    best, classes = probs[0], np.zeros(probs.shape[1:], dtype=np.min_scalar_type(len(probs) - 1))
    for index in range(1, len(probs)):  # much faster than argmax for few classes
        classes[probs[index] > best] = index
        best = np.maximum(best, probs[index])
    return classes


class MemberAgreement:
    """Gathers how many pixels the masks of members share, in exact counts."""

    def __init__(self, members: int, num_classes: int) -> None:
        """Start with no pixels.

        Args:
            members: M.
            num_classes: K, background included.
        """
        masks = members + 1
        self._shared = np.zeros((num_classes - 1, masks, masks), dtype=np.int64)

    def update(self, masks: Integer[np.ndarray, "m n"]) -> None:
        """Add pixels.

        Args:
            masks: predicted classes of every member and, last, of their mean, axes (M + 1, N).
        """
        for index, shared in enumerate(self._shared, start=1):
            bits = np.packbits(masks == index, axis=1)
            for mask, own in enumerate(bits):
                both = np.bitwise_count(own & bits[mask:])
                shared[mask, mask:] += both.sum(axis=1, dtype=np.int64)

    @property
    def one_minus_pairwise_dice(self) -> float | None:
        """1 - mean Dice score of all pairs of members; 0 if all are empty, absent for one member.

        Source:
            Roy et al. 2019, "Bayesian QuickNAT"; Zenk et al. 2025, arXiv 2406.03323.
        """
        pairs = np.triu_indices(self._shared.shape[1] - 1, k=1)
        return self._distance(np.stack([_dice(shared)[pairs] for shared in self._shared]))

    @property
    def one_minus_member_dice(self) -> float | None:
        """1 - mean Dice score of members with the ensemble; 0 if all are empty, absent for one."""
        return self._distance(np.stack([_dice(shared)[:-1, -1] for shared in self._shared]))

    def _distance(self, dice: Float64[np.ndarray, "k n"]) -> float | None:
        """Return 1 - mean over the classes that a mask has, and over pairs."""
        if self._shared.shape[1] <= 2:
            return None
        present = np.einsum("kmm->k", self._shared) > 0
        return float(1 - dice[present].mean()) if present.any() else 0.0


def _dice(shared: Int64[np.ndarray, "m m"]) -> Float64[np.ndarray, "m m"]:
    """Return the Dice scores of all pairs of masks above the diagonal; 1 where both are empty."""
    areas = np.diagonal(shared)
    both = areas[:, None] + areas
    scores: Float64[np.ndarray, "m m"] = np.divide(
        2.0 * shared, both, out=np.ones(shared.shape), where=both > 0
    )
    return scores
