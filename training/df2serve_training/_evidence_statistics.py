"""From scores of single images to what rankings are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from df2serve.core.calibration import clopper_pearson, failure_threshold
from df2serve.core.conformal import forecast_quality
from df2serve.core.oddness import Looks, measure_oddness
from df2serve.core.ranking_metrics import (
    area_under_risk_coverage,
    average_precision,
    excess_area,
    false_positive_rate,
    images_to_review,
    recall_at,
    win_matrix,
)
from df2serve.core.scores import SCORES
from df2serve_training._evidence_rows import (
    Claim,
    CoverageRow,
    DetectionRow,
    EvidenceSettings,
    FailureRow,
    ImageEvidence,
)
from df2serve_training._statistics import correlate

__all__ = ["coverage_rows", "detection_rows", "failure_rows", "with_oddness"]

_BASE = "u"
_LOOKS, _OOD = "looks", "ood"
Array = NDArray[np.float64]


def with_oddness(
    ordinary: Sequence[ImageEvidence], odd: Sequence[ImageEvidence]
) -> tuple[list[ImageEvidence], list[ImageEvidence]]:
    """Add the scores that compare an image with the other ordinary ones of the same member."""
    told = []
    for row in (*ordinary, *odd):
        others = [other for other in ordinary if other is not row and other.member == row.member]
        compared = {
            _LOOKS: measure_oddness(
                Looks({}, row.statistics), [Looks({}, other.statistics) for other in others]
            ),
            _OOD: measure_oddness(
                Looks(row.scores, row.statistics),
                [Looks(other.scores, other.statistics) for other in others],
            ),
        }
        added = {name: one.strangeness for name, one in compared.items() if one is not None}
        told.append(row.model_copy(update={"scores": row.scores | added}))
    return told[: len(ordinary)], told[len(ordinary) :]


def detection_rows(
    ordinary: Sequence[ImageEvidence], odd: Sequence[ImageEvidence], settings: EvidenceSettings
) -> Iterator[DetectionRow]:
    """Say how well every score tells the odd images of a group; of the same member where apart."""
    rng = np.random.default_rng(settings.seed)
    drawn_ordinary = _drawn(len(ordinary), settings, rng)
    drawn_odd = _drawn(len(odd), settings, rng)
    alike = np.array([[a.member == b.member for b in odd] for a in ordinary], dtype=np.float64)
    pairs = _weighted(alike, drawn_ordinary, drawn_odd)
    base: tuple[float, Array] | None = None
    for score in _common([*ordinary, *odd]):
        a, b = _values(ordinary, score), _values(odd, score)
        wins = win_matrix(a, b) * alike
        value = float(wins.sum() / alike.sum())
        with np.errstate(invalid="ignore"):
            drawn = _weighted(wins, drawn_ordinary, drawn_odd) / pairs
        base = base or (value, drawn)
        low, high = _interval(drawn, settings)
        better_low, better_high = _interval(drawn - base[1], settings)
        strata = [(a[here], b[there]) for here, there in _strata(ordinary, odd)]
        yield DetectionRow(
            group=odd[0].group,
            score=score,
            ordinary=len(ordinary),
            odd=len(odd),
            auroc=value,
            low=low,
            high=high,
            better_than_u=value - base[0],
            better_low=better_low,
            better_high=better_high,
            average_precision=_mean(average_precision, strata),
            false_positive_rate=_mean(
                lambda x, y: false_positive_rate(x, y, recall=settings.recall), strata
            ),
            recall_at_k=_mean(recall_at, strata),
        )


def failure_rows(
    group: str, images: Sequence[ImageEvidence], settings: EvidenceSettings
) -> Iterator[FailureRow]:
    """Say how well every score tells bad predictions among labeled images."""
    dice = np.array([row.dice for row in images], dtype=np.float64)
    risks, failed = 1 - dice, dice < settings.required
    rng = np.random.default_rng(settings.seed)
    samples = rng.integers(len(images), size=(settings.resamples, len(images)))
    base: tuple[float, Array] | None = None
    for score in _common(images):
        values = _values(images, score)
        area = area_under_risk_coverage(values, risks)
        drawn = np.array([area_under_risk_coverage(values[s], risks[s]) for s in samples])
        base = base or (area, drawn)
        low, high = _interval(drawn, settings)
        less_low, less_high = _interval(base[1] - drawn, settings)
        together = correlate(values.tolist(), dice.tolist())
        yield FailureRow(
            group=group,
            score=score,
            images=len(images),
            failing=int(failed.sum()),
            aurc=area,
            low=low,
            high=high,
            excess=excess_area(values, risks),
            less_than_u=base[0] - area,
            less_low=less_low,
            less_high=less_high,
            pearson=together and together.pearson,
            spearman=together and together.spearman,
            to_review=images_to_review(values, failed, recall=settings.recall),
        )


def coverage_rows(
    ordinary: Sequence[ImageEvidence], settings: EvidenceSettings
) -> Iterator[CoverageRow]:
    """Try claims on random halves of the ordinary images, the other half being the references."""
    half = len(ordinary) // 2
    if not half:
        return
    rng = np.random.default_rng(settings.seed)
    tried: dict[tuple[Claim, str], list[tuple[float, int, int]]] = {}
    for _ in range(settings.splits):
        order = rng.permutation(len(ordinary))
        known = [ordinary[i] for i in order[:half]]
        new = [ordinary[i] for i in order[half:]]
        tried.setdefault(("false alarm", _OOD), []).append(
            _false_alarms(known, new, settings.level)
        )
        for score in _common(ordinary):
            if score in (_LOOKS, _OOD) or any(row.dice is None for row in ordinary):
                continue
            missed = _missed(known, new, score, settings)
            if missed is not None:
                tried.setdefault(("missed failure", score), []).append(missed)
            outside = _outside(known, new, score, settings)
            if outside is not None:
                tried.setdefault(("Dice outside its range", score), []).append(outside)
    for (claim, score), results in tried.items():
        level = float(np.mean([stated for stated, _, _ in results]))
        happened, tries = (sum(result[i] for result in results) for i in (1, 2))
        if not tries:
            continue
        share, images = happened / tries, len(ordinary)
        interval = clopper_pearson(round(share * images), images, confidence=0.95)
        yield CoverageRow(
            claim=claim,
            score=score,
            references=half,
            level=level,
            found=share,
            low=interval.low,
            high=interval.high,
            tries=tries,
        )


def _false_alarms(
    known: Sequence[ImageEvidence], new: Sequence[ImageEvidence], level: float
) -> tuple[float, int, int]:
    """Return the stated chance, images that are called odd, and images."""
    references = [Looks(row.scores, row.statistics) for row in known]
    found = [measure_oddness(Looks(row.scores, row.statistics), references) for row in new]
    return level, sum(one is not None and one.p_value <= level for one in found), len(new)


def _missed(
    known: Sequence[ImageEvidence],
    new: Sequence[ImageEvidence],
    score: str,
    settings: EvidenceSettings,
) -> tuple[float, int, int] | None:
    """Return the stated chance, failures below the threshold, and failures."""
    threshold = failure_threshold(
        _values(known, score).tolist(),
        [row.dice or 0.0 for row in known],
        required=settings.required,
        miss_level=settings.level,
    )
    if threshold is None:
        return None
    failing = [row.scores[score] for row in new if (row.dice or 0.0) < settings.required]
    return threshold.level, sum(value < threshold.value for value in failing), len(failing)


def _outside(
    known: Sequence[ImageEvidence],
    new: Sequence[ImageEvidence],
    score: str,
    settings: EvidenceSettings,
) -> tuple[float, int, int] | None:
    """Return the stated chance, images outside their range, and images."""
    forecast = forecast_quality(
        _values(known, score).tolist(),
        [row.dice or 0.0 for row in known],
        level=1 - settings.level,
    )
    if forecast is None or not forecast.informative:
        return None
    ranges = [forecast.interval(row.scores[score]) for row in new]
    outside = sum(
        not low <= (row.dice or 0.0) <= high for row, (low, high) in zip(new, ranges, strict=True)
    )
    return settings.level, outside, len(new)


def _common(images: Sequence[ImageEvidence]) -> list[str]:
    """Return the scores that all images have."""
    return [name for name in (*SCORES, _LOOKS, _OOD) if all(name in row.scores for row in images)]


def _values(images: Sequence[ImageEvidence], score: str) -> Array:
    return np.array([row.scores[score] for row in images], dtype=np.float64)


def _drawn(count: int, settings: EvidenceSettings, rng: np.random.Generator) -> Array:
    """Return how often each image is drawn, axes (resample, image)."""
    return rng.multinomial(count, np.full(count, 1 / count), settings.resamples).astype(np.float64)


def _weighted(values: Array, rows: Array, columns: Array) -> Array:
    """Return the sum of a matrix for every resample of its rows and columns, axes (resample,)."""
    sums: Array = np.einsum("bi,ij,bj->b", rows, values, columns, optimize=True)
    return sums


def _interval(drawn: Array, settings: EvidenceSettings) -> tuple[float, float]:
    tail = (1 - settings.confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _strata(
    ordinary: Sequence[ImageEvidence], odd: Sequence[ImageEvidence]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield the images of each member that has some of both."""
    for member in dict.fromkeys(row.member for row in odd):
        here = np.array([row.member == member for row in ordinary])
        if here.any():
            yield here, np.array([row.member == member for row in odd])


def _mean(metric: Callable[[Array, Array], float], strata: Sequence[tuple[Array, Array]]) -> float:
    """Return a metric on average over members, weighted by their odd images."""
    values = [metric(ordinary, odd) for ordinary, odd in strata]
    return float(np.average(values, weights=[len(odd) for _, odd in strata]))
