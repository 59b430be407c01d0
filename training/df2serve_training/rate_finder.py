"""Which learning rate suits: a trial in which it rises until the training diverges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from df2serve.backends.torch import choose_device
from df2serve.config import Frozen
from df2serve.errors import ConfigError
from df2serve.files import new_folder
from df2serve_training._files import csv_of
from df2serve_training.dataset import TrainingSet
from df2serve_training.fit import MemberFit
from df2serve_training.folds import make_splits
from df2serve_training.members import create_fit
from df2serve_training.normalization import fit_scale
from df2serve_training.recipe import Recipe
from df2serve_training.schedule import StepPlan

__all__ = ["RateCurve", "RatePoint", "RateSettings", "find_rate", "sweep", "write_curve"]

_BLUE, _GRAY, _GREEN, _ORANGE = "#0072b2", "#999999", "#009e73", "#d55e00"
_DPI = 120


class RateSettings(Frozen):
    """How the rate rises; the defaults are those of fastai's ``lr_find``."""

    title: ClassVar[str] = "rate settings"
    start: Annotated[float, Field(gt=0)] = 1e-7
    """Rate of the first step."""
    end: Annotated[float, Field(gt=0)] = 10.0
    """Rate of the last step."""
    steps: Annotated[int, Field(ge=20)] = 100
    """Optimizer steps, unless the training diverges before."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Weight of the past in the smoothed loss."""
    divergence: Annotated[float, Field(gt=1)] = 4.0
    """The trial ends when the smoothed loss is this many times the smallest one."""

    @model_validator(mode="after")
    def _rising(self) -> RateSettings:
        if self.start >= self.end:
            message = f"start is {self.start:g}, which is not less than end, {self.end:g}"
            raise ValueError(message)
        return self


@dataclass(frozen=True)
class RatePoint:
    """One step of the trial."""

    rate: float
    """Learning rate of the decoder."""
    loss: float
    """Of the step's batch."""
    smoothed: float
    """Mean of the losses so far, in which the past fades; corrected for its start."""


@dataclass(frozen=True)
class RateCurve:
    """The trial, and what it suggests."""

    points: tuple[RatePoint, ...]
    """In the order of their rates; all losses are finite."""
    diverged: bool
    """Whether the loss grew out of bounds, or to infinity, before the last rate."""

    @property
    def steepest(self) -> float:
        """Rate at which the smoothed loss falls fastest.

        Source:
            Smith 2017, "Cyclical learning rates", section 3.3, on a logarithmic scale.
        """
        points = self._judged()
        slopes = np.diff([p.smoothed for p in points]) / np.diff([math.log(p.rate) for p in points])
        return points[int(slopes.argmin())].rate

    @property
    def valley(self) -> float:
        """Rate in the middle of the longest fall of the smoothed loss.

        Source:
            fastai's ``valley``, its default.
        """
        points = self._judged()
        first, last = _longest_fall([point.smoothed for point in points])
        return points[(first + last) // 2].rate

    def _judged(self) -> Sequence[RatePoint]:
        """Leave out the first tenth, where the mean is of few losses, and what diverged."""
        lowest = min(range(len(self.points)), key=lambda place: self.points[place].smoothed)
        first = min(len(self.points) // 10, max(0, lowest - 1))
        return self.points[first : max(lowest, first + 1) + 1]


def find_rate(
    data: TrainingSet,
    recipe: Recipe,
    *,
    settings: RateSettings,
    device: str = "auto",
    listener: Callable[[RatePoint], None] = lambda point: None,
) -> RateCurve:
    """Try rates on a fresh first member; nothing of it is kept.

    Args:
        data: checked training set.
        recipe: settings of the training; its phases decide only whether the encoder learns.
        settings: of the trial.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        listener: called after every step.
    """
    fit = create_fit(
        data,
        recipe,
        splits=make_splits(data.images, recipe.folds),
        fold=0,
        scale=fit_scale(data),
        device=choose_device(device),
    )
    return sweep(fit, settings, listener=listener)


def sweep(
    fit: MemberFit,
    settings: RateSettings,
    *,
    listener: Callable[[RatePoint], None] = lambda point: None,
) -> RateCurve:
    """Train a member at rates that rise exponentially; it is of no use afterwards.

    The encoder learns if it does in the longest phase of the recipe.

    Raises:
        ConfigError: the loss is not finite from the start.
    """
    recipe = fit.recipe
    frozen = max(recipe.training.phases, key=lambda phase: phase.share).freeze_encoder
    ratio = settings.end / settings.start
    points: list[RatePoint] = []
    mean = 0.0
    for step in range(settings.steps):
        rate = settings.start * ratio ** (step / (settings.steps - 1))
        plan = StepPlan(rate=rate, momentum=recipe.optimizer.betas[0], freeze_encoder=frozen)
        loss = float(fit.take_step(plan))
        mean = settings.smoothing * mean + (1 - settings.smoothing) * loss
        smoothed = mean / (1 - settings.smoothing ** (step + 1))
        if not math.isfinite(loss):
            return _diverged(points, rate)
        points.append(RatePoint(rate, loss, smoothed))
        listener(points[-1])
        if smoothed > settings.divergence * min(point.smoothed for point in points):
            return _diverged(points, rate)
    return RateCurve(tuple(points), diverged=False)


def write_curve(curve: RateCurve, folder: str | Path) -> None:
    """Write ``rates.csv`` and ``rates.png`` into a new folder.

    Raises:
        OutputError: the folder exists or cannot be written.
    """
    with new_folder(Path(folder)) as made:
        (made / "rates.csv").write_bytes(csv_of(curve.points, RatePoint))
        _figure(curve).savefig(made / "rates.png", format="png", dpi=_DPI)


def _diverged(points: Sequence[RatePoint], rate: float) -> RateCurve:
    if len(points) < 2:
        message = f"the training diverges at once, at a rate of {rate:g}; start with a lower one"
        raise ConfigError(message)
    return RateCurve(tuple(points), diverged=True)


def _longest_fall(values: Sequence[float]) -> tuple[int, int]:
    """Return the ends of the longest strictly falling subsequence; the first one of several.

    Example:
        >>> _longest_fall([5, 6, 4, 4.5, 3, 2, 7, 1.5])
        (0, 7)
        >>> _longest_fall([1, 2, 5, 4, 3, 6])
        (2, 4)
    """
    lengths, starts = [1] * len(values), list(range(len(values)))
    for place, value in enumerate(values):
        for earlier in range(place):
            if values[earlier] > value and lengths[earlier] + 1 > lengths[place]:
                lengths[place], starts[place] = lengths[earlier] + 1, starts[earlier]
    last = lengths.index(max(lengths))
    return starts[last], last


def _figure(curve: RateCurve) -> Figure:
    """Losses over the rate, with the suggestions."""
    figure = Figure((7, 4), layout="constrained")
    axes = figure.subplots()
    rates = [point.rate for point in curve.points]
    smoothed = [point.smoothed for point in curve.points]
    axes.plot(rates, [point.loss for point in curve.points], ".", color=_GRAY, ms=3, label="batch")
    axes.plot(rates, smoothed, color=_BLUE, label="smoothed")
    for name, rate, color in (
        ("steepest", curve.steepest, _ORANGE),
        ("valley", curve.valley, _GREEN),
    ):
        axes.axvline(rate, color=color, lw=1, ls="--", label=f"{name} {rate:.1e}")
    axes.set_xscale("log")
    low, high = min(smoothed), max(smoothed[: max(2, len(smoothed) * 9 // 10)])
    axes.set_ylim(low - 0.1 * (high - low), high + 0.3 * (high - low))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return figure
