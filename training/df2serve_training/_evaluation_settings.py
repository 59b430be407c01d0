"""Settings of an evaluation and their defaults."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from df2serve.config import Frozen
from df2serve_training._gt_settings import Method

__all__ = ["METRICS", "EvaluationSettings", "Metric"]

Metric: TypeAlias = Literal["dice", "map", "ap50", "aji", "aji_plus", "pq"]
"""Names of the qualities of a prediction, see :class:`Quality`."""

METRICS: tuple[Metric, ...] = ("dice", "map", "ap50", "aji", "aji_plus", "pq")
"""All of them."""

_Inside: TypeAlias = Annotated[float, Field(gt=0, lt=1)]


class EvaluationSettings(Frozen):
    """How predictions are compared with the truth, and what is concluded."""

    title: ClassVar[str] = "evaluation settings"
    min_size: Annotated[int, Field(ge=0)] = 0
    """Objects of fewer pixels are left out, on all sides; Dice counts all pixels."""
    leave_one_out: Method | Literal["none"] = "staple"
    """How the masks of the other experts become the truth that an expert is compared with; ``none``
    for no such comparison."""
    confidence: _Inside = 0.95
    """Chance of an interval to hold what it is for."""
    resamples: Annotated[int, Field(ge=1)] = 2000
    """Bootstrap samples of images per interval."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    """Of bootstrap samples and of drawn pixels."""
    pixels_per_image: Annotated[int, Field(ge=0)] = 20_000
    """Pixels in and around objects that the temperature is fitted to; 0 for no temperature."""
    metric: Metric = "dice"
    """Quality that decides whether a prediction has failed."""
    required: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Predictions of a lower quality have failed (the paper's τ)."""
    miss_level: _Inside = 0.1
    """Wanted chance of a failing image to escape review; the true one is stated beside it."""
    features: bool = False
    """Make a bank of what the members see in images that they were not trained on, and compare each
    image with the others."""
