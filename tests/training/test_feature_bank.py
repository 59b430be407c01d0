"""Banks of features from evaluations: who saw what, and what references are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from df2serve.artifact import FEATURES, Ensemble, FeatureBank, load_ensemble, with_files
from df2serve.config import PRESETS, RuntimeConfig
from df2serve.errors import BackendError, InputError
from df2serve.inference import Predictor
from df2serve.testing import CellScene, generate_cells, random_ensemble
from df2serve_training.calibrate import calibration_of, with_calibration
from df2serve_training.evaluate import (
    Evaluation,
    EvaluationSettings,
    LabeledFiles,
    evaluate_ensemble,
    find_labeled_files,
    only_members,
)
from df2serve_training.folds import Splits
from df2serve_training.settings import DataSettings, FoldSettings

SCENE = CellScene(shape=(96, 80), n_cells=6)
FAST = PRESETS["accurate"].updated(views=1)
SETTINGS = EvaluationSettings(resamples=100, pixels_per_image=500, features=True)
PLAIN = SETTINGS.updated(features=False)
FOLD_OF = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 1}
"""Images of the training; g, h and i are new."""


def labeled(root: Path, names: str) -> LabeledFiles:
    for name in names:
        sample = generate_cells(SCENE, ord(name))
        for place, pixels in (("images", sample.image[0]), ("masks", 255 * sample.mask)):
            path = root / place / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return find_labeled_files(root / "images", root / "masks", settings=DataSettings())


Labeled = Callable[[str], LabeledFiles]


@pytest.fixture
def label(tmp_path: Path) -> Labeled:
    return lambda names: labeled(tmp_path / names, names)


@pytest.fixture
def ensemble(tmp_path: Path, label: Labeled) -> Ensemble:
    """Two members: the one of fold 0 was not trained on a, b and c, the other not on d, e and f."""
    opened = random_ensemble(tmp_path / "tiny", members=2, channels=1, classes=2, tile=64)
    hashes = label("abcdef").hashes
    splits = Splits(
        folds=FoldSettings(count=2),
        images={
            name: {"fold": fold, "image_sha256": hashes[name], "mask_sha256": "", "group": None}
            for name, fold in FOLD_OF.items()
        },
    )
    return with_files(opened, {"splits.json": splits.model_dump_json().encode()})


def evaluated(
    ensemble: Ensemble, data: LabeledFiles, target: Path, settings: EvaluationSettings = SETTINGS
) -> Evaluation:
    return evaluate_ensemble(ensemble, data, target=target, settings=settings, config=FAST)


def naive(
    ensemble: Ensemble, data: LabeledFiles, bank_of: dict[int, str], asked: dict[str, list[int]]
) -> dict[str, float]:
    """Distances of images by the members that are asked, from the images of their banks."""
    vectors: dict[tuple[str, int], np.ndarray] = {}
    for number in range(len(ensemble)):
        alone = only_members(ensemble, (number,))
        with Predictor(alone, config=FAST, collect_features=True) as predictor:
            for pair in data.pairs:
                (vector,) = predictor.predict(pair.image).summary.features
                vectors[pair.name, number] = vector.astype(float)
    found = {}
    for name, numbers in asked.items():
        means = []
        for number in numbers:
            distances = sorted(
                float(np.linalg.norm(vectors[other, number] - vectors[name, number]))
                for other in bank_of[number]
                if other != name
            )
            means.append(np.mean(distances[:5]))
        found[name] = float(np.mean(means))
    return found


def bank_in(folder: Path) -> FeatureBank:
    return FeatureBank.from_bytes((folder / FEATURES).read_bytes())


def test_images_of_the_training_are_in_the_bank_of_the_member_that_did_not_see_them(
    ensemble: Ensemble, label: Labeled, tmp_path: Path
) -> None:
    data = label("abcdef")
    evaluation = evaluated(ensemble, data, tmp_path / "out")
    bank = bank_in(tmp_path / "out")
    names = ["".join(image.name for image in member.images) for member in bank.facts.members]
    assert names == ["abc", "def"]
    assert {image.kind for member in bank.facts.members for image in member.images} == {
        "out_of_fold"
    }
    assert (bank.facts.tile_shape, bank.facts.zoom_out) == ((64, 64), 1)
    asked = {name: [fold] for name, fold in FOLD_OF.items()}
    expected = naive(ensemble, data, {0: "abc", 1: "def"}, asked)
    found = {row.file: row.feature_distance for row in evaluation.images}
    assert found == pytest.approx(expected, abs=2e-5)
    assert "feature_distance" in {row.score for row in evaluation.correlations}


def test_new_images_are_in_the_banks_of_all_members(
    ensemble: Ensemble, label: Labeled, tmp_path: Path
) -> None:
    data = label("abdeghi")
    evaluation = evaluated(ensemble, data, tmp_path / "out")
    names = [
        "".join(image.name for image in member.images)
        for member in bank_in(tmp_path / "out").facts.members
    ]
    assert names == ["abghi", "deghi"]
    asked = {"a": [0], "b": [0], "d": [1], "e": [1]} | {name: [0, 1] for name in "ghi"}
    expected = naive(ensemble, data, {0: "abghi", 1: "deghi"}, asked)
    found = {row.file: row.feature_distance for row in evaluation.images}
    assert found == pytest.approx(expected, abs=2e-5)


def test_references_that_are_not_in_the_bank_are_treated_as_new_images(
    ensemble: Ensemble, label: Labeled, tmp_path: Path
) -> None:
    """The bank of the training first, then held-out references without changing it."""
    first = evaluated(ensemble, label("abcdef"), tmp_path / "first")
    banked = with_calibration(ensemble, first, tmp_path / "first")
    data = label("ghi")
    second = evaluated(banked, data, tmp_path / "second", PLAIN)
    assert not (tmp_path / "second" / FEATURES).exists()
    calibrated = with_calibration(banked, second, tmp_path / "second")
    assert calibrated.manifest.files[FEATURES] == banked.manifest.files[FEATURES]
    scores = {one.name: one.scores for one in calibrated.calibration.references}
    assert all("feature_distance" in one for one in scores.values())
    assert len(scores) == 9
    with Predictor(calibrated, config=FAST) as predictor:
        for pair in data.pairs:
            found = predictor.predict(pair.image).scores.feature_distance
            assert found == pytest.approx(scores[pair.name]["feature_distance"], abs=1e-9)
        # evaluated out of fold with the bank there already: without itself, by its own member
        again = evaluated(calibrated, label("abcdef"), tmp_path / "third", PLAIN)
    assert {row.file: row.feature_distance for row in again.images} == pytest.approx(
        {row.file: row.feature_distance for row in first.images}, abs=1e-9
    )


def test_another_bank_takes_the_distances_of_earlier_references(
    ensemble: Ensemble, label: Labeled, tmp_path: Path
) -> None:
    first = evaluated(ensemble, label("abcdef"), tmp_path / "first")
    banked = with_calibration(ensemble, first, tmp_path / "first")
    second = evaluated(banked, label("ghi"), tmp_path / "second")
    calibrated = with_calibration(banked, second, tmp_path / "second")
    has = {one.name: "feature_distance" in one.scores for one in calibrated.calibration.references}
    assert has == dict.fromkeys("abcdef", False) | dict.fromkeys("ghi", True)
    kept = {one.name: one.scores["u"] for one in calibrated.calibration.references}
    assert kept == {row.file: row.u for row in (*first.images, *second.images)}
    bank = load_ensemble(calibrated.source).features()
    assert bank is not None
    assert [len(member.images) for member in bank.facts.members] == [3, 3]
    # distances to the old bank are not mixed with those to the new one
    alone = evaluated(ensemble, label("ghi"), tmp_path / "third")
    assert [row.feature_distance for row in alone.images] == [
        row.feature_distance for row in second.images
    ]


def test_a_bank_changes_no_other_number(ensemble: Ensemble, label: Labeled, tmp_path: Path) -> None:
    data = label("adghi")
    plain = evaluated(ensemble, data, tmp_path / "plain", PLAIN)
    with_bank = evaluated(ensemble, data, tmp_path / "bank")
    assert all(row.feature_distance is None for row in plain.images)
    ignored = {"feature_distance", "seconds"}
    assert [row.model_dump(exclude=ignored) for row in plain.images] == [
        row.model_dump(exclude=ignored) for row in with_bank.images
    ]
    assert plain.summary == with_bank.summary
    assert "feature_distance" not in plain.images[0].scores
    assert all("feature_distance" not in one.scores for one in calibration_of(plain).references)


@pytest.mark.parametrize(
    ("names", "told"),
    [("abcd", "fold-1 was not trained on 1 of"), ("abc", "fold-1 was not trained on 0 of")],
)
def test_too_few_images_of_a_member_are_refused_before_anything_is_predicted(
    ensemble: Ensemble, label: Labeled, tmp_path: Path, names: str, told: str
) -> None:
    with pytest.raises(InputError, match=f"{told} the images, a bank of features needs 2"):
        evaluated(ensemble, label(names), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_image_twice_is_one_image(
    ensemble: Ensemble, tmp_path: Path, label: Labeled
) -> None:
    label("abd")
    for place in ("images", "masks"):
        (tmp_path / "abd" / place / "copy.png").write_bytes(
            (tmp_path / "abd" / place / "d.png").read_bytes()
        )
    with pytest.raises(InputError, match="fold-1 was not trained on 1 of"):
        evaluated(ensemble, labeled(tmp_path / "abd", ""), tmp_path / "out")


def test_other_backends_make_no_bank(ensemble: Ensemble, label: Labeled, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="gives no features, unlike torch"):
        evaluate_ensemble(
            ensemble,
            label("abde"),
            target=tmp_path / "out",
            settings=SETTINGS,
            config=FAST,
            runtime=RuntimeConfig(backend="onnx"),
        )
    assert not (tmp_path / "out").exists()
