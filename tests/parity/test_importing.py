"""Files that deepflash2 0.3.0 saved: imported, they give its numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import df2serve
from df2serve.artifact import Ensemble
from df2serve.importing import ImportSettings, import_ensemble

pytestmark = [pytest.mark.parity, pytest.mark.slow]

Save = Callable[..., Any]
CONVNEXT = {"arch": "Unet", "encoder_name": "tu-convnext_atto", "in_channels": 1, "classes": 2}
RESNET = {"arch": "FPN", "encoder_name": "resnet18", "in_channels": 2, "classes": 3}


def weights_of(ensemble: Ensemble) -> list[str]:
    """Hashes of the members' files."""
    files = ensemble.manifest.files.items()
    return [entry.sha256 for name, entry in files if name.startswith("members/")]


@pytest.mark.parametrize("network", [CONVNEXT, RESNET], ids=["convnext", "resnet"])
def test_imports_predict_as_the_original(
    original_files: Save, tmp_path: Path, network: dict[str, Any]
) -> None:
    channels = network["in_channels"]
    settings = {
        "num_classes": network["classes"],
        "in_channels": channels,
        "channel_means": [60.0, 50.0][:channels],
        "channel_stds": [40.0, 30.0][:channels],
        "tile_shape": [64, 64],
        "max_tile_shift": 0.5,
        "border_padding_factor": 0.25,
        "use_tta": True,
        "use_gaussian": True,
        "gaussian_kernel_sigma_scale": 0.125,
        "scale": 1.0,
    }
    image = np.random.default_rng(0).uniform(0, 150, (50, 45, channels)).astype(np.float32)
    files = original_files(image, network=network | {"encoder_weights": None}, settings=settings)
    whole = import_ensemble([files.ensemble], tmp_path / "whole", recorded=files.recorded)
    members = import_ensemble(
        files.members, tmp_path / "members", settings=ImportSettings(tile_shape=(64, 64))
    )
    assert weights_of(whole.ensemble) == weights_of(members.ensemble)
    normalization = whole.ensemble.manifest.normalization
    assert list(normalization.means) == settings["channel_means"]
    assert normalization == members.ensemble.manifest.normalization
    assert whole.deviation < 1e-5
    with np.load(files.recorded) as original:
        ours = df2serve.predict(np.moveaxis(image, -1, 0), ensemble=members.ensemble, axes="CYX")
        assert np.ptp(original["softmax"]) > 0.5
        np.testing.assert_allclose(ours.probs, original["softmax"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(ours.total, original["stdeviation"], atol=1e-4, rtol=0)
        runner_up, best = np.sort(original["softmax"], axis=0)[-2:]
        assert (best - runner_up)[ours.mask != original["argmax"]].max(initial=0) < 1e-4
