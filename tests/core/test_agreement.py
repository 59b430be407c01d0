"""Scores that need every member or the whole image, against computations that keep everything."""

from itertools import combinations

import numpy as np
import pytest
from scipy import ndimage, special

from df2serve.config import CentreGrid, OverlapGrid
from df2serve.core.agreement import MemberAgreement, most_probable
from df2serve.core.components import ComponentCounter
from df2serve.core.metrics import dice
from df2serve.core.scores import ScoreAccumulator
from df2serve.core.tiling import plan_tiles
from df2serve.core.uncertainty import epistemic, predictive_variance, total


def samples(members: int, views: int, classes: int, shape=(37, 23), seed=0) -> np.ndarray:
    """Class probabilities of every member and view, axes (M, T, K, Y, X)."""
    rng = np.random.default_rng(seed)
    shared = ndimage.gaussian_filter(rng.normal(size=(classes, *shape)), (0, 2, 2)) * 8
    logits = shared + rng.normal(scale=0.7, size=(members, views, classes, *shape))
    exp = np.exp(logits)
    return (exp / exp.sum(axis=2, keepdims=True)).astype(np.float32)


def agreement_of(masks: np.ndarray, classes: int, *, parts: int = 1) -> MemberAgreement:
    found = MemberAgreement(len(masks) - 1, classes)
    for part in np.array_split(masks.reshape(len(masks), -1), parts, axis=1):
        found.update(part)
    return found


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Dice score, 1 for two empty masks."""
    score = dice(first, second)
    return 1.0 if score is None else score


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("views", [1, 4])
def test_all_scores_equal_a_naive_computation(classes: int, members: int, views: int) -> None:
    probs = samples(members, views, classes)
    mean = probs.mean(axis=(0, 1))
    square = (probs.astype(float) ** 2).sum(axis=2).mean(axis=(0, 1)).astype(np.float32)
    mask = mean.argmax(axis=0)
    member_masks = probs.mean(axis=1).argmax(axis=1)
    agreement = agreement_of(np.stack([*member_masks, mask]), classes, parts=3)
    gathered = ScoreAccumulator(classes)
    for rows in np.array_split(np.arange(len(mask)), 5):
        gathered.update(
            probs=mean[:, rows],
            mask=mask[rows],
            total=total(mean[:, rows], scale="paper"),
            epistemic=epistemic(mean[:, rows], square[rows], scale="paper"),
        )
    scores = gathered.compute(empty="largest", agreement=agreement)

    flat = probs.reshape(-1, *probs.shape[2:]).astype(float)
    u = predictive_variance(flat, scale="paper")
    assert scores.u == pytest.approx(u[mask > 0].mean(), abs=1e-6)
    largest = np.sort(u.ravel())[::-1][: np.count_nonzero(mask)]
    assert scores.u_top == pytest.approx(largest.mean(), abs=1e-6)
    spread = 4 / classes * ((flat - flat.mean(axis=0)) ** 2).mean(axis=0).sum(axis=0)
    assert scores.u_epistemic == pytest.approx(spread[mask > 0].mean(), abs=1e-6)
    if classes == 2:
        assert scores.u_class_balanced == pytest.approx(scores.u, abs=1e-12)
    if members == 1:
        assert scores.one_minus_pairwise_dice is None
        assert scores.one_minus_member_dice is None
        return
    per_class = [
        [overlap(a == k, b == k) for a, b in combinations(member_masks, 2)]
        for k in range(1, classes)
        if (member_masks == k).any()
    ]
    assert scores.one_minus_pairwise_dice == pytest.approx(1 - np.mean(per_class), abs=1e-12)
    per_class = [
        [overlap(a == k, mask == k) for a in member_masks]
        for k in range(1, classes)
        if (member_masks == k).any()
    ]
    assert scores.one_minus_member_dice == pytest.approx(1 - np.mean(per_class), abs=1e-12)


def test_agreement_does_not_depend_on_the_order_of_members() -> None:
    masks = samples(4, 1, 3)[:, 0].argmax(axis=1)
    ensemble = masks[0]
    found = {
        agreement_of(np.stack([*masks[list(order)], ensemble]), 3).one_minus_pairwise_dice
        for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0])
    }
    assert max(found) - min(found) < 1e-15


def test_agreement_of_equal_empty_and_contradicting_members() -> None:
    some = (np.arange(40) % 3 == 0).astype(np.uint8)[None].repeat(4, axis=0)
    assert agreement_of(some, 2).one_minus_pairwise_dice == 0
    assert agreement_of(0 * some, 2).one_minus_pairwise_dice == 0
    assert agreement_of(0 * some, 2).one_minus_member_dice == 0
    halves = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], np.uint8)
    assert agreement_of(halves, 2).one_minus_pairwise_dice == 1
    one_empty = np.array([[1, 1], [0, 0], [0, 0], [0, 0]], np.uint8)
    assert agreement_of(one_empty, 2).one_minus_pairwise_dice == pytest.approx(2 / 3)


@pytest.mark.parametrize("classes", [2, 5, 300])
def test_most_probable_is_argmax(classes: int) -> None:
    probs = np.random.default_rng(0).integers(0, 4, (classes, 20, 30)).astype(np.float32)
    found = most_probable(probs)
    assert np.array_equal(found, probs.argmax(axis=0))  # the lowest index on ties as well
    assert found.dtype == np.min_scalar_type(classes - 1)


@pytest.mark.parametrize("bands", [1, 4, 40])
def test_components_are_those_of_the_whole_image(bands: int) -> None:
    rng = np.random.default_rng(1)
    for share in (0.0, 0.3, 0.55, 0.7, 1.0):
        inside = rng.random((40, 33)) < share
        counter = ComponentCounter()
        for part in np.array_split(inside, bands):
            counter.update(part)
        labels, count = ndimage.label(inside)
        expected = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        assert sorted(counter.areas()) == sorted(expected)


@pytest.mark.parametrize("grid", [OverlapGrid(), OverlapGrid(overlap=0.25), CentreGrid()])
@pytest.mark.parametrize("shape", [(200, 90), (64, 65), (10, 300), (1, 1)])
def test_cells_divide_the_image_and_belong_to_the_nearest_tile(grid, shape) -> None:
    plan = plan_tiles(shape, (64, 64), grid)
    for axis in (plan.rows, plan.columns):
        origins = [p.start - k.start for p, k in zip(axis.placed, axis.kept, strict=True)]
        owner = np.full(axis.length, -1)
        for tile, origin in enumerate(origins):
            cell = axis.cell(tile)
            here = slice(cell.start + origin, cell.stop + origin)
            assert (owner[here] == -1).all()
            owner[here] = tile
        assert (owner >= 0).all()
        distance = np.abs(np.arange(axis.length)[:, None] - (np.array(origins) + 31.5))
        own = np.take_along_axis(distance, owner[:, None], axis=1)[:, 0]
        if origins == sorted(origins):  # not where an image is smaller than its tiles
            assert (own <= distance.min(axis=1) + 1).all()


# -- the rows of the table of conventions ------------------------------------------------------


def disk_scores(radii: list[float], *, missed: int = 0, level: float = 0.45):
    """Scores of confident soft disks, edge softness 1 px, beside missed ones."""
    side = 96
    y, x = np.mgrid[:side, : side * (len(radii) + missed)]
    foreground = np.full(y.shape, 1e-4)
    for place, radius in enumerate([*radii, *[8.0] * missed]):
        distance = np.hypot(y - side / 2, x - side * (place + 0.5))
        height = level if place >= len(radii) else 1.0
        foreground = np.maximum(foreground, height * special.expit(radius - distance))
    probs = np.stack([1 - foreground, foreground]).astype(np.float32)
    gathered = ScoreAccumulator(2)
    gathered.update(
        probs=probs,
        mask=most_probable(probs),
        total=total(probs, scale="paper"),
        epistemic=np.zeros(y.shape, np.float32),
    )
    return gathered.compute(empty="largest")


def test_u_depends_on_the_size_of_objects_and_so_does_expected_dice() -> None:
    found = [disk_scores([radius]) for radius in (4.0, 8.0, 16.0, 32.0)]
    assert [s.u for s in found] == pytest.approx([0.631, 0.402, 0.234, 0.134], abs=0.07)
    assert [s.u for s in found] == sorted((s.u for s in found), reverse=True)
    expected = [s.one_minus_expected_dice for s in found]
    assert expected == sorted(expected, reverse=True)


def test_missed_cells_change_u_top_and_expected_dice_but_not_u() -> None:
    all_found, some_missed = disk_scores([8.0] * 8), disk_scores([8.0] * 8, missed=8)
    assert some_missed.u == pytest.approx(all_found.u, abs=1e-6)
    assert some_missed.u_top > all_found.u_top + 0.2
    assert some_missed.one_minus_expected_dice > all_found.one_minus_expected_dice + 0.1


def test_u_top_is_at_least_the_mean_over_the_image() -> None:
    for found in (disk_scores([8.0]), disk_scores([4.0, 20.0], missed=2)):
        assert found.u_top >= found.u - 1e-6
    empty = disk_scores([], missed=2)
    assert empty.empty_prediction
    assert empty.u == empty.u_top == pytest.approx(4 * 0.45 * 0.55, abs=0.01)
    assert empty.one_minus_expected_dice == 1
