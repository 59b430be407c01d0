"""The review list: which predictions to look at first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from df2serve.errors import InputError

__all__ = ["RankedImage", "ScoredImage", "minimum_failing_score", "rank"]


@dataclass(frozen=True)
class ScoredImage:
    """What ranking needs to know of one image."""

    name: str
    """Path or name shown to people; breaks ties."""
    score: float | None
    """Risk score, higher is worse; absent where it is undefined."""
    empty_prediction: bool
    no_valid_pixels: bool


@dataclass(frozen=True)
class RankedImage:
    """A place on the review list."""

    rank: int
    """Place, 1 for the image to look at first."""
    image: ScoredImage
    needs_review: bool | None
    """Score at or above the threshold, or undefined; absent when there is no threshold."""


def rank(images: Iterable[ScoredImage], *, threshold: float | None) -> list[RankedImage]:
    """Order images by decreasing doubt.

    Images without a single valid pixel come first, then those without a score, then decreasing
    scores; within a tie empty predictions lead, then the name decides. The order is the same on
    every machine.

    Args:
        images: the images, in any order.
        threshold: smallest score that calls for review (eq. 8); a score equal to it does as well.

    Example:
        >>> listed = rank(
        ...     [ScoredImage("a", 0.2, False, False), ScoredImage("b", 0.5, False, False)],
        ...     threshold=0.5,
        ... )
        >>> [(place.rank, place.image.name, place.needs_review) for place in listed]
        [(1, 'b', True), (2, 'a', False)]
    """

    def key(image: ScoredImage) -> tuple[bool, bool, float, bool, str]:
        known = image.score is not None
        return (
            not image.no_valid_pixels,
            known,
            -(image.score or 0.0),
            not image.empty_prediction,
            image.name,
        )

    return [
        RankedImage(
            rank=place,
            image=image,
            needs_review=None
            if threshold is None
            else image.score is None or image.score >= threshold,
        )
        for place, image in enumerate(sorted(images, key=key), start=1)
    ]


def minimum_failing_score(
    scores: Sequence[float], qualities: Sequence[float], *, required: float
) -> float | None:
    """Return U_min: the smallest score among reference images whose prediction failed.

    Args:
        scores: risk scores of the reference images.
        qualities: quality of each prediction, such as its Dice score, in the same order.
        required: quality below which a prediction has failed (the paper's τ).

    Returns:
        The threshold, or None when no reference image failed: then nothing can be certified. With
        n failing images a new failing image escapes review with probability at most 1/(n + 1).

    Raises:
        InputError: the lists differ in length.

    Source:
        Griebel et al. 2023, eq. 8.

    Example:
        >>> minimum_failing_score([0.1, 0.4, 0.6], [0.9, 0.7, 0.5], required=0.8)
        0.4
    """
    if len(scores) != len(qualities):
        message = f"got {len(scores)} scores and {len(qualities)} qualities; need one for one"
        raise InputError(message)
    failing = [s for s, q in zip(scores, qualities, strict=True) if q < required]
    return min(failing, default=None)
