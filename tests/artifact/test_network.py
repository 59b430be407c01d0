import json
import pickle
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

from df2serve.artifact.network import (
    DeepFlash2Unet,
    create_network,
    dump_network,
    input_multiple,
    load_network,
)
from df2serve.errors import ConfigError, IntegrityError, ManifestError

TINY = {
    "_model_class": "Unet",
    "encoder_name": "tu-test_resnet",
    "encoder_depth": 4,
    "decoder_channels": [32, 16, 8, 8],
    "encoder_weights": "imagenet",
    "in_channels": 5,
    "classes": 4,
}


def paper_network(encoder: str, in_channels: int = 1) -> DeepFlash2Unet:
    torch.manual_seed(0)
    network = DeepFlash2Unet(encoder_name=encoder, in_channels=in_channels, classes=2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def test_paper_network_has_the_published_parameters(golden: Path) -> None:
    expected = json.loads((golden / "deepflash2.json").read_text())["network_parameters"]
    for channels, key in [(1, ""), (3, "_3_channels")]:
        network = paper_network("tu-convnext_tiny", channels)
        count = sum(p.numel() for p in network.parameters())
        assert count == expected[f"paper_unet_convnext_tiny{key}"]
    assert len(network.state_dict()) == expected["paper_state_dict_entries"]


def test_paper_network_loads_in_plain_smp_and_differs_only_at_the_rim(tmp_path: Path) -> None:
    network = paper_network("tu-test_convnext")
    config, weights = dump_network(network)
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(weights)
    plain = smp.from_pretrained(tmp_path).eval()
    tiles = torch.randn(2, 1, 128, 96)
    with torch.inference_mode():
        exact, approximate = network(tiles), plain(tiles)
        assert torch.equal(load_network(config, weights)(tiles), exact)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(approximate[inner], exact[inner], atol=1e-5, rtol=0)
    assert (approximate - exact).abs().max() > 1e-3


def test_paper_network_needs_a_first_stage_of_stride_4() -> None:
    with pytest.raises(ConfigError, match=r"stride 4, got 'tu-test_resnet'"):
        DeepFlash2Unet(encoder_name="tu-test_resnet", in_channels=1, classes=2)


def test_depth_trap_is_refused() -> None:
    call = TINY | {"encoder_name": "tu-test_convnext"}
    with pytest.raises(ConfigError, match="encoder_depth=4 drops the last stage"):
        create_network(call)


def test_any_architecture_and_channel_count_round_trips() -> None:
    for name in ("Unet", "FPN", "UnetPlusPlus", "Linknet", "PAN", "DeepLabV3Plus"):
        call = {k: v for k, v in TINY.items() if k not in {"encoder_depth", "decoder_channels"}}
        network = create_network(call | {"_model_class": name}).eval()
        tiles = torch.randn(1, 5, 128, 128)
        with torch.inference_mode():
            assert torch.equal(load_network(*dump_network(network))(tiles), network(tiles))
        assert input_multiple(network) in {16, 32}


def test_pretrained_weights_are_never_fetched() -> None:
    config, _ = dump_network(create_network(TINY))
    assert json.loads(config)["encoder_weights"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_model_class": "os.system"}, "unknown network class 'os.system'; expected one of Unet"),
        ({"_df2serve_network": "other"}, "unknown network class 'other'"),
        ({"encoder_name": "no_such_encoder"}, "cannot build Unet"),
        ({"surprise": 1}, "cannot build Unet from its config.json: got surprise"),
        ({"checkpoint_path": "/etc/passwd"}, "got checkpoint_path; expected named"),
        ({"encoder_name": "tu-hf-hub:a/b"}, "got encoder_name='tu-hf-hub:a/b'"),
        ({"encoder_name": "tu-local-dir:/etc"}, "got encoder_name='tu-local-dir:/etc'"),
    ],
)
def test_wrong_descriptions_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        create_network(TINY | changes)


def test_wrong_weights_are_refused() -> None:
    config, weights = dump_network(create_network(TINY))
    other, _ = dump_network(create_network(TINY | {"classes": 3}))
    with pytest.raises(IntegrityError, match="do not fit"):
        load_network(other, weights)
    with pytest.raises(IntegrityError, match="cannot be read"):
        load_network(config, pickle.dumps({"a": torch.zeros(1)}))
    with pytest.raises(ManifestError, match="not JSON"):
        load_network(b"{", weights)
    with pytest.raises(ManifestError, match="holds a list"):
        load_network(b"[]", weights)
    with pytest.raises(ManifestError, match="got a Linear"):
        dump_network(torch.nn.Linear(1, 1))
