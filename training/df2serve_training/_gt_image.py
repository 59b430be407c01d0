"""One image of a ground-truth folder: its estimate, its files, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from df2serve.core.metrics import dice
from df2serve_training._annotations import Annotation
from df2serve_training._estimate import Estimate, estimate
from df2serve_training._expert_files import read_annotation
from df2serve_training._fusion import majority_vote
from df2serve_training._gt_checks import GroundTruthWarning, Suspect, check_image
from df2serve_training._gt_files import write_labels, write_map, write_mask
from df2serve_training._gt_report import ImageReport, ObjectRow, describe_image
from df2serve_training._gt_settings import GroundTruthSettings
from df2serve_training.agreement import Agreement, agreement

__all__ = ["ImageResult", "Scores", "estimate_image"]


@dataclass(frozen=True, slots=True)
class Scores:
    """How one expert agrees with the estimate."""

    expert: str
    own: Agreement
    """With the estimate to which the expert contributed."""
    others: Agreement | None
    """With the estimate of the other experts; absent where there are none."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What is kept of an image."""

    report: ImageReport
    scores: tuple[Scores, ...]
    objects: tuple[ObjectRow, ...]
    warnings: tuple[GroundTruthWarning, ...]
    suspects: tuple[Suspect, ...]


def estimate_image(
    name: str, paths: Mapping[str, Path], folder: Path, settings: GroundTruthSettings
) -> ImageResult:
    """Estimate one image, write its files, and compare its experts.

    Args:
        name: of the image.
        paths: mask by expert.
        folder: where the files of all images go.
        settings: method, and what is worth a warning.

    Raises:
        InputError: a mask cannot be read.
    """
    read = {expert: read_annotation(path, settings) for expert, path in paths.items()}
    sources = {expert: digest for expert, (_, digest) in read.items()}
    drawn = {expert: annotation for expert, (annotation, _) in read.items()}
    found = estimate(list(drawn.values()), settings)
    masks = [annotation.classes for annotation in drawn.values()]
    voted = majority_vote(masks, n_classes=settings.num_classes)
    majority_px = int(np.count_nonzero(voted.classes))
    _write(folder, name, found, settings)
    scores, suspects = _compare(name, drawn, found, settings)
    return ImageResult(
        report=describe_image(
            name, sources, found.fusion, found.annotation.labels, majority_px=majority_px
        ),
        scores=scores,
        objects=tuple(ObjectRow(file=name, **asdict(item)) for item in found.objects),
        warnings=check_image(name, drawn, found.fusion, majority_px=majority_px, settings=settings),
        suspects=suspects,
    )


def _write(folder: Path, name: str, found: Estimate, settings: GroundTruthSettings) -> None:
    layers = {"masks": f"{name}.png", "votes": f"{name}.tif"}
    layers |= {"posteriors": f"{name}.tif"} if found.fusion.posterior is not None else {}
    layers |= {"labels": f"{name}.tif"} if settings.method == "instance" else {}
    paths = {layer: folder / layer / file for layer, file in layers.items()}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    write_mask(paths["masks"], found.fusion.classes, n_classes=settings.num_classes)
    write_map(paths["votes"], found.fusion.votes)
    if found.fusion.posterior is not None:
        write_map(paths["posteriors"], found.fusion.posterior)
    if "labels" in paths:
        write_labels(paths["labels"], found.annotation.labels)


def _compare(
    name: str, drawn: Mapping[str, Annotation], found: Estimate, settings: GroundTruthSettings
) -> tuple[tuple[Scores, ...], tuple[Suspect, ...]]:
    """Compare every expert with the estimate, and with that of the other experts."""
    scores, suspects = [], []
    for expert, annotation in drawn.items():
        own, others = _agreement(found.annotation, annotation, settings), None
        rest = [other for key, other in drawn.items() if key != expert]
        if rest:
            truth = estimate(rest, settings).annotation
            others = _agreement(truth, annotation, settings)
            foreground = annotation.classes > 0
            score = dice(truth.classes > 0, foreground)
            if foreground.any() and score is not None and score < settings.low_agreement:
                suspects.append(Suspect(name, expert, foreground, score))
        scores.append(Scores(expert, own, others))
    return tuple(scores), tuple(suspects)


def _agreement(
    truth: Annotation, annotation: Annotation, settings: GroundTruthSettings
) -> Agreement:
    return agreement(truth, annotation, n_classes=settings.num_classes, min_size=settings.min_size)
