"""From folders of images, masks and experts' masks to an evaluation and a calibration on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest
from PIL import Image

from df2serve.artifact import Ensemble, load_ensemble, with_files
from df2serve.artifact.manifest import Calibration, Reference
from df2serve.config import PRESETS
from df2serve.core.metrics import dice
from df2serve.errors import (
    ConfigError,
    DecodeError,
    InputError,
    ManifestError,
    OutputError,
    SourceNotFoundError,
)
from df2serve.inference import Predictor
from df2serve.testing import CellScene, generate_cells, random_ensemble, simulate_experts
from df2serve_training.calibrate import calibrate, calibration_of, references_of
from df2serve_training.evaluate import (
    Evaluation,
    EvaluationSettings,
    LabeledFiles,
    Progress,
    evaluate_ensemble,
    find_labeled_files,
    member_scores,
    read_evaluation,
)
from df2serve_training.folds import Splits
from df2serve_training.repeats import reproducibility
from df2serve_training.settings import DataSettings, FoldSettings

SCENE = CellScene(shape=(96, 96), n_cells=6)
FAST = PRESETS["accurate"].updated(views=1)
SETTINGS = EvaluationSettings(resamples=100, pixels_per_image=500)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@dataclass(frozen=True)
class Folders:
    images: Path
    masks: Path
    experts: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Four images of three experts each; the last one has none."""
    root = tmp_path_factory.mktemp("data")
    for seed in range(4):
        sample, name = generate_cells(SCENE, seed), f"img_{seed + 8}"
        save(root / "images" / f"{name}.png", sample.image[0])
        save(root / "masks" / f"{name}_mask.png", 255 * sample.mask)
        if seed < 3:
            for expert, mask in list(simulate_experts(sample, seed=seed).items())[:3]:
                save(root / "experts" / expert / f"{name}.png", 255 * mask)
    return Folders(root / "images", root / "masks", root / "experts")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = tmp_path_factory.mktemp("ensemble") / "tiny"
    return random_ensemble(folder, members=2, channels=1, classes=2, tile=64)


@pytest.fixture(scope="module")
def data(folders: Folders) -> LabeledFiles:
    return find_labeled_files(
        folders.images, folders.masks, settings=DataSettings(), experts=folders.experts
    )


@pytest.fixture(scope="module")
def evaluated(
    ensemble: Ensemble, data: LabeledFiles, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, Path, list[Progress]]:
    target, reports = tmp_path_factory.mktemp("out") / "evaluation", list[Progress]()
    evaluation = evaluate_ensemble(
        ensemble, data, target=target, settings=SETTINGS, config=FAST, listener=reports.append
    )
    return evaluation, target, reports


def with_splits(ensemble: Ensemble, data: LabeledFiles, folds: dict[str, int], count: int = 2):
    """Return the ensemble as if it had been trained on some of the images."""
    splits = Splits(
        folds=FoldSettings(count=count, method="grouped", column="animal"),
        images={
            f"trained {name}": {
                "fold": fold, "image_sha256": data.hashes[name], "mask_sha256": "", "group": "g",
            }
            for name, fold in folds.items()
        },
    )  # fmt: skip
    return with_files(ensemble, {"splits.json": splits.model_dump_json().encode()})


@pytest.fixture
def copied(ensemble: Ensemble, tmp_path: Path) -> Ensemble:
    return random_ensemble(tmp_path / "copied", members=2, channels=1, classes=2, tile=64)


# -- an evaluation ------------------------------------------------------------------------------


def test_numbers_are_those_of_the_predictor(
    ensemble: Ensemble, folders: Folders, evaluated: tuple[Evaluation, Path, list[Progress]]
) -> None:
    evaluation, target, reports = evaluated
    assert [row.file for row in evaluation.images] == ["img_8", "img_9", "img_10", "img_11"]
    assert [report.done for report in reports] == [1, 2, 3, 4]
    with Predictor(ensemble, config=FAST) as predictor:
        for row in evaluation.images:
            prediction = predictor.predict(folders.images / f"{row.file}.png")
            truth = np.asarray(Image.open(folders.masks / f"{row.file}_mask.png")) > 0
            assert row.dice == dice(truth, prediction.mask)
            assert row.u == pytest.approx(prediction.scores.u)
            assert (row.kind, row.members) == ("held_out", "0 1")
            written = np.asarray(Image.open(target / "masks" / f"{row.file}.png"))
            assert np.array_equal(written, 255 * prediction.mask)
    assert evaluation.ensemble_sha256 == ensemble.sha256
    assert evaluation.config["views"] == 1
    assert evaluation.config["tile_shape"] == [64, 64]
    assert sum(row.pixels for row in evaluation.uncertainty) == 4 * 96 * 96
    assert sum(row.expert_pixels for row in evaluation.uncertainty) == 3 * 96 * 96
    assert {row.file for row in evaluation.experts} == {"img_8", "img_9", "img_10"}
    assert "does not list its training images" in evaluation.remarks[0]


def test_the_folder_holds_tables_figures_and_all_of_it(
    evaluated: tuple[Evaluation, Path, list[Progress]],
) -> None:
    evaluation, target, _ = evaluated
    tables = [
        "summary", "images", "classes", "expert_ranges", "relative", "experts", "correlations",
        "uncertainty",
    ]  # fmt: skip
    figures = ["quality", "uncertainty_quality", "expert_ranges", "uncertainty"]
    names = {path.name for path in target.iterdir()}
    assert names == {
        "masks", "evaluation.json", "evaluation.xlsx",
        *(f"{name}.csv" for name in tables), *(f"{name}.png" for name in figures),
    }  # fmt: skip
    assert openpyxl.load_workbook(target / "evaluation.xlsx").sheetnames == tables
    frame = pd.read_csv(target / "images.csv")
    assert list(frame.columns[:7]) == ["file", "dice", "map", "ap50", "aji", "aji_plus", "pq"]
    assert frame["dice"].to_list() == pytest.approx([row.dice for row in evaluation.images])
    for name in figures:
        pixels = np.asarray(Image.open(target / f"{name}.png").convert("L"))
        assert pixels.std() > 10
    assert read_evaluation(target) == evaluation


def test_a_second_run_gives_the_same(
    ensemble: Ensemble, data: LabeledFiles, tmp_path: Path,
    evaluated: tuple[Evaluation, Path, list[Progress]],
) -> None:  # fmt: skip
    again = evaluate_ensemble(
        ensemble, data, target=tmp_path / "again", settings=SETTINGS, config=FAST
    )
    first = evaluated[0].model_dump(exclude={"images": {"__all__": {"seconds"}}})
    assert again.model_dump(exclude={"images": {"__all__": {"seconds"}}}) == first
    found = reproducibility([evaluated[1], tmp_path / "again"])
    assert found.runs == 2
    assert {row.dice for row in found.images} == {1.0}
    assert found.mean.map == 1.0


def test_repeated_trainings_are_compared_in_pairs(
    ensemble: Ensemble, data: LabeledFiles, tmp_path: Path,
    evaluated: tuple[Evaluation, Path, list[Progress]],
) -> None:  # fmt: skip
    """One member alone is another training."""
    one = random_ensemble(tmp_path / "one", members=1, channels=1, classes=2, tile=64)
    other = tmp_path / "other"
    evaluate_ensemble(one, data, target=other, settings=SETTINGS, config=FAST)
    found = reproducibility([evaluated[1], other, evaluated[1]])
    masks = [
        np.asarray(Image.open(folder / "masks/img_9.png")) > 0 for folder in (evaluated[1], other)
    ]
    between = dice(*masks)
    assert between is not None
    row = next(row for row in found.images if row.file == "img_9")
    assert row.dice == pytest.approx((2 * between + 1) / 3)
    with pytest.raises(InputError, match="needs two or more"):
        reproducibility([other])


# -- who saw what -------------------------------------------------------------------------------


def test_images_of_the_training_meet_members_that_did_not_see_them(
    copied: Ensemble, data: LabeledFiles, folders: Folders, tmp_path: Path
) -> None:
    trained = with_splits(copied, data, {"img_8": 0, "img_9": 1, "img_11": 2}, count=3)
    evaluation = evaluate_ensemble(
        trained, data, target=tmp_path / "out", settings=SETTINGS, config=FAST
    )
    who = {row.file: (row.kind, row.members, row.group) for row in evaluation.images}
    assert who == {
        "img_8": ("out_of_fold", "0", "g"),
        "img_9": ("out_of_fold", "1", "g"),
        "img_10": ("held_out", "0 1", None),
    }
    assert evaluation.remarks == (
        "left out, because every member was trained on them: img_11",
        "averages are over held-out and out-of-fold images together",
    )
    alone = random_ensemble(tmp_path / "alone", members=1, channels=1, classes=2, tile=64)
    with Predictor(alone, config=FAST) as predictor:
        prediction = predictor.predict(folders.images / "img_8.png")
    assert evaluation.images[0].u == pytest.approx(prediction.scores.u)
    assert member_scores(evaluation, 0)["dice"] == evaluation.images[0].dice
    assert "dice" not in member_scores(evaluation, 2)
    assert evaluation.temperature is not None
    assert evaluation.temperature.kind == "held_out"


def test_nothing_is_left_where_all_members_saw_everything(
    copied: Ensemble, data: LabeledFiles, tmp_path: Path
) -> None:
    trained = with_splits(copied, data, dict.fromkeys(data.hashes, 2), count=3)
    with pytest.raises(InputError, match="every image was trained on by every member"):
        evaluate_ensemble(trained, data, target=tmp_path / "out", settings=SETTINGS)
    damaged = with_files(copied, {"splits.json": b"{}"})
    with pytest.raises(ManifestError, match=r"splits\.json: folds"):
        evaluate_ensemble(damaged, data, target=tmp_path / "out", settings=SETTINGS)
    assert not (tmp_path / "out").exists()


# -- other kinds of masks -----------------------------------------------------------------------


def test_classes_instances_and_ignored_pixels(tmp_path: Path) -> None:
    scene = CellScene(shape=(96, 96), n_cells=6, classes="brightness", dim_share=0.5)
    sample = generate_cells(scene, 1)
    ignore = np.zeros((96, 96), np.uint8)
    ignore[:30] = 1
    save(tmp_path / "images/a.png", sample.image[0])
    save(tmp_path / "classes/a.png", sample.mask)
    save(tmp_path / "labels/a.png", sample.labels.astype(np.uint16))
    save(tmp_path / "ignore/a.png", ignore)
    for classes, kind in ((3, "classes"), (2, "instances")):
        opened = random_ensemble(
            tmp_path / f"ensemble {kind}", members=1, channels=1, classes=classes, tile=64
        )
        found = find_labeled_files(
            tmp_path / "images",
            tmp_path / ("classes" if kind == "classes" else "labels"),
            settings=DataSettings(masks=kind, num_classes=classes),
            ignore=tmp_path / "ignore",
        )
        result = evaluate_ensemble(
            opened, found, target=tmp_path / f"out {kind}", settings=SETTINGS, config=FAST
        )
        below = sample.labels[30:]
        expected = len(np.unique(below[below > 0]))
        assert result.images[0].n_truth == expected
        assert sum(row.truth_px for row in result.classes) == np.count_nonzero(below)
        assert sum(row.pixels for row in result.uncertainty) == 66 * 96
        assert len(result.classes) == classes - 1


def test_zoomed_out_images_meet_zoomed_out_masks(
    ensemble: Ensemble, folders: Folders, tmp_path: Path
) -> None:
    found = find_labeled_files(
        folders.images, folders.masks, settings=DataSettings(zoom_out=1.5), experts=folders.experts
    )
    result = evaluate_ensemble(
        ensemble, found, target=tmp_path / "out", settings=SETTINGS, config=FAST
    )
    assert sum(row.pixels for row in result.uncertainty) == 4 * 64 * 64
    assert len({row.expert for row in result.experts}) == 3


# -- calibration --------------------------------------------------------------------------------


def test_references_say_what_they_are(evaluated: tuple[Evaluation, Path, list[Progress]]) -> None:
    evaluation, _, _ = evaluated
    references = references_of(evaluation)
    for row, reference in zip(evaluation.images, references, strict=True):
        assert (reference.name, reference.kind) == (row.file, "held_out")
        assert reference.scores["u"] == row.u
        assert reference.quality["dice"] == row.dice


def test_calibration_lives_in_the_ensemble(
    copied: Ensemble, evaluated: tuple[Evaluation, Path, list[Progress]]
) -> None:
    evaluation, _, _ = evaluated
    calibration = calibration_of(evaluation)
    with_files(copied, {"calibration.json": calibration.to_json()})
    read = load_ensemble(copied.source).calibration
    assert read == calibration
    threshold = read.threshold("u")
    assert threshold is not None  # random networks fail everywhere
    assert threshold.value == min(row.u for row in evaluation.images if row.u is not None)
    assert (threshold.failing, threshold.references, threshold.selected) == (4, 4, 1.0)
    assert threshold.level == pytest.approx(1 / 5)
    assert {row.metric for row in read.expert_ranges} >= {"dice", "map"}
    assert read.temperature is not None
    assert read.config == evaluation.config
    (u,) = [row for row in read.percentiles if row.score == "u"]
    assert (u.values[0], u.values[-1]) == (
        threshold.value,
        max(read.reference_scores("u", "held_out")),
    )
    assert "NaN" not in json.dumps(calibration.model_dump(mode="json"))


def reference(name: str, u: float, quality: float | None, **facts: object) -> Reference:
    return Reference(
        name=name,
        image_sha256=name.encode().hex().rjust(64, "0"),
        kind=facts.pop("kind", "held_out"),
        scores={"u": u},
        quality={} if quality is None else {"dice": quality},
        **facts,
    )


def calibrated(*references: Reference, miss_level: float = 0.1) -> Calibration:
    return calibrate(references, metric="dice", required=0.8, miss_level=miss_level)


def test_out_of_fold_references_guarantee_nothing() -> None:
    seen = [reference(str(k), k / 10, 0.7, kind="out_of_fold") for k in range(1, 6)]
    alone = calibrated(*seen, miss_level=0.4).threshold("u")
    assert alone is not None
    assert (alone.kind, alone.level, alone.value, alone.rank) == ("out_of_fold", None, 0.2, 2)
    new = [reference("a", 0.9, 0.5), reference("b", 0.8, 0.9)]
    both = calibrated(*seen, *new)
    threshold = both.threshold("u")
    assert threshold is not None
    assert (threshold.kind, threshold.value, threshold.references) == ("held_out", 0.9, 2)
    assert threshold.level == 0.5
    assert {(row.kind, row.references) for row in both.percentiles} == {
        ("out_of_fold", 5), ("held_out", 2),
    }  # fmt: skip


def test_where_nothing_failed_a_bound_is_stated_for_held_out_images_alone() -> None:
    good = [reference(str(k), k / 10, 0.9, group=f"animal {k % 5}") for k in range(10)]
    found = calibrated(*good, reference("empty", 0.1, None))
    assert found.thresholds == ()
    bound = found.failure_bound
    assert bound is not None
    assert (bound.references, bound.groups, bound.bound) == (10, 5, 3 / 5)
    assert len(found.references) == 11
    seen = calibrated(*(item.model_copy(update={"kind": "out_of_fold"}) for item in good))
    assert seen.failure_bound is None
    assert calibrated().thresholds == ()


def test_images_of_one_animal_count_once() -> None:
    bad = [reference(str(k), k / 10, 0.5, group="a" if k < 3 else str(k)) for k in range(5)]
    threshold = calibrated(*bad).threshold("u")
    assert threshold is not None
    assert (threshold.failing, threshold.failing_groups) == (5, 3)
    assert threshold.level == 1 / 4


def test_earlier_references_stay_unless_they_are_old(
    evaluated: tuple[Evaluation, Path, list[Progress]],
) -> None:
    evaluation, _, _ = evaluated
    again = references_of(evaluation)[0].model_copy(update={"scores": {"u": 9.0}})
    other = reference("other", 0.0, 0.1)
    earlier = Calibration(config=evaluation.config, references=(again, other))
    merged = calibration_of(evaluation, earlier=earlier)
    assert [item.name for item in merged.references] == [
        "other", *(row.file for row in evaluation.images),
    ]  # fmt: skip
    threshold = merged.threshold("u")
    assert threshold is not None
    assert threshold.value == 0.0
    changed = earlier.model_copy(update={"config": {"views": 8}})
    assert len(calibration_of(evaluation, earlier=changed).references) == 4


# -- wrong input --------------------------------------------------------------------------------


def test_everything_wrong_with_the_data_is_listed(folders: Folders, tmp_path: Path) -> None:
    for name in ("img_8", "img_9", "img_10"):
        path = folders.images / f"{name}.png"
        save(tmp_path / f"images/{name}.png", np.asarray(Image.open(path)))
    save(tmp_path / "masks/img_8.png", np.zeros((96, 95), np.uint8))
    (tmp_path / "masks/img_9.png").write_bytes(b"no image")
    save(tmp_path / "experts/x/elsewhere.png", np.zeros((96, 96), np.uint8))
    save(tmp_path / "experts/y/elsewhere.png", np.zeros((96, 96), np.uint8))
    with pytest.raises(InputError) as caught:
        find_labeled_files(
            tmp_path / "images",
            tmp_path / "masks",
            settings=DataSettings(),
            experts=tmp_path / "experts",
        )
    message = str(caught.value)
    assert "no mask for 1 image" in message
    assert "img_8 has (96, 96) rows and columns, but the mask (96, 95)" in message
    assert "img_9.png" in message
    assert "is named after an image" in message


def test_what_does_not_fit_is_refused_before_anything_is_written(
    ensemble: Ensemble, data: LabeledFiles, tmp_path: Path
) -> None:
    several = random_ensemble(tmp_path / "three", members=1, channels=1, classes=3, tile=64)
    with pytest.raises(ConfigError, match=r"3 classes \(background, class 1, class 2\).*masks 2"):
        evaluate_ensemble(several, data, target=tmp_path / "out", settings=SETTINGS)
    colored = random_ensemble(tmp_path / "rgb", members=1, channels=3, classes=2, tile=64)
    with pytest.raises(InputError, match="1 channels, the ensemble expects 3"):
        evaluate_ensemble(colored, data, target=tmp_path / "out", settings=SETTINGS)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full/file").parent.mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(OutputError, match="full exists"):
        evaluate_ensemble(ensemble, data, target=tmp_path / "full", settings=SETTINGS)


def test_folders_without_an_evaluation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="holds no evaluation"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(DecodeError, match=r"evaluation\.json: settings"):
        read_evaluation(tmp_path)
