"""Agreement of experts against published numbers and plain counting."""

import json

import numpy as np
import pytest

from df2serve.core.metrics import dice, match_instances, mean_average_precision
from df2serve.io import read_mask
from df2serve_training.agreement import AgreementRow, agreement, summarize
from df2serve_training.ground_truth import (
    Annotation,
    GroundTruthSettings,
    estimate,
    fuse_instances,
)

TITLES = {
    "dice": "dice_score",
    "mAP": "mean_average_precision",
    "AP50": "average_precision_at_iou_50",
}


def compare(truth, annotation, *, n_classes=2, min_size=0):
    return agreement(
        Annotation.of_classes(np.array(truth, np.uint8)),
        Annotation.of_classes(np.array(annotation, np.uint8)),
        n_classes=n_classes,
        min_size=min_size,
    )


@pytest.mark.parametrize(("method", "title"), [("staple", "STAPLE"), ("majority", "MV")])
def test_published_scores_are_reproduced(shared_data, golden, method, title):
    published = json.loads((golden / "deepflash2.json").read_text())["gt_metrics_published"]
    settings = GroundTruthSettings(method=method)
    n_scores = 0
    for name in ("0001", "0004"):
        folders = [shared_data / f"cfos_hc/masks_experts/expert_{number}" for number in range(1, 6)]
        experts = [
            Annotation.of_classes(read_mask(folder / f"{name}.png", kind="binary").classes)
            for folder in folders
        ]
        truth = estimate(experts, settings).annotation
        scores = [agreement(truth, expert, n_classes=2, min_size=0) for expert in experts]
        for published_title, ours in TITLES.items():
            values = [getattr(score, ours) for score in scores]
            expected = published[name][title][published_title]
            np.testing.assert_allclose(values, expected, atol=5e-7)
            n_scores += len(values)
    assert n_scores == 30


def test_classes_count_alike_and_background_does_not():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 4, (8, 8)), np.ones((4, 4), int))
    drawn = np.where(rng.random(truth.shape) < 0.1, 0, truth)
    found = compare(truth, drawn, n_classes=5)
    dices, precisions, halves = [], [], []
    for index in (1, 2, 3):  # class 4 is in neither
        masks = [Annotation.of_classes((each == index).astype(np.uint8)) for each in (truth, drawn)]
        dices.append(dice(truth == index, drawn == index))
        matches = match_instances(masks[0].labels, masks[1].labels)
        precisions.append(mean_average_precision(matches))
        halves.append(matches[0].average_precision)
    assert found.dice_score == pytest.approx(np.mean(dices))
    assert found.mean_average_precision == pytest.approx(np.mean(precisions))
    assert found.average_precision_at_iou_50 == pytest.approx(np.mean(halves))


def test_small_objects_count_for_dice_alone():
    truth, drawn = [[1, 1, 1, 0, 1, 0]], [[1, 1, 1, 0, 0, 0]]
    everything, large = compare(truth, drawn), compare(truth, drawn, min_size=2)
    assert (everything.mean_average_precision, large.mean_average_precision) == (0.5, 1.0)
    assert everything.dice_score == large.dice_score == 6 / 7


@pytest.mark.parametrize("n_classes", [2, 3])
def test_empty_masks_have_no_score(n_classes):
    empty = np.zeros((3, 4), int)
    both = compare(empty, empty, n_classes=n_classes)
    assert both.dice_score is both.mean_average_precision is None
    assert both.average_precision_at_iou_50 is None
    one = compare(empty, np.eye(3, 4, dtype=int), n_classes=n_classes)
    assert one.dice_score == one.mean_average_precision == one.average_precision_at_iou_50 == 0


def test_objects_that_touch_are_scored_as_objects():
    drawn = Annotation.of_instances(np.array([[1, 1, 1, 2, 2, 2]] * 3))
    rules = {"match_iou": 0.2, "min_votes": 0.5, "min_apart": 0.4}
    fused = fuse_instances([drawn] * 3, **rules)
    truth = Annotation(fused.classes, fused.labels)
    kept = agreement(truth, drawn, n_classes=2, min_size=0)
    assert kept.mean_average_precision == 1
    assert kept.dice_score == pytest.approx(30 / 33)  # the line between them is background
    merged = agreement(truth, Annotation.of_classes(drawn.classes), n_classes=2, min_size=0)
    assert merged.mean_average_precision == pytest.approx(1 / 2 / 10)  # one of two, at IoU 0.5


def row(expert, file, score, loo):
    return AgreementRow(
        method="staple",
        file=file,
        expert=expert,
        dice_score=score,
        mean_average_precision=score,
        average_precision_at_iou_50=score,
        loo_dice_score=loo,
        loo_mean_average_precision=loo,
        loo_average_precision_at_iou_50=None,
        remarks="",
    )


def test_summary_averages_what_there_is():
    rows = [
        row("b", "1", 0.5, 0.25),
        row("a", "1", 1.0, None),
        row("b", "2", None, None),
        row("b", "3", 0.25, 0.75),
    ]
    b, a = summarize(rows)
    assert (b.expert, b.n_files, b.n_scored) == ("b", 3, 2)
    assert (b.dice_score, b.loo_dice_score) == (0.375, 0.5)
    assert b.loo_average_precision_at_iou_50 is None
    assert (a.expert, a.n_files, a.n_scored, a.dice_score) == ("a", 1, 1, 1.0)
    assert a.loo_dice_score is None
    assert summarize([]) == ()
