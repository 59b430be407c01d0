"""STAPLE and majority voting against plain NumPy, ITK's own vote, and the published estimates."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from df2serve.errors import InputError
from df2serve.io import read_mask
from df2serve_training.ground_truth import majority_vote, staple

EXPERTS = range(1, 6)


def drawn(seed, *, n_experts=5, n_classes=2, shape=(48, 56), errors=0.15):
    """Return experts that err at random about a blocky truth, and the truth."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, n_classes, (shape[0] // 8, shape[1] // 8))
    truth = np.kron(blocks * (rng.random(blocks.shape) < 0.6), np.ones((8, 8), int))
    masks = []
    for skill in np.linspace(0.5, 1.5, n_experts):
        wrong = rng.random(shape) < errors * skill
        masks.append(np.where(wrong, rng.integers(0, n_classes, shape), truth).astype(np.uint8))
    return masks, truth


def naive_binary_staple(masks, iterations):
    """EM of Warfield, Zou and Wells (2004), pixel by pixel, from optimistic experts."""
    votes = np.stack([mask.ravel().astype(bool) for mask in masks])
    prior = votes.mean()
    p = q = np.full(len(votes), 0.99999)
    for _ in range(iterations):
        yes = prior * np.prod(np.where(votes, p[:, None], 1 - p[:, None]), axis=0)
        no = (1 - prior) * np.prod(np.where(votes, 1 - q[:, None], q[:, None]), axis=0)
        weight = yes / (yes + no)
        p = (votes * weight).sum(axis=1) / weight.sum()
        q = (~votes * (1 - weight)).sum(axis=1) / (1 - weight).sum()
    return weight.reshape(masks[0].shape), p, q


def naive_multi_class_staple(masks, n_classes, iterations):
    """EM of Rohlfing et al. (2003) from the confusion with the untied majority."""
    flat = np.stack([mask.ravel() for mask in masks])
    counts = np.stack([(flat == k).sum(axis=0) for k in range(n_classes)])
    untied = (counts == counts.max(axis=0)).sum(axis=0) == 1
    weight = np.where(untied, counts == counts.max(axis=0), False).astype(float)
    prior = np.bincount(flat.ravel(), minlength=n_classes) / flat.size
    for _ in range(iterations + 1):
        table = np.array(
            [[[w[row == j].sum() for j in range(n_classes)] for w in weight] for row in flat]
        )
        table /= table.sum(axis=2, keepdims=True)
        said = [of_one[:, row] for of_one, row in zip(table, flat, strict=True)]
        weight = prior[:, None] * np.prod(said, axis=0)
        weight /= weight.sum(axis=0)
    return weight.reshape(n_classes, *masks[0].shape), table


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_experts", [3, 5])
def test_binary_staple_is_the_published_algorithm(seed, n_experts):
    masks, _ = drawn(seed, n_experts=n_experts)
    fusion = staple(masks, n_classes=2, max_iterations=1000)
    posterior, sensitivity, specificity = naive_binary_staple(masks, fusion.iterations)
    np.testing.assert_allclose(fusion.posterior[1], posterior, atol=2e-6)
    np.testing.assert_allclose(fusion.confusion[:, 1, 1], sensitivity, atol=2e-6)
    np.testing.assert_allclose(fusion.confusion[:, 0, 0], specificity, atol=2e-6)
    np.testing.assert_array_equal(fusion.classes, posterior > 0.5)
    assert fusion.converged
    assert 0 < fusion.iterations < 1000


@pytest.mark.parametrize("seed", range(3))
def test_multi_class_staple_is_the_published_algorithm(seed):
    masks, truth = drawn(seed, n_classes=4, errors=0.3)
    fusion = staple(masks, n_classes=4, max_iterations=100)
    posterior, confusion = naive_multi_class_staple(masks, 4, fusion.iterations)
    np.testing.assert_allclose(fusion.confusion, confusion, atol=1e-4)
    np.testing.assert_allclose(fusion.posterior, posterior, atol=1e-3)
    itk = sitk.MultiLabelSTAPLE([sitk.GetImageFromArray(mask) for mask in masks], 4)
    np.testing.assert_array_equal(fusion.classes, sitk.GetArrayFromImage(itk))
    assert fusion.converged
    assert (fusion.classes == truth).mean() > max((mask == truth).mean() for mask in masks)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("n_experts", [1, 2, 5])
def test_majority_is_what_is_counted(n_classes, n_experts):
    masks, _ = drawn(0, n_experts=n_experts, n_classes=n_classes, shape=(16, 24), errors=0.6)
    fusion = majority_vote(masks, n_classes=n_classes)
    for place in np.ndindex(masks[0].shape):
        votes = Counter(int(mask[place]) for mask in masks)
        most = max(votes.values())
        winners = [value for value, count in votes.items() if count == most]
        assert fusion.undecided[place] == (len(winners) > 1)
        assert fusion.classes[place] == (winners[0] if len(winners) == 1 else 0)
        shares = [votes[k] / n_experts for k in range(n_classes)]
        np.testing.assert_allclose(fusion.votes[:, *place], shares, atol=1e-7)


def test_majority_equals_that_of_itk():
    masks, _ = drawn(1, n_experts=4, n_classes=4, errors=0.6)
    voted = sitk.LabelVoting([sitk.GetImageFromArray(mask) for mask in masks], 4)
    fusion = majority_vote(masks, n_classes=4)
    expected = np.where(fusion.undecided, 4, fusion.classes)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(voted), expected)
    assert fusion.undecided.any()


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n_experts", [1, 3])
def test_empty_masks_give_an_empty_estimate(n_classes, n_experts):
    masks = [np.zeros((6, 7), np.uint8)] * n_experts
    fusion = staple(masks, n_classes=n_classes, max_iterations=100)
    assert not fusion.classes.any()
    assert fusion.converged
    np.testing.assert_array_equal(fusion.posterior[0], 1)
    np.testing.assert_array_equal(fusion.confusion[:, 0, 0], 1)
    np.testing.assert_array_equal(fusion.confusion[:, 1], 0)  # no pixel of class 1 to judge by


@pytest.mark.parametrize("method", ["full", "single"])
def test_masks_that_are_all_equal_are_the_estimate(method):
    mask = np.ones((5, 5), np.uint8) if method == "full" else drawn(0)[0][0]
    masks = [mask] * (4 if method == "full" else 1)
    fusion = staple(masks, n_classes=2, max_iterations=100)
    np.testing.assert_array_equal(fusion.classes, mask)
    np.testing.assert_array_equal(fusion.posterior[1], mask)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_iterations_are_bounded(n_classes):
    rng = np.random.default_rng(0)
    noise = list((rng.random((5, 64, 64)) < 0.3).astype(np.uint8) * (n_classes - 1))
    fusion = staple(noise, n_classes=n_classes, max_iterations=20)
    assert (fusion.iterations, fusion.converged) == (20, False)
    assert np.isfinite(fusion.posterior).all()
    np.testing.assert_allclose(fusion.posterior.sum(axis=0), 1, atol=2e-6)


def test_undecided_pixels_become_background_or_what_the_best_expert_says():
    good = np.array([[1, 1, 1, 2, 2, 0, 0, 0]], np.uint8)
    poor = np.array([[1, 0, 1, 2, 1, 0, 1, 0]], np.uint8)
    worse = np.array([[1, 0, 1, 2, 1, 0, 0, 2]], np.uint8)
    masks = [poor, good, good, worse]
    plain = majority_vote(masks, n_classes=3)
    np.testing.assert_array_equal(plain.undecided, [[0, 1, 0, 0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(plain.classes, [[1, 0, 1, 2, 0, 0, 0, 0]])
    best = majority_vote(masks, n_classes=3, undecided="best_rater")
    assert best.best_rater == 1
    np.testing.assert_array_equal(best.classes, good)


def test_experts_who_contradict_each_other_leave_a_pixel_undecided():
    first = np.zeros((8, 8), np.uint8)
    first[0, 0] = 3
    second = first.copy()
    second[0, 1] = 1
    fusion = staple([first, second], n_classes=4, max_iterations=100)
    np.testing.assert_array_equal(np.argwhere(fusion.undecided), [[0, 1]])
    np.testing.assert_array_equal(fusion.classes, first)
    np.testing.assert_allclose(fusion.posterior[:, 0, 1], [0.5, 0.5, 0, 0])
    taken = staple([second, first], n_classes=4, max_iterations=100, undecided="best_rater")
    np.testing.assert_array_equal(taken.classes, [second, first][taken.best_rater])


@pytest.mark.parametrize("seed", range(4))
def test_the_difference_of_two_nested_masks_is_undecided(seed):
    """Its probability is one half but for rounding, on either side."""
    inner = np.zeros((40, 50), np.uint8)
    inner[5 + seed : 20, 7:30] = 1
    outer = inner.copy()
    outer[4:25, 6 : 40 + seed] = 1
    fusion = staple([inner, outer], n_classes=2, max_iterations=100)
    np.testing.assert_array_equal(fusion.undecided, outer > inner)
    np.testing.assert_array_equal(fusion.classes, inner)
    best = staple([inner, outer], n_classes=2, max_iterations=100, undecided="best_rater")
    np.testing.assert_array_equal(best.classes, [inner, outer][best.best_rater])


def test_classes_that_do_not_occur_are_no_obstacle():
    masks, _ = drawn(2, n_classes=3, errors=0.3)
    few = staple(masks, n_classes=3, max_iterations=100)
    many = staple(masks, n_classes=6, max_iterations=100)
    np.testing.assert_array_equal(many.classes, few.classes)
    np.testing.assert_array_equal(many.posterior[3:], 0)
    np.testing.assert_allclose(many.confusion[:, :3, :3], few.confusion)


@pytest.mark.parametrize("fuse", [majority_vote, staple], ids=["majority", "staple"])
def test_masks_that_do_not_fit_are_refused(fuse):
    bound = {"max_iterations": 10} if fuse is staple else {}
    mask = np.zeros((4, 5), np.uint8)
    with pytest.raises(InputError, match=r"2 masks of sizes \(4, 5\), \(5, 4\)"):
        fuse([mask, mask.T], n_classes=2, **bound)
    with pytest.raises(InputError, match="at least one"):
        fuse([], n_classes=2, **bound)
    with pytest.raises(InputError, match="from 0 to 255; expected class indices from 0 to 1"):
        fuse([mask, np.full((4, 5), 255, np.uint8)], n_classes=2, **bound)


def published(shared_data: Path, name: str):
    folder = shared_data / "cfos_hc"
    files = [folder / "masks_experts" / f"expert_{expert}" / name for expert in EXPERTS]
    masks = [read_mask(file, kind="binary").classes for file in files]
    return masks, read_mask(folder / "masks_est_GT" / name, kind="binary").classes


def test_reliability_of_real_experts(shared_data):
    masks, truth = published(shared_data, "0004.png")
    fusion = staple(masks, n_classes=2, max_iterations=100)
    np.testing.assert_array_equal(fusion.classes, truth)
    hits, rejections = fusion.confusion[:, 1, 1], fusion.confusion[:, 0, 0]
    np.testing.assert_allclose(hits, [0.44829, 0.79858, 0.93901, 0.73655, 0.76208], atol=5e-6)
    expected = [0.999335, 0.998131, 0.978696, 0.998511, 0.999253]
    np.testing.assert_allclose(rejections, expected, atol=5e-7)
    assert fusion.iterations == 9


@pytest.mark.slow
def test_all_published_estimates_are_reproduced(shared_data):
    names = sorted(path.name for path in (shared_data / "cfos_hc/masks_est_GT").iterdir())
    assert len(names) == 36
    for name in names:
        masks, truth = published(shared_data, name)
        fusion = staple(masks, n_classes=2, max_iterations=100)
        np.testing.assert_array_equal(fusion.classes, truth, err_msg=name)
        assert fusion.converged, name
