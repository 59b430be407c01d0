"""Whether an image is of the references' kind, by several scores and its looks together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from df2serve.core.conformal import pooled_rank_p_values
from df2serve.core.scores import OOD_SCORES

__all__ = ["Looks", "Oddness", "measure_oddness", "strangeness"]

_TINY = np.finfo(np.float32).eps


@dataclass(frozen=True, slots=True)
class Looks:
    """What is known of an image without a mask."""

    scores: Mapping[str, float]
    """Risk scores by name."""
    statistics: Mapping[str, float]
    """Brightness, sharpness, amount of foreground by name."""


@dataclass(frozen=True, slots=True)
class Oddness:
    """How unlike some references an image is."""

    as_odd: int
    """References that are at least as odd."""
    references: int
    """All references."""
    distance: float
    """Mean over scores of the distance to the references' median in their interquartile ranges:
    decides among images that are odder than every reference."""

    @property
    def p_value(self) -> float:
        """How often an image of the references' kind is as odd, in (0, 1]."""
        return (self.as_odd + 1) / (self.references + 1)

    def __lt__(self, other: Oddness) -> bool:
        """Whether the other one, of as many references, is odder."""
        return (-self.as_odd, self.distance) < (-other.as_odd, other.distance)


def measure_oddness(image: Looks, references: Sequence[Looks]) -> Oddness | None:
    """Compare an image with references in all that they have in common.

    The scores of :data:`~df2serve.core.scores.OOD_SCORES` and the :func:`strangeness` of the
    statistics go into :func:`~df2serve.core.conformal.pooled_rank_p_values`.

    Returns:
        ``None`` without references, or if nothing is in common.

    Example:
        >>> references = [Looks({"u": 0.1 * i}, {}) for i in (1, 2, 3)]
        >>> found = measure_oddness(Looks({"u": 0.9}, {}), references)
        >>> found.p_value, round(found.distance, 3)
        (0.25, 7.0)
    """
    pool = [*references, image]
    columns = [
        [one.scores[name] for one in pool]
        for name in OOD_SCORES
        if all(name in one.scores for one in pool)
    ]
    shared = sorted(set.intersection(*(set(one.statistics) for one in pool)))
    if shared:
        table = np.array([[one.statistics[name] for name in shared] for one in pool])
        columns.append(strangeness(table).tolist())
    if not columns or not references:
        return None
    scores = np.array(columns, dtype=np.float64).T
    (p_value,) = pooled_rank_p_values(scores[None])
    low, middle, high = np.percentile(scores[:-1], [25, 50, 75], axis=0)
    return Oddness(
        as_odd=round(float(p_value) * len(pool)) - 1,
        references=len(references),
        distance=float(np.mean((scores[-1] - middle) / np.maximum(high - low, _TINY))),
    )


def strangeness(statistics: Float64[np.ndarray, "image name"]) -> Float64[np.ndarray, " image"]:
    """Return how far every image is from the others in its strangest number.

    Returns:
        Largest distance to the median over numbers, in robust standard deviations (1.4826 times the
        median absolute deviation); the same for every order of the images.

    Example:
        >>> strangeness(np.array([[1.0], [2.0], [3.0], [4.0], [13.0]])).round(2)
        array([1.35, 0.67, 0.  , 0.67, 6.74])
    """
    middle = np.median(statistics, axis=0)
    distances = np.abs(statistics - middle)
    spread = 1.4826 * np.median(distances, axis=0)
    # where most images are alike, a hundredth of their level has to do
    scale = np.maximum(spread, np.maximum(np.abs(middle) / 100, _TINY))
    largest: Float64[np.ndarray, " image"] = (distances / scale).max(axis=1)
    return largest
