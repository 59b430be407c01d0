"""Pixel-level uncertainty: equations 3 and 4 of the paper.

For class k and samples (member and view) s with mean probability ``p̄``, eq. 3 is

    Var_k = mean_s[p - p²] + mean_s[(p - p̄)²]

The first term is *aleatoric* (each sample is unsure), the second *epistemic* (samples disagree), as
in Kwon et al. and in the code of deepflash2; the braces under eq. 3 of the paper carry the two
names the other way round. Their sum is ``p̄ (1 - p̄)`` exactly: the total needs the mean alone
and cannot see disagreement beyond it.

Eq. 4 averages over the K classes and multiplies by 4: ``4/K Σ_k p̄_k (1 - p̄_k)``. Its maximum
``4 (K - 1) / K²`` depends on K (1 for two classes, .889 for three, .75 for four), hence maps and
scores of ensembles with different numbers of classes are not comparable on this scale; the scale
``unit`` divides by the maximum.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from df2serve.types import PixelMap, ProbMap, SampleProbs

__all__ = [
    "UncertaintyScale",
    "aleatoric",
    "epistemic",
    "maximum_uncertainty",
    "predictive_variance",
    "scale_factor",
    "total",
]

UncertaintyScale: TypeAlias = Literal["paper", "unit"]


def maximum_uncertainty(num_classes: int, scale: UncertaintyScale) -> float:
    """Return the largest value that a map can take.

    Example:
        >>> [round(maximum_uncertainty(k, "paper"), 3) for k in (2, 3, 4, 7)]
        [1.0, 0.889, 0.75, 0.49]
        >>> maximum_uncertainty(4, "unit")
        1.0
    """
    return 1.0 if scale == "unit" else 4 * (num_classes - 1) / num_classes**2


def scale_factor(num_classes: int, scale: UncertaintyScale) -> float:
    """Return what the sum over classes of the variance is multiplied by (eq. 4: ``4/K``)."""
    paper = 4 / num_classes
    return paper / maximum_uncertainty(num_classes, "paper") if scale == "unit" else paper


def total(mean: ProbMap, *, scale: UncertaintyScale) -> PixelMap:
    """Return the total uncertainty.

    Args:
        mean: mean class probabilities, axes (K, Y, X), summing to 1 over K.
        scale: the paper's scale, or divided by its maximum.

    Returns:
        ``4/K Σ_k p̄_k (1 - p̄_k)``, axes (Y, X), in [0, 4 (K - 1) / K²] or [0, 1].

    Source:
        Griebel et al. 2023, eq. 3-4 in closed form.

    Example:
        >>> total(np.array([[[0.5]], [[0.5]]]), scale="paper").item()
        1.0
        >>> total(np.full((4, 1, 1), 0.25), scale="paper").item()
        0.75
    """
    variance: PixelMap = np.einsum("kyx,kyx->yx", mean, 1 - mean)
    np.maximum(variance, 0, out=variance)
    variance *= scale_factor(len(mean), scale)
    return variance


def epistemic(mean: ProbMap, mean_square: PixelMap, *, scale: UncertaintyScale) -> PixelMap:
    """Return the part of the total that comes from disagreement between samples.

    Args:
        mean: mean class probabilities, axes (K, Y, X).
        mean_square: mean over samples of ``Σ_k p_k²``, axes (Y, X).
        scale: as for :func:`total`.

    Returns:
        ``4/K (mean_square - Σ_k p̄_k²)``, axes (Y, X), not negative; 0 for a single sample.

    Source:
        Griebel et al. 2023, eq. 3, second term.

    Example:
        Four members that say .5 do not disagree; .001, .999, .001, .999 do:

        >>> sure = np.array([0.001, 0.999])
        >>> square = np.array([[np.sum(sure**2)]])
        >>> round(epistemic(np.full((2, 1, 1), 0.5), square, scale="paper").item(), 3)
        0.996
    """
    spread: PixelMap = mean_square - np.einsum("kyx,kyx->yx", mean, mean)
    np.maximum(spread, 0, out=spread)
    spread *= scale_factor(len(mean), scale)
    return spread


def aleatoric(mean_square: PixelMap, *, num_classes: int, scale: UncertaintyScale) -> PixelMap:
    """Return the part of the total that every sample admits by itself.

    Args:
        mean_square: mean over samples of ``Σ_k p_k²``, axes (Y, X).
        num_classes: K.
        scale: as for :func:`total`.

    Returns:
        ``4/K (1 - mean_square)``, axes (Y, X), not negative.

    Source:
        Griebel et al. 2023, eq. 3, first term.
    """
    doubt: PixelMap = np.maximum(1 - mean_square, 0)
    doubt *= scale_factor(num_classes, scale)
    return doubt


def predictive_variance(samples: SampleProbs, *, scale: UncertaintyScale) -> PixelMap:
    """Return eq. 3 and 4 as written, from all samples at once.

    The engine never needs this; it is the definition that the closed form is tested against.

    Args:
        samples: class probabilities of every member and view, axes (S, K, Y, X).
        scale: as for :func:`total`.

    Returns:
        The total uncertainty, axes (Y, X).
    """
    mean = samples.mean(axis=0)
    per_class = (samples - samples**2).mean(axis=0) + ((samples - mean) ** 2).mean(axis=0)
    result: PixelMap = per_class.sum(axis=0) * scale_factor(samples.shape[1], scale)
    return result
