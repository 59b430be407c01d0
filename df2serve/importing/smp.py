"""One plain model of segmentation-models-pytorch: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from df2serve.artifact import create_network
from df2serve.artifact.network import is_truncated, load_state
from df2serve.config import PRESETS
from df2serve.errors import ConfigError, IntegrityError, ManifestError, SourceNotFoundError
from df2serve.importing._found import Found, source_facts

__all__ = ["CONFIG", "WEIGHTS", "read_smp"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_MANIFEST = "ensemble.json"
_CONFIG_LIMIT = 1 << 20
_HEAD = "segmentation_head.0."
_CUT = "the encoder lacks its last stage: encoder_depth leaves it out"
_BINARY = "the model has one output; the background got the logit 0: probabilities stay the same"


def read_smp(folder: Path) -> Found:
    """Return the network of a folder, as an ensemble of one member.

    A model of one class gets a background whose logit is 0: softmax over both is the sigmoid of the
    one. No other file of the folder is looked at.

    Raises:
        SourceNotFoundError: one of the two files is missing.
        ManifestError: ``config.json`` describes no network.
        ConfigError: its outputs are not the classes of pixels.
        IntegrityError: the weights are damaged, or those of another network.
    """
    config = _read_config(folder)
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        message = f"{WEIGHTS} of {folder} cannot be read: {error}"
        raise IntegrityError(message) from error
    _require_classes(config)
    notes, described = [], {**config, "activation": None}
    if config.get("classes", 1) == 1:
        state, described["classes"] = _with_background(state), 2
        notes.append(_BINARY)
    network = load_state(create_network(described), state)
    if is_truncated(network):
        notes.append(_CUT)
    arguments = cast("dict[str, Any]", network.config)
    weights, encoder = config.get("encoder_weights"), config.get("encoder_name")
    return Found(
        members=[network],
        folds=[None],
        num_classes=arguments["classes"],
        num_channels=arguments["in_channels"],
        inference=PRESETS["accurate"],
        training=source_facts("segmentation-models-pytorch", [folder / CONFIG, folder / WEIGHTS]),
        encoder_weights=f"{encoder}, {weights}" if weights else None,
        notes=tuple(notes),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if (folder / _MANIFEST).is_file():
        message = f"{folder} is an ensemble already; use it as it is"
        raise ConfigError(message)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            message = (
                f"{folder} holds no {name}; expected a model that smp's save_pretrained wrote, or "
                "files of deepflash2. Files that are pickles (.bin) are not opened"
            )
            raise SourceNotFoundError(message)
    with (folder / CONFIG).open("rb") as file:
        content = file.read(_CONFIG_LIMIT)
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"{CONFIG} of {folder} is not JSON: {error}"
        raise ManifestError(message) from error
    if not isinstance(config, dict):
        message = f"{CONFIG} of {folder} holds a {type(config).__name__}; expected an object"
        raise ManifestError(message)
    # whoever trained it this way means it
    return {**config, "_df2serve_network": "truncated"}


def _require_classes(config: dict[str, Any]) -> None:
    """Refuse networks whose outputs are not K logits, or what softmax or sigmoid makes of them."""
    activation, binary = config.get("activation"), config.get("classes", 1) == 1
    last = ("sigmoid",) if binary else ("softmax", "softmax2d")
    if activation not in (None, "identity", *last):
        message = (
            f"the model ends in {activation!r}; expected {' or '.join(last)} or nothing. Classes "
            "that overlap are not read"
        )
        raise ConfigError(message)
    if config.get("aux_params") is not None:
        message = "the model has a second output (aux_params); expected a mask alone"
        raise ConfigError(message)


def _with_background(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a head with one output more, in front, which is always 0."""
    names = (f"{_HEAD}weight", f"{_HEAD}bias")
    if any(name not in state for name in names):
        message = f"the model has one class, and no {_HEAD}weight to add a background to"
        raise ConfigError(message)
    heads = {name: state[name] for name in names}
    return state | {name: torch.cat([torch.zeros_like(t), t]) for name, t in heads.items()}
