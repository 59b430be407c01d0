"""From the rows of single images to statements on all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import get_args

from df2serve.artifact.manifest import ExpertRange
from df2serve.core.scores import SCORES
from df2serve_training._comparison import mean_of_defined
from df2serve_training._evaluation_rows import (
    ClassRow,
    CorrelationRow,
    ExpertReference,
    ExpertRow,
    ImageRow,
    Place,
    RelativeRow,
    SummaryMetric,
    SummaryRow,
)
from df2serve_training._evaluation_settings import METRICS, EvaluationSettings
from df2serve_training._statistics import bootstrap, correlate

__all__ = ["correlations", "expert_ranges", "place_among", "relative_rows", "summarize"]


def place_among(score: float, worst: float, best: float) -> Place:
    """Return where a quality lies between two others, ends included in the range.

    Example:
        >>> place_among(0.8, 0.8, 0.9), place_among(0.95, 0.8, 0.9)
        ('in expert range', 'above best expert')
    """
    if score < worst:
        return "below worst expert"
    return "above best expert" if score > best else "in expert range"


def relative_rows(
    images: Iterable[ImageRow], experts: Iterable[ExpertRow]
) -> Iterator[RelativeRow]:
    """Compare every prediction with the experts of its image.

    The prediction is always compared with the truth; what the experts are compared with is the
    reference.
    """
    drawn = defaultdict(list)
    for row in experts:
        drawn[row.file, row.reference].append(row)
    for image in images:
        for reference in get_args(ExpertReference):
            for metric in METRICS:
                score = image.of(metric)
                found = [row.of(metric) for row in drawn[image.file, reference]]
                values = [value for value in found if value is not None]
                if score is None or not values:
                    continue
                yield RelativeRow(
                    file=image.file,
                    metric=metric,
                    reference=reference,
                    place=place_among(score, min(values), max(values)),
                    score=score,
                    worst=min(values),
                    mean=fmean(values),
                    best=max(values),
                    experts=len(values),
                )


def expert_ranges(rows: Sequence[RelativeRow]) -> Iterator[ExpertRange]:
    """Count how many predictions lie where, by reference and metric."""
    for reference in get_args(ExpertReference):
        for metric in METRICS:
            found = [row for row in rows if (row.reference, row.metric) == (reference, metric)]
            if not found:
                continue
            below, within, above = (
                sum(row.place == place for row in found) / len(found) for place in get_args(Place)
            )
            yield ExpertRange(
                metric=metric,
                reference=reference,
                images=len(found),
                worst=fmean(row.worst for row in found),
                mean=fmean(row.mean for row in found),
                best=fmean(row.best for row in found),
                below_worst=below,
                in_range=within,
                above_best=above,
            )


def summarize(
    images: Sequence[ImageRow],
    classes: Sequence[ClassRow],
    *,
    class_names: Sequence[str],
    settings: EvaluationSettings,
) -> Iterator[SummaryRow]:
    """Average every metric over images: over the mean of classes, and for each class.

    Intervals are drawn from whole groups where images have them.
    """
    group_of: dict[str, Hashable] = {
        image.file: (image.file,) if image.group is None else image.group for image in images
    }
    pooled = []
    for name in class_names[1:]:
        rows = [row for row in classes if row.class_name == name]
        yield from _averages(name, rows, group_of, settings)
        pooled.append(_pooled(name, rows, group_of, settings))
    yield from pooled
    yield from _averages("mean", images, group_of, settings)
    found = {row.file for row in classes if row.n_truth or row.n_predicted}
    yield SummaryRow(
        class_name="mean",
        metric="pq_pooled",
        images=len(found),
        skipped=len(images) - len(found),
        units=len({group_of[file] for file in found}),
        mean=mean_of_defined(row.mean for row in pooled),
    )


def correlations(images: Sequence[ImageRow]) -> Iterator[CorrelationRow]:
    """Return how every score and every metric go together, where that can be said."""
    for score in SCORES:
        for metric in METRICS:
            pairs = [
                (image.scores[score], quality)
                for image in images
                if score in image.scores and (quality := image.of(metric)) is not None
            ]
            found = correlate(*map(list, zip(*pairs, strict=True))) if pairs else None
            if found is not None:
                yield CorrelationRow(
                    score=score,
                    metric=metric,
                    images=len(pairs),
                    pearson=found.pearson,
                    spearman=found.spearman,
                )


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one image adds to an average."""

    value: float
    weight: float
    group: Hashable


def _averages(
    class_name: str,
    rows: Sequence[ImageRow] | Sequence[ClassRow],
    group_of: Mapping[str, Hashable],
    settings: EvaluationSettings,
) -> Iterator[SummaryRow]:
    for metric in METRICS:
        entries = [
            _Entry(value, 1, group_of[row.file])
            for row in rows
            if (value := row.of(metric)) is not None
        ]
        values = [entry.value for entry in entries]
        row = _average(
            class_name, metric, entries, skipped=len(rows) - len(entries), settings=settings
        )
        yield row.model_copy(
            update={
                "std": stdev(values) if len(values) > 1 else None,
                "median": median(values) if values else None,
            }
        )


def _pooled(
    class_name: str,
    rows: Sequence[ClassRow],
    group_of: Mapping[str, Hashable],
    settings: EvaluationSettings,
) -> SummaryRow:
    """Return the panoptic quality of a class, its matches summed over images."""
    entries = [
        _Entry(row.iou_sum, (row.n_truth + row.n_predicted) / 2, group_of[row.file])
        for row in rows
        if row.n_truth or row.n_predicted
    ]
    return _average(
        class_name, "pq_pooled", entries, skipped=len(rows) - len(entries), settings=settings
    )


def _average(
    class_name: str,
    metric: SummaryMetric,
    entries: Sequence[_Entry],
    *,
    skipped: int,
    settings: EvaluationSettings,
) -> SummaryRow:
    """Return the sum of the values over that of the weights, with its interval."""
    interval = None
    if entries:
        interval = bootstrap(
            [entry.value for entry in entries],
            weights=[entry.weight for entry in entries],
            groups=[entry.group for entry in entries],
            settings=settings,
        )
    return SummaryRow(
        class_name=class_name,
        metric=metric,
        images=len(entries),
        skipped=skipped,
        units=interval.units if interval else 0,
        mean=interval and interval.mean,
        low=interval and interval.low,
        high=interval and interval.high,
    )
