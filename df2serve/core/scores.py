"""Image-level scores: how much a prediction is to be doubted. Higher is worse everywhere.

No score is ever NaN. A score that does not exist for an image is absent (``None``); an empty
prediction has defined values and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np

from df2serve.core.agreement import MemberAgreement
from df2serve.core.components import ComponentCounter
from df2serve.types import AnyMask, PixelMap, ProbMap, ValidMap

__all__ = ["OOD_SCORES", "SCORES", "EmptyRule", "ImageScores", "ScoreAccumulator", "ScoreName"]

ScoreName: TypeAlias = Literal[
    "u",
    "u_epistemic",
    "u_class_balanced",
    "u_top",
    "one_minus_expected_dice",
    "one_minus_pairwise_dice",
    "one_minus_member_dice",
    "feature_distance",
]
"""Names of the risk scores."""

SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
"""All of them; higher is worse."""

OOD_SCORES: tuple[ScoreName, ...] = (
    "u",
    "u_epistemic",
    "u_top",
    "one_minus_pairwise_dice",
    "feature_distance",
)
"""Those that tell together whether an image is out of distribution."""

EmptyRule: TypeAlias = Literal["largest", "absent"]

_BINS = 1 << 16


@dataclass(frozen=True)
class ImageScores:
    """The scores of one image."""

    u: float | None
    """Mean total uncertainty over the predicted foreground (eq. 5)."""
    u_epistemic: float | None
    """Mean epistemic uncertainty over the predicted foreground."""
    u_class_balanced: float | None
    """Mean over the predicted foreground classes of each class's mean total uncertainty."""
    one_minus_expected_dice: float | None
    """1 - mean over predicted foreground classes of ``2 Σ_F p̄ / (Σ p̄ + n_F)``."""
    class_fractions: tuple[float, ...]
    """Share of the valid pixels predicted as each class, background first."""
    empty_prediction: bool
    """No pixel is predicted as foreground."""
    no_valid_pixels: bool
    """Every pixel is ignored; all scores are absent."""
    u_top: float | None = None
    """Mean total uncertainty of the most uncertain pixels, as many as are predicted as foreground:
    unlike ``u`` it sees objects that were missed."""
    one_minus_pairwise_dice: float | None = None
    """1 - mean Dice score of the masks of two members; absent for a single member."""
    one_minus_member_dice: float | None = None
    """1 - mean Dice score of a member's mask and the ensemble's; absent for a single member."""
    feature_distance: float | None = None
    """Distance of the members' features to those of reference images, in [0, 2]; absent where the
    ensemble has no bank of them, or it does not compare: see :mod:`df2serve.core.features`."""
    components: int | None = None
    """Connected regions of foreground."""
    median_component_px: float | None = None
    """Median of their pixels, absent without any."""

    @property
    def defined(self) -> dict[str, float]:
        """The risk scores that this image has, by name."""
        return {name: value for name in SCORES if (value := getattr(self, name)) is not None}

    @property
    def foreground_fraction(self) -> float:
        """Share of the valid pixels predicted as foreground, in [0, 1]."""
        return float(sum(self.class_fractions[1:]))


class ScoreAccumulator:
    """Gathers the sums that the scores need, band of rows by band of rows, in float64."""

    def __init__(self, num_classes: int) -> None:
        """Start with no pixels.

        Args:
            num_classes: K, background included.
        """
        self._pixels = np.zeros(num_classes, dtype=np.int64)
        self._total = np.zeros(num_classes)
        self._epistemic = np.zeros(num_classes)
        self._own_probs = np.zeros(num_classes)
        self._all_probs = np.zeros(num_classes)
        self._largest_total = 0.0
        self._largest_epistemic = 0.0
        self._counts = np.zeros(_BINS, dtype=np.int64)
        self._sums = np.zeros(_BINS)
        self._components = ComponentCounter()

    def update(
        self,
        *,
        probs: ProbMap,
        mask: AnyMask,
        total: PixelMap,
        epistemic: PixelMap,
        valid: ValidMap | None = None,
    ) -> None:
        """Add rows.

        Args:
            probs: mean class probabilities, axes (K, Y, X).
            mask: predicted classes, axes (Y, X).
            total: total uncertainty, axes (Y, X).
            epistemic: epistemic uncertainty, axes (Y, X).
            valid: pixels that count, axes (Y, X); all when absent.
        """
        keep = np.ones(mask.shape, dtype=bool) if valid is None else valid
        self._components.update((mask > 0) & keep)
        if not keep.any():
            return
        for k in range(len(self._pixels)):
            own = (mask == k) & keep
            self._pixels[k] += np.count_nonzero(own)
            self._total[k] += _sum(total, own)
            self._epistemic[k] += _sum(epistemic, own)
            self._own_probs[k] += _sum(probs[k], own)
            self._all_probs[k] += _sum(probs[k], keep)
        self._largest_total = max(self._largest_total, _largest(total, keep))
        self._largest_epistemic = max(self._largest_epistemic, _largest(epistemic, keep))
        values = total.ravel() if valid is None else total[keep]
        bins = np.minimum((values * _BINS).astype(np.int32), _BINS - 1)
        self._counts += np.bincount(bins, minlength=_BINS)
        self._sums += np.bincount(bins, weights=values, minlength=_BINS)

    def compute(self, *, empty: EmptyRule, agreement: MemberAgreement | None = None) -> ImageScores:
        """Return the scores of all rows added.

        Args:
            empty: for a prediction without foreground, ``largest`` takes the largest value of the
                map instead of a mean over nothing, ``absent`` leaves the score out as the original
                code in effect does (it yields NaN there).
            agreement: of the members on the same pixels, where there are several.

        Source:
            Griebel et al. 2023, eq. 5; expected Dice: arXiv 2402.10665; ``u_class_balanced`` and
            ``u_top`` (quantile of the foreground ratio): arXiv 2603.29941.
        """
        scores = self._of_maps(empty)
        if scores.no_valid_pixels:
            return scores
        areas = self._components.areas()
        scores = replace(
            scores,
            components=len(areas),
            median_component_px=float(np.median(areas)) if len(areas) else None,
        )
        if agreement is None:
            return scores
        return replace(
            scores,
            one_minus_pairwise_dice=agreement.one_minus_pairwise_dice,
            one_minus_member_dice=agreement.one_minus_member_dice,
        )

    def _of_maps(self, empty: EmptyRule) -> ImageScores:
        """Return the scores that the maps of the ensemble tell."""
        pixels = self._pixels
        count = int(pixels.sum())
        if count == 0:
            return _no_scores((), no_valid_pixels=True)
        fractions = tuple(float(n) for n in pixels / count)
        foreground = int(pixels[1:].sum())
        if foreground == 0:
            return self._of_empty(fractions) if empty == "largest" else _no_scores(fractions)
        present = np.flatnonzero(pixels[1:]) + 1
        dice = 2 * self._own_probs[present] / (self._all_probs[present] + pixels[present])
        return ImageScores(
            u=float(self._total[1:].sum() / foreground),
            u_epistemic=float(self._epistemic[1:].sum() / foreground),
            u_class_balanced=float(np.mean(self._total[present] / pixels[present])),
            one_minus_expected_dice=float(1 - dice.mean()),
            class_fractions=fractions,
            empty_prediction=False,
            no_valid_pixels=False,
            u_top=self._mean_of_largest(foreground),
        )

    def _mean_of_largest(self, count: int) -> float:
        """Return the mean of the largest values of the total uncertainty.

        All but those that share a bin of the histogram with the last one count exactly; of these
        the mean counts, so that the result is off by less than 1 / 2^16.
        """
        counts, sums = self._counts[::-1], self._sums[::-1]
        reached = np.cumsum(counts)
        last = int(np.searchsorted(reached, count))
        rest = count - int(reached[last] - counts[last])
        return float((sums[:last].sum() + rest * sums[last] / counts[last]) / count)

    def _of_empty(self, fractions: tuple[float, ...]) -> ImageScores:
        return ImageScores(
            u=self._largest_total,
            u_epistemic=self._largest_epistemic,
            u_class_balanced=self._largest_total,
            one_minus_expected_dice=1.0,
            class_fractions=fractions,
            empty_prediction=True,
            no_valid_pixels=False,
            u_top=self._largest_total,
        )


def _no_scores(fractions: tuple[float, ...], *, no_valid_pixels: bool = False) -> ImageScores:
    return ImageScores(
        u=None,
        u_epistemic=None,
        u_class_balanced=None,
        one_minus_expected_dice=None,
        class_fractions=fractions,
        empty_prediction=True,
        no_valid_pixels=no_valid_pixels,
    )


def _sum(values: PixelMap, where: ValidMap) -> float:
    return float(values.sum(where=where, dtype=np.float64))


def _largest(values: PixelMap, where: ValidMap) -> float:
    return float(values.max(where=where, initial=0))
