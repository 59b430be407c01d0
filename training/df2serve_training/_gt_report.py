"""What a run of ground-truth estimation reports."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from df2serve.config import Frozen
from df2serve.core.metrics import label_components
from df2serve.types import LabelMap
from df2serve_training._fusion import Fusion
from df2serve_training._gt_checks import GroundTruthWarning
from df2serve_training._gt_settings import GroundTruthSettings
from df2serve_training.agreement import AgreementRow, ExpertSummary

__all__ = ["GroundTruthReport", "ImageReport", "ObjectRow", "describe_image"]


class ImageReport(Frozen):
    """What there is to know about one estimate."""

    file: str
    """Name of the image: the stem of its files."""
    experts: tuple[str, ...]
    sources: Mapping[str, str | None]
    """SHA-256 of every expert's file."""
    shape: tuple[int, int]
    """Rows and columns."""
    iterations: int
    """Of STAPLE; 0 for other methods, and where all masks are equal."""
    converged: bool
    undecided: float
    """Share of the pixels without a winner."""
    foreground: float
    """Share of the pixels in any class but the background."""
    area_ratio: float | None
    """Foreground relative to that of the majority's mask; absent where the latter is empty."""
    n_objects: int
    n_merged: int
    """By how much fewer they would be in a mask that does not tell touching objects apart."""
    confusion: Mapping[str, tuple[tuple[float, ...], ...]]
    """By expert: share of class k (row) called j (column); zeros for a class that is absent. Of
    two classes, [1][1] is the sensitivity and [0][0] the specificity."""


class ObjectRow(Frozen):
    """One fused object."""

    file: str
    label: int
    class_index: int
    votes: int
    """Experts that drew it as an object of its own."""
    support: int
    """Experts that marked at least half of it."""
    area_px: int


class GroundTruthReport(Frozen):
    """Everything about the estimates of a folder."""

    settings: GroundTruthSettings
    versions: Mapping[str, str]
    experts: tuple[str, ...]
    images: tuple[ImageReport, ...]
    agreement: tuple[AgreementRow, ...]
    summary: tuple[ExpertSummary, ...]
    warnings: tuple[GroundTruthWarning, ...]


def describe_image(
    name: str,
    sources: Mapping[str, str | None],
    fusion: Fusion,
    labels: LabelMap,
    *,
    majority_px: int,
) -> ImageReport:
    """Return the report on one image.

    Args:
        name: of the image.
        sources: SHA-256 of the file of every expert, in the order of the fusion.
        fusion: the estimate.
        labels: its objects, axes (Y, X), 0 = background.
        majority_px: foreground pixels of the majority's mask.
    """
    area = int(np.count_nonzero(fusion.classes))
    n_objects = len(np.unique(labels[labels > 0]))
    return ImageReport(
        file=name,
        experts=tuple(sources),
        sources=sources,
        shape=labels.shape,
        iterations=fusion.iterations,
        converged=fusion.converged,
        undecided=float(fusion.undecided.mean()),
        foreground=area / labels.size,
        area_ratio=area / majority_px if majority_px else None,
        n_objects=n_objects,
        n_merged=n_objects - int(label_components(labels > 0).max(initial=0)),
        confusion=dict(zip(sources, fusion.confusion.tolist(), strict=True)),
    )
