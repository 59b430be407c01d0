"""What members see, against encoders that are asked apart and loops over pixels."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from df2serve.artifact import DeepFlash2Unet
from df2serve.artifact.network import is_truncated
from df2serve.backends import FeatureRunner
from df2serve.backends._onnx_graph import onnx_graph
from df2serve.backends.onnx import OnnxMemberRunner
from df2serve.backends.torch import TorchMemberRunner
from df2serve.core.augment import View, views
from df2serve.errors import BackendError
from df2serve.testing.ensembles import tiny_network

RNG = np.random.default_rng(8)
KEPT = [(slice(0, 64), slice(0, 96)), (slice(13, 64), slice(0, 70)), (slice(40, 45), slice(95, 96))]


def network_of(kind: str) -> nn.Module:
    torch.manual_seed(3)
    match kind:
        case "three classes":
            return tiny_network(1, channels=2, classes=3)
        case "distance":
            return tiny_network(1, channels=2, classes=3, distance=True)
        case "paper":
            unet = DeepFlash2Unet(encoder_name="tu-convnext_atto", in_channels=2, classes=2)
            return unet.eval()
        case "truncated":
            truncated = smp.Unet(
                "tu-convnext_atto", encoder_depth=4, encoder_weights=None, in_channels=2, classes=2,
                decoder_channels=(16, 8, 8, 8),
            )  # fmt: skip
            assert is_truncated(truncated)
            return cast("nn.Module", truncated.eval())
    plain = smp.UnetPlusPlus(
        "resnet18", encoder_depth=3, encoder_weights=None, in_channels=2, classes=2,
        decoder_channels=(16, 8, 8),
    )  # fmt: skip
    return cast("nn.Module", plain.eval())


@pytest.mark.parametrize("kind", ["three classes", "distance", "paper", "truncated", "shallow"])
def test_features_are_means_over_the_pixels_that_count(kind: str) -> None:
    """Tolerance 1e-5 of the largest feature: convolutions of other batches round otherwise."""
    tiles = RNG.normal(size=(3, 2, 64, 96)).astype(np.float32)
    network = network_of(kind)
    with TorchMemberRunner(
        network, device="cpu", precision="fp32", distance=kind == "distance"
    ) as runner:
        assert isinstance(runner, FeatureRunner)
        expected = runner.run_views(tiles, views(4))
        mixture, features = runner.run_views_pooled(tiles, views(4), KEPT)
    assert not cast("Any", network).encoder._forward_hooks
    assert np.array_equal(mixture.probs, expected.probs)
    assert np.array_equal(mixture.squares, expected.squares)
    assert (mixture.distance is None) == (kind != "distance")
    if mixture.distance is not None:
        assert np.array_equal(mixture.distance, cast("Any", expected.distance))

    with torch.inference_mode():
        deepest = network_of(kind).encoder(torch.from_numpy(tiles))[-1].numpy()  # type: ignore[operator]
    assert features.shape == deepest.shape[:2]
    height, width = 64 // deepest.shape[2], 96 // deepest.shape[3]
    for tile, kept, found in zip(deepest, KEPT, features, strict=True):
        pixels = [
            tile[:, y // height, x // width].astype(float)
            for y in range(64)[kept[0]]
            for x in range(96)[kept[1]]
        ]
        np.testing.assert_allclose(
            found, np.mean(pixels, axis=0), atol=1e-5 * np.abs(deepest).max()
        )


def test_the_identity_is_taken_wherever_it_stands() -> None:
    tiles = RNG.normal(size=(3, 2, 64, 96)).astype(np.float32)
    with TorchMemberRunner(network_of("distance"), device="cpu", precision="fp32") as runner:
        _, first = runner.run_views_pooled(tiles, views(4), KEPT)
        _, last = runner.run_views_pooled(tiles, views(4)[::-1], KEPT)
        np.testing.assert_allclose(first, last, atol=1e-5 * np.abs(first).max())
        flipped = View(transpose=False, flip_y=True, flip_x=False)
        _, other = runner.run_views_pooled(flipped.apply(tiles), views(4), KEPT)
        assert np.abs(other - first).max() > 1e-3 * np.abs(first).max()


class Plain(nn.Module):
    """A network without an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.layer(tiles)


class Odd(Plain):
    """A network whose encoder gives one map alone."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 1, 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.layer(self.encoder(tiles))


@pytest.mark.parametrize("kind", [Plain, Odd])
def test_networks_without_such_an_encoder_say_so(kind: type[Plain]) -> None:
    tiles = np.zeros((1, 1, 32, 32), np.float32)
    with TorchMemberRunner(kind(), device="cpu", precision="fp32") as runner:
        runner.run_views(tiles, views(1))
        with pytest.raises(BackendError, match="no encoder that gives feature maps"):
            runner.run_views_pooled(tiles, views(1), [(slice(0, 32), slice(0, 32))])
        runner.close()
        with pytest.raises(BackendError, match="closed"):
            runner.run_views_pooled(tiles, views(1), [(slice(0, 32), slice(0, 32))])


def test_onnx_gives_no_features() -> None:
    graph = onnx_graph(tiny_network(1, channels=1, classes=2), channels=1, side=64)
    with OnnxMemberRunner(graph, device="cpu") as runner:
        assert not isinstance(runner, FeatureRunner)
