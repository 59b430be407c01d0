"""Tiny ensembles that are built in a blink: real networks in real folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import nn

from df2serve.artifact import Ensemble, FeatureBank, save_ensemble
from df2serve.artifact.features import BankImage, BankMember, FeatureBankFacts
from df2serve.artifact.manifest import colored_classes

__all__ = ["manifest_fields", "random_bank", "random_ensemble", "tiny_network"]


def tiny_network(seed: int, *, channels: int, classes: int, distance: bool = False) -> nn.Module:
    """Return a U-Net of about 200 000 parameters with random weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = smp.Unet(
            "tu-test_resnet",
            encoder_depth=4,
            decoder_channels=(32, 16, 8, 8),
            encoder_weights=None,
            in_channels=channels,
            classes=classes + distance,
        )
    return cast("nn.Module", network.eval())


def manifest_fields(*, channels: int, classes: int, tile: int) -> dict[str, object]:
    """Return the fields of a small manifest."""
    names = ["background", *(f"class {k}" for k in range(1, classes))]
    return {
        "id": "tiny",
        "name": "Tiny ensemble",
        "classes": colored_classes(names),
        "channels": [{"name": f"channel {c}"} for c in range(channels)],
        "normalization": {
            "kind": "training",
            "means": [60.0] * channels,
            "stds": [40.0] * channels,
        },
        "tile_shape": [tile, tile],
    }


def random_ensemble(
    target: str | Path,
    *,
    members: int,
    channels: int,
    classes: int,
    tile: int,
    distance: bool = False,
) -> Ensemble:
    """Write an ensemble of networks with random weights; equal arguments give equal folders.

    Args:
        target: folder to create.
        members: number of networks.
        channels: C.
        classes: K, background included.
        tile: rows and columns of a tile in pixels, a multiple of 32.
        distance: give the networks a distance channel.
    """
    networks = [
        tiny_network(seed, channels=channels, classes=classes, distance=distance)
        for seed in range(members)
    ]
    fields = manifest_fields(channels=channels, classes=classes, tile=tile)
    if distance:
        fields["distance_channel"] = "relative"
    return save_ensemble(target, fields, networks, files={})


def random_bank(
    ensemble: Ensemble, *, images: Sequence[int] = (1, 2, 3), channels: int = 192
) -> FeatureBank:
    """Return a bank of random features for an ensemble; equal arguments give equal banks.

    Args:
        ensemble: of :func:`random_ensemble`, predicted with its own settings.
        images: one number per image; it is the hash of the image's file, in hexadecimal digits.
        channels: of the networks' last feature map.
    """
    manifest, rng = ensemble.manifest, np.random.default_rng([*images, channels])
    members = tuple(
        BankMember(
            folder=member.folder,
            weights_sha256=manifest.files[f"{member.folder}/model.safetensors"].sha256,
            images=tuple(
                BankImage(name=f"image {number}", image_sha256=f"{number:064x}", kind="held_out")
                for number in images
            ),
        )
        for member in manifest.members
    )
    facts = FeatureBankFacts(
        tile_shape=manifest.tile_shape,
        grid=manifest.inference.grid,
        zoom_out=manifest.zoom_out,
        members=members,
    )
    drawn = rng.normal(size=(len(members), len(images), channels)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
    return FeatureBank(
        facts, {member.folder: own for member, own in zip(members, drawn, strict=True)}
    )
