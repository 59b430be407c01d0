from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from df2serve.artifact import Ensemble, load_ensemble
from df2serve.config import RuntimeConfig
from df2serve.core.metrics import mean_dice
from df2serve.errors import ConfigError, OutputError
from df2serve.inference import Prediction, Predictor
from df2serve.testing import (
    FITTED_SCENE,
    CellSample,
    CellScene,
    fitted_ensemble,
    generate_cells,
    generate_ood,
    random_ensemble,
    tiny_network,
)
from df2serve.testing._fitting import fit_folds
from df2serve.testing.cells import OOD_KINDS

SCENE = replace(FITTED_SCENE, shape=(128, 128), n_cells=6, debris=4)
TINY_SCENE = CellScene(shape=(64, 70), n_cells=2, debris=2)
fit_in_a_blink = partial(fitted_ensemble, scene=TINY_SCENE, members=2, images=4, steps=3)


def predict_all(ensemble: Ensemble, samples: Sequence[CellSample]) -> list[Prediction]:
    runtime = RuntimeConfig(backend="torch", device="cpu")
    with Predictor(ensemble, runtime=runtime) as predictor:
        return [predictor.predict(sample.image, axes="CYX") for sample in samples]


def dices(samples: Sequence[CellSample], masks: Sequence[np.ndarray]) -> np.ndarray:
    return np.array(
        [
            mean_dice(sample.mask, mask, n_classes=sample.scene.n_classes)
            for sample, mask in zip(samples, masks, strict=True)
        ],
        dtype=float,
    )


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    target = tmp_path_factory.mktemp("fitted") / "ensemble"
    return fitted_ensemble(target, scene=SCENE, members=2, images=24, steps=50)


@pytest.fixture(scope="module")
def ordinary() -> list[CellSample]:
    return [generate_cells(SCENE, seed) for seed in range(8)]


@pytest.fixture(scope="module")
def predictions(ensemble: Ensemble, ordinary: list[CellSample]) -> list[Prediction]:
    return predict_all(ensemble, ordinary)


def test_cells_of_new_images_are_found(
    ordinary: list[CellSample], predictions: list[Prediction], tmp_path: Path
) -> None:
    found = dices(ordinary, [prediction.mask for prediction in predictions]).mean()
    untrained = random_ensemble(tmp_path / "random", members=2, channels=1, classes=2, tile=128)
    blind = {
        "all": [np.ones_like(sample.mask) for sample in ordinary],
        "untrained": [prediction.mask for prediction in predict_all(untrained, ordinary)],
    }
    by_brightness = [
        dices(ordinary, [np.uint8(s.image[0] > np.percentile(s.image, q)) for s in ordinary]).mean()
        for q in range(50, 100, 2)
    ]
    assert found > 0.75
    assert all(found > dices(ordinary, masks).mean() + 0.4 for masks in blind.values())
    assert found > np.mean(by_brightness) + 0.25
    assert found > max(by_brightness)  # even where the truth chooses the threshold


def test_odd_images_are_doubted_more(ensemble: Ensemble, predictions: list[Prediction]) -> None:
    usual = np.array([prediction.scores.u for prediction in predictions])
    clear = 0
    for kind in OOD_KINDS:
        odd = predict_all(ensemble, [generate_ood(kind, SCENE, seed) for seed in range(3)])
        doubts = np.array([prediction.scores.u for prediction in odd])
        clear += np.median(doubts) > usual.max() and np.mean(doubts) > 1.25 * usual.mean()
    assert clear >= 4


def test_folder_is_whole_and_describes_itself(ensemble: Ensemble) -> None:
    opened = load_ensemble(ensemble.source)
    opened.verify()
    manifest = opened.manifest
    assert [info.name for info in manifest.classes] == ["background", "cell"]
    assert [info.name for info in manifest.channels] == ["marker"]
    assert manifest.pixel_size_um is not None
    assert manifest.pixel_size_um.y_um == manifest.pixel_size_um.x_um == SCENE.pixel_size_um
    assert manifest.training["scene"] == {**manifest.training["scene"], "n_cells": 6}
    assert {"images": 24, "steps": 50, "seed": 0}.items() <= manifest.training.items()
    assert [member.fold for member in manifest.members] == [0, 1]
    assert all(0.6 < member.validation["dice"] < 1 for member in manifest.members)


def test_golden_tensors_reproduce(ensemble: Ensemble) -> None:
    golden = ensemble.golden()
    assert golden is not None
    runtime = RuntimeConfig(backend="torch", device="cpu")
    with Predictor(ensemble, runtime=runtime) as predictor:
        again = predictor.predict(golden.image, axes="CYX")
    np.testing.assert_allclose(again.probs, golden.probs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(again.total, golden.total, rtol=0, atol=1e-5)
    assert 0.01 < np.mean(golden.probs[1] > 0.5) < 0.5


def test_threshold_tells_failures_from_ordinary_images(
    ensemble: Ensemble, predictions: list[Prediction]
) -> None:
    threshold = ensemble.calibration.threshold("u")
    assert threshold is not None
    assert (threshold.metric, threshold.kind, threshold.references) == ("dice", "held_out", 18)
    assert 6 <= threshold.failing <= 14
    usual = [prediction.scores.u >= threshold.value for prediction in predictions]
    samples = [generate_ood(kind, SCENE, seed) for kind in OOD_KINDS for seed in range(20, 22)]
    odd = predict_all(ensemble, samples)
    failed = ~(dices(samples, [prediction.mask for prediction in odd]) >= threshold.required)
    caught = np.array([prediction.scores.u >= threshold.value for prediction in odd])[failed]
    assert len(caught) >= 6
    assert np.mean(caught) >= 0.75
    assert np.mean(usual) <= 0.5


def test_no_threshold_where_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("df2serve.testing.fitted._REQUIRED_DICE", 0.0)
    ensemble = fit_in_a_blink(tmp_path / "ensemble")
    assert ensemble.calibration.thresholds == ()
    assert "calibration.json" not in ensemble.manifest.files


def test_equal_arguments_give_equal_folders_whatever_the_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    first = fit_in_a_blink(tmp_path / "first")
    assert torch.get_num_threads() == before
    torch.set_num_threads(1)
    try:
        torch.rand(1)
        again = fit_in_a_blink(tmp_path / "again")
    finally:
        torch.set_num_threads(before)
    other = fit_in_a_blink(tmp_path / "other", seed=1)
    assert again.sha256 == first.sha256
    weights = {
        ensemble.manifest.files[f"members/fold-{fold}/model.safetensors"].sha256
        for ensemble in (first, other)
        for fold in range(2)
    }
    assert len(weights) == 4


def test_a_member_never_sees_its_own_fold() -> None:
    networks = [tiny_network(fold, channels=1, classes=2) for fold in range(2)]
    images = np.random.default_rng(0).normal(size=(4, 64, 64, 1)).astype(np.float32)
    images[::2] = np.nan  # poisons the weights of whoever sees it
    fit_folds(networks, images, np.zeros((4, 64, 64), np.int64), steps=4, seed=0, vary=True)
    finite = [
        all(bool(torch.isfinite(weights).all()) for weights in network.parameters())
        for network in networks
    ]
    assert finite == [True, False]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"members": 1}, "members = 1 is too small; expected 2"),
        ({"images": 1}, "images = 1 .* expected 2"),
        ({"steps": 0}, "steps = 0"),
        ({"seed": -1}, "seed = -1 .* expected 0"),
        ({"scene": replace(TINY_SCENE, shape=(200, 40))}, "scene_side = 40 .* expected 64"),
    ],
)
def test_wrong_arguments_are_explained(wrong: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        fit_in_a_blink(tmp_path / "ensemble", **wrong)


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"):
        fit_in_a_blink(tmp_path)


@pytest.mark.slow
def test_two_channels_of_16_bit_and_two_classes_of_cells_are_learned(tmp_path: Path) -> None:
    scene = replace(FITTED_SCENE, channels=2, bit_depth=16, classes="brightness", dim_share=0.4)
    ensemble = fitted_ensemble(tmp_path / "ensemble", scene=scene, members=2)
    ensemble.verify()
    samples = [generate_cells(scene, seed) for seed in range(6)]
    masks = [prediction.mask for prediction in predict_all(ensemble, samples)]
    assert dices(samples, masks).mean() > 0.6
    assert {int(value) for mask in masks for value in np.unique(mask)} == {0, 1, 2}
