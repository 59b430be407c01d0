"""What an evaluation reports: the rows of its tables, and all of them together."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, JsonValue

from df2serve.artifact.manifest import ExpertRange, ReferenceKind, Temperature
from df2serve.config import Frozen
from df2serve.core.scores import SCORES
from df2serve_training._comparison import Quality
from df2serve_training._evaluation_settings import EvaluationSettings, Metric
from df2serve_training._pixels import UncertaintyBin

__all__ = [
    "ClassRow",
    "CorrelationRow",
    "Evaluation",
    "ExpertReference",
    "ExpertRow",
    "ImageRow",
    "Place",
    "RelativeRow",
    "SummaryMetric",
    "SummaryRow",
]

Place: TypeAlias = Literal["below worst expert", "in expert range", "above best expert"]
"""Where a prediction lies; the ends belong to the range."""

ExpertReference: TypeAlias = Literal["estimate", "leave_one_out"]
"""What experts are compared with: the truth that they contributed to, or that of the others."""


SummaryMetric: TypeAlias = Metric | Literal["pq_pooled"]
"""``pq_pooled`` sums matches over images before dividing, as mPQ+ of the CoNIC challenge does."""


class _Image(Frozen):
    file: str
    """Name of the image: the stem of its files."""


class _ImageClass(_Image):
    class_name: str


class _ImageExpert(_Image):
    expert: str
    """Name of the expert's folder."""
    reference: ExpertReference


class ImageRow(Quality, _Image):
    """One prediction; qualities are means over the foreground classes that occur."""

    n_truth: int
    """Objects of the truth that are large enough to count, all classes."""
    n_predicted: int
    u: float | None
    """Scores are those of ``ImageScores``."""
    u_epistemic: float | None
    u_class_balanced: float | None
    u_top: float | None = None
    one_minus_expected_dice: float | None
    one_minus_pairwise_dice: float | None = None
    one_minus_member_dice: float | None = None
    feature_distance: float | None = None
    foreground_fraction: float
    empty_prediction: bool
    kind: ReferenceKind
    members: str
    """Numbers of the members that predicted it, separated by spaces."""
    group: str | None
    seconds: float
    """Of the prediction."""
    image_sha256: str
    statistics: dict[str, float] = Field(default_factory=dict)
    """What the image looks like, by name."""

    @property
    def scores(self) -> dict[str, float]:
        """The scores that are defined, by name."""
        return {name: value for name in SCORES if (value := getattr(self, name)) is not None}


class ClassRow(Quality, _ImageClass):
    """One class of one image."""

    n_truth: int
    n_predicted: int
    truth_px: int
    predicted_px: int
    true_positives: int
    """Pairs of objects with an IoU above 0.5."""
    iou_sum: float
    """Sum of their IoU."""


class ExpertRow(Quality, _ImageExpert):
    """One expert's mask of one image; qualities are means over the classes that occur."""


class RelativeRow(_Image):
    """One prediction among the experts, by one metric."""

    metric: Metric
    reference: ExpertReference
    place: Place
    score: float
    """Quality of the prediction."""
    worst: float
    """Quality of the worst expert."""
    mean: float
    """Mean quality of the experts."""
    best: float
    """Quality of the best expert."""
    experts: int
    """Those with a defined quality."""


class SummaryRow(Frozen):
    """One metric over all images."""

    class_name: str
    """``mean`` for the mean over the classes of each image."""
    metric: SummaryMetric
    images: int
    """Images that have the metric."""
    skipped: int
    """Images without it: prediction and truth are both empty."""
    units: int
    """Groups, or images where there are none, that the interval was drawn from."""
    mean: float | None
    low: float | None = None
    """Lower end of the bootstrap interval of the mean."""
    high: float | None = None
    """Upper end of the bootstrap interval of the mean."""
    std: float | None = None
    """Standard deviation over images."""
    median: float | None = None


class CorrelationRow(Frozen):
    """How a score and a quality go together over images; -1 is the best that a score can do."""

    score: str
    metric: Metric
    images: int
    pearson: float
    spearman: float


class Evaluation(Frozen):
    """Everything that an evaluation found; the content of ``evaluation.json``."""

    schema_version: Literal[1] = 1
    settings: EvaluationSettings
    class_names: tuple[str, ...]
    """In order, background first."""
    ensemble_id: str | None = None
    ensemble_sha256: str | None = None
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """Inference settings of the predictions."""
    versions: dict[str, str] = Field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    images: tuple[ImageRow, ...]
    classes: tuple[ClassRow, ...]
    experts: tuple[ExpertRow, ...]
    relative: tuple[RelativeRow, ...]
    expert_ranges: tuple[ExpertRange, ...]
    summary: tuple[SummaryRow, ...]
    correlations: tuple[CorrelationRow, ...]
    uncertainty: tuple[UncertaintyBin, ...]
    temperature: Temperature | None

    def mean(self, metric: Metric) -> float | None:
        """Return the mean over images of the mean over classes of a metric."""
        rows = (row for row in self.summary if row.class_name == "mean")
        return next((row.mean for row in rows if row.metric == metric), None)
