"""The original's engine runs here, and it is the original's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

Engine = Callable[..., Any]
pytestmark = pytest.mark.parity

SETTINGS = {
    "num_classes": 2,
    "channel_means": [30.0],
    "channel_stds": [20.0],
    "tile_shape": (128, 128),
    "border_padding_factor": 0.25,
    "max_tile_shift": 0.5,
    "use_tta": True,
}


class ConstantMember(torch.nn.Module):
    """Gives class 1 the same probability everywhere."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        logit = torch.logit(torch.tensor(probability))
        self.logits = torch.nn.Buffer(torch.stack([torch.zeros(()), logit]).reshape(1, 2, 1, 1))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.logits + torch.zeros_like(tiles)


def test_constant_members_give_their_mean_and_its_variance(
    original_engine: Engine,
) -> None:
    image = np.zeros((1, 150, 131), np.float32)
    members = [ConstantMember(0.2), ConstantMember(0.6)]
    prediction = original_engine(image, members, **SETTINGS)
    np.testing.assert_allclose(prediction.softmax[1], 0.4, rtol=1e-5)
    np.testing.assert_allclose(prediction.stdeviation, 4 * 0.4 * 0.6, rtol=1e-5)
    assert not prediction.argmax.any()


def test_networks_predict_a_real_image(original_engine: Engine, shared_data: Path) -> None:
    with Image.open(shared_data / "cfos_hc" / "images" / "0001.png") as file:
        image = np.asarray(file, np.float32)[None, :300, :260]
    torch.manual_seed(0)
    members = [
        smp.Unet(
            "tu-test_resnet",
            encoder_depth=4,
            encoder_weights=None,
            decoder_channels=(32, 16, 8, 8),
            in_channels=1,
            classes=2,
        )
        for _ in range(2)
    ]
    prediction = original_engine(image, members, **SETTINGS)
    assert prediction.softmax.shape == (2, 300, 260)
    np.testing.assert_allclose(prediction.softmax.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(prediction.argmax, prediction.softmax.argmax(axis=0))
    assert np.ptp(prediction.softmax[1]) > 0.01
    assert 0 < prediction.stdeviation.min() < prediction.stdeviation.max() <= 1
