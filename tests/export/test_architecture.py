"""Architectures of packages: plain source that needs nothing but PyTorch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from df2serve.artifact import DeepFlash2Unet, Ensemble, save_ensemble
from df2serve.config import InferenceConfig
from df2serve.errors import ExportError
from df2serve.export import ExportSettings
from df2serve.export.architecture import write_architecture
from df2serve.export.system import open_source
from df2serve.testing import tiny_network
from df2serve.testing.ensembles import manifest_fields


def saved(folder: Path, networks: list[nn.Module]) -> Ensemble:
    fields = manifest_fields(channels=1, classes=2, tile=64)
    return save_ensemble(folder / "ensemble", fields, [one.eval() for one in networks], files={})


def require_same(ensemble: Ensemble) -> str:
    source = open_source(ensemble, ExportSettings(), InferenceConfig(views=1))
    architecture = write_architecture(source)
    image = torch.rand(2, 1, 70, 66, generator=torch.Generator().manual_seed(1)) * 150
    with torch.inference_mode():
        found, expected = architecture.module()(image), source.windowed()(image)
    assert float((found - expected).abs().max()) <= 1e-6
    return architecture.source


@pytest.mark.slow
def test_members_of_two_kinds(tmp_path: Path) -> None:
    """The network of the paper, and another one."""
    paper = DeepFlash2Unet(encoder_name="tu-test_convnext", in_channels=1, classes=2)
    source = require_same(saved(tmp_path, [paper, tiny_network(0, channels=1, classes=2)]))
    assert "return build([Network0(), Network1()], **arguments)" in source


@pytest.mark.slow
@pytest.mark.parametrize(
    "create",
    [
        lambda: smp.Unet("tu-efficientnet_lite0", encoder_weights=None, in_channels=1, classes=2),
        lambda: smp.UnetPlusPlus("resnet18", encoder_weights=None, in_channels=1, classes=2),
        lambda: smp.FPN("mobilenet_v2", encoder_weights=None, in_channels=1, classes=2),
        lambda: smp.Segformer("mit_b0", encoder_weights=None, in_channels=1, classes=2),
    ],
    ids=["unet", "unetplusplus", "fpn", "segformer"],
)
def test_other_networks(create: Callable[[], nn.Module], tmp_path: Path) -> None:
    require_same(saved(tmp_path, [create()]))


def test_operation_without_source_is_refused(
    two_classes: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    @torch.library.custom_op("df2serve_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Foreign(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.config, self.encoder = inner, inner.config, inner.encoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return twice(self.inner(x))

    source = open_source(two_classes, ExportSettings(member=0), None)
    monkeypatch.setitem(source.__dict__, "networks", (Foreign(source.networks[0]),))
    with pytest.raises(ExportError, match=r"twice.*, which has no form in plain PyTorch"):
        write_architecture(source)
