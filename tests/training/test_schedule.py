"""The learning rate against fastai's own formulas and against numbers measured there."""

import math

import pytest

from df2serve_training.recipe import Phase, load_recipe
from df2serve_training.schedule import plan_step


def test_two_phases_of_the_recipe_deepflash2() -> None:
    """Epoch 1 of 26: 4e-5 to 1e-3 in 99 %, then 1e-8; then 1e-4 to 5e-4 at 30 %, then 5e-9."""
    training = load_recipe("deepflash2").training
    plans = [plan_step(step, 2600, training.phases) for step in range(2600)]
    rates = [plan.rate for plan in plans]
    assert rates[0] == pytest.approx(4e-5)
    assert max(rates[:100]) == pytest.approx(1e-3, rel=1e-3)
    assert rates[99] == pytest.approx(1e-8)
    assert rates[100] == pytest.approx(1e-4)
    assert max(rates[100:]) == pytest.approx(5e-4, rel=1e-5)
    assert rates.index(max(rates[100:])) == pytest.approx(100 + 0.3 * 2500, abs=2)
    assert rates[-1] == pytest.approx(5e-9)
    assert not any(plan.freeze_encoder for plan in plans)


def test_momentum_mirrors_the_rate() -> None:
    cycle = [Phase(share=1, rate=2.0, rise=0.25)]
    plans = [plan_step(step, 101, cycle) for step in range(101)]
    assert (plans[0].momentum, plans[25].momentum, plans[100].momentum) == (0.95, 0.85, 0.95)
    for step in (5, 20):
        height = (1 - math.cos(math.pi * step / 25)) / 2
        assert plans[step].rate == pytest.approx(0.08 + 1.92 * height)
        assert plans[step].momentum == pytest.approx(0.95 - 0.1 * height)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 137])
def test_every_step_has_a_plan_and_phases_keep_their_order(steps: int) -> None:
    phases = load_recipe("default").training.phases
    plans = [plan_step(step, steps, phases) for step in range(steps)]
    frozen = [plan.freeze_encoder for plan in plans]
    assert frozen == sorted(frozen, reverse=True)
    assert not frozen[-1]
    assert all(0 < plan.rate <= 1e-3 for plan in plans)
