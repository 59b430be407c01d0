"""What the ensemble's reference images say about new ones, and what they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from df2serve.artifact.manifest import Reference, ReferenceKind
from df2serve.core.calibration import miss_level
from df2serve.writers.records import RunInfo
from df2serve.writers.report._words import Place

__all__ = ["Level", "ReferencePoint", "References", "read_references"]

_SCORE = "u"
_NONE = (
    "The ensemble carries no reference images of known quality, so that no threshold promises "
    "anything; 'df2serve evaluate --calibrate' adds them."
)


@dataclass(frozen=True)
class ReferencePoint:
    """A reference image on the axis of U."""

    u: float
    failed: bool
    """Its prediction has less than the required quality."""


@dataclass(frozen=True)
class Level:
    """What a threshold promises."""

    threshold: float
    """Largest threshold with this level."""
    miss: float
    """Chance of a new failing image to escape, at most."""


@dataclass(frozen=True)
class References:
    """References whose scores compare with those of a folder of results."""

    kind: ReferenceKind | None
    """Absent without references."""
    failure: str
    """What counts as a failure, such as ``dice < 0.8``; empty where nothing is known."""
    meaning: str
    """What they promise, in a sentence."""
    points: tuple[ReferencePoint, ...]
    levels: tuple[Level, ...]
    """By increasing threshold; none where nothing is promised."""
    chosen: tuple[Reference, ...]
    """The references themselves."""

    def place(self, score: str, value: float, *, sha256: str | None) -> Place | None:
        """Return where a score lies among those of the references, its own image left out."""
        others = [
            found.scores[score]
            for found in self.chosen
            if score in found.scores and found.image_sha256 != sha256
        ]
        below = sum(other < value for other in others)
        return Place(below=below, references=len(others)) if others else None


def read_references(run: RunInfo) -> References:
    """Return the references of a run.

    Held-out images are taken, else those of the training, which promise nothing. References that
    were predicted with other settings have scores that do not compare, and are left out.
    """
    calibration, threshold = run.calibration, run.threshold
    of_kind = {item.kind: item for item in calibration.references}
    kind: ReferenceKind | None = "held_out" if "held_out" in of_kind else next(iter(of_kind), None)
    if run.changed_settings:
        meaning = (
            "The ensemble's reference images were predicted with other settings "
            f"({run.changed_settings}), so that neither their scores nor the threshold of the "
            "ensemble apply here."
        )
        return References(kind=None, failure="", meaning=meaning, points=(), levels=(), chosen=())
    chosen = tuple(item for item in calibration.references if item.kind == kind)
    rule = threshold or calibration.failure_bound
    if rule is None:
        meaning = _NONE if kind is None else "No reference image has a quality to judge by."
        return References(
            kind=kind,
            failure="",
            meaning=meaning,
            points=_points(chosen, "", 0.0),
            levels=(),
            chosen=chosen,
        )
    levels: tuple[Level, ...] = ()
    if threshold is not None and threshold.level is not None:
        levels = _levels(chosen, threshold.metric, threshold.required) or (
            Level(threshold.value, threshold.level),
        )
    return References(
        kind=kind,
        failure=f"{rule.metric} < {rule.required:g}",
        meaning=f"{rule.meaning[:1].upper()}{rule.meaning[1:]}.",
        points=_points(chosen, rule.metric, rule.required),
        levels=levels,
        chosen=chosen,
    )


def _points(
    references: Sequence[Reference], metric: str, required: float
) -> tuple[ReferencePoint, ...]:
    return tuple(
        ReferencePoint(item.scores[_SCORE], item.quality.get(metric, required) < required)
        for item in references
        if _SCORE in item.scores
    )


def _levels(references: Sequence[Reference], metric: str, required: float) -> tuple[Level, ...]:
    """Return the level of every failing reference's score as a threshold."""
    judged = [item for item in references if _SCORE in item.scores and metric in item.quality]
    scores = [item.scores[_SCORE] for item in judged]
    qualities = [item.quality[metric] for item in judged]
    grouped = any(item.group is not None for item in judged)
    groups = [item.group or item.image_sha256 for item in judged] if grouped else None
    levels = []
    for value in sorted({s for s, q in zip(scores, qualities, strict=True) if q < required}):
        miss = miss_level(scores, qualities, required=required, threshold=value, groups=groups)
        if miss is not None and miss < 1:
            levels.append(Level(value, miss))
    return tuple(levels)
