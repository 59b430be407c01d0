"""Scores that weigh instances by how well they fit: aggregated Jaccard and panoptic quality.

They complete the average precision of :mod:`df2serve.core.metrics`, which asks only whether the
fit of an instance reaches a threshold. A score of two label maps without instances is ``None``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from scipy import sparse

from df2serve.core._overlap import Overlaps, find_overlaps
from df2serve.types import AnyLabels, ValidMap

__all__ = ["PanopticCounts", "aggregated_jaccard", "aggregated_jaccard_plus", "count_panoptic"]

_PANOPTIC_IOU = 0.5


@dataclass(frozen=True, slots=True)
class PanopticCounts:
    """Matches of one or, summed with ``+``, of many images; each has an IoU above one half."""

    true_positives: int
    """Matched pairs."""
    false_positives: int
    """Predicted instances without a partner."""
    false_negatives: int
    """Truth instances without a partner."""
    iou_sum: float
    """Sum of the IoU of all matched pairs."""

    @property
    def weight(self) -> float:
        """TP + FP / 2 + FN / 2: half the number of instances on both sides."""
        return self.true_positives + (self.false_positives + self.false_negatives) / 2

    @property
    def quality(self) -> float | None:
        """Panoptic quality ``Σ IoU / (TP + FP/2 + FN/2)``, in [0, 1]; ``None`` without instances.

        Source:
            Kirillov et al. 2019, "Panoptic Segmentation", eq. 1.
        """
        return self.iou_sum / self.weight if self.weight else None

    def __add__(self, other: PanopticCounts) -> PanopticCounts:
        """Pool the counts of two images, as mPQ+ of the CoNIC challenge does."""
        return PanopticCounts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.iou_sum + other.iou_sum,
        )


def count_panoptic(
    truth: AnyLabels, prediction: AnyLabels, *, min_size: int = 0, valid: ValidMap | None = None
) -> PanopticCounts:
    """Match instances whose IoU exceeds one half; each then has at most one partner.

    Args:
        truth: reference instances, axes (Y, X), 0 = background; ids need not be consecutive.
        prediction: instances to score, same axes.
        min_size: instances of fewer pixels are dropped from both label maps, as background.
        valid: pixels that count, axes (Y, X); all when absent.

    Raises:
        InputError: the shapes differ, or a label is negative.

    Source:
        Kirillov et al. 2019, "Panoptic Segmentation".

    Example:
        >>> truth, prediction = np.array([[1, 1, 1, 0, 2]]), np.array([[5, 5, 0, 0, 0]])
        >>> counts = count_panoptic(truth, prediction)
        >>> counts
        PanopticCounts(true_positives=1, false_positives=0, false_negatives=1, iou_sum=0.666...)
        >>> round(counts.quality, 4)  # 2/3 over 1 + 1/2
        0.4444
    """
    pairs = find_overlaps(truth, prediction, min_size=min_size, valid=valid)
    matched = pairs.iou[pairs.iou > _PANOPTIC_IOU]
    return PanopticCounts(
        true_positives=len(matched),
        false_positives=len(pairs.predicted_areas) - len(matched),
        false_negatives=len(pairs.truth_areas) - len(matched),
        iou_sum=float(matched.sum()),
    )


def aggregated_jaccard(
    truth: AnyLabels, prediction: AnyLabels, *, min_size: int = 0, valid: ValidMap | None = None
) -> float | None:
    """Return the aggregated Jaccard index (AJI).

    Every truth instance takes the predicted instance of largest IoU, even one that another has
    taken; of several the one that shares most pixels, then the one with the lowest label. Predicted
    instances that nobody took count in full as errors.

    Args:
        truth: reference instances, axes (Y, X), 0 = background; ids need not be consecutive.
        prediction: instances to score, same axes.
        min_size: instances of fewer pixels are dropped from both label maps, as background.
        valid: pixels that count, axes (Y, X); all when absent.

    Returns:
        Shared pixels of all pairs over their united pixels and those of instances left alone, in
        [0, 1]; ``None`` if both label maps are empty.

    Raises:
        InputError: the shapes differ, or a label is negative.

    Source:
        Kumar et al. 2017, "A Dataset and a Technique for Generalized Nuclear Segmentation".

    Example:
        Two cells that were found as one: both take it, so that its pixels count twice.

        >>> aggregated_jaccard(np.array([[1, 1, 1, 2, 2]]), np.array([[1, 1, 1, 1, 1]]))
        0.5
    """
    pairs = find_overlaps(truth, prediction, min_size=min_size, valid=valid)
    best_last = np.lexsort((-pairs.columns, pairs.shared, pairs.iou, pairs.rows))
    last_of_row = np.flatnonzero(np.diff(pairs.rows[best_last], append=-1))
    return _aggregated(pairs, best_last[last_of_row])


def aggregated_jaccard_plus(
    truth: AnyLabels, prediction: AnyLabels, *, min_size: int = 0, valid: ValidMap | None = None
) -> float | None:
    """Return AJI+, in which every predicted instance has one partner at most.

    Of all one-to-one matchings the one with the largest sum of IoU counts.

    Args:
        truth: reference instances, axes (Y, X), 0 = background; ids need not be consecutive.
        prediction: instances to score, same axes.
        min_size: instances of fewer pixels are dropped from both label maps, as background.
        valid: pixels that count, axes (Y, X); all when absent.

    Returns:
        As for :func:`aggregated_jaccard`.

    Raises:
        InputError: the shapes differ, or a label is negative.

    Source:
        Graham et al. 2019, "HoVer-Net", section "Evaluation metrics", and its published code.

    Example:
        >>> aggregated_jaccard_plus(np.array([[1, 1, 1, 2, 2]]), np.array([[1, 1, 1, 1, 1]]))
        0.42857142857142855
    """
    pairs = find_overlaps(truth, prediction, min_size=min_size, valid=valid)
    return _aggregated(pairs, _best_matching(pairs))


def _best_matching(pairs: Overlaps) -> Int64[np.ndarray, " m"]:
    """Return which pairs make the one-to-one matching with the largest sum of IoU."""
    n_truth, n_predicted = len(pairs.truth_areas), len(pairs.predicted_areas)
    if not len(pairs.rows):
        return np.zeros(0, np.int64)
    # every truth instance may stay alone, as the partner of a column of its own that is worth 0;
    # all values are raised by 1, because a sparse matrix holds no zeros
    alone = np.arange(n_truth)
    values = np.concatenate([1 + pairs.iou, np.ones(n_truth)])
    rows = np.concatenate([pairs.rows, alone])
    columns = np.concatenate([pairs.columns, n_predicted + alone])
    table = sparse.csr_array((values, (rows, columns)), shape=(n_truth, n_predicted + n_truth))
    partners = sparse.csgraph.min_weight_full_bipartite_matching(table, maximize=True)[1]
    matched: Int64[np.ndarray, " m"] = np.flatnonzero(partners[pairs.rows] == pairs.columns)
    return matched


def _aggregated(pairs: Overlaps, chosen: Int64[np.ndarray, " m"]) -> float | None:
    """Return shared over united pixels of the chosen pairs and of all that is in none of them."""
    united = (
        pairs.united[chosen].sum()
        + np.delete(pairs.truth_areas, pairs.rows[chosen]).sum()
        + np.delete(pairs.predicted_areas, pairs.columns[chosen]).sum()
    )
    return int(pairs.shared[chosen].sum()) / int(united) if united else None
