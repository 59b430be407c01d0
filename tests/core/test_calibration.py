"""Thresholds and p-values keep their promises in simulations; temperatures are found again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from df2serve.core.calibration import (
    clopper_pearson,
    expected_calibration_error,
    failure_rate_bound,
    failure_threshold,
    fit_temperature,
    id_p_value,
    mid_rank,
    miss_level,
    negative_log_likelihood,
    tempered,
)
from df2serve.core.ranking import minimum_failing_score
from df2serve.errors import InputError

DRAWS = 1500


def escape_rate(failing: int, miss_level: float, *, discrete: bool) -> tuple[float, float]:
    """Return how often a new failing score lies below the threshold, and the level stated."""
    rng = np.random.default_rng(failing)
    scores = rng.normal(size=(DRAWS, failing + 1))
    if discrete:
        scores = scores.round()
    escaped, level = 0, 0.0
    for new, *known in scores.tolist():
        found = failure_threshold(known, [0.0] * failing, required=0.5, miss_level=miss_level)
        assert found is not None
        escaped += new < found.value
        level = found.level
    return escaped / DRAWS, level


@pytest.mark.parametrize(
    ("failing", "miss_level", "level"),
    [(3, 0.1, 1 / 4), (9, 0.1, 1 / 10), (19, 0.1, 2 / 20), (29, 0.1, 3 / 30), (25, 0.5, 13 / 26)],
)
def test_failing_images_escape_as_often_as_stated(
    failing: int, miss_level: float, level: float
) -> None:
    rate, stated = escape_rate(failing, miss_level, discrete=False)
    assert stated == pytest.approx(level)
    assert rate == pytest.approx(level, abs=3.5 * np.sqrt(level * (1 - level) / DRAWS))


def test_tied_scores_escape_less_often() -> None:
    rate, stated = escape_rate(19, 0.2, discrete=True)
    assert rate < stated == pytest.approx(0.2)


def draw_animals(rng: np.random.Generator, count: int) -> list[list[float]]:
    """Return the scores of failing images by animal: 1 to 9 each, alike within an animal."""
    return [
        (rng.normal() + 0.2 * rng.normal(size=1 + 8 * (rng.random() < 0.5))).tolist()
        for _ in range(count)
    ]


@pytest.mark.parametrize(("animals", "level"), [(4, 1 / 5), (19, 2 / 20)])
def test_images_of_new_animals_escape_no_more_often_than_stated(animals: int, level: float) -> None:
    rng = np.random.default_rng(animals)
    grouped, careless = 0, 0
    for _ in range(DRAWS):
        new, *known = draw_animals(rng, animals + 1)
        scores = [score for animal in known for score in animal]
        owners = [index for index, animal in enumerate(known) for _ in animal]
        target, failed = rng.choice(new), [0.0] * len(scores)
        found = failure_threshold(scores, failed, required=0.5, miss_level=0.1, groups=owners)
        alone = failure_threshold(scores, failed, required=0.5, miss_level=0.1)
        assert found is not None
        assert alone is not None
        assert found.level == pytest.approx(level)
        assert (found.failing, found.failing_groups) == (len(scores), animals)
        grouped += target < found.value
        careless += target < alone.value
    tolerance = 3.5 * np.sqrt(level * (1 - level) / DRAWS)
    assert grouped / DRAWS <= level + tolerance
    assert grouped / DRAWS > level / 4  # the threshold is of use
    if animals == 4:  # images taken for independent ones promise 0.1
        assert careless / DRAWS > 0.15


@settings(deadline=None)
@given(
    references=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)), min_size=1
    ),
    required=st.integers(0, 10).map(float),
)
def test_one_miss_in_many_is_the_smallest_failing_score(
    references: list[tuple[int, int, int]], required: float
) -> None:
    scores, qualities, groups = (list(map(float, row)) for row in zip(*references, strict=True))
    expected = minimum_failing_score(scores, qualities, required=required)
    for owners in (None, groups):
        found = failure_threshold(
            scores, qualities, required=required, miss_level=1e-6, groups=owners
        )
        if found is None:
            assert expected is None
            continue
        assert found.value == expected
        failing = {
            (index if owners is None else owners[index])
            for index, quality in enumerate(qualities)
            if quality < required
        }
        assert found.level == 1 / (len(failing) + 1)
        assert found.selected == sum(score >= found.value for score in scores) / len(scores)


def test_one_image_per_group_is_no_group() -> None:
    rng = np.random.default_rng(1)
    scores, qualities = rng.random(30).tolist(), rng.random(30).tolist()
    alone, grouped = (
        failure_threshold(scores, qualities, required=0.6, miss_level=0.3, groups=groups)
        for groups in (None, list("abcdefghijklmnopqrstuvwxyz1234"))
    )
    assert alone == grouped
    assert alone is not None
    assert alone.rank > 1


def test_group_of_many_images_counts_once() -> None:
    # three images of one animal and one each of two others; k = 2 of three animals
    scores, groups = [0.1, 0.2, 0.3, 0.4, 0.5], ["a", "a", "a", "b", "c"]
    found = failure_threshold(scores, [0.0] * 5, required=0.5, miss_level=0.5, groups=groups)
    assert found is not None
    assert (found.value, found.level, found.failing_groups) == (0.4, 0.5, 3)
    plain = failure_threshold(scores, [0.0] * 5, required=0.5, miss_level=0.5)
    assert plain is not None
    assert (plain.value, plain.level) == (0.3, 0.5)


def test_nothing_failed_is_no_threshold_but_a_bound() -> None:
    assert failure_threshold([0.1, 0.2], [0.8, 0.9], required=0.8, miss_level=0.1) is None
    assert failure_threshold([], [], required=0.8, miss_level=0.1) is None
    assert failure_rate_bound(0) == failure_rate_bound(3) == 1.0
    for successes in (30, 100, 300):  # the exact bound is a little smaller
        exact = 1 - 0.05 ** (1 / successes)
        assert exact < failure_rate_bound(successes) < 1.06 * exact


@pytest.mark.parametrize(
    ("scores", "groups", "level", "says"),
    [
        ([0.1, 0.2], None, 0.1, r"2 and 1 entries"),
        ([0.1], ["a", "b"], 0.1, r"1 and 1 and 2 entries"),
        ([0.1], None, 1.0, r"miss_level = 1.*between 0 and 1"),
    ],
)
def test_unusable_references_are_explained(scores, groups, level, says) -> None:
    with pytest.raises(InputError, match=says):
        failure_threshold(scores, [0.5], required=0.8, miss_level=level, groups=groups)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (3, 7), (19, 20), (50, 50)])
def test_interval_is_the_exact_one(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.9, method="exact")
    found = clopper_pearson(successes, trials, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.share == successes / trials


# -- one new image ------------------------------------------------------------------------------


whole_numbers = st.integers(0, 5).map(float)


@settings(deadline=None)
@given(score=whole_numbers, references=st.lists(whole_numbers, min_size=1))
def test_mid_rank_is_that_of_scipy(score: float, references: list[float]) -> None:
    expected = stats.percentileofscore(references, score, kind="mean") / 100
    assert mid_rank(score, references) == pytest.approx(expected)
    assert mid_rank(score, []) is None


@pytest.mark.parametrize("digits", [9, 0])
def test_false_alarms_are_as_rare_as_stated(digits: int) -> None:
    rng = np.random.default_rng(digits)
    scores = rng.normal(size=(DRAWS, 20)).round(digits).tolist()
    alarms = np.mean([id_p_value(new, known) <= 0.05 for new, *known in scores])
    limit = 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / DRAWS)
    assert (0.04 if digits else 0.0) <= alarms <= limit


# -- probabilities ------------------------------------------------------------------------------


def draw_pixels(temperature: float, samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (S, K, N) that are sharper than the truth by a temperature."""
    rng = np.random.default_rng(8)
    logits = 2 * rng.normal(size=(samples, 3, 40_000))
    truth = special.softmax(logits, axis=1).mean(axis=0)
    classes = (truth.cumsum(axis=0) < rng.random(truth.shape[1])).sum(axis=0)
    return special.softmax(logits * temperature, axis=1).astype(np.float32), classes


@pytest.mark.parametrize(("temperature", "samples"), [(0.5, 1), (1.0, 3), (3.0, 1), (3.0, 3)])
def test_temperature_is_found_again(temperature: float, samples: int) -> None:
    probs, classes = draw_pixels(temperature, samples)
    assert fit_temperature(probs, classes) == pytest.approx(temperature, rel=0.03)


def test_right_temperature_repairs_overconfidence() -> None:
    probs, classes = draw_pixels(3.0)
    repaired = tempered(probs, 3.0)
    assert expected_calibration_error(probs[0], classes) > 0.1
    assert expected_calibration_error(repaired, classes) < 0.02
    assert negative_log_likelihood(repaired, classes) < negative_log_likelihood(probs[0], classes)


def test_temperature_one_changes_nothing_and_sums_stay() -> None:
    probs, _ = draw_pixels(2.0, samples=2)
    np.testing.assert_allclose(tempered(probs, 1.0), probs.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(tempered(probs, 7.0).sum(axis=0), 1)


def test_losses_equal_loops_over_pixels() -> None:
    probs, classes = (part[..., :500] for part in draw_pixels(1.5))
    own = [float(probs[0, k, n]) for n, k in enumerate(classes)]
    assert negative_log_likelihood(probs[0], classes) == pytest.approx(-np.log(own).mean())
    gap = 0.0
    for low in np.arange(20) / 20:
        inside = [n for n in range(500) if low < probs[0, :, n].max() <= low + 0.05]
        hits = [float(probs[0, :, n].argmax() == classes[n]) for n in inside]
        sure = [float(probs[0, :, n].max()) for n in inside]
        gap += abs(sum(hits) - sum(sure)) / 500
    assert expected_calibration_error(probs[0], classes) == pytest.approx(gap)


def test_certain_errors_have_a_finite_loss() -> None:
    probs, classes = np.array([[[1.0, 1.0], [0.0, 0.0]]], np.float32), np.array([0, 1])
    assert np.isfinite(negative_log_likelihood(probs[0], classes))
    assert 1 < fit_temperature(probs, classes) <= 20
    with pytest.raises(InputError, match="no pixels"):
        fit_temperature(probs[..., :0], classes[:0])


# -- levels of any threshold --------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_failing_images_escape_a_chosen_rank_as_often_as_stated(rank: int) -> None:
    """Without ``failure_threshold``: the k-th smallest of the known scores is the threshold."""
    failing = 5
    rng = np.random.default_rng(rank)
    escaped, stated = 0, 0.0
    for new, *known in rng.normal(size=(DRAWS, failing + 1)).tolist():
        threshold = sorted(known)[rank - 1]
        level = miss_level(known, [0.0] * failing, required=0.5, threshold=threshold)
        assert level is not None
        escaped, stated = escaped + (new < threshold), level
    assert stated == pytest.approx(rank / 6)
    assert escaped / DRAWS == pytest.approx(stated, abs=3.5 * np.sqrt(0.25 / DRAWS))


@given(
    references=st.lists(
        st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12
    ),
    wanted=st.floats(0.02, 0.98),
)
def test_levels_and_thresholds_are_two_ways_to_say_the_same(
    references: list[tuple[int, bool, int]], wanted: float
) -> None:
    scores = [float(score) for score, _, _ in references]
    qualities = [0.0 if failed else 1.0 for _, failed, _ in references]
    for groups in (None, [group for _, _, group in references]):
        found = failure_threshold(scores, qualities, required=0.5, miss_level=wanted, groups=groups)
        levels = [
            miss_level(scores, qualities, required=0.5, threshold=value, groups=groups)
            for value in (-1.0, *sorted(scores), 7.0)
        ]
        if found is None:
            assert set(levels) == {None}
            continue
        assert levels == sorted(levels)
        assert levels[-1] == 1.0
        own = miss_level(scores, qualities, required=0.5, threshold=found.value, groups=groups)
        assert own <= found.level + 1e-12
        above = miss_level(
            scores, qualities, required=0.5, threshold=found.value + 0.5, groups=groups
        )
        assert above > found.level
