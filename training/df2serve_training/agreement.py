"""How well experts agree with an estimate, and with the estimate of the other experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from df2serve.config import Frozen
from df2serve.core.metrics import match_instances, mean_average_precision, mean_dice
from df2serve_training._annotations import Annotation
from df2serve_training._gt_settings import Method

__all__ = ["Agreement", "AgreementRow", "ExpertSummary", "agreement", "summarize"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Scores of one annotation against another; absent where both are empty."""

    dice_score: float | None
    """Dice, averaged over the foreground classes of either, in [0, 1]."""
    mean_average_precision: float | None
    """Average precision over IoU thresholds from 0.5 to 0.95, averaged like Dice, in [0, 1]."""
    average_precision_at_iou_50: float | None
    """Average precision at IoU 0.5, averaged like Dice, in [0, 1]."""


def agreement(
    truth: Annotation, annotation: Annotation, *, n_classes: int, min_size: int
) -> Agreement:
    """Compare an annotation with a reference of the same rows and columns.

    Args:
        truth: the reference.
        annotation: what is compared with it.
        n_classes: number of classes K, background included.
        min_size: objects of fewer pixels are left out, on both sides; Dice counts all pixels.

    Source:
        Griebel et al. 2023, eq. 6 and 7; several classes as in the paper, without the background.

    Example:
        >>> truth = Annotation.of_classes(np.array([[1, 1, 1, 0, 2, 2]]))
        >>> drawn = Annotation.of_classes(np.array([[1, 1, 0, 0, 2, 2]]))
        >>> agreement(truth, drawn, n_classes=3, min_size=0)
        Agreement(dice_score=0.9, mean_average_precision=0.7, average_precision_at_iou_50=1.0)
    """
    marked = (truth.labels > 0) | (annotation.labels > 0)  # background does not count anywhere
    precisions, halves = [], []
    for index in range(1, n_classes):
        matches = match_instances(
            _objects(truth, index), _objects(annotation, index), min_size=min_size, valid=marked
        )
        precisions.append(mean_average_precision(matches))
        halves.append(matches[0].average_precision)
    return Agreement(
        dice_score=mean_dice(truth.classes, annotation.classes, n_classes=n_classes, valid=marked),
        mean_average_precision=_mean(precisions),
        average_precision_at_iou_50=_mean(halves),
    )


class AgreementRow(Frozen):
    """One expert's annotation of one image."""

    method: Method
    file: str
    """Name of the image: the stem of its files."""
    expert: str
    """Name of the expert's folder."""
    dice_score: float | None
    """Dice with the estimate, to which the expert contributed."""
    mean_average_precision: float | None
    """Average precision of the objects, over IoU thresholds from 0.5 to 0.95."""
    average_precision_at_iou_50: float | None
    """Average precision of the objects at IoU 0.5."""
    loo_dice_score: float | None
    """The same three scores against the estimate of the other experts alone."""
    loo_mean_average_precision: float | None
    loo_average_precision_at_iou_50: float | None
    remarks: str
    """Kinds of warnings about this annotation, separated by semicolons."""


class ExpertSummary(Frozen):
    """One expert over all images; scores are means over the images that have them."""

    method: Method
    expert: str
    n_files: int
    """Images that the expert annotated."""
    n_scored: int
    """Those with a Dice score: expert and estimate are not both empty."""
    dice_score: float | None
    mean_average_precision: float | None
    average_precision_at_iou_50: float | None
    loo_dice_score: float | None
    loo_mean_average_precision: float | None
    loo_average_precision_at_iou_50: float | None


_SCORES = tuple(name for name in AgreementRow.model_fields if "dice" in name or "average" in name)


def summarize(rows: Sequence[AgreementRow]) -> tuple[ExpertSummary, ...]:
    """Average the scores of every expert, in the order in which experts appear first."""
    experts = dict.fromkeys(row.expert for row in rows)
    return tuple(_summary([row for row in rows if row.expert == expert]) for expert in experts)


def _summary(rows: Sequence[AgreementRow]) -> ExpertSummary:
    return ExpertSummary(
        method=rows[0].method,
        expert=rows[0].expert,
        n_files=len(rows),
        n_scored=sum(row.dice_score is not None for row in rows),
        **{name: _mean(getattr(row, name) for row in rows) for name in _SCORES},
    )


def _objects(annotation: Annotation, index: int) -> np.ndarray:
    """Return the objects of one class; the class of an object is that of any pixel it kept."""
    class_of = np.zeros(int(annotation.labels.max(initial=0)) + 1, np.uint8)
    inside = annotation.classes > 0
    class_of[annotation.labels[inside]] = annotation.classes[inside]
    return np.where(class_of[annotation.labels] == index, annotation.labels, 0)


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
