"""How good a ranking is: does it put failures and odd images first?

Scores are risks, higher is worse. Ties count as what a person meets who takes equal images in
random order. A number that is not defined is ``None``.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float64

__all__ = [
    "area_under_risk_coverage",
    "auroc",
    "average_precision",
    "excess_area",
    "false_positive_rate",
    "images_to_review",
    "recall_at",
    "win_matrix",
]

Scores = Float64[np.ndarray, " n"]
Ordinary = Float64[np.ndarray, " ordinary"]
Odd = Float64[np.ndarray, " odd"]


def area_under_risk_coverage(scores: Scores, risks: Scores) -> float:
    """Return the mean risk of the images that are kept, on average over how many are kept.

    Args:
        scores: risk scores; images of the smallest are kept first.
        risks: what it costs to keep an image, such as 1 - Dice.

    Returns:
        ``1/n Σ_k mean(risks of the k images with the smallest scores)``, where images of equal
        scores have their mean risk; the mean risk for a constant score.

    Source:
        Geifman et al. 2019, "Bias-Reduced Uncertainty Estimation"; for segmentations Zenk et al.
        2025, arXiv 2406.03323, who integrate by trapezoids over another range.

    Example:
        >>> risks = np.array([0.1, 0.2, 0.6, 0.9])
        >>> round(area_under_risk_coverage(np.array([1.0, 2.0, 3.0, 4.0]), risks), 3)
        0.25
        >>> round(area_under_risk_coverage(np.array([1.0, 2.0, 2.0, 4.0]), risks), 3)
        0.275
        >>> round(area_under_risk_coverage(np.array([1.0, 1.0, 1.0, 1.0]), risks), 3)
        0.45
    """
    _, tied = np.unique(scores, return_inverse=True)
    means = np.bincount(tied, weights=risks) / np.bincount(tied)
    kept = np.cumsum(means[np.sort(tied)])
    return float(np.mean(kept / np.arange(1, len(risks) + 1)))


def excess_area(scores: Scores, risks: Scores) -> float | None:
    """Return the area under the risk-coverage curve between the best and a random order.

    Returns:
        0 for the order of the risks themselves, 1 for a constant score, more for worse than random;
        ``None`` if all risks are equal.

    Example:
        >>> risks = np.array([0.1, 0.2, 0.6, 0.9])
        >>> round(excess_area(np.array([1.0, 2.0, 2.0, 4.0]), risks), 3)
        0.125
    """
    best, random = area_under_risk_coverage(risks, risks), float(np.mean(risks))
    if math.isclose(best, random):
        return None
    return (area_under_risk_coverage(scores, risks) - best) / (random - best)


def win_matrix(ordinary: Ordinary, odd: Odd) -> Float64[np.ndarray, "ordinary odd"]:
    """Return 1 where the odd image has the larger score, one half for equal ones, else 0."""
    wins: Float64[np.ndarray, "ordinary odd"] = (odd > ordinary[:, None]) + 0.5 * (
        odd == ordinary[:, None]
    )
    return wins


def auroc(ordinary: Ordinary, odd: Odd) -> float:
    """Return the chance of an odd image to have a larger score than an ordinary one.

    Args:
        ordinary: scores of images of the training's kind.
        odd: scores of other images.

    Returns:
        ``P(odd > ordinary) + P(odd = ordinary) / 2``, in [0, 1]; one half tells nothing.

    Source:
        Hanley and McNeil 1982: the area under the receiver operating characteristic.

    Example:
        >>> auroc(np.array([0.1, 0.2]), np.array([0.2, 0.3]))
        0.875
    """
    return float(win_matrix(ordinary, odd).mean())


def average_precision(ordinary: Ordinary, odd: Odd) -> float:
    """Return the area under the precision-recall curve as the mean precision at each odd image.

    Args:
        ordinary: scores of images of the training's kind.
        odd: scores of other images, which are to be found.

    Example:
        >>> round(average_precision(np.array([0.1, 0.5]), np.array([0.4, 0.9])), 3)
        0.833
    """
    found = (odd >= odd[:, None]).sum(axis=1)
    false = (ordinary >= odd[:, None]).sum(axis=1)
    return float(np.mean(found / (found + false)))


def false_positive_rate(ordinary: Ordinary, odd: Odd, *, recall: float) -> float:
    """Return the share of ordinary images that are called odd where most odd ones are.

    Args:
        ordinary: scores of images of the training's kind.
        odd: scores of other images.
        recall: share of the odd images to find, in (0, 1].

    Example:
        >>> false_positive_rate(np.array([0.1, 0.2, 0.6, 0.7]), np.array([0.5, 0.9]), recall=0.95)
        0.5
    """
    needed = math.ceil(recall * len(odd) - 1e-9)
    return float(np.mean(ordinary >= np.sort(odd)[-needed]))


def recall_at(ordinary: Ordinary, odd: Odd) -> float:
    """Return the share of the odd images among as many top places as there are odd images.

    Example:
        >>> recall_at(np.array([0.1, 0.5]), np.array([0.4, 0.9]))
        0.5
    """
    every = np.concatenate([ordinary, odd])
    cut = np.sort(every)[-len(odd)]
    above, tied = odd > cut, odd == cut
    places = len(odd) - int(np.count_nonzero(every > cut))
    share = places / np.count_nonzero(every == cut)
    return float((np.count_nonzero(above) + share * np.count_nonzero(tied)) / len(odd))


def images_to_review(
    scores: Scores, failed: Bool[np.ndarray, " n"], *, recall: float
) -> int | None:
    """Return how many images of a review list have to be seen until most failures are found.

    Args:
        scores: risk scores; equal ones are all seen.
        failed: whether the prediction of each image has failed.
        recall: share of the failures to find, in (0, 1].

    Returns:
        ``None`` without failures.

    Example:
        >>> failed = np.array([True, False, True, False])
        >>> images_to_review(np.array([0.9, 0.8, 0.7, 0.1]), failed, recall=0.95)
        3
    """
    bad = np.sort(scores[failed])
    if not len(bad):
        return None
    needed = math.ceil(recall * len(bad) - 1e-9)
    return int(np.count_nonzero(scores >= bad[-needed]))
