"""Predictions beside truth and experts: against published numbers, other code and by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from PIL import Image

from df2serve.core.instance_metrics import PanopticCounts
from df2serve.core.scores import ImageScores
from df2serve.errors import InputError
from df2serve_training._annotations import Annotation
from df2serve_training._comparison import compare
from df2serve_training._estimate import estimate
from df2serve_training._evaluation_summary import place_among
from df2serve_training._gt_settings import GroundTruthSettings
from df2serve_training.agreement import agreement
from df2serve_training.evaluate import (
    METRICS,
    Evaluation,
    EvaluationSettings,
    PredictedImage,
    evaluate,
)
from df2serve_training.repeats import compare_evaluations

NAMES = ("background", "soma", "nucleus")


def scores(u: float | None) -> ImageScores:
    return ImageScores(
        u=u,
        u_epistemic=None,
        u_class_balanced=u,
        one_minus_expected_dice=0.5,
        class_fractions=(0.75, 0.25),
        empty_prediction=False,
        no_valid_pixels=False,
    )


def predicted(
    name: str,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    u: float | None = 0.2,
    experts: Mapping[str, np.ndarray] | None = None,
    **facts: object,
) -> PredictedImage:
    return PredictedImage(
        name=name,
        image_sha256=name.encode().hex().rjust(64, "0"),
        kind="held_out",
        truth=Annotation.of_classes(truth),
        prediction=Annotation.of_classes(prediction),
        scores=scores(u),
        members=(0, 1),
        seconds=1.23456,
        experts={k: Annotation.of_classes(mask) for k, mask in (experts or {}).items()},
        **facts,
    )


def blobs(seed: int, classes: int = 2) -> np.ndarray:
    """Return a mask of rectangles."""
    rng, mask = np.random.default_rng(seed), np.zeros((48, 64), np.uint8)
    for _ in range(9):
        y, x = rng.integers(0, 40), rng.integers(0, 56)
        mask[y : y + rng.integers(2, 9), x : x + rng.integers(2, 9)] = rng.integers(1, classes)
    return mask


def noisy(mask: np.ndarray, seed: int, pixels: int = 60) -> np.ndarray:
    """Return a mask in which some pixels are those of their neighbors."""
    rng, changed = np.random.default_rng(seed), mask.copy()
    y, x = rng.integers(0, mask.shape[0], pixels), rng.integers(0, mask.shape[1], pixels)
    changed[y, x] = np.roll(mask, 1 + seed % 3, axis=1)[y, x]
    return changed


def run(*images: PredictedImage, names: tuple[str, ...] = NAMES[:2], **settings) -> Evaluation:
    chosen = EvaluationSettings(resamples=200).updated(**settings)
    return evaluate(iter(images), class_names=names, settings=chosen)


# -- qualities ----------------------------------------------------------------------------------


def test_published_scores_of_experts_reproduce(shared_data: Path) -> None:
    """Dice, mAP and AP at 0.5 that deepflash2's notebook prints, to all six digits."""
    folder = shared_data / "paper_oracle"
    oracle = json.loads((folder / "paper_oracle.json").read_text())

    def read(name: str) -> np.ndarray:
        with Image.open(folder / f"{name}.png") as image:
            return (np.asarray(image) > 0).astype(np.uint8)

    truth = read("0001_est_GT")
    experts = {f"expert {k}": read(f"0001_expert_{k}") for k in oracle["perm"]}
    result = run(predicted("0001", truth, truth, experts=experts), leave_one_out="none")
    for metric, published in (("dice", "dice"), ("map", "mAP"), ("ap50", "AP50")):
        found = [row.of(metric) for row in result.experts]
        np.testing.assert_allclose(found, oracle["values"]["0001"][published], rtol=0, atol=5.01e-7)
    assert [row.experts for row in result.relative] == [5] * len(METRICS)
    assert {row.place for row in result.relative} == {"above best expert"}


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("min_size", [0, 5])
def test_qualities_equal_the_agreement_of_experts(classes: int, min_size: int) -> None:
    """The tables of ground truth come from other code."""
    for seed in range(5):
        truth, prediction = blobs(seed, classes), noisy(blobs(seed, classes), seed)
        names = tuple("abcdefg"[:classes])
        row = run(predicted("x", truth, prediction), names=names, min_size=min_size).images[0]
        expected = agreement(
            Annotation.of_classes(truth),
            Annotation.of_classes(prediction),
            n_classes=classes,
            min_size=min_size,
        )
        assert row.dice == pytest.approx(expected.dice_score)
        assert row.map == pytest.approx(expected.mean_average_precision)
        assert row.ap50 == pytest.approx(expected.average_precision_at_iou_50)


def test_ignored_pixels_count_nowhere() -> None:
    truth, prediction = blobs(1), noisy(blobs(1), 1, pixels=300)
    wrong = truth != prediction
    perfect = run(
        predicted(
            "a", truth, prediction, valid=~wrong, experts={"x": prediction, "y": prediction},
            uncertainty=wrong.astype(np.float32), probs=np.stack([1.0 - prediction, prediction]),
        ),
        leave_one_out="none",
    )  # fmt: skip
    row = perfect.images[0]
    assert row.dice == 1.0
    assert row.n_truth == perfect.classes[0].n_truth > 0
    assert perfect.uncertainty[-1].pixels == 0
    assert perfect.uncertainty[0].pixels == np.count_nonzero(~wrong)
    assert perfect.uncertainty[0].error == 0
    assert {row.dice for row in perfect.experts} == {1.0}


def test_given_instances_stay_apart() -> None:
    labels = np.zeros((6, 8), np.int32)
    labels[1:4, 1:3], labels[1:4, 3:5] = 1, 2
    truth, merged = Annotation.of_instances(labels), Annotation.of_classes(labels > 0)
    (one,) = compare(truth, merged, n_classes=2, min_size=0, valid=None)
    assert (one.n_truth, one.n_predicted) == (2, 1)
    assert one.quality.dice == 1.0
    assert one.quality.ap50 == 0.5
    assert one.panoptic == PanopticCounts(0, 1, 2, 0.0)


def test_classes_are_counted_and_averaged_where_they_occur() -> None:
    truth, prediction = np.zeros((2, 6, 8), np.uint8)
    truth[1:3, 1:3], prediction[1:3, 1:4] = 1, 1
    result = run(predicted("a", truth, prediction), names=NAMES)
    soma, nucleus = result.classes
    assert (soma.class_name, soma.truth_px, soma.predicted_px) == ("soma", 4, 6)
    assert soma.dice == 0.8
    assert soma.iou_sum == pytest.approx(4 / 6)
    assert (nucleus.dice, nucleus.map, nucleus.pq, nucleus.n_truth) == (None, None, None, 0)
    assert result.images[0].dice == 0.8


# -- experts ------------------------------------------------------------------------------------


def test_places_by_hand() -> None:
    truth = blobs(2)
    experts = {str(k): noisy(truth, k, pixels=40 * k) for k in (1, 2, 3)}
    perfect, poor = truth, noisy(truth, 9, pixels=2000)
    among = experts["2"]
    result = run(
        predicted("above", truth, perfect, experts=experts),
        predicted("below", truth, poor, experts=experts),
        predicted("in", truth, among, experts=experts),
        predicted("without", truth, perfect),
    )
    places = {
        row.file: row.place
        for row in result.relative
        if (row.metric, row.reference) == ("dice", "estimate")
    }
    assert places == {
        "above": "above best expert", "below": "below worst expert", "in": "in expert range",
    }  # fmt: skip
    (found,) = [
        row for row in result.expert_ranges if (row.metric, row.reference) == ("dice", "estimate")
    ]
    assert found.images == 3
    shares = found.below_worst, found.in_range, found.above_best
    assert shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    drawn = [row.dice for row in result.experts if row.reference == "estimate"]
    dice = [value for value in drawn if value is not None]
    assert (found.worst, found.best) == (min(dice), max(dice))
    assert found.mean == pytest.approx(fmean(dice))


def test_ends_of_the_range_belong_to_it() -> None:
    assert place_among(0.5, 0.5, 0.5) == "in expert range"
    assert place_among(0.5 - 1e-12, 0.5, 0.7) == "below worst expert"


@pytest.mark.parametrize("method", ["staple", "majority"])
def test_left_out_experts_meet_the_estimate_of_the_others(method: str) -> None:
    truth = blobs(4)
    experts = {str(k): noisy(truth, k, pixels=50 * k) for k in (1, 2, 3, 4)}
    result = run(predicted("a", truth, truth, experts=experts), leave_one_out=method)
    others = [Annotation.of_classes(mask) for name, mask in experts.items() if name != "3"]
    reference = estimate(others, GroundTruthSettings(method=method)).annotation
    (row,) = [
        row for row in result.experts if (row.expert, row.reference) == ("3", "leave_one_out")
    ]
    expected = agreement(reference, Annotation.of_classes(experts["3"]), n_classes=2, min_size=0)
    assert row.dice == expected.dice_score
    assert row.map == expected.mean_average_precision
    assert {row.reference for row in result.relative} == {"estimate", "leave_one_out"}


def test_a_single_expert_cannot_be_left_out() -> None:
    result = run(predicted("a", blobs(1), blobs(1), experts={"x": noisy(blobs(1), 1)}))
    assert [row.reference for row in result.experts] == ["estimate"]
    assert not run(predicted("a", blobs(1), blobs(1))).expert_ranges


# -- all images ---------------------------------------------------------------------------------


def test_averages_skip_and_count_what_is_undefined() -> None:
    empty, full = np.zeros((48, 64), np.uint8), blobs(5)
    result = run(
        predicted("a10", empty, empty, u=None),
        predicted("a9", full, full),
        predicted("b", full, empty),
    )
    assert [row.file for row in result.images] == ["a9", "a10", "b"]
    assert [row.dice for row in result.images] == [1.0, None, 0.0]
    for row in result.summary:
        if row.metric != "pq_pooled":
            assert (row.images, row.skipped, row.units) == (2, 1, 2)
            assert (row.mean, row.median) == (0.5, 0.5)
            assert row.std == pytest.approx(np.std([0, 1], ddof=1))
            assert (row.low, row.high) == (0.0, 1.0)
    assert result.mean("pq") == 0.5
    assert "NaN" not in result.model_dump_json()


def test_nothing_anywhere_is_still_an_evaluation() -> None:
    empty = np.zeros((48, 64), np.uint8)
    result = run(predicted("a", empty, empty, u=0.3, uncertainty=np.zeros((48, 64), np.float32)))
    assert result.mean("dice") is None
    assert all(row.images == 0 and row.low is None for row in result.summary)
    assert result.temperature is None
    assert result.uncertainty[0].error == 0
    assert Evaluation.model_validate_json(result.model_dump_json()) == result


def test_pooled_panoptic_quality_adds_matches_up() -> None:
    pairs = [(blobs(seed, 3), noisy(blobs(seed, 3), seed)) for seed in range(4)]
    images = [predicted(str(k), *pair) for k, pair in enumerate(pairs)]
    result = run(*images, names=NAMES, min_size=3)
    pooled = {row.class_name: row for row in result.summary if row.metric == "pq_pooled"}
    for index, name in enumerate(NAMES[1:]):
        counts = PanopticCounts(0, 0, 0, 0.0)
        for image in images:
            compared = compare(image.truth, image.prediction, n_classes=3, min_size=3, valid=None)
            counts += compared[index].panoptic
        assert pooled[name].mean == pytest.approx(counts.quality)
    assert pooled["mean"].mean == pytest.approx((pooled["soma"].mean + pooled["nucleus"].mean) / 2)


def test_animals_widen_the_interval() -> None:
    truth = blobs(6)
    images = [
        (f"{animal}{k}", animal, noisy(truth, k, 80 * animal))
        for animal in (1, 5)
        for k in range(6)
    ]
    alone = run(*(predicted(name, truth, mask) for name, _, mask in images))
    grouped = run(
        *(predicted(name, truth, mask, group=f"animal {animal}") for name, animal, mask in images)
    )

    def dice_row(result: Evaluation):
        return next(r for r in result.summary if (r.class_name, r.metric) == ("mean", "dice"))

    first, second = dice_row(alone), dice_row(grouped)
    assert (first.units, second.units) == (12, 2)
    assert first.mean == pytest.approx(second.mean)
    assert second.high - second.low > first.high - first.low


def test_scores_are_correlated_with_quality() -> None:
    truth = blobs(7)
    images = [predicted(str(k), truth, noisy(truth, 1, 1 + 100 * k), u=0.1 * k) for k in range(6)]
    result = run(*images)
    found = {(row.score, row.metric): row for row in result.correlations}
    assert found["u", "dice"].images == 6
    assert found["u", "dice"].spearman < -0.9
    assert ("u_epistemic", "dice") not in found
    assert ("one_minus_expected_dice", "dice") not in found


# -- two evaluations ----------------------------------------------------------------------------


def test_two_evaluations_are_paired_by_image() -> None:
    truths = [blobs(seed) for seed in range(8)]
    better = run(*(predicted(str(k), t, noisy(t, k, 50)) for k, t in enumerate(truths)))
    worse = run(*(predicted(str(k), t, noisy(t, k, 500)) for k, t in enumerate(truths[:7])))
    rows = {row.metric: row for row in compare_evaluations(better, worse)}
    dice = rows["dice"]
    assert dice.images == 7
    assert dice.difference == pytest.approx(dice.second - dice.first)
    assert dice.high is not None
    assert dice.low < dice.high < 0
    assert dice.p_value == pytest.approx(2 / 2**7)
    same = compare_evaluations(better, better)
    assert {(row.difference, row.p_value) for row in same} == {(0.0, None)}


def test_evaluations_of_other_images_or_masks_do_not_compare() -> None:
    one = run(predicted("a", blobs(1), blobs(1)))
    with pytest.raises(InputError, match="no image in common"):
        compare_evaluations(one, run(predicted("b", blobs(1), blobs(1))))
    with pytest.raises(InputError, match="different masks of a;"):
        compare_evaluations(one, run(predicted("a", blobs(2), blobs(1))))


# -- wrong input --------------------------------------------------------------------------------


def test_unusable_predictions_are_explained() -> None:
    mask = blobs(1)
    with pytest.raises(InputError, match="no predictions"):
        run()
    with pytest.raises(InputError, match="two predictions are called a;"):
        run(predicted("a", mask, mask), predicted("a", mask, mask))
    with pytest.raises(InputError, match=r"a has a truth of \(48, 64\).*prediction \(48, 63\)"):
        run(predicted("a", mask, mask[:, 1:]))
    with pytest.raises(InputError, match=r"expert x \(47, 64\)"):
        run(predicted("a", mask, mask, experts={"x": mask[1:]}))
