"""Scores against published numbers, pixel loops, other libraries and their own symmetries."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from df2serve.core.metrics import (
    IOU_THRESHOLDS,
    MatchCounts,
    dice,
    dice_per_class,
    label_components,
    match_instances,
    mean_average_precision,
    mean_dice,
)
from df2serve.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# -- published numbers --------------------------------------------------------------------------

# deepflash2's notebooks: Dice, mAP and AP at 0.5 of experts 1 to 5 against an estimated ground
# truth, 4-connected components, no size filter.
PUBLISHED = {
    ("0001", "staple"): (
        (0.615232, 0.831553, 0.701515, 0.854105, 0.800831),
        (0.209793, 0.330434, 0.232453, 0.447582, 0.298439),
        (0.384615, 0.531034, 0.425926, 0.727941, 0.638298),
    ),
    ("0001", "majority"): (
        (0.710698, 0.837439, 0.619365, 0.805809, 0.860788),
        (0.314402, 0.398583, 0.169128, 0.416399, 0.450650),
        (0.532110, 0.699187, 0.391509, 0.632353, 0.786885),
    ),
    ("0004", "staple"): (
        (0.610313, 0.857131, 0.682427, 0.822903, 0.850710),
        (0.258657, 0.499589, 0.258915, 0.369849, 0.474451),
        (0.466667, 0.739837, 0.471963, 0.770992, 0.782258),
    ),
    ("0004", "majority"): (
        (0.676638, 0.845505, 0.591542, 0.861491, 0.893066),
        (0.341097, 0.469134, 0.169529, 0.543565, 0.647050),
        (0.538462, 0.833333, 0.390698, 0.846154, 0.863636),
    ),
}


def read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image) > 0


def expert_scores(truth: np.ndarray, experts: list[np.ndarray]) -> np.ndarray:
    """Return Dice, mAP and AP at 0.5 (rows) of every expert (columns)."""
    truth_labels = label_components(truth)
    matches = [match_instances(truth_labels, label_components(expert)) for expert in experts]
    return np.array(
        [
            [dice(truth, expert) for expert in experts],
            [mean_average_precision(counts) for counts in matches],
            [counts[0].average_precision for counts in matches],
        ]
    )


def estimate(experts: list[np.ndarray], method: str) -> np.ndarray:
    sitk = pytest.importorskip("SimpleITK")
    images = [sitk.GetImageFromArray(expert.astype(np.uint8)) for expert in experts]
    if method == "staple":
        staple = sitk.MultiLabelSTAPLEImageFilter()
        staple.SetLabelForUndecidedPixels(0)
        return sitk.GetArrayFromImage(staple.Execute(images)) > 0
    return sitk.GetArrayFromImage(sitk.LabelVoting(images, 0)) > 0


@pytest.mark.parametrize(("name", "method"), PUBLISHED)
def test_published_scores_of_estimated_ground_truths(
    shared_data: Path, name: str, method: str
) -> None:
    folder = shared_data / "cfos_hc" / "masks_experts"
    experts = [read_mask(folder / f"expert_{k}" / f"{name}.png") for k in range(1, 6)]
    scores = expert_scores(estimate(experts, method), experts)
    np.testing.assert_allclose(scores, PUBLISHED[name, method], rtol=0, atol=5.01e-7)


@pytest.mark.parametrize("name", ["0001", "0004"])
def test_published_scores_of_published_ground_truths(shared_data: Path, name: str) -> None:
    folder = shared_data / "paper_oracle"
    oracle = json.loads((folder / "paper_oracle.json").read_text())
    experts = [read_mask(folder / f"{name}_expert_{k}.png") for k in oracle["perm"]]
    scores = expert_scores(read_mask(folder / f"{name}_est_GT.png"), experts)
    expected = [oracle["values"][name][score] for score in ("dice", "mAP", "AP50")]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=5.01e-7)


# -- independent references ---------------------------------------------------------------------


def loop_dice(truth: np.ndarray, prediction: np.ndarray, k: int) -> float | None:
    tp = fp = fn = 0
    for t, p in zip(truth.flat, prediction.flat, strict=True):
        tp += t == k and p == k
        fp += t != k and p == k
        fn += t == k and p != k
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None


def pixel_sets(labels: np.ndarray, min_size: int) -> list[set[tuple[int, ...]]]:
    sets = [set(map(tuple, np.argwhere(labels == i))) for i in np.unique(labels) if i]
    return [pixels for pixels in sets if len(pixels) >= min_size]


def search_matches(truth: list, prediction: list, threshold: float) -> int:
    """Try every way to pair instances; return the largest number of allowed pairs."""
    if not truth:
        return 0
    first, rest = truth[0], truth[1:]
    best = search_matches(rest, prediction, threshold)
    for i, candidate in enumerate(prediction):
        if len(first & candidate) / len(first | candidate) >= threshold:
            others = prediction[:i] + prediction[i + 1 :]
            best = max(best, 1 + search_matches(rest, others, threshold))
    return best


masks = hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 3))
label_maps = hnp.arrays(np.int32, (4, 5), elements=st.sampled_from([0, 0, 1, 2, 3, 7]))
valid_maps = hnp.arrays(np.bool_, (4, 5))


@given(truth=masks, prediction=masks)
def test_dice_equals_a_pixel_loop(truth: np.ndarray, prediction: np.ndarray) -> None:
    expected = tuple(loop_dice(truth, prediction, k) for k in range(4))
    assert dice_per_class(truth, prediction, n_classes=4) == expected
    assert dice(truth == 2, prediction == 2) == expected[2]
    present = [value for value in expected[1:] if value is not None]
    mean = mean_dice(truth, prediction, n_classes=4)
    assert mean == (pytest.approx(np.mean(present)) if present else None)


@given(
    truth=label_maps,
    prediction=label_maps,
    threshold=st.sampled_from([0.1, 0.25, 0.5, 0.6, 1.0]),
    min_size=st.integers(0, 4),
    valid=st.none() | valid_maps,
)
def test_matches_equal_an_exhaustive_search(
    truth: np.ndarray,
    prediction: np.ndarray,
    threshold: float,
    min_size: int,
    valid: np.ndarray | None,
) -> None:
    (counts,) = match_instances(
        truth, prediction, thresholds=(threshold,), min_size=min_size, valid=valid
    )
    inside = np.ones(truth.shape, bool) if valid is None else valid
    t = pixel_sets(truth * inside, min_size)
    p = pixel_sets(prediction * inside, min_size)
    n = search_matches(t, p, threshold)
    assert counts == MatchCounts(threshold, n, len(p) - n, len(t) - n)


@pytest.mark.slow
def test_average_precision_equals_cellpose() -> None:
    cellpose = pytest.importorskip("cellpose.metrics")
    rng = np.random.default_rng(3)
    for _ in range(20):
        truth = rng.integers(0, 30, (12, 12)).repeat(5, axis=0).repeat(5, axis=1)
        prediction = np.roll(truth, rng.integers(0, 3, 2), axis=(0, 1))
        prediction[rng.random(prediction.shape) < 0.2] = 0
        truth, prediction = (np.unique(x, return_inverse=True)[1] for x in (truth, prediction))
        theirs = cellpose.average_precision(truth, prediction, threshold=list(IOU_THRESHOLDS))[0]
        ours = [counts.average_precision for counts in match_instances(truth, prediction)]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


# -- properties ---------------------------------------------------------------------------------


@given(mask=masks, other=masks)
def test_dice_is_symmetric_and_one_on_itself(mask: np.ndarray, other: np.ndarray) -> None:
    assert mean_dice(mask, other, n_classes=4) == mean_dice(other, mask, n_classes=4)
    assert mean_dice(mask, mask, n_classes=4) == (1.0 if mask.any() else None)
    assert mean_dice(mask, mask, n_classes=4, include_background=True) == 1.0


@given(truth=label_maps, prediction=label_maps, shift=st.integers(1, 2**30), seed=st.integers(0, 9))
def test_label_numbers_do_not_matter(
    truth: np.ndarray, prediction: np.ndarray, shift: int, seed: int
) -> None:
    shuffled = np.r_[0, shift + np.random.default_rng(seed).permutation(7)][prediction]
    assert match_instances(truth, shuffled) == match_instances(truth, prediction)


@given(truth=label_maps, prediction=label_maps)
def test_swapping_the_label_maps_swaps_the_errors(
    truth: np.ndarray, prediction: np.ndarray
) -> None:
    forward, backward = match_instances(truth, prediction), match_instances(prediction, truth)
    assert mean_average_precision(forward) == mean_average_precision(backward)
    for there, back in zip(forward, backward, strict=True):
        assert (there.precision, there.recall) == (back.recall, back.precision)


@given(labels=label_maps, valid=valid_maps, noise=label_maps)
def test_ignored_pixels_do_not_matter(
    labels: np.ndarray, valid: np.ndarray, noise: np.ndarray
) -> None:
    changed = np.where(valid, labels, noise)
    assert all(
        counts.average_precision in (1.0, None) for counts in match_instances(labels, labels)
    )
    assert match_instances(labels, changed, valid=valid) == match_instances(
        labels, labels, valid=valid
    )
    assert dice_per_class(labels, changed, n_classes=8, valid=valid) == dice_per_class(
        labels, labels, n_classes=8, valid=valid
    )


# -- stated behavior ----------------------------------------------------------------------------


def test_thresholds_are_those_of_the_published_numbers() -> None:
    assert len(IOU_THRESHOLDS) == 10
    assert np.array_equal(IOU_THRESHOLDS, np.linspace(0.5, 0.95, 10))


def test_a_tie_at_one_half_matches_once() -> None:
    truth, prediction = np.array([[1, 1]]), np.array([[1, 2]])  # counting pairs gives AP 2.0
    (counts,) = match_instances(truth, prediction, thresholds=(0.5,))
    assert counts == MatchCounts(0.5, 1, 1, 0)
    assert counts.average_precision == 0.5


def test_empty_inputs_have_defined_scores() -> None:
    empty, full = np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8)
    assert dice(empty, empty) is None
    assert dice(empty, full) == dice(full, empty) == 0.0
    assert mean_dice(empty, full, n_classes=2) == 0.0
    assert dice(full, full, valid=np.zeros((3, 4), bool)) is None
    assert mean_average_precision(match_instances(empty, empty)) is None
    assert mean_average_precision(match_instances(empty, full)) == 0.0
    assert mean_average_precision(match_instances(full, empty)) == 0.0
    (counts,) = match_instances(full, empty, thresholds=(0.5,))
    assert (counts.precision, counts.recall) == (None, 0.0)
    assert dice(empty[:0], full[:0]) is None
    assert mean_average_precision(match_instances(empty[:0], full[:0])) is None


def test_size_filter_counts_two_circles_then_one() -> None:
    y, x = np.mgrid[:80, :80]
    small = (y - 28) ** 2 + (x - 28) ** 2 < 7**2
    large = (y - 44) ** 2 + (x - 52) ** 2 < 20**2
    labels = label_components(small | large)
    assert labels.max() == 2
    assert match_instances(labels, labels, min_size=150)[0].true_positives == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64, np.int64])
def test_every_integer_type_gives_the_same_matches(dtype: type) -> None:
    labels = np.arange(100).reshape(10, 10).repeat(3, axis=0)
    expected = match_instances(labels, np.roll(labels, 1, axis=0))
    typed = labels.astype(dtype)
    assert match_instances(typed, np.roll(typed, 1, axis=0)) == expected


def test_labels_too_large_for_a_float_stay_apart() -> None:
    truth = np.array([[1, 1, 2, 2]])
    prediction = np.where(truth == 1, np.uint64(2**63), np.uint64(2**63 + 1))
    assert [counts.true_positives for counts in match_instances(truth, prediction)] == [2] * 10


def test_components_are_four_connected() -> None:
    mask = np.array([[True, False], [False, True]])
    assert label_components(mask).max() == 2
    assert label_components(mask).dtype == np.int32


# -- wrong input --------------------------------------------------------------------------------

zeros = np.zeros((2, 3), np.uint8)


@pytest.fixture
def _as_in_production() -> Iterator[None]:
    """Switch off the shape checks of the test run, which would fail before the code does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_as_in_production")
@pytest.mark.parametrize(
    ("truth", "prediction", "valid", "says"),
    [
        (zeros, zeros.T, None, r"\(2, 3\).*\(3, 2\).*crop or resize"),
        (zeros, zeros + 255, None, r"prediction.*255.*`mask > 0`"),
        (zeros - np.int16(1), zeros, None, r"truth.*-1.*from 0 to 1"),
        (zeros, zeros + 0.5, None, r"prediction.*float64.*threshold"),
        (zeros, zeros, zeros.T > 0, r"valid.*\(3, 2\)"),
        (zeros, zeros, zeros, r"valid.*uint8.*bool"),
    ],
)
def test_unusable_masks_are_explained(
    truth: np.ndarray, prediction: np.ndarray, valid: np.ndarray | None, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        dice(truth, prediction, valid=valid)


def test_class_beyond_the_number_of_classes_is_explained() -> None:
    with pytest.raises(InputError, match=r"truth.*0 to 3.*0 to 2.*raise n_classes"):
        mean_dice(np.array([[0, 3]]), np.array([[0, 1]]), n_classes=3)


@pytest.mark.usefixtures("_as_in_production")
@pytest.mark.parametrize(
    ("truth", "prediction", "thresholds", "says"),
    [
        (zeros, zeros.T, (0.5,), r"\(2, 3\).*\(3, 2\)"),
        (zeros, zeros - np.int32(1), (0.5,), r"prediction.*-1.*positive labels"),
        (zeros > 0, zeros, (0.5,), r"truth.*bool.*label_components"),
        (zeros, zeros, (0.5, 0.0), r"0\.0.*0 < threshold <= 1"),
        (zeros, zeros, (50,), r"50.*0 < threshold <= 1"),
    ],
)
def test_unusable_labels_are_explained(
    truth: np.ndarray, prediction: np.ndarray, thresholds: tuple[float, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        match_instances(truth, prediction, thresholds=thresholds)


@given(data=st.data())
def test_no_score_is_ever_nan(data: st.DataObject) -> None:
    truth, prediction = data.draw(label_maps), data.draw(label_maps)
    valid = data.draw(valid_maps)
    matches = match_instances(truth, prediction, valid=valid)
    scores = [
        *dice_per_class(truth, prediction, n_classes=8, valid=valid),
        mean_dice(truth, prediction, n_classes=8, valid=valid),
        mean_average_precision(matches),
        *itertools.chain.from_iterable(
            (counts.average_precision, counts.precision, counts.recall) for counts in matches
        ),
    ]
    assert all(score is None or 0.0 <= score <= 1.0 for score in scores)
