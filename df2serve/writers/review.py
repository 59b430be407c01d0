"""Results beside the references of their ensemble: what to look at first, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from df2serve.artifact import Calibration
from df2serve.artifact.manifest import Reference
from df2serve.config import RankingName, ReviewConfig
from df2serve.core.calibration import mid_rank
from df2serve.core.conformal import (
    QualityForecast,
    benjamini_hochberg,
    forecast_quality,
)
from df2serve.core.image_statistics import Deviation, deviations
from df2serve.core.oddness import Looks, Oddness, measure_oddness
from df2serve.core.ranking import ScoredImage, rank
from df2serve.core.scores import ScoreName
from df2serve.errors import ConfigError
from df2serve.writers.records import Record, RunInfo

__all__ = ["SCORE_TITLES", "ReviewList", "ReviewPlace", "review"]

SCORE_TITLES = {
    "u": "U",
    "one_minus_pairwise_dice": "disagreement",
    "one_minus_expected_dice": "expected error",
    "ood": "strangeness",
}
"""What people read instead of the names of the scores that decide."""

_QUALITY = "dice"


@dataclass(frozen=True)
class ReviewPlace:
    """A result on the review list."""

    rank: int
    """Place, 1 for the image to look at first."""
    record: Record
    score: float | None
    """What decides; of ``ood`` the strangeness, see :func:`df2serve.core.oddness.strangeness`."""
    needs_review: bool | None
    """Score at or above the threshold; of ``ood`` called out of distribution; else absent."""
    percentile: float | None
    """Share of the references with a smaller score, equal ones counting one half, in [0, 1]; absent
    for ``ood``, which has a p-value."""
    p_value: float | None
    """How often an ordinary image is as odd, in (0, 1]; absent without held-out references."""
    out_of_distribution: bool | None
    """Called so among all results; absent where nothing can be called so."""
    dice: tuple[float, float] | None
    """Between which Dice scores the prediction lies, unless the image is out of distribution."""
    reasons: tuple[Deviation, ...]
    """What the image has that no reference has, the strongest first."""


@dataclass(frozen=True)
class ReviewList:
    """Results in the order in which to look at them."""

    by: RankingName
    score: str
    """Name of the score that decides; ``ood`` for several together."""
    threshold: float | None
    """Score from which on predictions are to be reviewed."""
    places: tuple[ReviewPlace, ...]
    remarks: tuple[str, ...]
    """What the numbers promise, and what they do not."""


def review(
    records: Sequence[Record], run: RunInfo, *, config: ReviewConfig, threshold: float | None = None
) -> ReviewList:
    """Order results, and compare them with the references of their ensemble.

    Args:
        records: results of one folder.
        run: what they have in common.
        config: which ranking, and levels.
        threshold: score from which on predictions are to be reviewed, instead of the ensemble's.

    Raises:
        ConfigError: ``ood`` is asked for without references, or with a threshold.
    """
    references = _References.of(run.calibration)
    if config.by == "ood":
        _require_references(references, threshold)
    reviewer = _Reviewer(records, references, config)
    known = None if config.by == "ood" else run.calibration.threshold(reviewer.score)
    if threshold is None and known is not None:
        threshold = known.value
    remarks = list(reviewer.remarks())
    if known is not None and known.value == threshold:
        remarks.append(known.meaning)
    return ReviewList(
        by=config.by,
        score="ood" if config.by == "ood" else reviewer.score,
        threshold=threshold,
        places=tuple(reviewer.places(threshold)),
        remarks=tuple(remarks),
    )


@dataclass(frozen=True)
class _References:
    """References of one kind."""

    rows: tuple[Reference, ...]
    held_out: bool

    @classmethod
    def of(cls, calibration: Calibration) -> _References:
        """Take those that no member saw or, where there are none, those out of fold."""
        held_out = tuple(row for row in calibration.references if row.kind == "held_out")
        return cls(held_out or calibration.references, bool(held_out))

    def percentile(self, score: str, value: float | None) -> float | None:
        known = [row.scores[score] for row in self.rows if score in row.scores]
        return None if value is None else mid_rank(value, known)

    def oddness(self, record: Record) -> Oddness | None:
        return measure_oddness(
            Looks(record.scores.defined, record.statistics),
            [Looks(row.scores, row.statistics) for row in self.rows],
        )

    def forecast(self, score: str, level: float) -> QualityForecast | None:
        """Learn which Dice score goes with a score; nothing is promised by out-of-fold images."""
        rows = [row for row in self.rows if score in row.scores and _QUALITY in row.quality]
        if not self.held_out or not rows:
            return None
        rows.sort(key=lambda row: (row.image_sha256, row.name))
        grouped = any(row.group is not None for row in rows)
        return forecast_quality(
            [row.scores[score] for row in rows],
            [row.quality[_QUALITY] for row in rows],
            level=level,
            groups=[row.group or row.image_sha256 for row in rows] if grouped else None,
        )


class _Reviewer:
    """Judges the results of one folder."""

    def __init__(
        self, records: Sequence[Record], references: _References, config: ReviewConfig
    ) -> None:
        self._records = {record.name: record for record in records}
        self._references = references
        self._config = config
        single = all(record.provenance.members == 1 for record in records)
        self._failure: ScoreName = (
            "one_minus_expected_dice" if single else "one_minus_pairwise_dice"
        )
        self.score: ScoreName = self._failure if config.by == "failure" else "u"
        self._odd = {record.name: references.oddness(record) for record in records}
        self._called = self._call()
        self._forecast = references.forecast(self._failure, config.quality_level)

    def places(self, threshold: float | None) -> Iterator[ReviewPlace]:
        """Yield the results in order."""
        statistics = [row.statistics for row in self._references.rows]
        by_oddness = self._config.by == "ood"
        for item in rank(map(self._scored, self._records.values()), threshold=threshold):
            name, score = item.image.name, item.image.score
            record, odd, called = self._records[name], self._odd[name], self._called[name]
            yield ReviewPlace(
                rank=item.rank,
                record=record,
                score=score,
                needs_review=called if by_oddness else item.needs_review,
                percentile=score if by_oddness else self._references.percentile(self.score, score),
                p_value=odd.p_value if odd and self._references.held_out else None,
                out_of_distribution=called,
                dice=None if called else self._dice(record),
                reasons=deviations(record.statistics, statistics),
            )

    def remarks(self) -> Iterator[str]:
        """Yield what the references promise, and what they do not."""
        count, level = len(self._references.rows), self._config.false_calls
        if not count:
            yield "no reference images with these settings: nothing is compared with them"
            return
        if not self._references.held_out:
            yield (
                f"the {count} reference images are those of the training, each predicted by the "
                "members that did not see it: percentiles are hints, and nothing is guaranteed"
            )
            return
        if self._can_call:
            yield (
                f"{count} reference images: of the images called out of distribution at most "
                f"{level:.0%} are ordinary, on average"
            )
        else:
            yield (
                f"{count} reference images cannot call any image out of distribution at "
                f"{level:.0%}; that takes {math.ceil(1 / level) - 1}"
            )
        if self._forecast is not None:
            yield self._promise(self._forecast)

    def _promise(self, forecast: QualityForecast) -> str:
        if forecast.informative:
            return (
                f"ranges of Dice hold for {forecast.level:.0%} of the ordinary images; they come "
                f"from {forecast.units} reference images or groups of them"
            )
        return (
            f"{forecast.units} reference images or groups of them are too few for ranges of Dice "
            f"at {forecast.level:.0%}; that takes "
            f"{math.ceil(forecast.level / (1 - forecast.level) - 1e-9)}"
        )

    @property
    def _can_call(self) -> bool:
        """Whether the smallest p-value is small enough."""
        count = len(self._references.rows)
        return self._references.held_out and 1 / (count + 1) <= self._config.false_calls

    def _call(self) -> dict[str, bool | None]:
        """Return which images are called out of distribution, where that can be said."""
        known = {name: odd.p_value for name, odd in self._odd.items() if odd is not None}
        if not self._can_call:
            return dict.fromkeys(self._odd)
        chosen = benjamini_hochberg(np.array(list(known.values())), level=self._config.false_calls)
        calls = dict(zip(known, map(bool, chosen), strict=True))
        return {name: calls.get(name) for name in self._odd}

    def _scored(self, record: Record) -> ScoredImage:
        score = record.scores.defined.get(self.score)
        if self._config.by == "ood":
            odd = self._odd[record.name]
            score = None if odd is None else odd.strangeness
        return ScoredImage(
            name=record.name,
            score=score,
            empty_prediction=record.scores.empty_prediction,
            no_valid_pixels=record.scores.no_valid_pixels,
        )

    def _dice(self, record: Record) -> tuple[float, float] | None:
        score = record.scores.defined.get(self._failure)
        if self._forecast is None or not self._forecast.informative or score is None:
            return None
        return self._forecast.interval(score)


def _require_references(references: _References, threshold: float | None) -> None:
    if threshold is not None:
        message = "the ranking 'ood' takes no threshold; leave it out"
        raise ConfigError(message)
    if not references.rows:
        message = (
            "the ranking 'ood' needs reference images that were scored with the same settings; "
            "make them with 'df2serve evaluate --calibrate', or choose 'paper' or 'failure'"
        )
        raise ConfigError(message)
