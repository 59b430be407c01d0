"""What reference images with known quality say about new ones.

A reference is an image whose prediction was compared with the truth: it has risk scores, of which
higher is worse, and a quality, of which higher is better. Levels hold on average over references
and new images of the same kind, and not after a change of the microscope, stain or tissue.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Integer
from scipy import special

from df2serve.errors import InputError

__all__ = [
    "FailureThreshold",
    "Proportion",
    "clopper_pearson",
    "expected_calibration_error",
    "failure_rate_bound",
    "failure_threshold",
    "fit_temperature",
    "id_p_value",
    "mid_rank",
    "miss_level",
    "negative_log_likelihood",
    "tempered",
]

_ROUNDING = 1e-9
_TEMPERATURES = (0.05, 20.0)


# -- thresholds ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share that was counted, and what it may really be."""

    share: float
    """Counted share, in [0, 1]."""
    low: float
    """Lower end of its confidence interval."""
    high: float
    """Upper end of its confidence interval."""


@dataclass(frozen=True, slots=True)
class FailureThreshold:
    """The score from which on predictions are to be reviewed."""

    value: float
    """Score of a reference whose prediction failed; the same score calls for review as well."""
    level: float
    """Largest chance of a new failing image to have a smaller score, in (0, 1)."""
    rank: int
    """k in ``level = k / (failing_groups + 1)``; 1 for the smallest failing score."""
    failing: int
    """References whose prediction failed."""
    failing_groups: int
    """Groups that they belong to; as many as ``failing`` where every image stands for itself."""
    references: int
    """All references."""
    selected: float
    """Share of the references with at least this score."""
    precision: Proportion
    """Share of the failing ones among those, with a 95 % interval for independent images."""


def failure_threshold(
    scores: Sequence[float],
    qualities: Sequence[float],
    *,
    required: float,
    miss_level: float,
    groups: Sequence[Hashable] | None = None,
) -> FailureThreshold | None:
    """Return the largest score that lets a failing image escape with a stated chance at most.

    Without groups it is the k-th smallest of the ``n`` failing scores, with ``k = floor(miss_level
    (n + 1))``. With groups, such as animals, whose images are alike, n is the number of groups with
    failing images and each image counts as one part of its group's; the level holds for a random
    failing image of a new group. Where even k = 1 exceeds ``miss_level``, the smallest failing
    score is returned with the level that it has.

    Args:
        scores: risk scores of the references.
        qualities: quality of each prediction, such as its Dice score, in the same order.
        required: quality below which a prediction has failed (the paper's τ).
        miss_level: largest acceptable chance of a failing image to escape review, in (0, 1).
        groups: what each reference belongs to; every image stands for itself when absent.

    Returns:
        The threshold, or ``None`` when no prediction failed: see :func:`failure_rate_bound`.

    Raises:
        InputError: the lists differ in length, or the level is out of range.

    Source:
        Griebel et al. 2023, eq. 8, is k = 1; split conformal prediction, Vovk et al. 2005; with
        groups, Lee, Barber and Willett 2023, arXiv 2306.06342.

    Example:
        >>> found = failure_threshold(
        ...     [0.1, 0.4, 0.6, 0.7], [0.9, 0.7, 0.5, 0.3], required=0.8, miss_level=0.5
        ... )
        >>> found.value, found.rank, found.level, found.selected
        (0.6, 2, 0.5, 0.5)
        >>> found.precision.share, round(found.precision.low, 3)
        (1.0, 0.158)
    """
    _require_same_length(scores, qualities, groups)
    if not 0 < miss_level < 1:
        message = f"got miss_level = {miss_level}; expected a chance between 0 and 1"
        raise InputError(message)
    owners = range(len(scores)) if groups is None else groups
    failing = sorted(
        (score, index) for index, score in enumerate(scores) if qualities[index] < required
    )
    if not failing:
        return None
    sizes = Counter(owners[index] for _, index in failing)
    rank = max(1, math.floor(miss_level * (len(sizes) + 1) + _ROUNDING))
    value, below = failing[0][0], 0.0
    for score, index in failing:
        if below > rank - 1 + _ROUNDING:
            break
        value, below = score, below + 1 / sizes[owners[index]]
    selected = [quality for s, quality in zip(scores, qualities, strict=True) if s >= value]
    return FailureThreshold(
        value=value,
        level=rank / (len(sizes) + 1),
        rank=rank,
        failing=len(failing),
        failing_groups=len(sizes),
        references=len(scores),
        selected=len(selected) / len(scores),
        precision=clopper_pearson(
            sum(quality < required for quality in selected), len(selected), confidence=0.95
        ),
    )


def miss_level(
    scores: Sequence[float],
    qualities: Sequence[float],
    *,
    required: float,
    threshold: float,
    groups: Sequence[Hashable] | None = None,
) -> float | None:
    """Return the chance of a failing image to escape a threshold, at most.

    This is the way back from :func:`failure_threshold`: the smallest level at which it gives at
    least this threshold. It holds for a level that was chosen before the new images were seen.

    Args:
        scores: risk scores of the references.
        qualities: quality of each prediction, in the same order.
        required: quality below which a prediction has failed (the paper's τ).
        threshold: score from which on predictions are reviewed.
        groups: what each reference belongs to; every image stands for itself when absent.

    Returns:
        A chance in (0, 1]; 1 above the scores of all failing references. ``None`` when no
        prediction failed.

    Raises:
        InputError: the lists differ in length.

    Example:
        >>> scores, qualities = [0.1, 0.4, 0.6, 0.7], [0.9, 0.7, 0.5, 0.3]
        >>> [miss_level(scores, qualities, required=0.8, threshold=t) for t in (0.2, 0.5, 0.8)]
        [0.25, 0.5, 1.0]
    """
    _require_same_length(scores, qualities, groups)
    owners = range(len(scores)) if groups is None else groups
    failing = [index for index, quality in enumerate(qualities) if quality < required]
    if not failing:
        return None
    sizes = Counter(owners[index] for index in failing)
    below = sum(1 / sizes[owners[index]] for index in failing if scores[index] < threshold)
    return (math.ceil(below - _ROUNDING) + 1) / (len(sizes) + 1)


def failure_rate_bound(successes: int) -> float:
    """Return how often predictions may fail at most, after none of some references failed.

    Args:
        successes: references, or groups of them, all of which had the required quality.

    Returns:
        Upper end of the 95 % interval of the failure rate by the rule of three, in [0, 1].

    Source:
        Hanley and Lippman-Hand 1983, "If nothing goes wrong, is everything all right?".

    Example:
        >>> failure_rate_bound(60), failure_rate_bound(2)
        (0.05, 1.0)
    """
    return min(1.0, 3 / successes) if successes else 1.0


def clopper_pearson(successes: int, trials: int, *, confidence: float) -> Proportion:
    """Return a counted share with its exact confidence interval.

    Args:
        successes: of the trials, 0 or more.
        trials: 1 or more, independent of each other.
        confidence: chance of the interval to hold the true share, in (0, 1).

    Source:
        Clopper and Pearson 1934.

    Example:
        >>> clopper_pearson(0, 10, confidence=0.95)
        Proportion(share=0.0, low=0.0, high=0.3084...)
    """
    tail, failures = (1 - confidence) / 2, trials - successes
    return Proportion(
        share=successes / trials,
        low=float(special.betaincinv(successes, failures + 1, tail)) if successes else 0.0,
        high=float(special.betaincinv(successes + 1, failures, 1 - tail)) if failures else 1.0,
    )


# -- one new image ------------------------------------------------------------------------------


def mid_rank(score: float, references: Sequence[float]) -> float | None:
    """Return the share of the references with a smaller score, equal ones counting one half.

    Returns:
        Percentile / 100, in [0, 1]; ``None`` without references.

    Example:
        >>> mid_rank(0.4, [0.1, 0.4, 0.4, 0.9])
        0.5
    """
    if not references:
        return None
    below = sum(other < score for other in references)
    equal = sum(other == score for other in references)
    return (below + equal / 2) / len(references)


def id_p_value(score: float, references: Sequence[float]) -> float:
    """Return how often an image of the references' kind has at least this score.

    A call "out of distribution" at ``p <= level`` is a false alarm with a chance of at most that
    level. With n references p is never below 1 / (n + 1): lower levels cannot be reached.

    Args:
        score: risk score of a new image.
        references: scores of images that belong to the distribution, under the same settings.

    Source:
        Vovk et al. 2005, "Algorithmic Learning in a Random World"; Bates et al. 2023.

    Example:
        >>> id_p_value(0.8, [0.1, 0.4, 0.9])
        0.5
        >>> id_p_value(1.0, [0.1, 0.4, 0.9])
        0.25
    """
    return (1 + sum(other >= score for other in references)) / (len(references) + 1)


# -- probabilities ------------------------------------------------------------------------------

SamplePixels = Float32[np.ndarray, "s k n"] | Float64[np.ndarray, "s k n"]
Pixels = Float32[np.ndarray, "k n"] | Float64[np.ndarray, "k n"]
Classes = Integer[np.ndarray, " n"]


def tempered(samples: SamplePixels, temperature: float) -> Float64[np.ndarray, "k n"]:
    """Return mean probabilities after every sample's logits were divided by a temperature.

    Args:
        samples: class probabilities of every member, axes (S, K, N), summing to 1 over K.
        temperature: above 1 softens, below 1 sharpens.

    Returns:
        Axes (K, N), summing to 1 over K.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", before averaging.

    Example:
        >>> tempered(np.array([[[0.8], [0.2]]]), 2.0).round(3).ravel()
        array([0.667, 0.333])
    """
    tiny = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(samples, tiny), dtype=np.float64) / temperature
    mean: Float64[np.ndarray, "k n"] = special.softmax(logits, axis=1).mean(axis=0)
    return mean


def fit_temperature(samples: SamplePixels, classes: Classes) -> float:
    """Return the temperature with the smallest negative log-likelihood.

    Args:
        samples: class probabilities of every member, axes (S, K, N), summing to 1 over K.
        classes: true class of every pixel, axes (N,).

    Returns:
        A temperature between 0.05 and 20; more than 1 where the members are too sure.

    Raises:
        InputError: there are no pixels.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    if not classes.size:
        message = "there are no pixels to fit a temperature to; expected at least one"
        raise InputError(message)

    from scipy import optimize  # slow to import, and needed here only

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(tempered(samples, math.exp(log_temperature)), classes)

    bounds = tuple(map(math.log, _TEMPERATURES))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
    return math.exp(found.x)


def negative_log_likelihood(probs: Pixels, classes: Classes) -> float:
    """Return the mean of ``-ln p`` of the true class over pixels, in nat.

    Args:
        probs: class probabilities, axes (K, N).
        classes: true class of every pixel, axes (N,).

    Example:
        >>> round(negative_log_likelihood(np.array([[0.5], [0.5]]), np.array([1])), 3)
        0.693
    """
    own = np.take_along_axis(probs, classes[None].astype(np.intp), axis=0)
    return float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean(dtype=np.float64))


def expected_calibration_error(probs: Pixels, classes: Classes, *, bins: int = 20) -> float:
    """Return how far confidence and accuracy lie apart, on average over pixels.

    Args:
        probs: class probabilities, axes (K, N).
        classes: true class of every pixel, axes (N,).
        bins: number of bins of equal width between 0 and 1 by the largest probability.

    Returns:
        Mean over bins of ``|accuracy - confidence|``, weighted by their pixels, in [0, 1].

    Source:
        Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning".

    Example:
        Always sure and right three times out of four:

        >>> probs = np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
        >>> expected_calibration_error(probs, np.array([0, 0, 0, 1]))
        0.25
    """
    confidence = probs.max(axis=0).astype(np.float64)
    gain = (probs.argmax(axis=0) == classes) - confidence
    numbers = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    gaps = np.bincount(numbers, weights=gain, minlength=bins)
    return float(np.abs(gaps).sum() / classes.size)


def _require_same_length(*lists: Sequence[object] | None) -> None:
    lengths = [len(one) for one in lists if one is not None]
    if len(set(lengths)) > 1:
        message = f"got lists of {' and '.join(map(str, lengths))} entries; need one for one"
        raise InputError(message)
