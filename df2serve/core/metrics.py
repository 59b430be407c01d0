"""Agreement of a mask or of instances with a reference.

Two families of scores. Dice compares pixels: binary, per class, and averaged over classes.
Instance scores compare objects: a truth and a predicted instance match when their intersection
over union (IoU) reaches a threshold, and every instance matches at most once.

A score that is not defined, such as the Dice of two empty masks, is ``None``, never NaN, so that an
average over images has to say what it does with it. Pixels outside ``valid`` do not exist for any
score: an instance is what is left of it inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import ndimage, sparse

from df2serve.core._overlap import counted, find_overlaps, require_same_shape
from df2serve.errors import InputError
from df2serve.types import AnyLabels, AnyMask, LabelMap, ValidMap

__all__ = [
    "IOU_THRESHOLDS",
    "MatchCounts",
    "dice",
    "dice_per_class",
    "label_components",
    "match_instances",
    "mean_average_precision",
    "mean_dice",
]

IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""Thresholds that the mean average precision runs over, 0.50 to 0.95 in steps of 0.05."""


# -- pixels -------------------------------------------------------------------------------------


def dice(truth: AnyMask, prediction: AnyMask, *, valid: ValidMap | None = None) -> float | None:
    """Return the Dice score of two binary masks.

    Args:
        truth: reference mask, axes (Y, X), bool or 0 and 1.
        prediction: mask to score, same axes and values.
        valid: pixels that count, axes (Y, X); all when absent.

    Returns:
        2 TP / (2 TP + FP + FN) over pixels, in [0, 1]; ``None`` if both masks are empty.

    Raises:
        InputError: the shapes differ, or a mask holds anything but 0 and 1.

    Source:
        Griebel et al. 2023, eq. 6.

    Example:
        >>> truth = np.array([[1, 1, 0, 0]])
        >>> dice(truth, np.array([[0, 1, 1, 1]]))
        0.4
        >>> dice(truth, np.array([[0, 0, 0, 0]]))
        0.0
        >>> dice(truth, np.array([[0, 0, 1, 1]]), valid=np.array([[False, False, False, False]]))
    """
    return dice_per_class(truth, prediction, n_classes=2, valid=valid)[1]


def dice_per_class(
    truth: AnyMask, prediction: AnyMask, *, n_classes: int, valid: ValidMap | None = None
) -> tuple[float | None, ...]:
    """Return the Dice score of every class, background included.

    Args:
        truth: reference class indices, axes (Y, X), in [0, n_classes).
        prediction: class indices to score, same axes and range.
        n_classes: number of classes K, background included.
        valid: pixels that count, axes (Y, X); all when absent.

    Returns:
        One score in [0, 1] per class, index 0 = background; ``None`` for a class in neither mask.

    Raises:
        InputError: the shapes differ, or a mask holds values outside [0, n_classes).

    Source:
        Griebel et al. 2023, eq. 6.

    Example:
        >>> dice_per_class(np.array([[0, 1, 1, 2]]), np.array([[0, 1, 2, 2]]), n_classes=4)
        (1.0, 0.6666666666666666, 0.6666666666666666, None)
    """
    require_same_shape(truth, prediction, valid)
    for name, mask in (("truth", truth), ("prediction", prediction)):
        _require_classes(name, mask, n_classes)
    t, p = counted(truth, valid), counted(prediction, valid)
    confusion = np.bincount(t.astype(np.intp) * n_classes + p, minlength=n_classes**2)
    confusion = confusion.reshape(n_classes, n_classes)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    return tuple(
        2 * int(shared) / int(size) if size else None
        for shared, size in zip(np.diagonal(confusion), sizes, strict=True)
    )


def mean_dice(
    truth: AnyMask,
    prediction: AnyMask,
    *,
    n_classes: int,
    include_background: bool = False,
    valid: ValidMap | None = None,
) -> float | None:
    """Return the Dice score averaged over the classes that occur in either mask.

    Args:
        truth: reference class indices, axes (Y, X), in [0, n_classes).
        prediction: class indices to score, same axes and range.
        n_classes: number of classes K, background included.
        include_background: whether class 0 takes part, as in deepflash2's multi-class scores.
        valid: pixels that count, axes (Y, X); all when absent.

    Returns:
        Mean in [0, 1]; ``None`` if no class of the average occurs.

    Raises:
        InputError: the shapes differ, or a mask holds values outside [0, n_classes).

    Source:
        Griebel et al. 2023, "Evaluation metrics".

    Example:
        >>> truth, prediction = np.array([[0, 1, 1, 2]]), np.array([[0, 1, 1, 1]])
        >>> mean_dice(truth, prediction, n_classes=4)
        0.4
        >>> mean_dice(truth, prediction, n_classes=4, include_background=True)
        0.6
    """
    per_class = dice_per_class(truth, prediction, n_classes=n_classes, valid=valid)
    return _mean(per_class if include_background else per_class[1:])


# -- instances ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MatchCounts:
    """How many instances of two label maps match at one IoU threshold."""

    iou_threshold: float
    """Smallest IoU of a match, in (0, 1]."""
    true_positives: int
    """Matched pairs."""
    false_positives: int
    """Predicted instances without a partner."""
    false_negatives: int
    """Truth instances without a partner."""

    @property
    def average_precision(self) -> float | None:
        """TP / (TP + FP + FN), in [0, 1]; ``None`` if both label maps are empty.

        Source:
            Griebel et al. 2023, eq. 7.
        """
        return _share(
            self.true_positives, self.true_positives + self.false_positives + self.false_negatives
        )

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP), in [0, 1]; ``None`` if nothing was predicted."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN), in [0, 1]; ``None`` if there was nothing to find."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)


def label_components(mask: AnyMask) -> LabelMap:
    """Number the 4-connected components of a binary mask from 1.

    Args:
        mask: axes (Y, X), bool or 0 and 1; for class k of a class mask pass ``mask == k``.

    Returns:
        Instance labels, axes (Y, X), 0 = background.

    Raises:
        InputError: the mask holds anything but 0 and 1.

    Example:
        >>> label_components(np.array([[1, 0, 1], [0, 1, 1]]))
        array([[1, 0, 2],
               [0, 2, 2]], dtype=int32)
    """
    _require_classes("mask", mask, 2)
    return cast("LabelMap", ndimage.label(mask)[0])


def match_instances(
    truth: AnyLabels,
    prediction: AnyLabels,
    *,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    min_size: int = 0,
    valid: ValidMap | None = None,
) -> tuple[MatchCounts, ...]:
    """Match the instances of two label maps one to one at every IoU threshold.

    A pair may match when its IoU reaches the threshold; of all one-to-one matchings a largest one
    counts. Above 0.5 it is the only one, because an instance then has at most one possible partner.

    Args:
        truth: reference instances, axes (Y, X), 0 = background; ids need not be consecutive.
        prediction: instances to score, same axes.
        thresholds: IoU thresholds, each in (0, 1].
        min_size: instances of fewer pixels are dropped from both label maps, as background.
        valid: pixels that count, axes (Y, X); all when absent.

    Returns:
        One result per threshold, in the order given.

    Raises:
        InputError: the shapes differ, a label is negative, or a threshold is out of range.

    Source:
        Griebel et al. 2023, eq. 7; "reaches" instead of "exceeds", as in the published numbers.

    Example:
        >>> truth = np.array([[1, 1, 1, 0, 2, 2]])
        >>> prediction = np.array([[0, 7, 7, 0, 0, 9]])
        >>> half, strict = match_instances(truth, prediction, thresholds=(0.5, 0.6))
        >>> half.true_positives, half.average_precision
        (2, 1.0)
        >>> strict.true_positives, strict.average_precision
        (1, 0.3333333333333333)
    """
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            message = f"IoU threshold {threshold!r} is out of range; expected 0 < threshold <= 1"
            raise InputError(message)
    pairs = find_overlaps(truth, prediction, min_size=min_size, valid=valid)
    n_truth, n_predicted, iou = len(pairs.truth_areas), len(pairs.predicted_areas), pairs.iou
    counts = []
    for threshold in thresholds:
        near = iou >= threshold
        edges = sparse.csr_array(
            (near[near], (pairs.rows[near], pairs.columns[near])), shape=(n_truth, n_predicted)
        )
        partners = sparse.csgraph.maximum_bipartite_matching(edges)
        n_matches = int(np.count_nonzero(partners >= 0))
        counts.append(
            MatchCounts(threshold, n_matches, n_predicted - n_matches, n_truth - n_matches)
        )
    return tuple(counts)


def mean_average_precision(matches: Sequence[MatchCounts]) -> float | None:
    """Return the average precision averaged over thresholds.

    Args:
        matches: results of ``match_instances``, usually for ``IOU_THRESHOLDS``.

    Returns:
        Mean in [0, 1]; ``None`` if both label maps were empty.

    Source:
        Griebel et al. 2023, "Evaluation metrics".

    Example:
        >>> truth, prediction = np.array([[1, 1, 1, 0]]), np.array([[1, 1, 0, 0]])
        >>> mean_average_precision(match_instances(truth, prediction))  # IoU = 2/3
        0.4
    """
    return _mean([counts.average_precision for counts in matches])


# -- shared -------------------------------------------------------------------------------------


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _require_classes(name: str, mask: AnyMask, n_classes: int) -> None:
    if mask.dtype.kind not in "bui":
        message = (
            f"{name} has dtype {mask.dtype}; expected bool or an integer type: "
            "threshold probabilities or take their argmax first"
        )
        raise InputError(message)
    if not mask.size or (mask.min() >= 0 and mask.max() < n_classes):
        return
    message = (
        f"{name} holds values from {mask.min()} to {mask.max()}; "
        f"expected class indices from 0 to {n_classes - 1}: "
        + ("pass `mask > 0` for a 0/255 mask" if n_classes == 2 else "raise n_classes")
    )
    raise InputError(message)
