"""Intervals, tests and pixel counts against other libraries, enumerations and loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import special, stats

from df2serve_training._evaluation_settings import EvaluationSettings
from df2serve_training._pixels import UncertaintyBins, measure_temperature, sample_pixels
from df2serve_training._statistics import bootstrap, correlate, wilcoxon

SETTINGS = EvaluationSettings()

# -- intervals ----------------------------------------------------------------------------------


def test_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).beta(8, 2, 24)
    found = bootstrap(values.tolist(), settings=SETTINGS)
    other = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.004)
    assert found.units == 24
    assert found == bootstrap(values.tolist(), settings=SETTINGS)


def test_images_of_one_animal_are_drawn_together() -> None:
    rng = np.random.default_rng(3)
    animals = rng.normal(size=8)
    values = np.repeat(animals, 6) + 0.01 * rng.normal(size=48)
    groups = np.repeat(np.arange(8), 6).tolist()
    alone = bootstrap(values.tolist(), settings=SETTINGS)
    grouped = bootstrap(values.tolist(), settings=SETTINGS, groups=groups)
    means = bootstrap(values.reshape(8, 6).mean(axis=1).tolist(), settings=SETTINGS)
    assert grouped.units == 8
    assert (grouped.mean, grouped.low, grouped.high) == pytest.approx(
        (means.mean, means.low, means.high)
    )
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_weights_make_a_ratio_of_sums() -> None:
    found = bootstrap([1.0, 6.0, 3.0], weights=[2.0, 10.0, 8.0], settings=SETTINGS)
    assert found.mean == pytest.approx(0.5)
    assert 3 / 8 <= found.low <= found.mean <= found.high <= 6 / 10


def test_a_single_unit_has_no_interval() -> None:
    assert bootstrap([0.4], settings=SETTINGS).low is None
    assert bootstrap([0.4, 0.6], settings=SETTINGS, groups=["a", "a"]).high is None


# -- tests --------------------------------------------------------------------------------------


def signed_rank_p(differences: list[float]) -> float:
    """Return the two-sided p-value by trying every way to distribute the signs."""
    ranks = stats.rankdata(np.abs(differences))
    positive = float(ranks[np.array(differences) > 0].sum())
    smaller = min(positive, ranks.sum() - positive)
    signs = itertools.product([0, 1], repeat=len(ranks))
    sums = np.array([np.dot(ranks, chosen) for chosen in signs])
    return min(1.0, 2 * float(np.mean(sums <= smaller)))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_signed_ranks_equal_an_enumeration(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.5, 1, count).tolist()
    found = wilcoxon([*differences, 0.0])
    assert found is not None
    assert found.p_value == pytest.approx(signed_rank_p(differences))


def test_equals_do_not_differ() -> None:
    assert wilcoxon([0.0, 0.0]) is None
    assert wilcoxon([]) is None


def test_correlations_where_they_exist() -> None:
    found = correlate([1.0, 2.0, 3.0, 10.0], [8.0, 6.0, 5.0, 4.0])
    assert found is not None
    assert found.spearman == pytest.approx(-1)
    assert found.pearson == pytest.approx(np.corrcoef([1, 2, 3, 10], [8, 6, 5, 4])[0, 1])
    assert correlate([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert correlate([1.0, 2.0], [1.0, 2.0]) is None


# -- pixels -------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, classes: int, count: int = 1) -> np.ndarray:
    return rng.integers(0, classes, (count, 9, 11)).astype(np.uint8)


@pytest.mark.parametrize("classes", [2, 4])
def test_bins_equal_a_loop_over_pixels(classes: int) -> None:
    rng, bins = np.random.default_rng(classes), UncertaintyBins()
    rows: list[list[tuple[bool, float, bool]]] = [[] for _ in range(25)]
    for image in range(3):
        doubt = rng.random((9, 11)).astype(np.float32)
        doubt[0, :2] = 0, 1
        (prediction, truth), experts = draw(rng, classes, 2), draw(rng, classes, image)
        valid = rng.random((9, 11)) < 0.8 if image else None
        bins.update(doubt, prediction, truth, experts=list(experts), valid=valid)
        for y, x in np.ndindex(9, 11):
            if valid is None or valid[y, x]:
                said = [int(expert[y, x]) for expert in experts]
                row = rows[min(int(float(doubt[y, x]) / 0.04), 24)]
                wrong = prediction[y, x] != truth[y, x]
                if said:
                    against = [k != prediction[y, x] for k in said]
                    row.append((wrong, np.mean(against), len(set(said)) == 1))
                else:
                    row.append((wrong, np.nan, False))
    for number, (found, row) in enumerate(zip(bins.rows(), rows, strict=True)):
        table = np.array(row, float).reshape(-1, 3)
        drawn = table[~np.isnan(table[:, 1])]
        assert (found.low, found.high) == pytest.approx((0.04 * number, 0.04 * (number + 1)))
        assert (found.pixels, found.expert_pixels) == (len(table), len(drawn))
        assert found.error == (pytest.approx(table[:, 0].mean()) if len(table) else None)
        expected = drawn.mean(axis=0) if len(drawn) else [None] * 3
        assert found.expert_error == pytest.approx(expected[1])
        assert found.expert_agreement == pytest.approx(expected[2])


def test_binary_error_is_the_distance_to_the_experts_mean() -> None:
    """As the paper's notebook has it: the mean of abs(prediction - mean over experts)."""
    rng, bins = np.random.default_rng(0), UncertaintyBins()
    prediction, experts = draw(rng, 2)[0], draw(rng, 2, 5)
    bins.update(np.full((9, 11), 0.5), prediction, prediction, experts=list(experts), valid=None)
    distance = np.abs(prediction - experts.mean(axis=0))
    row = bins.rows()[12]
    assert row.expert_error == pytest.approx(distance.mean())
    assert row.expert_agreement == pytest.approx(np.isin(distance, [0, 1]).mean())


def test_drawn_pixels_lie_in_and_around_objects() -> None:
    probs = np.zeros((2, 40, 60))
    probs[1, 30:33, 50:53], probs[1, 20, 20] = 0.9, 0.3  # an object that was found, and a doubt
    probs[0] = 1 - probs[1]
    truth = np.zeros((40, 60), np.uint8)
    truth[8:12, 8:12] = 1
    drawn, classes = sample_pixels(probs, truth, valid=None, count=10_000, seed="a")
    assert (drawn[1] > 0.5).sum() == 9
    assert not (drawn[1] == np.float32(0.3)).any()
    assert classes.sum() == 16
    assert 100 < len(classes) < 200
    np.testing.assert_allclose(drawn.sum(axis=0), 1, rtol=1e-6)
    few = [sample_pixels(probs, truth, valid=None, count=50, seed=seed)[0] for seed in "aab"]
    assert few[0].shape == (2, 50)
    assert np.array_equal(few[0], few[1])
    valid = truth == 0
    _, classes = sample_pixels(probs, truth, valid=valid, count=10_000, seed="a")
    assert classes.sum() == 0


def test_temperature_comes_from_held_out_pixels_where_there_are_any() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (2, 20_000))
    truth = special.softmax(logits, axis=0)
    classes = (rng.random(20_000) < truth[1]).astype(np.uint8)
    sure = special.softmax(2 * logits, axis=0).astype(np.float32)
    right = truth.astype(np.float32)
    both = measure_temperature({"held_out": [(sure, classes)], "out_of_fold": [(right, classes)]})
    assert both is not None
    assert (both.kind, both.pixels) == ("held_out", 20_000)
    assert both.value == pytest.approx(2, rel=0.05)
    assert both.nll_after < both.nll_before
    assert both.ece_after < both.ece_before
    empty = (sure[:, :0], classes[:0])
    other = measure_temperature({"held_out": [empty], "out_of_fold": [(right, classes)]})
    assert other is not None
    assert other.kind == "out_of_fold"
    assert other.value == pytest.approx(1, rel=0.05)
    assert measure_temperature({"held_out": [empty]}) is None
