"""Measures of rankings against scipy, against brute force and against worked examples."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from df2serve.core.ranking_metrics import (
    area_under_risk_coverage,
    auroc,
    average_precision,
    excess_area,
    false_positive_rate,
    images_to_review,
    recall_at,
)

RNG = np.random.default_rng(3)
RISKS = np.array([0.1, 0.2, 0.6, 0.9])


@pytest.mark.parametrize(
    ("confidences", "area"), [((4, 3, 2, 1), 0.25), ((4, 2, 2, 1), 0.275), ((1, 1, 1, 1), 0.45)]
)
def test_risk_coverage_of_the_worked_example(confidences: tuple[int, ...], area: float) -> None:
    scores = -np.array(confidences, dtype=float)
    assert area_under_risk_coverage(scores, RISKS) == pytest.approx(area)


def test_risk_coverage_with_ties_is_the_mean_over_random_orders() -> None:
    scores = np.array([0.3, 0.3, 0.1, 0.3, 0.5])
    risks = RNG.random(5)
    orders = [
        order for order in permutations(range(5)) if (np.diff(scores[list(order)]) >= 0).all()
    ]
    areas = [np.mean([risks[list(order[:k])].mean() for k in range(1, 6)]) for order in orders]
    assert area_under_risk_coverage(scores, risks) == pytest.approx(np.mean(areas))


def test_excess_area_is_0_for_the_best_and_1_for_a_random_order() -> None:
    assert excess_area(RISKS, RISKS) == 0
    assert excess_area(np.ones(4), RISKS) == pytest.approx(1)
    assert excess_area(-RISKS, RISKS) > 1
    assert excess_area(RISKS, np.full(4, 0.3)) is None


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_the_statistic_of_mann_and_whitney(ties: bool) -> None:
    for _ in range(30):
        ordinary, odd = RNG.normal(size=17), RNG.normal(loc=0.7, size=9)
        if ties:
            ordinary, odd = np.rint(2 * ordinary), np.rint(2 * odd)
        expected = stats.mannwhitneyu(odd, ordinary).statistic / (len(ordinary) * len(odd))
        assert auroc(ordinary, odd) == pytest.approx(expected)


def test_detection_against_brute_force() -> None:
    for _ in range(50):
        ordinary, odd = np.rint(3 * RNG.normal(size=14)), np.rint(3 * RNG.normal(loc=1, size=6))
        precisions, found = [], 0
        for cut in sorted(set(odd), reverse=True):
            now = np.count_nonzero(odd >= cut)
            precisions += [now / (now + np.count_nonzero(ordinary >= cut))] * (now - found)
            found = now
        assert average_precision(ordinary, odd) == pytest.approx(np.mean(precisions))
        cuts = [cut for cut in set(odd) if np.mean(odd >= cut) >= 0.95]
        assert false_positive_rate(ordinary, odd, recall=0.95) == min(
            np.mean(ordinary >= cut) for cut in cuts
        )


def test_recall_at_as_many_places_as_odd_images() -> None:
    assert recall_at(np.array([0.1, 0.2]), np.array([0.8, 0.9])) == 1
    assert recall_at(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == 0
    tied = recall_at(np.array([0.5, 0.5]), np.array([0.9, 0.5]))
    assert tied == pytest.approx((1 + 1 / 3) / 2)  # one place for three equal images


def test_images_to_review() -> None:
    scores, failed = np.array([0.9, 0.5, 0.5, 0.2, 0.1]), np.array([0, 1, 0, 1, 0], bool)
    assert images_to_review(scores, failed, recall=0.5) == 3  # the equal one is seen as well
    assert images_to_review(scores, failed, recall=0.95) == 4
    assert images_to_review(scores, np.zeros(5, bool), recall=0.95) is None
    assert not math.isnan(area_under_risk_coverage(scores, 1.0 - failed))
