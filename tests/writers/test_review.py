"""Results beside references: what is said, and what is not said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from df2serve.artifact import Calibration, Ensemble, with_files
from df2serve.artifact.manifest import Reference, ReferenceKind, ReviewThreshold
from df2serve.config import PRESETS, ReviewConfig
from df2serve.errors import ConfigError
from df2serve.inference import Predictor
from df2serve.io import Image
from df2serve.testing import random_ensemble
from df2serve.writers import RunInfo, review
from df2serve.writers.records import Record

FAST = PRESETS["accurate"].updated(views=1)
RNG = np.random.default_rng(2)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = tmp_path_factory.mktemp("review") / "ensemble"
    return random_ensemble(folder, members=2, channels=1, classes=2, tile=64)


@pytest.fixture(scope="module")
def record(ensemble: Ensemble) -> Record:
    image = Image.from_array(RNG.integers(0, 255, (64, 64), dtype=np.uint8), source="x.png")
    with Predictor(ensemble, config=FAST) as predictor:
        stream = predictor.stream(image)
        list(stream)
    summary = stream.summary
    return Record(
        name="x",
        files={},
        scores=summary.scores,
        statistics=summary.statistics,
        provenance=summary.provenance,
        seconds=1.0,
        batch_size=1,
        notes=(),
    )


def scored(record: Record, name: str, score: float, **statistics: float) -> Record:
    scores = replace(
        record.scores, u=score, u_epistemic=score, u_top=score, one_minus_pairwise_dice=score
    )
    return record.model_copy(
        update={"name": name, "scores": scores, "statistics": {"sharpness": 1.0} | statistics}
    )


def references(count: int, kind: ReferenceKind) -> tuple[Reference, ...]:
    """Scores evenly from 0 to 0.5, with a Dice score of 1 - score."""
    return tuple(
        Reference(
            name=f"r{i}",
            image_sha256=f"{i:064x}",
            kind=kind,
            scores=dict.fromkeys(
                ("u", "u_epistemic", "u_top", "one_minus_pairwise_dice"), 0.5 * i / count
            ),
            quality={"dice": 1 - 0.5 * i / count},
            statistics={"sharpness": 1 + 0.01 * (i % 5)},
        )
        for i in range(count)
    )


def run_of(ensemble: Ensemble, calibration: Calibration) -> RunInfo:
    run = RunInfo.of(ensemble, FAST)
    return run.model_copy(update={"calibration": calibration})


def test_rankings_by_name(ensemble: Ensemble, record: Record) -> None:
    run = run_of(ensemble, Calibration(references=references(40, "held_out")))
    low, high = scored(record, "low", 0.1), scored(record, "high", 0.4)
    blurred = scored(record, "blurred", 0.2, sharpness=0.1)
    records = [low, blurred, high]
    orders = {
        by: [place.record.name for place in review(records, run, config=ReviewConfig(by=by)).places]
        for by in ("paper", "failure", "ood")
    }
    assert orders["paper"] == orders["failure"] == ["high", "blurred", "low"]
    assert orders["ood"][0] == "blurred"
    found = review(records, run, config=ReviewConfig(by="ood"))
    first = found.places[0]
    assert first.p_value == pytest.approx(1 / 41)
    assert first.out_of_distribution
    assert first.needs_review
    assert first.dice is None  # nothing is promised of an odd image
    assert str(first.reasons[0]) == "sharpness is 0.1, below all 40 reference images (1 to 1.04)"
    assert [place.out_of_distribution for place in found.places[1:]] == [False, False]
    assert found.places[-1].reasons == ()


def test_ranges_hold_the_quality_and_percentiles_count_references(
    ensemble: Ensemble, record: Record
) -> None:
    run = run_of(ensemble, Calibration(references=references(40, "held_out")))
    found = review([scored(record, "a", 0.251)], run, config=ReviewConfig(by="failure"))
    (place,) = found.places
    assert place.dice is not None
    assert place.dice[0] <= 1 - 0.251 <= place.dice[1]
    assert place.dice[1] - place.dice[0] < 0.1
    assert place.percentile == pytest.approx(21 / 40)
    assert any("40 reference images" in remark for remark in found.remarks)


def test_few_references_are_said_to_be_too_few(ensemble: Ensemble, record: Record) -> None:
    run = run_of(ensemble, Calibration(references=references(6, "held_out")))
    found = review([scored(record, "a", 9.0)], run, config=ReviewConfig())
    (place,) = found.places
    assert place.out_of_distribution is None
    assert place.p_value == pytest.approx(1 / 7)
    assert place.dice is None
    text = " ".join(found.remarks)
    assert (
        "6 reference images cannot call any image out of distribution at 10%; that takes 9" in text
    )
    assert "3 reference images or groups of them are too few for ranges of Dice at 90%" in text
    assert "that takes 9" in text


def test_out_of_fold_references_promise_nothing(ensemble: Ensemble, record: Record) -> None:
    run = run_of(ensemble, Calibration(references=references(40, "out_of_fold")))
    found = review([scored(record, "a", 9.0)], run, config=ReviewConfig(by="ood"))
    (place,) = found.places
    assert (place.p_value, place.out_of_distribution, place.dice) == (None, None, None)
    assert place.score is not None
    assert place.score > 1
    assert "nothing is guaranteed" in found.remarks[0]
    mixed = run_of(
        ensemble, Calibration(references=references(40, "out_of_fold") + references(12, "held_out"))
    )
    (place,) = review([scored(record, "a", 9.0)], mixed, config=ReviewConfig()).places
    assert place.p_value == pytest.approx(1 / 13)


def test_thresholds_belong_to_their_score(ensemble: Ensemble, record: Record) -> None:
    threshold = ReviewThreshold(
        score="one_minus_pairwise_dice", value=0.3, metric="dice", required=0.8, failing=9,
        references=40, kind="held_out", level=0.1,
    )  # fmt: skip
    run = run_of(ensemble, Calibration(thresholds=(threshold,)))
    records = [scored(record, "a", 0.2), scored(record, "b", 0.3)]
    found = review(records, run, config=ReviewConfig(by="failure"))
    assert [place.needs_review for place in found.places] == [True, False]
    assert threshold.meaning in found.remarks
    by_u = review(records, run, config=ReviewConfig(by="paper"))
    assert [place.needs_review for place in by_u.places] == [None, None]
    own = review(records, run, config=ReviewConfig(by="failure"), threshold=0.1)
    assert all(place.needs_review for place in own.places)
    assert threshold.meaning not in own.remarks


def test_oddness_needs_references_and_takes_no_threshold(
    ensemble: Ensemble, record: Record
) -> None:
    config = ReviewConfig(by="ood")
    with pytest.raises(ConfigError, match="needs reference images"):
        review([record], run_of(ensemble, Calibration()), config=config)
    run = run_of(ensemble, Calibration(references=references(9, "held_out")))
    with pytest.raises(ConfigError, match="takes no threshold"):
        review([record], run, config=config, threshold=0.5)


def test_scores_of_other_settings_do_not_meet(tmp_path: Path) -> None:
    ensemble = random_ensemble(tmp_path / "ens", members=1, channels=1, classes=2, tile=64)
    with Predictor(ensemble) as predictor:
        config = predictor.config
    known = references(9, "held_out")
    calibration = Calibration(config=config.model_dump(mode="json"), references=known)
    ensemble = with_files(ensemble, {"calibration.json": calibration.to_json()})
    assert RunInfo.of(ensemble, config).calibration.references == known
    for changes in ({"views": 1}, {"precision": "bf16"}, {"zoom_out": 2.0}):
        run = RunInfo.of(ensemble, config.updated(**changes))
        assert run.calibration == Calibration()
        (name,) = changes
        assert run.changed_settings.startswith(f"{name.replace('_', ' ')} ")
    same = RunInfo.of(ensemble, config.updated(preset="fast"))
    assert (same.calibration.references, same.changed_settings) == (known, "")
