"""The estimated truth of one image, by the method of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np

from df2serve_training._annotations import Annotation
from df2serve_training._fusion import Fusion, confusion_matrices, majority_vote, staple
from df2serve_training._gt_settings import GroundTruthSettings
from df2serve_training._objects import FusedObject, fuse_instances

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What is true of an image, as far as experts tell."""

    fusion: Fusion
    """The classes, and how they came about."""
    annotation: Annotation
    """The same classes, with the objects."""
    objects: tuple[FusedObject, ...]
    """Votes on every object, where objects were fused."""


def estimate(annotations: Sequence[Annotation], settings: GroundTruthSettings) -> Estimate:
    """Fuse annotations of one image.

    Raises:
        InputError: no annotations, of several sizes, or with classes that do not exist.
    """
    masks = [annotation.classes for annotation in annotations]
    match settings.method:
        case "staple":
            fusion = staple(
                masks,
                n_classes=settings.num_classes,
                max_iterations=settings.max_iterations,
                undecided=settings.undecided,
            )
        case "majority":
            fusion = majority_vote(
                masks, n_classes=settings.num_classes, undecided=settings.undecided
            )
        case "instance":
            return _estimate_objects(annotations, settings)
        case _:
            assert_never(settings.method)
    return Estimate(fusion, Annotation.of_classes(fusion.classes), ())


def _estimate_objects(annotations: Sequence[Annotation], settings: GroundTruthSettings) -> Estimate:
    """Fuse objects; votes on pixels, and the best expert, are those of the majority."""
    masks = [annotation.classes for annotation in annotations]
    voted = majority_vote(masks, n_classes=settings.num_classes)
    fused = fuse_instances(
        annotations,
        match_iou=settings.match_iou,
        min_votes=settings.min_votes,
        min_apart=settings.min_apart,
        tie_breaker=voted.best_rater if settings.undecided == "best_rater" else None,
    )
    confusion = confusion_matrices(
        masks,
        fused.classes,
        n_classes=settings.num_classes,
        decided=np.ones(fused.classes.shape, bool),
    )
    fusion = replace(voted, classes=fused.classes, confusion=confusion)
    return Estimate(fusion, Annotation(fused.classes, fused.labels), fused.objects)
