"""Which network a state dict belongs to."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch

from df2serve.artifact import create_network
from df2serve.errors import ConfigError, ManifestError

__all__ = ["Shapes", "network_config", "recognize_encoder"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by their names in the state dict."""

_TIMM = re.compile(r"\.timm\.models\.(\w+)\.")
_LAST_STAGE = "encoder.model.stages_3."
_DEFAULTS = ("tu-convnext_tiny", "tu-convnextv2_tiny", "resnet34")
"""Encoders that deepflash2 took unless told otherwise; tried first."""


def network_config(
    architecture: str, arguments: Mapping[str, Any], names: Collection[str]
) -> dict[str, Any]:
    """Return the description of a network that deepflash2 made.

    Args:
        architecture: smp's class, such as ``Unet``.
        arguments: of its constructor.
        names: of its tensors, which tell the generations apart: all four stages of a ConvNeXt up to
            0.2.4, three in 0.3.0.
    """
    config = {**arguments, "_model_class": architecture}
    if architecture != "Unet" or not str(arguments.get("encoder_name")).startswith("tu-convnext"):
        return config
    if any(name.startswith(_LAST_STAGE) for name in names):
        return config | {"_df2serve_network": "deepflash2"}
    cut = {"encoder_depth": 4, "decoder_channels": [256, 128, 64, 16]}
    return config | cut | {"_df2serve_network": "truncated"}


def recognize_encoder(
    architecture: str,
    arguments: Mapping[str, Any],
    shapes: Shapes,
    *,
    classes: Collection[str],
    hint: str,
) -> str:
    """Return the name of the first encoder with which a network has tensors of these shapes.

    Args:
        architecture: smp's class, such as ``Unet``.
        arguments: of its constructor, but for the encoder.
        shapes: of all tensors of the network.
        classes: qualified names of the classes of its modules, which narrow the search.
        hint: text that may hold the name, such as that of the file.

    Raises:
        ConfigError: no encoder of smp or timm fits.
    """
    for encoder in _candidates(classes, hint):
        config = network_config(architecture, {**arguments, "encoder_name": encoder}, shapes)
        if _shapes_of(config) == shapes:
            return encoder
    message = (
        f"the encoder of the {architecture} is none that smp {smp.__version__} or timm "
        f"{timm.__version__} build with these weights; name it with --encoder"
    )
    raise ConfigError(message)


def _candidates(classes: Collection[str], hint: str) -> list[str]:
    """Return encoders of the right family, the likeliest first."""
    written = hint.replace("_", "-")

    def rank(name: str) -> tuple[bool, bool, int, str]:
        named = name.replace("_", "-") in written
        return (not named, name not in _DEFAULTS, -len(name) if named else len(name), name)

    return sorted(_family(classes), key=rank)


def _family(classes: Collection[str]) -> Iterator[str]:
    last = {name.rpartition(".")[2] for name in classes}
    for name, entry in smp.encoders.encoders.items():
        if entry["encoder"].__name__ in last:
            yield name
    modules = {found[1] for name in classes if (found := _TIMM.search(name))}
    for module in sorted(modules):
        yield from (f"tu-{name}" for name in timm.list_models(module=module))


def _shapes_of(config: Mapping[str, Any]) -> Shapes | None:
    """Return the shapes of a network's tensors, without memory for them; None if there is none."""
    try:
        with torch.device("meta"):
            network = create_network(config)
    except (ConfigError, ManifestError):
        return None
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
