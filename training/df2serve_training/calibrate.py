"""From an evaluation to a calibration: from which score on predictions are to be reviewed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from df2serve.artifact import FEATURES, Ensemble, with_files
from df2serve.artifact.manifest import (
    Calibration,
    FailureBound,
    Reference,
    ReferenceKind,
    ReviewThreshold,
    ScorePercentiles,
    ShareInterval,
)
from df2serve.core.calibration import failure_rate_bound, failure_threshold
from df2serve.core.scores import SCORES, ScoreName
from df2serve_training._evaluation_rows import Evaluation
from df2serve_training._evaluation_settings import METRICS, Metric

__all__ = ["calibrate", "calibration_of", "references_of", "with_calibration"]

_FEATURE_DISTANCE: ScoreName = "feature_distance"
_PERCENTS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)


def references_of(evaluation: Evaluation) -> tuple[Reference, ...]:
    """Return what is known of each evaluated image, under what it is: held out or out of fold."""
    return tuple(
        Reference(
            name=row.file,
            image_sha256=row.image_sha256,
            kind=row.kind,
            group=row.group,
            scores=row.scores,
            quality={metric: value for metric in METRICS if (value := row.of(metric)) is not None},
            statistics=row.statistics,
        )
        for row in evaluation.images
    )


def calibrate(
    references: Sequence[Reference], *, metric: Metric, required: float, miss_level: float
) -> Calibration:
    """Find thresholds of all scores.

    Thresholds come from held-out references, with the level that they guarantee. Only where there
    are none at all they come from out-of-fold references, and guarantee nothing: the score of a
    member that did not see an image is not the score that the whole ensemble gives a new one.
    References without the metric, where truth and prediction are both empty, do not count.

    Args:
        references: images with scores and quality, of one ensemble and one set of settings.
        metric: quality that decides whether a prediction has failed.
        required: quality below which it has (the paper's τ).
        miss_level: wanted chance of a failing image to escape review.

    Source:
        Griebel et al. 2023, eq. 8, and :func:`df2serve.core.calibration.failure_threshold`.
    """
    judged = [reference for reference in references if metric in reference.quality]
    kinds = {reference.kind for reference in judged}
    thresholds: tuple[ReviewThreshold, ...] = ()
    bound = None
    if kinds:
        kind: ReferenceKind = "held_out" if "held_out" in kinds else "out_of_fold"
        chosen = [reference for reference in judged if reference.kind == kind]
        found = (_threshold(chosen, score, metric, required, miss_level) for score in SCORES)
        thresholds = tuple(threshold for threshold in found if threshold is not None)
        bound = _failure_bound(chosen, metric, required) if kind == "held_out" else None
    return Calibration(
        thresholds=thresholds,
        failure_bound=bound,
        references=tuple(references),
        percentiles=tuple(_percentiles(references)),
    )


def calibration_of(evaluation: Evaluation, *, earlier: Calibration | None = None) -> Calibration:
    """Return the calibration that an evaluation gives, by its own settings.

    Args:
        evaluation: of an ensemble.
        earlier: calibration of the same ensemble, whose references are kept, unless images were
            evaluated again or the scores are of other inference settings. They lose their distance
            to the bank of features if the evaluation has made another one.
    """
    references = references_of(evaluation)
    if earlier is not None and earlier.config == evaluation.config:
        again = {reference.image_sha256 for reference in references}
        kept = [item for item in earlier.references if item.image_sha256 not in again]
        if evaluation.settings.features:
            kept = [_without_distance(item) for item in kept]
        references = (*kept, *references)
    settings = evaluation.settings
    calibration = calibrate(
        references,
        metric=settings.metric,
        required=settings.required,
        miss_level=settings.miss_level,
    )
    return calibration.model_copy(
        update={
            "config": evaluation.config,
            "expert_ranges": evaluation.expert_ranges,
            "temperature": evaluation.temperature,
        }
    )


def with_calibration(ensemble: Ensemble, evaluation: Evaluation, folder: Path) -> Ensemble:
    """Put into an ensemble what its evaluation tells: the calibration, and the bank if it made one.

    Args:
        ensemble: that was evaluated.
        evaluation: of it.
        folder: where the evaluation was written.

    Raises:
        OutputError: the ensemble is a zip file or a cached download, or cannot be written.
    """
    calibration = calibration_of(evaluation, earlier=ensemble.calibration)
    files = {"calibration.json": calibration.to_json()}
    if evaluation.settings.features:
        files[FEATURES] = (folder / FEATURES).read_bytes()
    return with_files(ensemble, files)


def _without_distance(reference: Reference) -> Reference:
    scores = {k: value for k, value in reference.scores.items() if k != _FEATURE_DISTANCE}
    return reference.model_copy(update={"scores": scores})


def _threshold(
    references: Sequence[Reference],
    score: str,
    metric: Metric,
    required: float,
    miss_level: float,
) -> ReviewThreshold | None:
    """Return the threshold of one score; the references are of one kind."""
    scored = [reference for reference in references if score in reference.scores]
    grouped = any(reference.group is not None for reference in scored)
    found = failure_threshold(
        [reference.scores[score] for reference in scored],
        [reference.quality[metric] for reference in scored],
        required=required,
        miss_level=miss_level,
        groups=[_owner(reference) for reference in scored] if grouped else None,
    )
    if found is None:
        return None
    guaranteed = scored[0].kind == "held_out"
    precision = found.precision
    return ReviewThreshold(
        score=score,
        value=found.value,
        metric=metric,
        required=required,
        failing=found.failing,
        references=found.references,
        kind=scored[0].kind,
        rank=found.rank,
        failing_groups=found.failing_groups if grouped else None,
        level=found.level if guaranteed else None,
        selected=found.selected,
        precision=ShareInterval(share=precision.share, low=precision.low, high=precision.high),
    )


def _failure_bound(
    references: Sequence[Reference], metric: Metric, required: float
) -> FailureBound | None:
    """Return how often predictions may fail, if none of the references did."""
    if any(reference.quality[metric] < required for reference in references):
        return None
    groups = len({_owner(reference) for reference in references})
    return FailureBound(
        metric=metric,
        required=required,
        references=len(references),
        groups=groups,
        bound=failure_rate_bound(groups),
    )


def _owner(reference: Reference) -> tuple[str, ...]:
    """Return what an image stands for: its group, or itself."""
    if reference.group is not None:
        return ("group", reference.group)
    return ("image", reference.image_sha256, reference.name)


def _percentiles(references: Sequence[Reference]) -> Iterator[ScorePercentiles]:
    for kind in get_args(ReferenceKind):
        for score in SCORES:
            values = [
                reference.scores[score]
                for reference in references
                if reference.kind == kind and score in reference.scores
            ]
            if values:
                yield ScorePercentiles(
                    score=score,
                    kind=kind,
                    references=len(values),
                    percents=_PERCENTS,
                    values=tuple(np.percentile(values, _PERCENTS).tolist()),
                )
