"""Networks and their pretrained weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from df2serve.errors import ConfigError, InputError, SourceNotFoundError
from df2serve_training.network import build_network
from df2serve_training.recipe import NetworkSettings

SMALL = NetworkSettings(
    encoder="tu-test_resnet",
    weights="random",
    options={"encoder_depth": 4, "decoder_channels": [32, 16, 8, 8]},
)


def test_random_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (
        build_network(SMALL, channels=2, classes=3, seed=seed)[0].state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_network(SMALL, channels=2, classes=3, seed=1)
    assert torch.equal(torch.rand(1), expected), "the caller's random numbers were touched"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_weights_of_a_file(shared_data: Path, channels: int) -> None:
    """Filters of the first layer: summed for one channel, else repeated and scaled."""
    file = shared_data / "weights/tf_efficientnet_lite0.in1k.safetensors"
    settings = NetworkSettings(
        encoder="tu-tf_efficientnet_lite0", weights=str(file), weights_license="Apache-2.0"
    )
    network, origin = build_network(settings, channels=channels, classes=2, seed=0)
    stored = load_file(file)
    loaded = {
        name.removeprefix("model."): value for name, value in network.encoder.state_dict().items()
    }
    filters = stored["conv_stem.weight"]
    expected = (
        filters.sum(1, keepdim=True)
        if channels == 1
        else filters.repeat(1, 2, 1, 1)[:, :channels] * (3 / channels)
    )
    torch.testing.assert_close(loaded.pop("conv_stem.weight"), expected)
    assert all(torch.equal(value, stored[name]) for name, value in loaded.items())
    assert origin.license == "Apache-2.0"
    assert origin.name.startswith("tf_efficientnet_lite0.in1k.safetensors (sha256 b9e103b5")


def test_weights_of_an_encoder_of_smp(shared_data: Path) -> None:
    [file] = (shared_data / "weights").glob("mobilenet_v2*.safetensors")
    settings = NetworkSettings(encoder="mobilenet_v2", weights=str(file))
    network, _ = build_network(settings, channels=3, classes=2, seed=0)
    stored = load_file(file)
    loaded = network.encoder.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.items())


def test_mistakes(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, wrong)
    pickled = tmp_path / "weights.pth"
    pickled.write_bytes(b"x")

    def build(**changes: object) -> None:
        build_network(SMALL.updated(**changes), channels=1, classes=2, seed=0)

    with pytest.raises(SourceNotFoundError, match="no file of weights at nowhere"):
        build(weights="nowhere")
    with pytest.raises(InputError, match="only safetensors files are opened, never pickles"):
        build(weights=str(pickled))
    with pytest.raises(InputError, match=r"and lacks \d+ weights of tu-test_resnet"):
        build(weights=str(wrong))
    with pytest.raises(SourceNotFoundError, match="cannot fetch pretrained weights"):
        build(encoder="tu-convnext_tiny.in12k_ft_in1k", weights="pretrained", options={})
    with pytest.raises(ConfigError, match="unknown network class 'Best'"):
        build(architecture="Best")
    with pytest.raises(ConfigError, match="cannot build"):
        build(encoder="tu-nothing")
