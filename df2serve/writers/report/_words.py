"""Names of scores for people, and why an image stands where it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from df2serve.core.scores import ImageScores
from df2serve.writers.records import Record, RunInfo

__all__ = ["SCORE_NAMES", "Place", "ScoreTitle", "reasons", "risk_scores", "sentence"]

_MOSTLY_DISAGREEMENT = 0.5
_HARDLY_DISAGREEMENT = 0.1
_LOW_DICE = 0.8
_CLEARLY_MORE = 1.25
_LITTLE = 0.005
_FEATURES = "feature_distance"


@dataclass(frozen=True)
class ScoreTitle:
    """How a score is called."""

    title: str
    meaning: str


SCORE_NAMES: Mapping[str, ScoreTitle] = {
    "u": ScoreTitle("U", "mean uncertainty of what was found"),
    "u_epistemic": ScoreTitle("U, epistemic part", "disagreement of members and views"),
    "u_class_balanced": ScoreTitle("U, classes alike", "every class counts the same"),
    "u_top": ScoreTitle("U of the most doubtful", "sees objects that were missed as well"),
    "one_minus_expected_dice": ScoreTitle("1 - expected Dice", "what the probabilities promise"),
    "one_minus_pairwise_dice": ScoreTitle("1 - pairwise Dice", "how unlike the members' masks are"),
    "one_minus_member_dice": ScoreTitle(
        "1 - member Dice", "how unlike members' masks and the ensemble's are"
    ),
    "feature_distance": ScoreTitle(
        "feature distance", "how unlike those of the reference images its features are"
    ),
}
"""Risk scores by their name in the records, in the order in which they are shown."""


@dataclass(frozen=True)
class Place:
    """Where a score lies among those of the references."""

    below: int
    """References with a smaller score."""
    references: int

    @property
    def text(self) -> str:
        """In words, to go on after "more than"."""
        if self.below == self.references:
            return f"all {self.references}"
        return f"{self.below or 'none'} of {self.references}"


def risk_scores(scores: ImageScores) -> dict[str, float]:
    """Return the risk scores that an image has, by name."""
    found = {name: getattr(scores, name, None) for name in SCORE_NAMES}
    return {name: value for name, value in found.items() if value is not None}


def reasons(record: Record, run: RunInfo, place: Place | None) -> Iterator[str]:
    """Yield sentences on why an image stands where it stands, the most important one first.

    Args:
        record: of the image.
        run: what all results have in common.
        place: of its U; absent without references that compare.
    """
    scores = record.scores
    if scores.no_valid_pixels:
        yield "No pixel of it counts, so that nothing can be scored."
        return
    if scores.u is None:
        yield "Nothing was found in it, and U is undefined then under the settings in use."
        return
    largest = f"{run.largest_uncertainty:.2g}"
    if scores.empty_prediction:
        yield (
            f"Nothing was found in it; its most doubtful pixel has an uncertainty of "
            f"{scores.u:.3f} of at most {largest}."
        )
    else:
        yield f"What was found is uncertain by {scores.u:.3f} on average, of at most {largest}."
    if place is not None:
        yield f"That is more than {place.text} reference images have."
    if not scores.empty_prediction:
        yield from _of_foreground(scores)
    yield from _of_features(scores, run)
    yield from map(sentence, record.notes)


def _of_foreground(scores: ImageScores) -> Iterator[str]:
    """Yield what the other scores add for a prediction that is not empty."""
    found = risk_scores(scores)
    u = found["u"]
    share = found.get("u_epistemic", 0.0) / u if u else 0.0
    if share >= _MOSTLY_DISAGREEMENT:
        yield (
            f"Most of it, {share:.0%}, is disagreement of members and views, as in images unlike "
            "those of the training."
        )
    elif u and share <= _HARDLY_DISAGREEMENT:
        yield (
            f"Members and views agree with each other ({share:.0%} is disagreement): the image "
            "itself leaves room for doubt, as at blurred edges."
        )
    if (alike := 1 - found.get("one_minus_pairwise_dice", 0.0)) < _LOW_DICE:
        yield f"Masks of two members agree with a Dice score of {alike:.2f} only."
    if (expected := 1 - found.get("one_minus_expected_dice", 0.0)) < _LOW_DICE:
        yield f"The probabilities promise a Dice score of {expected:.2f} only."
    if found.get("u_top", 0.0) > _CLEARLY_MORE * u:
        yield "There is more doubt outside of what was found: objects may be missing."
    if found.get("u_class_balanced", 0.0) > _CLEARLY_MORE * u:
        yield "A class with few pixels is more doubtful than the rest."
    if scores.foreground_fraction < _LITTLE:
        yield f"Very little was found: {scores.foreground_fraction:.2%} of the pixels."


def _of_features(scores: ImageScores, run: RunInfo) -> Iterator[str]:
    """Yield that no reference image is as far from the others as this one."""
    references = run.calibration.references
    known = [one.scores[_FEATURES] for one in references if _FEATURES in one.scores]
    if scores.feature_distance is not None and known and scores.feature_distance > max(known):
        yield (
            f"What the networks see in it is farther from the reference images (feature distance "
            f"{scores.feature_distance:.3g}) than any of these {len(known)} is from the others "
            f"({max(known):.3g} at most)."
        )


def sentence(note: object) -> str:
    """Return a remark with a capital letter and a full stop."""
    text = str(note)
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
