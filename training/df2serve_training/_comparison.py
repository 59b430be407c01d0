"""How well one annotation of an image fits another, class by class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from df2serve.config import Frozen
from df2serve.core.instance_metrics import (
    PanopticCounts,
    aggregated_jaccard,
    aggregated_jaccard_plus,
    count_panoptic,
)
from df2serve.core.metrics import dice, match_instances, mean_average_precision
from df2serve.types import ValidMap
from df2serve_training._annotations import Annotation
from df2serve_training._evaluation_settings import METRICS, Metric

__all__ = ["ClassComparison", "Quality", "compare", "mean_of_defined", "mean_quality"]


class Quality(Frozen):
    """Scores in [0, 1] of a mask against another; absent where both are empty."""

    dice: float | None
    """Shared pixels."""
    map: float | None
    """Average precision of objects over IoU thresholds from 0.5 to 0.95."""
    ap50: float | None
    """Average precision of objects at IoU 0.5."""
    aji: float | None
    """Aggregated Jaccard index (Kumar et al. 2017)."""
    aji_plus: float | None
    """The same with one partner per object at most."""
    pq: float | None
    """Panoptic quality (IoU above 0.5)."""

    def of(self, metric: Metric) -> float | None:
        """Return one of the scores."""
        value: float | None = getattr(self, metric)
        return value


@dataclass(frozen=True, slots=True)
class ClassComparison:
    """One class of two annotations."""

    class_index: int
    quality: Quality
    n_truth: int
    """Objects of the truth that are large enough to count."""
    n_predicted: int
    """Objects of the prediction that are large enough to count."""
    truth_px: int
    predicted_px: int
    panoptic: PanopticCounts
    """For sums over images."""


def compare(
    truth: Annotation,
    prediction: Annotation,
    *,
    n_classes: int,
    min_size: int,
    valid: ValidMap | None,
) -> tuple[ClassComparison, ...]:
    """Compare two annotations of the same rows and columns, class by class but the background.

    Args:
        truth: the reference.
        prediction: what is compared with it.
        n_classes: number of classes K, background included.
        min_size: objects of fewer pixels are left out, on both sides; Dice counts all pixels.
        valid: pixels that count, axes (Y, X); all when absent.

    Example:
        >>> truth = Annotation.of_classes(np.array([[1, 1, 1, 0, 2, 2]]))
        >>> drawn = Annotation.of_classes(np.array([[1, 1, 0, 0, 2, 2]]))
        >>> first, second = compare(truth, drawn, n_classes=3, min_size=0, valid=None)
        >>> first.quality.dice, first.quality.map, first.quality.ap50, second.quality.aji
        (0.8, 0.4, 1.0, 1.0)
    """
    marked = (truth.labels > 0) | (prediction.labels > 0)  # the background is no object anywhere
    if valid is not None:
        marked &= valid
    t, p = _cropped(truth, marked), _cropped(prediction, marked)
    return tuple(_compare_class(t, p, index, min_size) for index in range(1, n_classes))


def mean_quality(qualities: Iterable[Quality]) -> Quality:
    """Return the mean of every score over those that have it."""
    known = list(qualities)
    return Quality(
        **{metric: mean_of_defined(one.of(metric) for one in known) for metric in METRICS}
    )


def mean_of_defined(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that there are, if there are any."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _compare_class(
    truth: Annotation, prediction: Annotation, index: int, min_size: int
) -> ClassComparison:
    inside_t, inside_p = truth.classes == index, prediction.classes == index
    labels = np.where(inside_t, truth.labels, 0), np.where(inside_p, prediction.labels, 0)
    matches = match_instances(*labels, min_size=min_size)
    panoptic = count_panoptic(*labels, min_size=min_size)
    return ClassComparison(
        class_index=index,
        quality=Quality(
            dice=dice(inside_t, inside_p),
            map=mean_average_precision(matches),
            ap50=matches[0].average_precision,
            aji=aggregated_jaccard(*labels, min_size=min_size),
            aji_plus=aggregated_jaccard_plus(*labels, min_size=min_size),
            pq=panoptic.quality,
        ),
        n_truth=panoptic.true_positives + panoptic.false_negatives,
        n_predicted=panoptic.true_positives + panoptic.false_positives,
        truth_px=int(np.count_nonzero(inside_t)),
        predicted_px=int(np.count_nonzero(inside_p)),
        panoptic=panoptic,
    )


def _cropped(annotation: Annotation, marked: ValidMap) -> Annotation:
    """Return the marked pixels as a single row; no score depends on where pixels lie."""
    return Annotation(annotation.classes[marked][None], annotation.labels[marked][None])
