"""The engine against a naive computation of the paper's equations from every sample."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import df2serve
from df2serve.artifact import Ensemble
from df2serve.backends import MemberRunner, open_members
from df2serve.config import RuntimeConfig
from df2serve.core.augment import View, views
from df2serve.core.mixture import Mixture
from df2serve.core.tiling import TileSpec, gaussian_window, plan_tiles
from df2serve.core.uncertainty import predictive_variance
from df2serve.errors import (
    BackendError,
    CancelledError,
    ImageMismatchError,
    OutOfMemoryError,
    SourceNotFoundError,
    UnsupportedFormatError,
)
from df2serve.inference import PredictionStream, Progress
from df2serve.testing import random_ensemble

IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
TALL = np.random.default_rng(2).integers(0, 255, (200, 90), dtype=np.uint8)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    target = tmp_path_factory.mktemp("ensembles") / "tiny"
    return random_ensemble(target, members=2, channels=1, classes=3, tile=64)


def test_one_tile_equals_the_papers_equations(ensemble: Ensemble) -> None:
    prediction = df2serve.predict(IMAGE, ensemble=ensemble)
    tile = ((IMAGE[None, None].astype(np.float32)) - 60) / np.float32(40)
    samples = []
    for index in range(2):
        network = ensemble.load_member(index)
        for view in views(4):
            with torch.inference_mode():
                logits = network(torch.from_numpy(view.apply(tile).copy()))
            samples.append(view.invert(torch.softmax(logits, dim=1).numpy())[0])
    stacked = np.stack(samples)
    np.testing.assert_allclose(prediction.probs, stacked.mean(axis=0), atol=1e-6)
    expected = predictive_variance(stacked, scale="paper")
    np.testing.assert_allclose(prediction.total, expected, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_results_do_not_depend_on_the_batch(ensemble: Ensemble, batch: int) -> None:
    image = np.random.default_rng(1).integers(0, 255, (100, 150), dtype=np.uint8)
    first = df2serve.predict(image, ensemble=ensemble)
    runtime = RuntimeConfig(batch_size=batch)
    second = df2serve.predict(image, ensemble=ensemble, runtime=runtime)
    np.testing.assert_allclose(second.probs, first.probs, atol=1e-6)


def test_mistakes_say_what_to_do(ensemble: Ensemble) -> None:
    with pytest.raises(ImageMismatchError, match="2 channels, the ensemble expects 1"):
        df2serve.predict(np.zeros((2, 9, 9)), ensemble=ensemble, axes="CYX")
    closed = df2serve.Predictor(ensemble)
    with pytest.raises(BackendError, match="not open"):
        closed.predict(IMAGE)
    with df2serve.Predictor(ensemble) as predictor:
        predictor.cancel()
        with pytest.raises(CancelledError):
            predictor.predict(IMAGE)


class TightMemory:
    """A real member on a device that holds only so many network inputs at once."""

    def __init__(self, member: MemberRunner, room: int) -> None:
        self._member = member
        self._room = room
        self.info = member.info

    def run_views(self, tiles: np.ndarray, some_views: Sequence[View]) -> Mixture:
        if len(tiles) * len(some_views) > self._room:
            message = "full"
            raise OutOfMemoryError(message)
        return self._member.run_views(tiles, some_views)


@pytest.mark.parametrize("room", [1, 3, 5])
def test_out_of_memory_halves_the_batch_and_goes_on(ensemble: Ensemble, room: int) -> None:
    expected = df2serve.predict(TALL, ensemble=ensemble)
    runtime = RuntimeConfig(batch_size=16)
    with open_members(ensemble, runtime=runtime, precision="fp32", tile_shape=(64, 64)) as members:
        tight = [TightMemory(member, room) for member in members]
        with df2serve.Predictor(ensemble, runtime=runtime, runners=tight) as predictor:
            prediction = predictor.predict(TALL)
    assert prediction.summary.batch_size <= room
    np.testing.assert_allclose(prediction.probs, expected.probs, atol=1e-6)
    with open_members(ensemble, runtime=runtime, precision="fp32", tile_shape=(64, 64)) as members:
        none = [TightMemory(member, 0) for member in members]
        with (
            df2serve.Predictor(ensemble, runtime=runtime, runners=none) as predictor,
            pytest.raises(OutOfMemoryError),
        ):
            predictor.predict(TALL)


@pytest.mark.parametrize("name", ["accurate", "deepflash2", "fast"])
def test_streamed_rows_equal_one_shot_stitching(ensemble: Ensemble, name: str) -> None:
    """Against canvases of the image's size, filled tile by tile and divided at the end."""
    config = df2serve.preset(name)
    with df2serve.Predictor(ensemble, config=config) as predictor:
        image = df2serve.Image.from_array(TALL)
        stream = predictor.stream(image)
        bands = list(stream)
        plan = plan_tiles(TALL.shape, (64, 64), config.grid)
        window = np.multiply.outer(*[gaussian_window(64, config.window_sigma).astype(float)] * 2)
        blended, weight = np.zeros((3, *TALL.shape)), np.zeros(TALL.shape)
        for row in range(len(plan.rows)):
            for column in range(len(plan.columns)):
                spec = TileSpec(row, column)
                tile = plan.cut(image.data[0:1, plan.row_span(row), 0 : TALL.shape[1]], spec)
                normal = (tile[None].astype(np.float32) - 60) / np.float32(40)
                parts = [runner.run_views(normal, views(4)) for runner in predictor.engine.runners]
                mean = np.mean([part.mean[0] for part in parts], axis=0)
                kept = plan.rows.kept[row], plan.columns.kept[column]
                placed = plan.rows.placed[row], plan.columns.placed[column]
                blended[:, *placed] += (mean * window)[:, *kept]
                weight[placed] += window[kept]
    assert [band.top for band in bands] == np.cumsum([0, *(len(b.mask) for b in bands)])[
        :-1
    ].tolist()
    assert len(bands) > 1
    streamed = np.concatenate([band.probs for band in bands], axis=1)
    np.testing.assert_allclose(streamed, blended / weight, atol=1e-6)


def test_a_coarser_resolution_is_left_and_entered_again(ensemble: Ensemble) -> None:
    config = df2serve.preset("accurate").updated(zoom_out=2.0, tile_shape=(32, 32))
    found = df2serve.predict(TALL, ensemble=ensemble, config=config)
    halved = TALL.reshape(100, 2, 45, 2).mean(axis=(1, 3)).round().astype(np.uint8)
    coarse = df2serve.predict(halved, ensemble=ensemble, config=config.updated(zoom_out=1.0))
    probs = torch.nn.functional.interpolate(
        torch.from_numpy(coarse.probs)[None], size=TALL.shape, mode="bilinear", align_corners=False
    )[0].numpy()
    np.testing.assert_allclose(found.probs, probs, atol=1e-5)
    assert np.array_equal(found.mask, found.probs.argmax(axis=0))
    # of the interpolated probabilities, not itself interpolated
    np.testing.assert_allclose(found.total, 4 / 3 * (1 - (probs**2).sum(axis=0)), atol=1e-5)
    assert found.summary.provenance.config.zoom_out == 2


@pytest.fixture(scope="module")
def with_distance(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    target = tmp_path_factory.mktemp("ensembles") / "distance"
    return random_ensemble(target, members=2, channels=1, classes=3, tile=64, distance=True)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_the_distance_is_the_mean_over_members_and_views(
    with_distance: Ensemble, backend: str
) -> None:
    prediction = df2serve.predict(
        IMAGE, ensemble=with_distance, runtime=RuntimeConfig(backend=backend, device="cpu")
    )
    tile = (IMAGE[None, None].astype(np.float32) - 60) / np.float32(40)
    samples = []
    for index in range(2):
        network = with_distance.load_member(index)
        for view in views(4):
            with torch.inference_mode():
                outputs = network(torch.from_numpy(view.apply(tile).copy()))
            samples.append(view.invert(torch.sigmoid(outputs[:, 3]).numpy())[0])
    assert prediction.distance is not None
    assert prediction.distance.dtype == np.float32
    np.testing.assert_allclose(prediction.distance, np.mean(samples, axis=0), atol=1e-5)


@pytest.mark.parametrize("name", ["accurate", "deepflash2", "fast"])
def test_the_distance_changes_nothing_else(with_distance: Ensemble, name: str) -> None:
    """Against an engine that leaves the distance out."""
    with df2serve.Predictor(with_distance, config=name) as predictor:
        whole = predictor.predict(TALL)
        predictor.engine.distance = False
        plain = predictor.predict(TALL)
    assert plain.distance is None
    assert whole.distance is not None
    assert whole.distance.shape == TALL.shape
    assert 0 <= whole.distance.min() < whole.distance.max() <= 1
    for part in ("probs", "mask", "total", "epistemic"):
        assert np.array_equal(getattr(whole, part), getattr(plain, part))
    assert whole.scores == plain.scores
    assert next(whole.bands()).distance is whole.distance


def test_runners_without_the_distance_of_their_ensemble(
    ensemble: Ensemble, with_distance: Ensemble
) -> None:
    runtime = RuntimeConfig()
    with (
        open_members(ensemble, runtime=runtime, precision="fp32", tile_shape=(64, 64)) as members,
        df2serve.Predictor(with_distance, runners=members) as predictor,
        pytest.raises(BackendError, match="its runners give no distance"),
    ):
        predictor.predict(IMAGE)


def test_repeated_runs_are_bitwise_equal(ensemble: Ensemble) -> None:
    first, second = (df2serve.predict(TALL, ensemble=ensemble) for _ in range(2))
    assert np.array_equal(first.probs, second.probs)
    assert np.array_equal(first.total, second.total)


def test_one_bad_image_does_not_stop_the_others(ensemble: Ensemble, tmp_path: Path) -> None:
    good, missing, text = tmp_path / "good.npy", tmp_path / "missing.tif", tmp_path / "text.tif"
    np.save(good, TALL)
    text.write_text("not an image")
    seen: list[Progress] = []
    with df2serve.Predictor(ensemble) as predictor:
        outcomes = list(
            predictor.predict_many(
                [good, missing, text, good],
                consume=lambda stream: stream.collect(),
                listener=seen.append,
            )
        )
    kinds = [type(outcome.error) for outcome in outcomes]
    assert kinds == [type(None), SourceNotFoundError, UnsupportedFormatError, type(None)]
    expected = df2serve.predict(TALL, ensemble=ensemble)
    for outcome in (outcomes[0], outcomes[3]):
        assert outcome.result is not None
        assert np.array_equal(outcome.result.probs, expected.probs)
        assert outcome.result.summary.provenance.source_sha256 is not None
    assert seen[-1].done == seen[-1].total


def test_one_image_is_consumed_while_the_next_is_computed(
    ensemble: Ensemble, tmp_path: Path
) -> None:
    """Each of two consumers waits, in the middle of its image, for the other to get there."""
    np.save(tmp_path / "a.npy", TALL)
    meeting = threading.Barrier(2, timeout=60)

    def consume(stream: PredictionStream) -> df2serve.Prediction:
        bands = iter(stream)
        first = next(bands)
        meeting.wait()
        rest = list(bands)
        return df2serve.Prediction.from_bands([first, *rest], stream.summary)

    with df2serve.Predictor(ensemble) as predictor:
        outcomes = list(predictor.predict_many([tmp_path / "a.npy"] * 2, consume=consume))
    expected = df2serve.predict(TALL, ensemble=ensemble)
    for outcome in outcomes:
        assert outcome.result is not None
        assert np.array_equal(outcome.result.probs, expected.probs)


def test_whoever_stops_taking_outcomes_stops_the_work(ensemble: Ensemble, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TALL)
    finished: list[int] = []

    def consume(stream: PredictionStream) -> None:
        finished.append(len(list(stream)))

    with df2serve.Predictor(ensemble) as predictor:
        outcomes = predictor.predict_many([tmp_path / "a.npy"] * 9, consume=consume)
        assert next(outcomes).error is None
        outcomes.close()
        assert len(finished) <= 3
        assert predictor.predict(IMAGE).mask.shape == IMAGE.shape


def test_cancelling_ends_the_whole_series(ensemble: Ensemble, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TALL)
    with df2serve.Predictor(ensemble) as predictor:
        outcomes = predictor.predict_many([tmp_path / "a.npy"] * 9, consume=lambda s: s.collect())
        next(outcomes)
        predictor.cancel()
        with pytest.raises(CancelledError):
            list(outcomes)
