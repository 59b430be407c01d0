"""The network of a member before its training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from df2serve.artifact import DeepFlash2Unet, create_network
from df2serve.artifact.manifest import WeightsOrigin
from df2serve.errors import ConfigError, InputError, ManifestError, SourceNotFoundError
from df2serve_training.recipe import NetworkSettings

__all__ = ["build_network"]

_TIMM_PREFIX = "tu-"
_REASON_LENGTH = 200


def build_network(
    settings: NetworkSettings, *, channels: int, classes: int, seed: int
) -> tuple[nn.Module, WeightsOrigin]:
    """Return a network and where its encoder's weights come from.

    All other weights are drawn as smp draws them, from the seed alone. Filters of the first layer
    are adapted to the number of channels as timm does: summed for one channel, repeated and scaled
    for others.

    Args:
        settings: architecture, encoder and weights.
        channels: C.
        classes: output channels: K, the background included, and the distance where it is wanted.
        seed: of the random weights.

    Raises:
        ConfigError: the architecture or the encoder does not exist or rejects its options.
        SourceNotFoundError: there is no file of weights, or they cannot be fetched.
        InputError: the weights are not those of this encoder.
    """
    config: dict[str, Any] = {
        "encoder_name": settings.encoder,
        "in_channels": channels,
        "classes": classes,
        **settings.options,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if settings.architecture == DeepFlash2Unet.__name__:
                network: nn.Module = DeepFlash2Unet(**config)
            else:
                network = create_network(config | {"_model_class": settings.architecture})
        except (ManifestError, TypeError) as error:
            message = f"cannot build the network of the recipe: {error}"
            raise ConfigError(message) from error
    if settings.weights == "random":
        return network, WeightsOrigin(name="random")
    if settings.encoder.startswith(_TIMM_PREFIX):
        return network, _load_timm(network, settings, channels)
    return network, _load_smp(network, settings, channels)


def _load_timm(network: nn.Module, settings: NetworkSettings, channels: int) -> WeightsOrigin:
    """Give an encoder of timm its weights, from the Hub or from a file with timm's names."""
    name = settings.encoder.removeprefix(_TIMM_PREFIX)
    file = None if settings.weights == "pretrained" else _existing(settings.weights)
    overlay = None if file is None else {"file": str(file)}
    try:
        reference = timm.create_model(
            name, pretrained=True, features_only=True, in_chans=channels,
            pretrained_cfg_overlay=overlay,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise _not_loaded(settings, error) from error
    if file is not None:
        _require_all(reference.state_dict().keys(), file, settings)
    encoder = cast("nn.Module", cast("Any", network).encoder.model)
    _copy(reference.state_dict(), encoder)
    if file is not None:
        return _origin_of_file(file, settings)
    described = cast("dict[str, Any]", reference.pretrained_cfg)
    return WeightsOrigin(
        name=f"timm/{described['architecture']}.{described['tag']}",
        license=described.get("license"),
    )


def _load_smp(network: nn.Module, settings: NetworkSettings, channels: int) -> WeightsOrigin:
    """Give an encoder of smp its weights, from the Hub or from a file with smp's names."""
    encoder = cast("Any", network).encoder
    file = None if settings.weights == "pretrained" else _existing(settings.weights)
    try:
        reference = smp.encoders.get_encoder(
            settings.encoder,
            in_channels=3,
            depth=encoder._depth,
            weights=None if file else "imagenet",
        )
        if file is not None:
            reference.load_state_dict(load_file(file))
        reference.set_in_channels(channels, pretrained=True)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise _not_loaded(settings, error) from error
    _copy(reference.state_dict(), encoder)
    if file is not None:
        return _origin_of_file(file, settings)
    return WeightsOrigin(name=f"smp/{settings.encoder}.imagenet", license=settings.weights_license)


def _require_all(names: Iterable[str], file: Path, settings: NetworkSettings) -> None:
    """Refuse a file that lacks weights; timm would leave them random."""
    with safe_open(file, framework="pt") as stored:
        # encoders write the dots in the names of their stages as underscores
        known = {name.replace(".", "_") for name in stored.keys()}  # noqa: SIM118 - no mapping
    missing = [name for name in names if name.replace(".", "_") not in known]
    if missing:
        message = (
            f"{file} holds no {missing[0]} and lacks {len(missing)} weights of {settings.encoder} "
            "in all; give the weights of this encoder, with timm's names"
        )
        raise InputError(message)


def _copy(weights: dict[str, Tensor], encoder: nn.Module) -> None:
    """Load weights; layers behind the last one that the encoder uses are left out."""
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})


def _existing(path: str) -> Path:
    file = Path(path)
    if not file.is_file():
        message = f"no file of weights at {path}; give a safetensors file, 'pretrained' or 'random'"
        raise SourceNotFoundError(message)
    if file.suffix != ".safetensors":
        message = f"got {file.name} as weights; only safetensors files are opened, never pickles"
        raise InputError(message)
    return file


def _origin_of_file(file: Path, settings: NetworkSettings) -> WeightsOrigin:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return WeightsOrigin(name=f"{file.name} (sha256 {digest})", license=settings.weights_license)


def _not_loaded(settings: NetworkSettings, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:_REASON_LENGTH] or type(error).__name__
    if settings.weights == "pretrained":
        return SourceNotFoundError(
            f"cannot fetch pretrained weights of {settings.encoder}: {reason}; give a safetensors "
            "file as network.weights, or 'random'"
        )
    return InputError(f"{settings.weights} are not weights of {settings.encoder}: {reason}")
