"""What is suspicious about experts' masks and their estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool

from df2serve.config import Frozen
from df2serve_training._annotations import Annotation
from df2serve_training._fusion import Fusion
from df2serve_training._gt_settings import GroundTruthSettings

__all__ = ["GroundTruthWarning", "Suspect", "Suspicion", "check_image", "find_mix_ups"]

Suspicion: TypeAlias = Literal[
    "few_experts",
    "empty_mask",
    "empty_estimate",
    "not_converged",
    "inflated_area",
    "low_agreement",
    "looks_like_other",
]
"""Name of a warning."""


class GroundTruthWarning(Frozen):
    """Something that a person should look at."""

    kind: Suspicion
    file: str
    """Name of the image."""
    expert: str | None
    """Whose annotation it is about; absent where it is about the image."""
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Suspect:
    """An annotation that agrees little with those of the other experts."""

    file: str
    expert: str
    foreground: Bool[np.ndarray, "y x"]
    """Pixels that it marks, axes (Y, X)."""
    own_dice: float
    """Dice of its foreground with the other experts' estimate of this image."""


def check_image(
    name: str,
    annotations: Mapping[str, Annotation],
    fusion: Fusion,
    *,
    majority_px: int,
    settings: GroundTruthSettings,
) -> tuple[GroundTruthWarning, ...]:
    """Return what is suspicious about one image.

    Args:
        name: of the image.
        annotations: by expert.
        fusion: their estimate.
        majority_px: foreground pixels of the majority's mask.
        settings: what is worth a warning.
    """
    found: list[GroundTruthWarning] = []

    def warn(kind: Suspicion, message: str, expert: str | None = None) -> None:
        found.append(GroundTruthWarning(kind=kind, file=name, expert=expert, message=message))

    if len(annotations) < settings.enough_experts:
        warn(
            "few_experts",
            f"masks of {len(annotations)} expert(s); with fewer than {settings.enough_experts} an "
            "estimate cannot tell who errs",
        )
    for expert, annotation in annotations.items():
        if not annotation.classes.any():
            warn("empty_mask", "the mask is empty; make sure that nothing is to be seen", expert)
    area = int(np.count_nonzero(fusion.classes))
    if not area:
        warn("empty_estimate", "the estimate is empty")
    if not fusion.converged:
        warn(
            "not_converged",
            f"not converged after {fusion.iterations} iterations; the masks may have too little "
            "in common",
        )
    if settings.method == "staple" and area > settings.max_area_ratio * majority_px:
        warn(
            "inflated_area",
            f"STAPLE marks {area} pixels, the majority of the experts {majority_px}: more than "
            f"{settings.max_area_ratio:g} times as many; compare with method 'majority'",
        )
    return tuple(found)


def find_mix_ups(
    suspects: Sequence[Suspect],
    images: Iterable[tuple[str, Mapping[str | None, np.ndarray]]],
    *,
    mixed_up: float,
) -> list[GroundTruthWarning]:
    """Tell annotations of another image from those that merely agree little.

    Args:
        suspects: annotations of low agreement.
        images: name of every image, with the foreground (Y, X) of the estimate under ``None`` and
            that of the suspects' experts under their names.
        mixed_up: smallest Dice with another image at which a suspect is taken for its mask.

    Returns:
        One warning per suspect, in their order.
    """
    best = [_Likeness(0.0, "", None)] * len(suspects)
    marked = [np.flatnonzero(suspect.foreground) for suspect in suspects]
    for name, foregrounds in images:
        sizes = {whose: np.count_nonzero(other) for whose, other in foregrounds.items()}
        for index, suspect in enumerate(suspects):
            for whose in (None, suspect.expert):
                other = foregrounds.get(whose)
                if name == suspect.file or other is None:
                    continue
                if other.shape == suspect.foreground.shape:  # few pixels of many are looked at
                    shared = np.count_nonzero(other.ravel()[marked[index]])
                    score = 2 * shared / (len(marked[index]) + sizes[whose])
                    best[index] = max(
                        best[index], _Likeness(score, name, whose), key=lambda found: found.dice
                    )
    return [
        _verdict(suspect, likeness, mixed_up)
        for suspect, likeness in zip(suspects, best, strict=True)
    ]


class _Likeness(NamedTuple):
    """Another image that an annotation fits."""

    dice: float
    file: str
    whose: str | None
    """Expert whose mask it fits there; absent for the estimate."""


def _verdict(suspect: Suspect, likeness: _Likeness, mixed_up: float) -> GroundTruthWarning:
    message = f"Dice {suspect.own_dice:.3f} with the estimate of the other experts"
    alike = likeness.dice > suspect.own_dice and likeness.dice >= mixed_up
    if alike:
        mask = f"the mask of {likeness.whose}" if likeness.whose else "the estimate"
        message += (
            f", but {likeness.dice:.3f} with {mask} of image {likeness.file}: it looks like the "
            f"mask of image {likeness.file}"
        )
    return GroundTruthWarning(
        kind="looks_like_other" if alike else "low_agreement",
        file=suspect.file,
        expert=suspect.expert,
        message=message,
    )
