"""Levels hold: in 10 000 simulated draws, within three standard errors."""

from itertools import pairwise

import numpy as np
import pytest

from df2serve.core.conformal import benjamini_hochberg, forecast_quality
from df2serve.core.oddness import Looks, measure_oddness, strangeness
from df2serve.errors import InputError

DRAWS = 10_000
RNG = np.random.default_rng(7)


def tolerance(level: float, draws: int = DRAWS) -> float:
    return 3 * np.sqrt(level * (1 - level) / draws)


@pytest.mark.parametrize("images", [10, 20, 40])
@pytest.mark.parametrize("kind", ["independent", "dependent", "discrete", "heavy tails"])
def test_false_alarms_of_several_numbers_keep_their_level(images: int, kind: str) -> None:
    pools = RNG.normal(size=(DRAWS, images, 5))
    if kind == "dependent":
        pools = pools + 2 * RNG.normal(size=(DRAWS, images, 1))
    if kind == "discrete":
        pools = np.rint(pools)
    if kind == "heavy tails":
        pools = np.exp(2 * pools)
    found = strangeness(pools)
    p_values = (found >= found[:, -1:]).mean(axis=1)
    for level in (0.1, 0.2, 0.5):
        assert np.mean(p_values <= level + 1e-12) <= level + tolerance(level)
    if kind != "discrete":  # exact where there are no ties
        assert np.mean(p_values <= 0.2 + 1e-12) == pytest.approx(0.2, abs=tolerance(0.2))


def test_the_smallest_of_single_p_values_would_not_keep_it() -> None:
    pools = RNG.normal(size=(DRAWS, 20, 5))
    single = (pools >= pools[:, -1:]).mean(axis=1)
    assert np.mean(single.min(axis=1) <= 0.1 + 1e-12) > 0.2


def test_one_number_that_is_odd_suffices() -> None:
    pools = RNG.normal(size=(500, 40, 9))
    pools[:, -1, 1] += 12
    found = strangeness(pools)
    assert np.mean((found >= found[:, -1:]).mean(axis=1) <= 1 / 40 + 1e-12) > 0.95


def test_strangeness_treats_all_images_alike() -> None:
    table = RNG.normal(size=(1, 15, 4))
    order = RNG.permutation(15)
    np.testing.assert_allclose(strangeness(table)[:, order], strangeness(table[:, order]))


def test_oddness_is_the_strangeness_among_references() -> None:
    values = RNG.normal(size=(12, 3))
    looks = [Looks({"u": a, "other": 9.0}, {"b": b, "c": c}) for a, b, c in values.tolist()]
    found = measure_oddness(looks[-1], looks[:-1])
    expected = strangeness(values[None])[0]
    assert found.strangeness == pytest.approx(expected[-1])
    assert found.p_value == np.mean(expected >= expected[-1])
    without = [Looks({}, {"b": one.statistics["b"]}) for one in looks[:-1]]
    assert measure_oddness(looks[-1], without).strangeness == pytest.approx(
        strangeness(values[None, :, 1:2])[0, -1]
    )


def test_oddness_needs_something_to_compare() -> None:
    assert measure_oddness(Looks({"u": 1.0}, {}), [Looks({"u": 1.0}, {})]) is None
    assert measure_oddness(Looks({}, {}), [Looks({"u": 1.0}, {})] * 5) is None
    alike = measure_oddness(Looks({"u": 0.5}, {}), [Looks({"u": 0.5}, {})] * 5)
    assert (alike.strangeness, alike.p_value) == (0, 1)


def naive_benjamini_hochberg(p_values: np.ndarray, level: float) -> list[bool]:
    count = len(p_values)
    largest = 0.0
    for rank, value in enumerate(sorted(p_values), start=1):
        if value <= level * rank / count + 1e-12:
            largest = value
    return [value <= largest for value in p_values]


def test_benjamini_hochberg_against_the_definition() -> None:
    for count in (0, 1, 2, 7, 30):
        for _ in range(100):
            p_values = RNG.integers(1, 21, count) / 20  # with ties
            found = benjamini_hochberg(p_values, level=0.2)
            assert found.tolist() == naive_benjamini_hochberg(p_values, 0.2)


def test_false_calls_of_a_batch_keep_their_level() -> None:
    shares = []
    for _ in range(400):
        references = RNG.normal(size=60)
        images = np.concatenate([RNG.normal(size=10), RNG.normal(loc=6, size=10)])
        p_values = (1 + (references >= images[:, None]).sum(axis=1)) / 61
        called = benjamini_hochberg(p_values, level=0.2)
        shares.append(called[:10].sum() / max(1, called.sum()))
    assert np.mean(shares) <= 0.2 + 3 * np.std(shares) / np.sqrt(len(shares))


@pytest.mark.parametrize("spread", [0.02, 0.15])
@pytest.mark.parametrize("count", [24, 60])
def test_ranges_of_quality_hold_as_often_as_they_say(spread: float, count: int) -> None:
    inside = 0
    for _ in range(500):
        scores = RNG.random(count + 1)
        qualities = np.clip(0.95 - 0.5 * scores**2 + RNG.normal(scale=spread, size=count + 1), 0, 1)
        forecast = forecast_quality(scores[1:].tolist(), qualities[1:].tolist(), level=0.8)
        low, high = forecast.interval(scores[0])
        assert 0 <= low <= high <= 1
        inside += low <= qualities[0] <= high
    assert inside / 500 >= 0.8 - tolerance(0.8, 500)
    assert inside / 500 <= 0.8 + 2 / (count / 2) + tolerance(0.8, 500)


def test_ranges_hold_for_images_of_new_groups() -> None:
    inside, tries = 0, 400
    for _ in range(tries):
        animals = np.repeat(np.arange(31), 3)
        shift = RNG.normal(scale=0.1, size=31)[animals]
        scores = RNG.random(len(animals))
        qualities = np.clip(0.8 - 0.4 * scores + shift, 0, 1)
        forecast = forecast_quality(
            scores[3:].tolist(), qualities[3:].tolist(), level=0.8, groups=animals[3:].tolist()
        )
        assert forecast.units == 15
        low, high = forecast.interval(scores[0])
        inside += low <= qualities[0] <= high
    assert inside / tries >= 0.8 - tolerance(0.8, tries)


def test_forecast_falls_and_says_when_it_knows_nothing() -> None:
    scores = RNG.random(40).tolist()
    forecast = forecast_quality(scores, [1 - score / 2 for score in scores], level=0.9)
    assert forecast.informative
    middles = [sum(forecast.interval(x)) for x in np.linspace(0, 1, 20)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(middles))
    few = forecast_quality([0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.7, 0.6], level=0.9)
    assert not few.informative
    assert few.interval(0.2) == (0.0, 1.0)
    assert forecast_quality([0.1], [0.9], level=0.9) is None
    with pytest.raises(InputError, match="2 scores and 1 qualities"):
        forecast_quality([0.1, 0.2], [0.9], level=0.9)
