"""The learning rate of every step, and what is frozen then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from df2serve_training.recipe import Phase

__all__ = ["StepPlan", "plan_step"]

_LOW_MOMENTUM, _HIGH_MOMENTUM = 0.85, 0.95


@dataclass(frozen=True)
class StepPlan:
    """What one optimizer step does."""

    rate: float
    """Learning rate of the decoder and the head."""
    momentum: float
    """First beta of Adam, or the momentum, where it cycles."""
    freeze_encoder: bool


def plan_step(step: int, steps: int, phases: Sequence[Phase]) -> StepPlan:
    """Return the plan of a step.

    Args:
        step: counted from 0.
        steps: of the whole training.
        phases: in order; their shares sum to 1.

    Source:
        Smith 2018, one-cycle policy, with fastai's two half cosines (``fit_one_cycle``).

    Example:
        >>> cycle = [Phase(share=1, rate=1.0, rise=0.5, start_divisor=10, end_divisor=10)]
        >>> [round(plan_step(step, 5, cycle).rate, 3) for step in range(5)]
        [0.1, 0.55, 1.0, 0.55, 0.1]
    """
    first = 0
    share = 0.0
    for phase in phases:
        share += phase.share
        last = round(share * steps)
        if step < last or phase is phases[-1]:
            return _within(phase, (step - first) / max(1, last - first - 1))
        first = last
    message = "there are no phases"
    raise ValueError(message)


def _within(phase: Phase, progress: float) -> StepPlan:
    """Return the plan at a share of the phase, in [0, 1]."""
    if progress < phase.rise:
        height = _half_cosine(progress / phase.rise)
        lowest = phase.rate / phase.start_divisor
    else:
        height = 1 - _half_cosine((progress - phase.rise) / max(1e-12, 1 - phase.rise))
        lowest = phase.rate / phase.end_divisor
    return StepPlan(
        rate=lowest + (phase.rate - lowest) * height,
        momentum=_HIGH_MOMENTUM - (_HIGH_MOMENTUM - _LOW_MOMENTUM) * height,
        freeze_encoder=phase.freeze_encoder,
    )


def _half_cosine(progress: float) -> float:
    """Rise from 0 to 1 as a half cosine."""
    return (1 - math.cos(math.pi * min(1.0, progress))) / 2
