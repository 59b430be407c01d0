"""Preset ``deepflash2`` against the original engine, the same members given to both."""

from pathlib import Path

import numpy as np
import pytest

import df2serve
from df2serve.artifact import Ensemble, save_ensemble
from df2serve.testing import tiny_network
from df2serve.testing.ensembles import manifest_fields

pytestmark = pytest.mark.parity

MEANS, STDS = 60.0, 40.0  # of df2serve.testing's tiny ensembles


def pixels(shared_data: Path, channels: int, rows: int, columns: int) -> np.ndarray:
    """A crop of a real image; further channels come from further images."""
    paths = sorted((shared_data / "cfos_hc" / "images").glob("*.png"))[:channels]
    planes = [
        df2serve.read_image(path).data[0:1, 100 : 100 + rows, 200 : 200 + columns] for path in paths
    ]
    return np.concatenate(planes)


def decided_ensemble(target: Path, *, channels: int, classes: int, tile: int) -> Ensemble:
    """Random members whose logits are stretched, so that probabilities are not all alike."""
    networks = [tiny_network(seed, channels=channels, classes=classes) for seed in range(2)]
    for network in networks:
        network.segmentation_head[0].weight.data *= 40
    fields = manifest_fields(channels=channels, classes=classes, tile=tile)
    return save_ensemble(target, fields, networks, files={})


@pytest.mark.parametrize(
    ("channels", "classes", "tile", "rows", "columns"),
    [
        (1, 2, 128, 300, 260),
        (3, 4, 128, 201, 333),
        (1, 4, 64, 97, 131),
        (3, 2, 128, 61, 45),
        (1, 2, 256, 512, 512),
    ],
)
def test_preset_equals_the_original(
    original_engine, shared_data, tmp_path, channels, classes, tile, rows, columns
) -> None:
    ensemble = decided_ensemble(
        tmp_path / "ensemble", channels=channels, classes=classes, tile=tile
    )
    image = pixels(shared_data, channels, rows, columns)
    original = original_engine(
        image.astype(np.float32),
        [ensemble.load_member(index) for index in range(2)],
        tile_shape=(tile, tile),
        num_classes=classes,
        channel_means=[MEANS] * channels,
        channel_stds=[STDS] * channels,
        border_padding_factor=0.25,
        max_tile_shift=0.5,
        use_tta=True,
    )
    ours = df2serve.predict(image, ensemble=ensemble, axes="CYX", config="deepflash2")
    assert np.ptp(original.softmax) > 0.5
    np.testing.assert_allclose(ours.probs, original.softmax, atol=2e-5, rtol=0)
    np.testing.assert_allclose(ours.total, original.stdeviation, atol=1e-4, rtol=0)
    runner_up, best = np.sort(original.softmax, axis=0)[-2:]
    assert (best - runner_up)[ours.mask != original.argmax].max(initial=0) < 1e-4
    foreground = original.argmax > 0
    if not foreground.any():
        assert ours.scores.u is None  # the original's mean over nothing is NaN
        assert ours.scores.empty_prediction
        return
    u = original.stdeviation[foreground].mean(dtype=np.float64)
    assert ours.scores.u == pytest.approx(u, abs=1e-5)
