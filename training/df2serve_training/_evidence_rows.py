"""What an examination of rankings reports: the rows of its tables, and all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field, JsonValue

from df2serve.config import Frozen
from df2serve_training._evaluation_settings import Metric

__all__ = [
    "CoverageRow",
    "DetectionRow",
    "Evidence",
    "EvidenceSettings",
    "FailureRow",
    "GroupRow",
    "ImageEvidence",
]

Claim: TypeAlias = Literal["false alarm", "missed failure", "Dice outside its range"]
"""What happens at most as often as a level says."""


class EvidenceSettings(Frozen):
    """How rankings are judged."""

    title: ClassVar[str] = "evidence settings"
    required: float = Field(default=0.8, ge=0, le=1)
    """Predictions of a lower Dice score have failed."""
    recall: float = Field(default=0.95, gt=0, le=1)
    """Share of failures, or of odd images, that is to be found."""
    level: float = Field(default=0.1, gt=0, lt=1)
    """Level of the claims whose coverage is counted."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Chance of an interval to hold what it is for."""
    resamples: int = Field(default=2000, ge=1)
    """Bootstrap samples of images per interval."""
    splits: int = Field(default=200, ge=1)
    """Random halves of the ordinary images that claims are tried on."""
    pixels_per_image: int = Field(default=20_000, ge=1)
    """Pixels in and around objects that the calibration error is taken from."""
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    """Of bootstrap samples, halves and pixels."""


class ImageEvidence(Frozen):
    """One image: its scores, and what is known of it."""

    group: str
    file: str
    image_sha256: str
    member: int | None
    """Number of the only member that predicted it; absent for the whole ensemble."""
    trained_on: int
    """Members that were trained on the image, of those that predicted it."""
    scores: dict[str, float]
    """Risk scores by name; ``looks`` and ``ood`` compare the statistics, and these and scores, with
    those of the other ordinary images."""
    statistics: dict[str, float]
    """What the image looks like, by name."""
    dice: float | None
    """Quality of the prediction, where there is a mask."""


class DetectionRow(Frozen):
    """How well a score tells a group of odd images from the ordinary ones."""

    group: str
    score: str
    ordinary: int
    odd: int
    auroc: float
    low: float
    """Lower end of its bootstrap interval."""
    high: float
    better_than_u: float
    """Difference to the AUROC of ``u``."""
    better_low: float
    """Lower end of its paired bootstrap interval: above 0 means better."""
    better_high: float
    average_precision: float
    false_positive_rate: float
    """Ordinary images that are called odd where ``recall`` of the odd ones are."""
    recall_at_k: float
    """Odd images among as many top places as there are odd images."""


class FailureRow(Frozen):
    """How well a score tells failures among the labeled images of a group."""

    group: str
    """``all`` for the labeled images of all groups."""
    score: str
    images: int
    failing: int
    aurc: float
    """Area under the risk-coverage curve, risk 1 - Dice."""
    low: float
    """Lower end of its bootstrap interval."""
    high: float
    excess: float | None
    """0 for the best order, 1 for a random one."""
    less_than_u: float
    """AURC of ``u`` minus this one."""
    less_low: float
    """Lower end of its paired bootstrap interval: above 0 means better."""
    less_high: float
    pearson: float | None
    """Correlation of score and Dice; -1 is the best."""
    spearman: float | None
    to_review: int | None
    """Images from the top until ``recall`` of the failures are found."""


class CoverageRow(Frozen):
    """A claim tried on ordinary images that are not among its references."""

    claim: Claim
    score: str
    references: int
    """Images per half."""
    level: float
    """Stated chance, on average over halves."""
    found: float
    """Share of the tries in which it happened."""
    low: float
    """Lower end of a 95 % interval of that share for so many images."""
    high: float
    tries: int


class GroupRow(Frozen):
    """One group of images."""

    group: str
    images: int
    labeled: int
    failing: int
    trained_on: int
    """Images that some member was trained on."""
    mean_dice: float | None
    calibration_error: float | None
    """Of probabilities in and around objects, 20 bins; absent without masks."""


class Evidence(Frozen):
    """Everything that an examination found; the content of ``evidence.json``."""

    schema_version: Literal[1] = 1
    settings: EvidenceSettings
    metric: Metric = "dice"
    ensemble_id: str
    ensemble_sha256: str
    config: dict[str, JsonValue]
    """Inference settings of the predictions."""
    remarks: tuple[str, ...]
    groups: tuple[GroupRow, ...]
    detection: tuple[DetectionRow, ...]
    failures: tuple[FailureRow, ...]
    coverage: tuple[CoverageRow, ...]
    images: tuple[ImageEvidence, ...]

    def lines(self) -> Iterator[str]:
        """Yield what people want to know first, line by line."""
        for odd in self.detection:
            interval = f"{odd.low:.3f} to {odd.high:.3f}"
            yield f"{odd.group}: {odd.score} AUROC {odd.auroc:.3f} ({interval})"
        for row in self.failures:
            yield (
                f"{row.group}: {row.score} AURC {row.aurc:.3f} ({row.low:.3f} to {row.high:.3f}), "
                f"{row.failing} of {row.images} failed"
            )
        for claim in self.coverage:
            yield (
                f"{claim.claim} by {claim.score}: {claim.found:.3f} where {claim.level:.3f} is "
                "stated"
            )
