"""Random variations of patches, the same for everybody who knows seed, member and number.

Geometry is drawn here as one matrix per patch and applied while patches are cut, so that each pixel
is interpolated once and a turned patch shows the image beyond its corners. Intensities are varied
relative to the range of the training set: the same scene in 8 and in 16 bit varies alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from df2serve_training._random import Purpose, random_numbers
from df2serve_training.dataset import IntensityRange
from df2serve_training.settings import AugmentSettings, Chance

__all__ = ["Augmenter", "Variation"]

_SEEDS = 1 << 63


@dataclass(frozen=True, eq=False)
class Variation:
    """How one patch is varied."""

    matrix: NDArray[np.float64]
    """Takes a place in the patch to its place in the image, both as (row, column) in pixels from
    the patch's center, axes (2, 2)."""
    gamma: float = 1
    """Exponent of intensities scaled to 0...1."""
    contrast: float = 1
    """Factor on the distance of intensities to the mean of the patch's channel."""
    noise: float = 0
    """Standard deviation of Gaussian noise as a share of the intensity range."""
    noise_seed: int = 0


class Augmenter:
    """Draws variations and applies those of intensities."""

    def __init__(
        self,
        settings: AugmentSettings,
        intensities: IntensityRange,
        *,
        seed: int,
        member: int,
        device: torch.device | str,
    ) -> None:
        """Keep what variations depend on.

        Args:
            settings: which variations, how often and how strong.
            intensities: of the training set, per channel.
            seed: of the training.
            member: of the ensemble, counted from 0; members draw different variations.
            device: where patches are.
        """
        low, high = torch.tensor([intensities.low, intensities.high], device=device)
        self._settings = settings
        self._low = low[:, None, None]
        self._span = torch.where(high > low, high - low, 1)[:, None, None]
        self._seed = seed
        self._member = member

    def draw(self, number: int) -> Variation:
        """Return the variation of a patch.

        Args:
            number: of the patch among all that the member is trained on, counted from 0.
        """
        settings = self._settings
        rng = random_numbers(self._seed, self._member, Purpose.TRANSFORM, number)
        mirror = np.where((rng.random(2) < 0.5) & settings.flip, -1, 1)
        return Variation(
            matrix=_matrix(
                mirror, _strength(settings.rotation, 0, rng), _strength(settings.zoom, 1, rng)
            ),
            gamma=_strength(settings.gamma, 1, rng),
            contrast=_strength(settings.contrast, 1, rng),
            noise=_strength(settings.noise, 0, rng),
            noise_seed=int(rng.integers(_SEEDS)),
        )

    def vary_intensities(self, patch: torch.Tensor, variation: Variation) -> None:
        """Change gamma, contrast and noise of a patch in place.

        Intensities may leave the range of the image's type. Gamma leaves those below the range of
        the training set as they are.

        Args:
            patch: raw intensities as float32, axes (C, Y, X).
            variation: what to change.
        """
        if (variation.gamma, variation.contrast, variation.noise) == (1, 1, 0):
            return
        patch.sub_(self._low).div_(self._span)
        if variation.gamma != 1:
            below = patch.clamp_max(0)
            patch.clamp_min_(0).pow_(variation.gamma).add_(below)
        if variation.contrast != 1:
            mean = patch.mean(dim=(1, 2), keepdim=True)
            patch.mul_(variation.contrast).add_(mean, alpha=1 - variation.contrast)
        if variation.noise:
            source = torch.Generator(patch.device).manual_seed(variation.noise_seed)
            noise = torch.randn(patch.shape, generator=source, device=patch.device)
            patch.add_(noise, alpha=variation.noise)
        patch.mul_(self._span).add_(self._low)


def _strength(chance: Chance, neutral: float, rng: np.random.Generator) -> float:
    """Return a random strength, or the neutral one; takes two random numbers in any case."""
    applied, strength = rng.random(2)
    if applied >= chance.probability:
        return neutral
    return float(chance.low + strength * (chance.high - chance.low))


def _matrix(mirror: NDArray[np.float64], degrees: float, zoom: float) -> NDArray[np.float64]:
    """Return the matrix that mirrors axes, turns and magnifies.

    Example:
        >>> _matrix(np.array([-1, 1]), 90, 2).round(3).tolist()
        [[-0.0, -0.5], [-0.5, 0.0]]
    """
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn = np.array([[cosine, -sine], [sine, cosine]])
    matrix: NDArray[np.float64] = turn * mirror / zoom
    return matrix
