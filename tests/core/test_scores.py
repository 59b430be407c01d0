import math

import numpy as np
import pytest

from df2serve.core.ranking import ScoredImage, minimum_failing_score, rank
from df2serve.core.scores import ImageScores, ScoreAccumulator
from df2serve.core.uncertainty import total
from df2serve.errors import InputError

RNG = np.random.default_rng(0)


def smooth_probs(classes: int, shape: tuple[int, int] = (40, 30)) -> np.ndarray:
    exp = np.exp(RNG.normal(scale=2, size=(classes, *shape)))
    return (exp / exp.sum(axis=0)).astype(np.float32)


def scores_in_bands(probs, epistemic, *, bands: int, empty: str = "largest", valid=None):
    accumulator = ScoreAccumulator(len(probs))
    mask = probs.argmax(axis=0)
    for rows in np.array_split(np.arange(probs.shape[1]), bands):
        accumulator.update(
            probs=probs[:, rows],
            mask=mask[rows],
            total=total(probs[:, rows], scale="paper"),
            epistemic=epistemic[rows],
            valid=None if valid is None else valid[rows],
        )
    return accumulator.compute(empty=empty)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("bands", [1, 7])
@pytest.mark.parametrize("ignored", [False, True])
def test_streamed_scores_equal_a_naive_computation(classes: int, bands: int, ignored: bool) -> None:
    probs = smooth_probs(classes)
    epistemic = RNG.random(probs.shape[1:]).astype(np.float32)
    valid = RNG.random(probs.shape[1:]) < 0.7 if ignored else np.ones(probs.shape[1:], dtype=bool)
    scores = scores_in_bands(probs, epistemic, bands=bands, valid=valid)

    p = probs.astype(float)[:, valid]
    mask = probs.argmax(axis=0)[valid]
    u = 4 / classes * (p * (1 - p)).sum(axis=0)
    foreground = mask > 0
    assert scores.u == pytest.approx(u[foreground].mean(), abs=1e-6)
    assert scores.u_epistemic == pytest.approx(epistemic[valid][foreground].mean(), abs=1e-6)
    per_class = [u[mask == k].mean() for k in range(1, classes)]
    assert scores.u_class_balanced == pytest.approx(np.mean(per_class), abs=1e-6)
    dice = [2 * p[k][mask == k].sum() / (p[k].sum() + (mask == k).sum()) for k in range(1, classes)]
    assert scores.one_minus_expected_dice == pytest.approx(1 - np.mean(dice), abs=1e-6)
    assert scores.class_fractions == pytest.approx(np.bincount(mask) / mask.size)
    assert not scores.empty_prediction


def test_empty_prediction_has_defined_scores_and_says_so() -> None:
    foreground = np.array([[0.1, 0.4], [0.2, 0.0]], dtype=np.float32)
    probs = np.stack([1 - foreground, foreground])
    epistemic = np.array([[0.0, 0.3], [0.1, 0.0]], dtype=np.float32)
    scores = scores_in_bands(probs, epistemic, bands=2)
    assert scores.u == pytest.approx(4 * 0.4 * 0.6)
    assert scores.u_epistemic == pytest.approx(0.3)
    assert scores.one_minus_expected_dice == 1
    assert scores.empty_prediction
    assert scores.foreground_fraction == 0
    absent = scores_in_bands(probs, epistemic, bands=1, empty="absent")
    assert absent.u is None
    assert absent.empty_prediction


def test_all_pixels_ignored_leaves_every_score_absent() -> None:
    probs = smooth_probs(2)
    nothing = np.zeros(probs.shape[1:], dtype=bool)
    scores = scores_in_bands(probs, probs[0], bands=3, valid=nothing)
    assert scores.no_valid_pixels
    assert scores.u is None
    assert scores.foreground_fraction == 0


def test_no_score_is_ever_nan() -> None:
    for foreground in (0.0, 0.5, 1.0):
        plane = np.full((4, 4), foreground, dtype=np.float32)
        scores = scores_in_bands(np.stack([1 - plane, plane]), plane, bands=1)
        values = [value for value in vars(scores).values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in values)


def image(name: str, score: float | None, **flags: bool) -> ScoredImage:
    return ScoredImage(
        name=name,
        score=score,
        empty_prediction=flags.get("empty", False),
        no_valid_pixels=flags.get("invalid", False),
    )


def test_ranking_is_total_and_independent_of_the_input_order() -> None:
    expected = [
        image("z", None, invalid=True),
        image("y", None, empty=True),
        image("d", 0.9),
        image("c", 0.5, empty=True),
        image("a", 0.5),
        image("b", 0.5),
        image("e", 0.0),
    ]
    for seed in range(5):
        shuffled = [expected[i] for i in np.random.default_rng(seed).permutation(len(expected))]
        assert [place.image for place in rank(shuffled, threshold=None)] == expected


def test_review_is_called_for_at_and_above_the_threshold() -> None:
    places = rank([image("a", 0.4), image("b", 0.5), image("c", None)], threshold=0.5)
    assert {p.image.name: p.needs_review for p in places} == {"a": False, "b": True, "c": True}
    assert all(p.needs_review is None for p in rank([image("a", 0.4)], threshold=None))


def test_minimum_failing_score() -> None:
    assert minimum_failing_score([0.3, 0.2], [0.9, 0.95], required=0.8) is None
    with pytest.raises(InputError, match="3 scores and 1 qualities"):
        minimum_failing_score([0.1, 0.2, 0.3], [0.5], required=0.5)


def test_scores_are_plain_values() -> None:
    scores = scores_in_bands(smooth_probs(3), smooth_probs(2)[0], bands=2)
    assert isinstance(scores, ImageScores)
    assert all(type(v) in (float, int, bool, tuple, type(None)) for v in vars(scores).values())
