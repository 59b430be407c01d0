"""Whether an image is of the references' kind, by its scores and its looks together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from df2serve.core.scores import OOD_SCORES, ScoreName

__all__ = ["Looks", "Oddness", "measure_oddness", "strangeness"]

_TINY = np.finfo(np.float32).eps
_FEWEST = 2
_ONE_SIDED: tuple[ScoreName, ...] = ("feature_distance",)
"""Scores of which less than usual is not odd."""


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

    strangeness: float
    """1 for an image that in some number is as far from the middle as the farthest reference."""
    p_value: float
    """How often an image of the references' kind is as strange, in (0, 1]."""


def measure_oddness(image: Looks, references: Sequence[Looks]) -> Oddness | None:
    """Compare an image with references in all numbers that they have in common.

    These are the statistics and the scores of :data:`~df2serve.core.scores.OOD_SCORES`. A call "out
    of distribution" at ``p_value <= level`` is a false alarm with a chance of at most that level,
    whatever the dependence of the numbers: references and image are compared alike. Of the distance
    to a bank of features only more than the median counts: references that are in the bank lack one
    neighbor, themselves, so that they are a little farther from it than a new image of their kind.

    Returns:
        ``None`` for fewer than two references, or if nothing is in common.

    Source:
        Vovk et al. 2005, "Algorithmic Learning in a Random World": a (full) conformal p-value.

    Example:
        >>> references = [Looks({"u": 0.1 * i}, {}) for i in (1, 2, 3, 4)]
        >>> found = measure_oddness(Looks({"u": 0.9}, {}), references)
        >>> round(found.strangeness, 3), found.p_value
        (3.0, 0.2)
    """
    pool = [*references, image]
    numbers = [_numbers(one) for one in pool]
    shared = sorted(set.intersection(*map(set, numbers)))
    if not shared or len(references) < _FEWEST:
        return None
    table = np.array([[one[name] for name in shared] for one in numbers], dtype=np.float64)
    for number in (shared.index(name) for name in _ONE_SIDED if name in shared):
        table[:, number] = np.maximum(table[:, number], np.median(table[:, number]))
    (found,) = strangeness(table[None])
    return Oddness(float(found[-1]), float(np.mean(found >= found[-1])))


def strangeness(
    pools: Float64[np.ndarray, "pool image number"],
) -> Float64[np.ndarray, "pool image"]:
    """Return how far every image of a pool is from the middle, compared with the others.

    Returns:
        For the number that is strangest: its distance to the median over the largest such distance
        of another image. The order of the images does not matter.

    Example:
        >>> strangeness(np.array([[[1.0], [2.0], [3.0], [4.0], [13.0]]])).round(2)
        array([[0.2, 0.1, 0. , 0.1, 5. ]])
    """
    middle = np.median(pools, axis=1, keepdims=True)
    distances = np.abs(pools - middle)
    second, first = np.moveaxis(np.sort(distances, axis=1)[:, -2:], 1, 0)
    others = np.where(distances == first[:, None], second[:, None], first[:, None])
    # where all others are alike, a hundredth of their level has to do
    scale = np.maximum(others, np.maximum(np.abs(middle) / 100, _TINY))
    largest: Float64[np.ndarray, "pool image"] = (distances / scale).max(axis=2)
    return largest


def _numbers(looks: Looks) -> dict[str, float]:
    scores: dict[str, float] = {
        name: score for name, score in looks.scores.items() if name in OOD_SCORES
    }
    return {**looks.statistics, **scores}
