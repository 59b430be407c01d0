"""AJI, AJI+ and panoptic quality against sets of pixels and exhaustive searches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from fractions import Fraction

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from df2serve.core.instance_metrics import (
    PanopticCounts,
    aggregated_jaccard,
    aggregated_jaccard_plus,
    count_panoptic,
)
from df2serve.core.metrics import match_instances
from df2serve.errors import InputError

label_maps = hnp.arrays(np.int32, (4, 5), elements=st.sampled_from([0, 0, 1, 2, 3, 7]))
valid_maps = hnp.arrays(np.bool_, (4, 5))

# -- independent references ---------------------------------------------------------------------

Pixels = set[tuple[int, ...]]


def pixel_sets(labels: np.ndarray, min_size: int, valid: np.ndarray | None) -> list[Pixels]:
    inside = np.ones(labels.shape, bool) if valid is None else valid
    ids = [i for i in np.unique(labels) if i]
    sets = [set(map(tuple, np.argwhere((labels == i) & inside))) for i in ids]
    return [pixels for pixels in sets if len(pixels) >= max(min_size, 1)]


def iou(first: Pixels, second: Pixels) -> Fraction:
    return Fraction(len(first & second), len(first | second))


def kumar(truth: list[Pixels], predicted: list[Pixels]) -> float | None:
    """The algorithm as it is printed in the paper."""
    if not truth and not predicted:
        return None
    shared = united = 0
    used = set()
    for cell in truth:
        touching = [j for j, other in enumerate(predicted) if cell & other]
        if not touching:
            united += len(cell)
            continue
        best = max(touching, key=lambda j: (iou(cell, predicted[j]), len(cell & predicted[j]), -j))
        used.add(best)
        shared += len(cell & predicted[best])
        united += len(cell | predicted[best])
    united += sum(len(other) for j, other in enumerate(predicted) if j not in used)
    return shared / united


def matchings(n_truth: int, n_predicted: int) -> Iterable[tuple[int, ...]]:
    """Return every way to give each truth instance one predicted instance or none (-1)."""
    choices = [-1] * n_truth + list(range(n_predicted))
    return set(itertools.permutations(choices, n_truth))


def all_best_jaccards(truth: list[Pixels], predicted: list[Pixels]) -> set[float]:
    """Return AJI+ for every one-to-one matching with the largest sum of IoU."""
    best, values = Fraction(-1), set()
    for matching in matchings(len(truth), len(predicted)):
        pairs = [
            (cell, predicted[j])
            for cell, j in zip(truth, matching, strict=True)
            if j >= 0 and cell & predicted[j]
        ]
        total = sum((iou(*pair) for pair in pairs), Fraction(0))
        alone = sum(map(len, truth)) + sum(map(len, predicted))
        alone -= sum(len(cell) + len(other) for cell, other in pairs)
        shared = sum(len(cell & other) for cell, other in pairs)
        united = sum(len(cell | other) for cell, other in pairs) + alone
        if total > best:
            best, values = total, set()
        if total == best:
            values.add(shared / united)
    return values


def cases(test: Callable[..., None]) -> Callable[..., None]:
    drawn = given(
        truth=label_maps,
        prediction=label_maps,
        min_size=st.integers(0, 3),
        valid=st.none() | valid_maps,
    )
    return settings(deadline=None)(drawn(test))


@cases
def test_jaccard_equals_the_printed_algorithm(
    truth: np.ndarray, prediction: np.ndarray, min_size: int, valid: np.ndarray | None
) -> None:
    t, p = (pixel_sets(labels, min_size, valid) for labels in (truth, prediction))
    assert aggregated_jaccard(truth, prediction, min_size=min_size, valid=valid) == kumar(t, p)


@cases
def test_jaccard_plus_is_that_of_a_best_matching(
    truth: np.ndarray, prediction: np.ndarray, min_size: int, valid: np.ndarray | None
) -> None:
    t, p = (pixel_sets(labels, min_size, valid) for labels in (truth, prediction))
    value = aggregated_jaccard_plus(truth, prediction, min_size=min_size, valid=valid)
    assert value is None if not t and not p else value in all_best_jaccards(t, p)


@cases
def test_panoptic_counts_equal_a_loop_over_pairs(
    truth: np.ndarray, prediction: np.ndarray, min_size: int, valid: np.ndarray | None
) -> None:
    t, p = (pixel_sets(labels, min_size, valid) for labels in (truth, prediction))
    found = [iou(a, b) for a in t for b in p if iou(a, b) > Fraction(1, 2)]
    counts = count_panoptic(truth, prediction, min_size=min_size, valid=valid)
    n = len(found)
    assert (counts.true_positives, counts.false_positives, counts.false_negatives) == (
        n, len(p) - n, len(t) - n,
    )  # fmt: skip
    assert counts.iou_sum == pytest.approx(float(sum(found)))
    expected = 2 * float(sum(found)) / (len(t) + len(p)) if t or p else None
    assert counts.quality == (None if expected is None else pytest.approx(expected))


# -- properties ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(labels=label_maps, seed=st.integers(0, 9))
def test_label_numbers_do_not_matter_for_equal_maps(labels: np.ndarray, seed: int) -> None:
    renumbered = np.r_[0, 10 + np.random.default_rng(seed).permutation(7)][labels]
    expected = 1.0 if labels.any() else None
    assert aggregated_jaccard(labels, renumbered) == expected
    assert aggregated_jaccard_plus(labels, renumbered) == expected
    assert count_panoptic(labels, renumbered).quality == expected


def test_parts_of_a_split_cell_that_nobody_took_count_in_full() -> None:
    truth = np.array([[1] * 6, [2] * 6])
    prediction = np.array([[1] * 6, [3, 3, 3, 4, 4, 4]])
    # 6 + 3 shared pixels; the second cell leaves 3 pixels alone that count once more
    assert aggregated_jaccard(truth, prediction) == 9 / (6 + 6 + 3)
    assert aggregated_jaccard_plus(truth, prediction) == 9 / (6 + 6 + 3)
    assert count_panoptic(truth, prediction) == PanopticCounts(1, 2, 1, 1.0)


def test_a_predicted_instance_may_be_taken_twice_but_not_in_the_variant() -> None:
    truth, merged = np.array([[1, 1, 1, 2, 2, 2]]), np.array([[1] * 6])
    assert aggregated_jaccard(truth, merged) == 6 / 12
    assert aggregated_jaccard_plus(truth, merged) == 3 / 9


def test_pooled_counts_are_those_of_all_images_side_by_side() -> None:
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 4, (6, 2, 3, 4)).repeat(3, axis=2).repeat(3, axis=3)
    images = [(truth, prediction) for truth, prediction in blocks]
    pooled = sum((count_panoptic(*image) for image in images), PanopticCounts(0, 0, 0, 0.0))
    apart = [np.where(pair > 0, pair + 10 * k, 0) for k, pair in enumerate(blocks)]
    whole = count_panoptic(*np.concatenate(apart, axis=1))
    assert pooled.iou_sum == pytest.approx(whole.iou_sum)
    assert pooled.weight == whole.weight
    assert pooled.quality == pytest.approx(whole.quality)


def test_matches_are_those_of_average_precision_where_no_pair_lies_at_one_half() -> None:
    truth = np.arange(100).reshape(10, 10).repeat(4, axis=0).repeat(4, axis=1)
    prediction = np.roll(truth, 1, axis=1)
    (counts,) = match_instances(truth, prediction, thresholds=(0.5001,))
    panoptic = count_panoptic(truth, prediction)
    assert panoptic.true_positives == counts.true_positives > 50
    assert panoptic.iou_sum / panoptic.true_positives == pytest.approx(12 / 20, abs=0.01)


def test_many_instances_take_no_square_table() -> None:
    labels = np.zeros((200, 200), np.int32)
    labels[::2, ::2] = np.arange(1, 10_001).reshape(100, 100)
    shifted = np.where(labels > 0, 1 + labels % 10_000, 0)
    assert aggregated_jaccard_plus(labels, shifted) == aggregated_jaccard(labels, shifted) == 1.0


def test_empty_inputs_have_defined_scores() -> None:
    empty, full = np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8)
    for score in (aggregated_jaccard, aggregated_jaccard_plus):
        assert score(empty, empty) is None
        assert score(empty[:0], full[:0]) is None
        assert score(empty, full) == score(full, empty) == 0.0
        assert score(full, full, valid=empty > 0) is None
        assert score(full, full, min_size=13) is None
    assert count_panoptic(empty, empty).quality is None
    assert count_panoptic(empty, full).quality == 0.0


def test_wrong_shapes_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(InputError, match=r"\(1, 3\).*\(2, 3\)"):
        aggregated_jaccard(
            np.zeros((2, 3), int), np.zeros((2, 3), int), valid=np.ones((1, 3), bool)
        )
