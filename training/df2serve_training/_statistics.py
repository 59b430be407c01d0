"""What a few images tell about all: intervals, differences and correlations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from df2serve_training._evaluation_settings import EvaluationSettings

__all__ = ["Correlation", "Interval", "SignedRank", "bootstrap", "correlate", "wilcoxon"]

_FEWEST = 3
"""Fewer pairs of numbers say nothing about a correlation."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and what it may be for other images of the same kind."""

    mean: float
    low: float | None
    """Lower end; absent for a single image or group."""
    high: float | None
    """Upper end; absent for a single image or group."""
    units: int
    """Images, or groups of them, that were drawn from."""


def bootstrap(
    values: Sequence[float],
    *,
    settings: EvaluationSettings,
    weights: Sequence[float] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Return a mean over images with its percentile bootstrap interval.

    Args:
        values: one per image, at least one.
        settings: confidence, number of resamples and seed.
        weights: what the sum of the values is divided by the sum of; 1 for every image when absent.
        groups: what each image belongs to, such as an animal; whole groups are drawn.

    Source:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap"; of groups, Field and Welsh
        2007.
    """
    owners = list(range(len(values)) if groups is None else groups)
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    unit_of = [numbers[owner] for owner in owners]
    divided = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    sums = np.bincount(unit_of, weights=np.asarray(values, np.float64))
    totals = np.bincount(unit_of, weights=divided)
    mean = float(sums.sum() / totals.sum())
    if len(sums) == 1:
        return Interval(mean, None, None, 1)
    rng = np.random.default_rng(settings.seed)
    drawn = rng.integers(len(sums), size=(settings.resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / totals[drawn].sum(axis=1)
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(sums))


@dataclass(frozen=True, slots=True)
class SignedRank:
    """Wilcoxon's signed-rank test of paired values."""

    statistic: float
    """Smaller of the sums of ranks of positive and of negative differences."""
    p_value: float
    """Chance of such a difference between equals, two-sided."""


def wilcoxon(differences: Sequence[float]) -> SignedRank | None:
    """Test whether paired values differ; pairs without a difference are left out.

    Returns:
        The test; ``None`` if no pair differs.

    Source:
        Wilcoxon 1945; exact for up to 50 pairs without ties, else by the normal approximation.
    """
    unequal = [difference for difference in differences if difference]
    if not unequal:
        return None
    found = stats.wilcoxon(unequal, alternative="two-sided")
    return SignedRank(float(found.statistic), float(found.pvalue))


@dataclass(frozen=True, slots=True)
class Correlation:
    """How two numbers go together."""

    pearson: float
    """Of the numbers, in [-1, 1]."""
    spearman: float
    """Of their ranks, in [-1, 1]."""


def correlate(first: Sequence[float], second: Sequence[float]) -> Correlation | None:
    """Return both correlations; ``None`` for fewer than three pairs, or where one is constant."""
    if len(first) < _FEWEST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return Correlation(
        pearson=float(stats.pearsonr(first, second).statistic),
        spearman=float(stats.spearmanr(first, second).statistic),
    )
