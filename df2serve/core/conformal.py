"""What images of known kind and quality promise about new ones, with levels that hold exactly.

A *reference* is an image of the ordinary kind. All statements suppose that a new image is drawn
like them; they hold on average over references and new images, for any distribution of the scores.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy import optimize, stats

from df2serve.errors import InputError

__all__ = [
    "QualityForecast",
    "benjamini_hochberg",
    "forecast_quality",
]

_ROUNDING = 1e-9
_FEWEST = 2
"""References that a curve goes through."""


def benjamini_hochberg(
    p_values: Float64[np.ndarray, " n"], *, level: float
) -> Bool[np.ndarray, " n"]:
    """Choose the images of a batch that are out of distribution.

    Args:
        p_values: of the images, in (0, 1].
        level: largest expected share of false calls among all calls, in (0, 1).

    Returns:
        True where an image is called out of distribution.

    Source:
        Benjamini and Hochberg 1995; for conformal p-values Bates et al. 2023, "Testing for outliers
        with conformal p-values".

    Example:
        >>> benjamini_hochberg(np.array([0.01, 0.2, 0.03]), level=0.1)
        array([ True, False,  True])
    """
    adjusted = stats.false_discovery_control(p_values) if len(p_values) else p_values
    chosen: Bool[np.ndarray, " n"] = adjusted <= level + _ROUNDING
    return chosen


@dataclass(frozen=True, slots=True, eq=False)
class QualityForecast:
    """Which quality a prediction with some score has."""

    scores: Float64[np.ndarray, " n"]
    """Scores of the curve, ascending."""
    qualities: Float64[np.ndarray, " n"]
    """Expected quality at these, descending."""
    margin: float
    """Half the width of the intervals; 1 where there are too few references for their level."""
    level: float
    """Chance of an interval to hold the quality, in (0, 1)."""
    units: int
    """References, or groups of them, that the margin comes from."""

    @property
    def informative(self) -> bool:
        """Whether there are enough references for more than "between 0 and 1"."""
        return self.margin < 1

    def interval(self, score: float) -> tuple[float, float]:
        """Return between which qualities a prediction lies with the chance :attr:`level`."""
        middle = float(np.interp(score, self.scores, self.qualities))
        return max(0.0, middle - self.margin), min(1.0, middle + self.margin)


def forecast_quality(
    scores: Sequence[float],
    qualities: Sequence[float],
    *,
    level: float,
    groups: Sequence[Hashable] | None = None,
) -> QualityForecast | None:
    """Learn how quality falls as a score rises, and how far single images are from that.

    Every second group, or image, shapes a falling curve; the residuals of the others give the
    margin. Among n of these it is the ``ceil((n + 1) level)``-th smallest, where each image of a
    group counts as one part of it; if n is smaller than that, the interval is [0, 1].

    Args:
        scores: risk scores of the references, in an order that says nothing of their quality.
        qualities: quality of each prediction in [0, 1], in the same order.
        level: wanted chance of an interval to hold the quality, in (0, 1).
        groups: what each reference belongs to; every image stands for itself when absent.

    Returns:
        The forecast; ``None`` if there are too few references for a curve.

    Raises:
        InputError: the lists differ in length.

    Source:
        Split conformal prediction, Lei et al. 2018, on the residuals of an isotonic regression;
        with groups, Lee, Barber and Willett 2023, arXiv 2306.06342.

    Example:
        >>> forecast = forecast_quality(
        ...     [0.1, 0.1, 0.2, 0.2, 0.3, 0.3], [0.9, 0.8, 0.7, 0.7, 0.5, 0.6], level=0.7
        ... )
        >>> forecast.units, [round(end, 2) for end in forecast.interval(0.2)]
        (3, [0.6, 0.8])
    """
    if len(scores) != len(qualities) or (groups is not None and len(groups) != len(scores)):
        message = f"got {len(scores)} scores and {len(qualities)} qualities; need one for one"
        raise InputError(message)
    owners = range(len(scores)) if groups is None else groups
    turn = {owner: place % 2 for place, owner in enumerate(dict.fromkeys(owners))}
    fitted = np.array([turn[owner] == 0 for owner in owners], dtype=bool)
    score, quality = np.asarray(scores, np.float64), np.asarray(qualities, np.float64)
    if fitted.sum() < _FEWEST:
        return None
    knots, members = np.unique(score[fitted], return_inverse=True)
    weights = np.bincount(members)
    means = np.bincount(members, weights=quality[fitted]) / weights
    curve = optimize.isotonic_regression(means, weights=weights, increasing=False).x
    residuals = np.abs(quality - np.interp(score, knots, curve))
    rest = [
        (float(residual), owner)
        for residual, owner, used in zip(residuals, owners, fitted, strict=True)
        if not used
    ]
    return QualityForecast(knots, curve, _margin(rest, level), level, sum(turn.values()))


def _margin(residuals: Sequence[tuple[float, Hashable]], level: float) -> float:
    """Return the residual that a new one exceeds with a chance of at most ``1 - level``."""
    sizes = Counter(owner for _, owner in residuals)
    wanted = math.ceil((len(sizes) + 1) * level - _ROUNDING)
    below = 0.0
    for residual, owner in sorted(residuals, key=lambda pair: pair[0]):
        below += 1 / sizes[owner]
        if below >= wanted - _ROUNDING:
            return residual
    return 1.0
