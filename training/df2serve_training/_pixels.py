"""What single pixels tell: whether uncertainty means error, and whether probabilities are true."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from df2serve.artifact.manifest import ReferenceKind, Temperature
from df2serve.config import Frozen
from df2serve.core.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    tempered,
)
from df2serve.types import MaskArray, PixelMap, ProbMap, ValidMap

__all__ = [
    "PixelSample",
    "UncertaintyBin",
    "UncertaintyBins",
    "measure_temperature",
    "sample_pixels",
]

_EDGES = np.linspace(0, 1, 26)
_MARGIN_PX = 5
"""Pixels around true objects that belong to the region of interest."""

PixelSample = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Probabilities, axes (K, N), and true classes, axes (N,)."""


class UncertaintyBin(Frozen):
    """Pixels of about the same uncertainty; shares are absent where there are none."""

    low: float
    high: float
    pixels: int
    error: float | None
    """Share that is predicted as another class than the truth."""
    expert_pixels: int
    """Those in images with experts' masks."""
    expert_error: float | None
    """Mean share of the experts who say another class than the prediction."""
    expert_agreement: float | None
    """Share of pixels about which all experts say the same class."""


class UncertaintyBins:
    """Counts errors by uncertainty, 25 bins of width 0.04 (Griebel et al. 2023, Fig. 4b)."""

    def __init__(self) -> None:
        """Start with no pixels."""
        self._pixels, self._errors, self._expert_pixels, self._dissent, self._unanimous = np.zeros(
            (5, len(_EDGES) - 1)
        )

    def update(
        self,
        uncertainty: PixelMap,
        prediction: MaskArray,
        truth: MaskArray,
        *,
        experts: Sequence[MaskArray],
        valid: ValidMap | None,
    ) -> None:
        """Add an image.

        Args:
            uncertainty: total uncertainty in [0, 1], axes (Y, X).
            prediction: predicted classes, axes (Y, X).
            truth: true classes, axes (Y, X).
            experts: what each expert says, axes (Y, X).
            valid: pixels that count, axes (Y, X); all when absent.
        """
        keep = np.ones(truth.shape, bool) if valid is None else valid
        bins, count = _bin_numbers(uncertainty[keep]), len(_EDGES) - 1
        pixels = np.bincount(bins, minlength=count)
        self._pixels += pixels
        self._errors += np.bincount(bins, prediction[keep] != truth[keep], count)
        if not experts:
            return
        said = np.stack([expert[keep] for expert in experts])
        self._expert_pixels += pixels
        self._dissent += np.bincount(bins, (said != prediction[keep]).mean(axis=0), count)
        self._unanimous += np.bincount(bins, (said == said[0]).all(axis=0), count)

    def rows(self) -> tuple[UncertaintyBin, ...]:
        """Return all bins, in order."""
        return tuple(
            UncertaintyBin(
                low=round(float(low), 2),
                high=round(float(high), 2),
                pixels=int(pixels),
                error=errors / pixels if pixels else None,
                expert_pixels=int(expert_pixels),
                expert_error=dissent / expert_pixels if expert_pixels else None,
                expert_agreement=unanimous / expert_pixels if expert_pixels else None,
            )
            for low, high, pixels, errors, expert_pixels, dissent, unanimous in zip(
                _EDGES[:-1],
                _EDGES[1:],
                self._pixels,
                self._errors,
                self._expert_pixels,
                self._dissent,
                self._unanimous,
                strict=True,
            )
        )


def sample_pixels(
    probs: ProbMap, truth: MaskArray, *, valid: ValidMap | None, count: int, seed: str
) -> PixelSample:
    """Draw pixels in and around objects, where it is decided how good a mask is.

    Args:
        probs: mean class probabilities, axes (K, Y, X).
        truth: true classes, axes (Y, X).
        valid: pixels that count, axes (Y, X); all when absent.
        count: largest number of pixels.
        seed: any text; the same one draws the same pixels.
    """
    near = ndimage.binary_dilation(truth > 0, iterations=_MARGIN_PX) | (probs.argmax(axis=0) > 0)
    if valid is not None:
        near &= valid
    places = np.flatnonzero(near)
    if len(places) > count:
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
        places = np.sort(np.random.default_rng(number).choice(places, count, replace=False))
    drawn = probs.reshape(len(probs), -1)[:, places].astype(np.float32)
    return drawn, truth.ravel()[places].astype(np.uint8)


def measure_temperature(
    samples: Mapping[ReferenceKind, Sequence[PixelSample]],
) -> Temperature | None:
    """Fit a temperature to the pixels of held-out images or, for want of them, out-of-fold ones.

    Args:
        samples: pixels of images, by what the images are.

    Returns:
        Temperature with losses before and after; ``None`` without pixels.
    """
    for kind in get_args(ReferenceKind):
        drawn = [sample for sample in samples.get(kind, ()) if sample[1].size]
        if drawn:
            return _fitted(
                np.concatenate([probs for probs, _ in drawn], axis=1),
                np.concatenate([classes for _, classes in drawn]),
                kind,
            )
    return None


def _fitted(
    probs: NDArray[np.float32], classes: NDArray[np.uint8], kind: ReferenceKind
) -> Temperature:
    value = fit_temperature(probs[None], classes)
    after = tempered(probs[None], value)
    return Temperature(
        value=value,
        kind=kind,
        pixels=classes.size,
        nll_before=negative_log_likelihood(probs, classes),
        nll_after=negative_log_likelihood(after, classes),
        ece_before=expected_calibration_error(probs, classes),
        ece_after=expected_calibration_error(after, classes),
    )


def _bin_numbers(uncertainty: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the bin of every pixel; the last bin holds its upper edge."""
    return np.clip(np.searchsorted(_EDGES, uncertainty, side="right") - 1, 0, len(_EDGES) - 2)
