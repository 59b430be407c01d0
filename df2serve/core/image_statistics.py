"""What an image looks like in a few numbers, whatever is predicted in it.

Scores say that an image is odd; brightness, sharpness and the amount of foreground, compared with
those of the reference images, say why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from df2serve.core.scores import ImageScores
from df2serve.types import ImageArray

__all__ = [
    "ChannelStatistics",
    "Deviation",
    "StatisticsAccumulator",
    "deviations",
    "named_statistics",
]

_SAMPLES = 1 << 17
"""Pixels per channel that the statistics are taken from, or up to four times as many."""
_FEWEST = 5
"""With fewer reference images nothing is called unusual."""
_UNUSUAL = 3.5
"""Deviations from the reference's median, in robust standard deviations, that are told."""
_SPREAD_OF_MAD = 1.4826
"""Standard deviation of normally distributed numbers over their median absolute deviation."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Intensities of one channel, in the file's own units."""

    dark: float
    """1 % of the pixels are darker."""
    middle: float
    """Median: the level of the background where most of an image is background."""
    bright: float
    """1 % of the pixels are brighter."""
    saturated: float
    """Share of the pixels that have the largest intensity of the image, in [0, 1]."""
    sharpness: float
    """Mean difference of horizontal neighbors over ``bright - dark``; 0 without contrast."""


class StatisticsAccumulator:
    """Takes a grid of pixels from an image that passes by in bands of rows."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """Start with no rows.

        Args:
            shape: rows and columns of the image.
        """
        self._step = max(1, math.isqrt(math.prod(shape) // _SAMPLES))
        self._top = 0
        self._taken: list[Float32[np.ndarray, "c n"]] = []
        self._steps: list[Float32[np.ndarray, " c"]] = []

    @property
    def rows(self) -> int:
        """Rows that were added so far."""
        return self._top

    def update(self, pixels: ImageArray) -> None:
        """Add the next rows, axes (C, Y, X)."""
        first = -self._top % self._step
        self._top += pixels.shape[1]
        chosen = pixels[:, first :: self._step].astype(np.float32)
        if not chosen.size:
            return
        self._taken.append(chosen[:, :, :: self._step].reshape(len(chosen), -1))
        if chosen.shape[2] > 1:
            self._steps.append(np.abs(np.diff(chosen)).mean(axis=(1, 2)))

    def compute(self) -> tuple[ChannelStatistics, ...]:
        """Return the statistics of every channel of all rows added."""
        taken = np.concatenate(self._taken, axis=1)
        steps = np.mean(self._steps, axis=0) if self._steps else np.zeros(len(taken))
        return tuple(
            _statistics(values, float(step)) for values, step in zip(taken, steps, strict=True)
        )


@dataclass(frozen=True)
class Deviation:
    """A number of an image that is unlike those of the reference images."""

    name: str
    value: float
    low: float
    """Smallest value of a reference."""
    high: float
    """Largest value of a reference."""
    references: int
    strength: float
    """Distance to the references' median in robust standard deviations."""

    def __str__(self) -> str:
        """Return a sentence for people."""
        side = "above" if self.value > self.high else "below"
        return (
            f"{self.name} is {self.value:.3g}, {side} all {self.references} reference images "
            f"({self.low:.3g} to {self.high:.3g})"
        )


def deviations(
    image: Mapping[str, float], references: Sequence[Mapping[str, float]]
) -> tuple[Deviation, ...]:
    """Return what is unlike all reference images, the strongest first.

    A number counts if it lies outside the range of the references, and further from their median
    than is likely among so few.

    Args:
        image: numbers of an image by name.
        references: the same of the reference images, or some of them.

    Example:
        >>> known = [{"sharpness": 0.1 + 0.01 * i} for i in range(6)]
        >>> print(*deviations({"sharpness": 0.02}, known))
        sharpness is 0.02, below all 6 reference images (0.1 to 0.15)
    """
    found = (
        _deviation(name, value, [other[name] for other in references if name in other])
        for name, value in image.items()
    )
    unusual = [one for one in found if one is not None]
    return tuple(sorted(unusual, key=lambda one: (-one.strength, one.name)))


def named_statistics(
    channels: Sequence[ChannelStatistics], scores: ImageScores, *, names: Sequence[str], pixels: int
) -> dict[str, float]:
    """Return everything that tells why an image is odd, under names for people.

    Args:
        channels: of the image.
        scores: of the prediction.
        names: of the channels.
        pixels: number of the image's pixels.
    """
    named = {
        f"{what} of {name}": value
        for channel, name in zip(channels, names, strict=True)
        for what, value in (
            ("dark level", channel.dark),
            ("background level", channel.middle),
            ("bright level", channel.bright),
            ("saturated share", channel.saturated),
            ("sharpness", channel.sharpness),
        )
    }
    named["share of foreground"] = scores.foreground_fraction
    if scores.components is not None:
        named["number of objects per megapixel"] = 1e6 * scores.components / pixels
    if scores.median_component_px is not None:
        named["median object size in pixels"] = scores.median_component_px
    return named


def _statistics(values: Float32[np.ndarray, " n"], step: float) -> ChannelStatistics:
    dark, middle, bright = (float(value) for value in np.percentile(values, [1, 50, 99]))
    contrast = bright - dark
    return ChannelStatistics(
        dark=dark,
        middle=middle,
        bright=bright,
        saturated=float(np.mean(values == values.max())),
        sharpness=step / contrast if contrast > 0 else 0.0,
    )


def _deviation(name: str, value: float, known: Sequence[float]) -> Deviation | None:
    if len(known) < _FEWEST or min(known) <= value <= max(known):
        return None
    middle = float(np.median(known))
    spread = _SPREAD_OF_MAD * float(np.median(np.abs(np.subtract(known, middle))))
    # where more than half of the references are alike, a hundredth of their level has to do
    strength = abs(value - middle) / max(spread, abs(middle) / 100, np.finfo(np.float64).tiny)
    if strength < _UNUSUAL:
        return None
    return Deviation(name, value, min(known), max(known), len(known), strength)
