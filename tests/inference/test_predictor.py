"""The engine against a naive computation of the paper's equations from every sample."""

import numpy as np
import pytest
import torch

import df2serve
from df2serve.artifact import Ensemble
from df2serve.config import RuntimeConfig
from df2serve.core.augment import views
from df2serve.core.uncertainty import predictive_variance
from df2serve.errors import BackendError, CancelledError, ImageMismatchError
from df2serve.testing import random_ensemble

IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)


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
