"""Geometry of the charts: places in percent of their width or height."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from df2serve.writers.report._evaluation import ExpertSpan

__all__ = ["Axis", "Bar", "Histogram", "Span", "histogram", "span_chart"]

_MARGIN = 2.0
"""Percent of the width that is left free on either side."""
_BINS_PER_STEP = 5
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_MOST_STEPS = 6


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from 0 on."""

    end: float
    step: float
    """Distance of its ticks."""

    @classmethod
    def up_to(cls, largest: float) -> Axis:
        """Return the axis of few round ticks that ends at or behind a value.

        Example:
            >>> Axis.up_to(0.43)
            Axis(end=0.5, step=0.1)
        """
        fitting = (step for step in _STEPS if largest <= step * _MOST_STEPS)
        step = next(fitting, _STEPS[-1])
        return cls(end=round(step * max(1, math.ceil(largest / step - 1e-9)), 6), step=step)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Values with a label."""
        return tuple(round(i * self.step, 6) for i in range(round(self.end / self.step) + 1))

    def x(self, value: float) -> float:
        """Return the place of a value in percent of the width.

        Example:
            >>> Axis(end=0.5, step=0.1).x(0.25)
            50.0
        """
        return round(_MARGIN + (100 - 2 * _MARGIN) * min(value, self.end) / self.end, 3)


@dataclass(frozen=True)
class Bar:
    """Images with a similar U."""

    x: float
    width: float
    height: float
    """In percent of the tallest."""
    images: int


@dataclass(frozen=True)
class Histogram:
    """How a score is distributed over the images."""

    bars: tuple[Bar, ...]
    tallest: int
    """Images of the tallest bar."""


def histogram(values: Sequence[float], axis: Axis) -> Histogram:
    """Count values in equal bins of an axis.

    Example:
        >>> histogram([0.1, 0.1, 0.3], Axis(end=0.5, step=0.1)).tallest
        2
    """
    bins = round(axis.end / axis.step) * _BINS_PER_STEP
    counts, edges = np.histogram(values, bins=bins, range=(0, axis.end))
    tallest = int(counts.max())
    return Histogram(
        bars=tuple(
            Bar(
                x=axis.x(float(low)),
                width=round(axis.x(float(high)) - axis.x(float(low)), 3),
                height=round(100 * int(count) / tallest, 3),
                images=int(count),
            )
            for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
            if count
        ),
        tallest=tallest,
    )


@dataclass(frozen=True)
class Span:
    """One prediction beside the experts."""

    x: float
    label: str
    score: float
    """Quality, in percent of the height."""
    worst: float
    mean: float
    best: float
    place: str
    """``below``, ``within`` or ``above`` the experts."""


def span_chart(rows: Sequence[ExpertSpan]) -> list[Span]:
    """Arrange predictions by increasing quality."""
    ordered = sorted(rows, key=lambda row: (row.score, row.file))
    return [
        Span(
            x=round(_MARGIN + (100 - 2 * _MARGIN) * (index + 0.5) / len(ordered), 3),
            label=f"{row.file}: Dice {row.score:.3f}; experts {row.worst:.3f} to {row.best:.3f}",
            score=round(100 * row.score, 2),
            worst=round(100 * row.worst, 2),
            mean=round(100 * row.mean, 2),
            best=round(100 * row.best, 2),
            place="below"
            if row.score < row.worst
            else "above"
            if row.score > row.best
            else "within",
        )
        for index, row in enumerate(ordered)
    ]
