"""The distance to the bank in whole predictions: all tiles, members and views of real networks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import df2serve
from df2serve.artifact import FEATURES, Ensemble, FeatureBank, with_files
from df2serve.artifact.features import BankImage, BankMember, FeatureBankFacts
from df2serve.backends import FeatureRunner, open_members
from df2serve.config import PRESETS, CentreGrid, InferenceConfig, RuntimeConfig
from df2serve.core.augment import View
from df2serve.core.mixture import Mixture
from df2serve.core.tiling import TileSpec, plan_tiles
from df2serve.errors import BackendError, OutOfMemoryError
from df2serve.inference import Prediction
from df2serve.io import Image
from df2serve.testing import (
    FITTED_SCENE,
    CellSample,
    fitted_ensemble,
    generate_cells,
    generate_ood,
    random_ensemble,
)
from df2serve.testing.cells import OOD_KINDS

RNG = np.random.default_rng(5)
CONFIG = PRESETS["accurate"]
IMAGES = [
    (110 + 60 * np.sin(np.arange(150) / a) + RNG.normal(scale=6, size=(40, 150)))
    .clip(0, 255)
    .astype(np.uint8)
    for a in (5, 6, 7, 8)
]


def hash_of(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def opened(image: np.ndarray) -> Image:
    """The image as if it came from a file."""
    return replace(Image.from_array(image, axes="YX"), sha256=hash_of(image))


def vectors_of(ensemble: Ensemble, image: np.ndarray, config: InferenceConfig = CONFIG, **runtime):
    settings = RuntimeConfig().updated(**runtime)
    with df2serve.Predictor(
        ensemble, config=config, runtime=settings, collect_features=True
    ) as predictor:
        return predictor.predict(image).summary.features


def with_bank(ensemble: Ensemble, images: list[np.ndarray], tile: int = 64) -> Ensemble:
    vectors = [vectors_of(ensemble, image) for image in images]
    listed = tuple(
        BankImage(name=str(i), image_sha256=hash_of(image), kind="held_out")
        for i, image in enumerate(images)
    )
    members = tuple(
        BankMember(
            folder=member.folder,
            weights_sha256=ensemble.manifest.files[f"{member.folder}/model.safetensors"].sha256,
            images=listed,
        )
        for member in ensemble.manifest.members
    )
    facts = FeatureBankFacts(
        tile_shape=(tile, tile), grid=CONFIG.grid, zoom_out=1.0, members=members
    )
    bank = FeatureBank(
        facts,
        {
            member.folder: np.stack([vector[number] for vector in vectors])
            for number, member in enumerate(members)
        },
    )
    return with_files(ensemble, {FEATURES: bank.to_bytes()})


@pytest.fixture(scope="module", params=[False, True], ids=["classes", "distance"])
def bare(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = tmp_path_factory.mktemp("features") / "ensemble"
    return random_ensemble(
        folder, members=3, channels=1, classes=3, tile=64, distance=request.param
    )


@pytest.fixture(scope="module")
def banked(bare: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = tmp_path_factory.mktemp("banked") / "ensemble"
    copy = random_ensemble(
        folder, members=3, channels=1, classes=3, tile=64, distance=bare.manifest.has_distance
    )
    return with_bank(copy, IMAGES)


def naive_vectors(ensemble: Ensemble, image: np.ndarray, config: InferenceConfig) -> np.ndarray:
    """Loop over tiles and pixels, axes (member, channel)."""
    import torch

    plan = plan_tiles(image.shape, (64, 64), config.grid)
    found = []
    for number in range(len(ensemble)):
        encoder = ensemble.load_member(number).encoder
        tiles = []
        for row in range(len(plan.rows)):
            for column in range(len(plan.columns)):
                spec = TileSpec(row, column)
                tile = plan.cut(image[None, plan.row_span(row)], spec)
                normal = (tile[None].astype(np.float32) - 60) / np.float32(40)
                with torch.inference_mode():
                    deepest = encoder(torch.from_numpy(np.ascontiguousarray(normal)))[-1][0].numpy()
                side = 64 // deepest.shape[-1]
                rows, columns = plan.kept(spec)
                inside = [
                    deepest[:, y // side, x // side].astype(float)
                    for y in range(64)[rows]
                    for x in range(64)[columns]
                ]
                tiles.append(np.mean(inside, axis=0))
        mean = np.mean(tiles, axis=0)
        found.append(mean / np.linalg.norm(mean))
    return np.array(found)


@pytest.mark.parametrize("grid", [CONFIG.grid, CentreGrid()], ids=["overlap", "centre"])
@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_vectors_are_means_over_pixels_and_tiles(
    bare: Ensemble, grid: CentreGrid, batch_size: int | None
) -> None:
    """The image is lower than a tile, and four tiles wide. Batches change less than 1e-5."""
    config = CONFIG.updated(grid=grid)
    found = vectors_of(bare, IMAGES[0], config, batch_size=batch_size)
    np.testing.assert_allclose(found, naive_vectors(bare, IMAGES[0], config), atol=1e-5)
    strided = np.asfortranarray(np.repeat(IMAGES[0], 2, axis=1))[:, ::2]
    np.testing.assert_allclose(vectors_of(bare, strided, config), found, atol=1e-5)


def parts(prediction: Prediction) -> list[np.ndarray]:
    maps = [prediction.probs, prediction.mask, prediction.total, prediction.epistemic]
    return maps if prediction.distance is None else [*maps, prediction.distance]


@pytest.mark.parametrize("views", [1, 4, 8])
def test_a_bank_changes_nothing_but_its_score(bare: Ensemble, banked: Ensemble, views: int) -> None:
    config = CONFIG.updated(views=views)
    runtime = RuntimeConfig(batch_size=3)
    without, found = (
        df2serve.predict(IMAGES[0], ensemble=one, config=config, runtime=runtime)
        for one in (bare, banked)
    )
    for first, second in zip(parts(without), parts(found), strict=True):
        assert np.array_equal(first, second)
    assert without.scores.feature_distance is None
    assert "feature_distance" not in without.scores.defined
    assert without.summary.features == ()
    assert found.scores.feature_distance is not None
    assert replace(found.scores, feature_distance=None) == without.scores
    assert found.summary.statistics == without.summary.statistics
    assert found.summary.notes == without.summary.notes == ()


def test_the_distance_is_that_of_a_loop_without_the_image_itself(banked: Ensemble) -> None:
    new = IMAGES[0][::-1].copy()
    for image, own in ((IMAGES[1], 1), (new, None)):
        found = df2serve.predict(opened(image), ensemble=banked)
        bank = np.stack([naive_vectors(banked, other, CONFIG) for other in IMAGES], axis=1)
        vectors = naive_vectors(banked, image, CONFIG)
        per_member = []
        for vector, others in zip(vectors, bank, strict=True):
            kept = [row for number, row in enumerate(others) if number != own]
            distances = sorted(float(np.linalg.norm(row - vector)) for row in kept)
            per_member.append(sum(distances[:5]) / len(distances[:5]))
        assert found.scores.feature_distance == pytest.approx(np.mean(per_member), abs=2e-5)


def test_odd_images_are_farther(banked: Ensemble) -> None:
    ordinary = [df2serve.predict(opened(image), ensemble=banked) for image in IMAGES]
    for odd in (np.zeros((40, 150), np.uint8), RNG.integers(0, 255, (40, 150), dtype=np.uint8)):
        found = df2serve.predict(odd, ensemble=banked).scores.feature_distance
        assert found is not None
        assert found > max(one.scores.feature_distance or 9 for one in ordinary)


@pytest.mark.slow
def test_networks_that_know_cells_find_all_kinds_of_odd_images_farther(tmp_path: Path) -> None:
    """On average over three images of a kind, farther than any of eight ordinary ones."""
    scene = FITTED_SCENE
    fitted = fitted_ensemble(tmp_path / "cells", members=2, images=8, steps=40)
    banked = with_bank(fitted, [generate_cells(scene, i).image[0] for i in range(12)], tile=128)
    with df2serve.Predictor(banked, config=CONFIG) as predictor:

        def distance(sample: CellSample) -> float:
            return predictor.predict(sample.image[0]).scores.feature_distance or 0.0

        ordinary = [distance(generate_cells(scene, 50 + i)) for i in range(8)]
        for kind in OOD_KINDS:
            odd = [distance(generate_ood(kind, scene, 60 + i)) for i in range(3)]
            assert np.mean(odd) > max(ordinary), kind


# -- where it cannot be said ----------------------------------------------------------------------


def test_other_settings_give_none_and_say_so(banked: Ensemble) -> None:
    found = df2serve.predict(IMAGES[0], ensemble=banked, config="fast")
    assert found.scores.feature_distance is None
    (note,) = found.summary.notes
    assert "there is no feature_distance: the ensemble's features are of other settings" in note


def test_onnx_gives_none_and_says_so_if_there_is_a_bank(banked: Ensemble, bare: Ensemble) -> None:
    runtime = RuntimeConfig(backend="onnx")
    found = df2serve.predict(IMAGES[0], ensemble=banked, runtime=runtime)
    assert found.scores.feature_distance is None
    (note,) = found.summary.notes
    assert "onnxruntime" in note
    assert "gives no features" in note
    assert df2serve.predict(IMAGES[0], ensemble=bare, runtime=runtime).summary.notes == ()
    with (
        pytest.raises(BackendError, match="there are no features to collect"),
        df2serve.Predictor(banked, runtime=runtime, collect_features=True),
    ):
        pass


def test_some_members_of_all_give_none_and_say_so(banked: Ensemble) -> None:
    with open_members(
        banked, runtime=RuntimeConfig(), precision="fp32", tile_shape=(64, 64)
    ) as runners:
        with df2serve.Predictor(banked, runners=runners) as predictor:
            assert predictor.predict(IMAGES[0]).scores.feature_distance is not None
        with df2serve.Predictor(banked, runners=runners[1:]) as predictor:
            found = predictor.predict(IMAGES[0])
    assert found.scores.feature_distance is None
    assert "2 of the ensemble's 3 members" in found.summary.notes[0]


class TightMemory:
    """A real member on a device that holds only so many network inputs at once."""

    def __init__(self, member: FeatureRunner, room: int) -> None:
        self._member = member
        self._room = room
        self.info = member.info
        self.run, self.close = member.run, member.close

    def __enter__(self) -> TightMemory:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _require_room(self, tiles: np.ndarray, some_views: Sequence[View]) -> None:
        if len(tiles) * len(some_views) > self._room:
            message = "full"
            raise OutOfMemoryError(message)

    def run_views(self, tiles: np.ndarray, some_views: Sequence[View]) -> Mixture:
        self._require_room(tiles, some_views)
        return self._member.run_views(tiles, some_views)

    def run_views_pooled(self, tiles: np.ndarray, some_views: Sequence[View], kept):
        self._require_room(tiles, some_views)
        return self._member.run_views_pooled(tiles, some_views, kept)


@pytest.mark.parametrize("room", [1, 3, 5])
def test_a_smaller_batch_counts_every_tile_once(banked: Ensemble, room: int) -> None:
    new = IMAGES[0][::-1].copy()
    expected = df2serve.predict(new, ensemble=banked).scores.feature_distance
    runtime = RuntimeConfig(batch_size=16)
    with open_members(banked, runtime=runtime, precision="fp32", tile_shape=(64, 64)) as members:
        tight = [TightMemory(member, room) for member in members]
        with df2serve.Predictor(banked, runtime=runtime, runners=tight) as predictor:
            found = predictor.predict(new)
    assert found.summary.batch_size <= room
    assert found.scores.feature_distance == pytest.approx(expected, abs=1e-5)


def test_features_that_are_no_numbers_give_none(
    banked: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    with df2serve.Predictor(banked) as predictor:
        runner = predictor.engine.runners[1]
        pooled = runner.run_views_pooled  # type: ignore[attr-defined]

        def overflowing(*arguments):
            mixture, features = pooled(*arguments)
            return mixture, features * np.float32(np.inf)

        monkeypatch.setattr(runner, "run_views_pooled", overflowing)
        with np.errstate(invalid="ignore"):
            found = predictor.predict(IMAGES[0])
    assert found.scores.feature_distance is None
    assert "too large for the precision" in found.summary.notes[0]
