"""Files as deepflash2 writes them, made by plain torch of tiny networks."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from df2serve.artifact import DeepFlash2Unet, create_network

ENCODER = "tu-convnext_zepto_rms"
TILE = 64
SETTINGS = {"in_channels": 1, "classes": 2}


class Unet(DeepFlash2Unet):
    """The paper's network under the name that it had in deepflash2 0.2."""


def make_network(generation: str, seed: int) -> nn.Module:
    """A network of deepflash2 0.2 or 0.3; weights are random."""
    torch.manual_seed(seed)
    if generation == "0.2":
        return Unet(encoder_name=ENCODER, **SETTINGS).eval()
    config = {
        "_model_class": "Unet",
        "_df2serve_network": "truncated",
        "encoder_name": ENCODER,
        "encoder_depth": 4,
        "decoder_channels": (256, 128, 64, 16),
    }
    return create_network(config | SETTINGS).eval()


class Normalize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std = [60.0], [40.0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean[0]) / self.std[0]


class TileModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tile_shape = (TILE, TILE)
        self.scale, self.border_padding_factor, self.max_tile_shift = 1.0, 0.25, 0.75
        axis = torch.linspace(-1, 1, TILE)
        self.deformationField = torch.meshgrid(axis, axis, indexing="ij")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.border_padding_factor + self.max_tile_shift


class InferenceEnsemble(nn.Module):
    """The attributes of the original's class; the original itself is tested in tests/parity."""

    def __init__(self, members: list[nn.Module], *, even: bool = False) -> None:
        super().__init__()
        self.num_classes, self.tile_shape = 2, (TILE, TILE)
        self.use_tta, self.use_gaussian = False, not even
        self.gaussian_kernel_sigma_scale = 0.25
        self.norm, self.tiler = Normalize(), TileModule()
        example = torch.zeros(1, 1, TILE, TILE)
        self.models = nn.ModuleList([torch.jit.trace(member, example) for member in members])
        self.mw = nn.Buffer(torch.ones(TILE, TILE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.tiler(x)) * self.mw
        for model in self.models:
            x = model(x)[:, : self.num_classes - 1]
        if self.use_tta or self.use_gaussian:
            x = x * self.gaussian_kernel_sigma_scale * self.tile_shape[0]
        return x


class Original(NamedTuple):
    """Networks, and the files that hold them."""

    networks: list[nn.Module]
    script: Path
    members: list[Path]


def save_member(network: nn.Module, path: Path, *, form: str, **changes: object) -> Path:
    """Write a member as ``save_smp_model`` does, or in today's form."""
    content = {
        "model": network.state_dict(),
        "arch": "Unet",
        "stats": {
            "channel_means": np.array([60.0]),
            "channel_stds": np.array([40.0]),
            "max_tiles_per_image": np.int64(4),
        },
        "encoder_name": ENCODER,
        "encoder_weights": "imagenet",
        **SETTINGS,
        "encoder_depth": 4,
        "decoder_channels": (256, 128, 64, 16),
    }
    torch.save(
        content | changes,
        path,
        pickle_protocol=2,
        _use_new_zipfile_serialization=form == "zip",
    )
    return path


@pytest.fixture(scope="session", params=["0.2", "0.3"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Two members of one generation of deepflash2."""
    folder = tmp_path_factory.mktemp("original")
    networks = [make_network(request.param, seed) for seed in range(2)]
    script = folder / "ensemble_Unet_tu-convnext-zepto-rms_2classes.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(InferenceEnsemble(networks)).save(script)
    members = [
        save_member(network, folder / f"Unet_2classes-fold{fold}.pth", form=form)
        for fold, (network, form) in enumerate(zip(networks, ("row", "zip"), strict=True), start=1)
    ]
    return Original(networks, script, members)
