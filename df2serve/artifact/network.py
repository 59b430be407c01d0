"""Member networks: from their constructor call to a module and back.

A network is described by the ``config.json`` of segmentation-models-pytorch (smp): the class name
and the keyword arguments of its constructor. No code is read from an ensemble.

The network of the paper has no counterpart in smp, because its last step up is bilinear. It is
stored as the plain smp U-Net that comes closest, with the key ``_df2serve_network`` that smp
ignores: a last decoder block with fixed weights blurs a nearest upsampling by ``[1 2 1] / 4``,
which is the bilinear upsampling everywhere but at the rim of a tile. df2serve builds the exact
network from the same files.

deepflash2 0.3.0 built networks that lack the last stage of their encoder, because
``encoder_depth=4`` means another thing in newer versions of smp. ``create_network`` refuses such a
description as a mistake, unless the same key says that it is meant: ``"truncated"``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from df2serve.artifact._compiler import compiler_deferred
from df2serve.errors import ConfigError, IntegrityError, ManifestError

with compiler_deferred():
    import segmentation_models_pytorch as smp

__all__ = [
    "DeepFlash2Unet",
    "activate",
    "create_network",
    "dump_network",
    "input_multiple",
    "is_truncated",
    "load_network",
    "load_state",
]

_VARIANT = "_df2serve_network"
_CLASS = "_model_class"
_RANDOM = (torch.Tensor.normal_, torch.Tensor.uniform_)
_PAPER_CHANNELS = (256, 128, 64, 16)


class DeepFlash2Unet(nn.Module):
    """The U-Net of the paper, for encoders whose first stage has stride 4, such as ConvNeXt.

    Four decoder blocks (256, 128, 64, 16 channels, the last one without skip connection) lead to
    stride 2; a bilinear upsampling and a 3x3 convolution give the logits. Its parameters have the
    names that deepflash2 up to 0.2.4 gave them.

    Source:
        deepflash2 ``models.create_smp_model`` with its smp fork; 31 902 658 parameters for
        ``tu-convnext_tiny``, one channel and two classes.
    """

    def __init__(self, *, encoder_name: str, in_channels: int, classes: int) -> None:
        """Build the network with random weights.

        Args:
            encoder_name: smp name of the encoder.
            in_channels: C.
            classes: K, background included.

        Raises:
            ConfigError: the encoder's first stage does not have stride 4.
        """
        super().__init__()
        self.config: dict[str, Any] = {
            "encoder_name": encoder_name,
            "encoder_depth": 5,
            "encoder_weights": None,
            "decoder_channels": [*_PAPER_CHANNELS, _PAPER_CHANNELS[-1]],
            "in_channels": in_channels,
            "classes": classes,
        }
        plain = smp.Unet(**self.config)
        if plain.encoder.out_channels[1] != 0:
            message = (
                f"the paper's network needs an encoder whose first stage has stride 4, got "
                f"{encoder_name!r}; use smp's Unet for it, which is what deepflash2 builds then"
            )
            raise ConfigError(message)
        self.encoder = plain.encoder
        self.decoder = plain.decoder
        self.decoder.blocks = plain.decoder.blocks[:-1]
        self.segmentation_head = plain.segmentation_head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K, Y, X) of tiles (N, C, Y, X)."""
        half = self.decoder(self.encoder(x))
        full = nn.functional.interpolate(
            half, scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return cast("Tensor", self.segmentation_head(full))

    def plain_state_dict(self) -> dict[str, Tensor]:
        """Return the weights of the plain smp U-Net, its fixed last block included."""
        channels = _PAPER_CHANNELS[-1]
        binomial = torch.tensor([0.25, 0.5, 0.25])
        blur, delta = torch.zeros(2, channels, channels, 3, 3)
        index = torch.arange(channels)
        blur[index, index] = torch.outer(binomial, binomial)
        delta[index, index, 1, 1] = 1.0
        state = dict(self.state_dict())
        for name, kernel in (("conv1", blur), ("conv2", delta)):
            prefix = f"decoder.blocks.{len(_PAPER_CHANNELS)}.{name}"
            norm = nn.BatchNorm2d(channels)
            identity = norm.state_dict() | {"running_var": torch.full((channels,), 1 - norm.eps)}
            state[f"{prefix}.0.weight"] = kernel
            state |= {f"{prefix}.1.{key}": value for key, value in identity.items()}
        return state


def create_network(config: Mapping[str, Any]) -> nn.Module:
    """Build a network with random weights from the content of ``config.json``.

    Pretrained weights are never fetched: ``encoder_weights`` is ignored.

    Args:
        config: constructor call as smp saves it.

    Raises:
        ManifestError: the class is none of smp's, or it rejects its arguments.
        ConfigError: the encoder would lose its last stage.
    """
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    arguments["encoder_weights"] = None
    variant, name = config.get(_VARIANT), str(config.get(_CLASS))
    network_class = smp.MODEL_ARCHITECTURES_MAPPING.get(name.lower())
    if network_class is None or variant not in (None, "deepflash2", "truncated"):
        known = ", ".join(c.__name__ for c in smp.MODEL_ARCHITECTURES_MAPPING.values())
        message = f"unknown network class {variant or name!r}; expected one of {known}"
        raise ManifestError(message)
    _require_own_arguments(network_class, arguments)
    try:
        if variant == "deepflash2":
            return DeepFlash2Unet(
                encoder_name=arguments["encoder_name"],
                in_channels=arguments["in_channels"],
                classes=arguments["classes"],
            )
        network = cast("nn.Module", network_class(**arguments))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        message = f"cannot build {name} from its config.json: {error}"
        raise ManifestError(message) from error
    if variant != "truncated":
        _require_last_stage(network)
    return network


def activate(outputs: Tensor, *, distance: bool) -> Tensor:
    """Return what the outputs of a network mean.

    Args:
        outputs: axes (N, K, Y, X), or (N, K + 1, Y, X) with a distance channel.
        distance: whether the last channel is the relative distance to the boundary.

    Returns:
        Class probabilities and, where there is one, the distance behind them; in [0, 1], same axes.
    """
    if not distance:
        return torch.softmax(outputs, dim=1)
    probs = torch.softmax(outputs[:, :-1], dim=1)
    return torch.cat([probs, torch.sigmoid(outputs[:, -1:])], dim=1)


def input_multiple(network: nn.Module) -> int:
    """Return the number that a tile's rows and columns have to be multiples of."""
    return int(cast("Any", network).encoder.output_stride)


def is_truncated(network: nn.Module) -> bool:
    """Return whether the encoder lacks its last stage.

    For encoders whose first stage has stride 4, smp 0.5 and later count an empty stage of stride 2,
    so that the depth 4 that older versions needed for all four stages drops the last one now.
    """
    channels = getattr(getattr(network, "encoder", None), "out_channels", (0, 1))
    depth = cast("Any", network).config.get("encoder_depth", 5)
    return len(channels) > 1 and channels[1] == 0 and depth < 5


def dump_network(network: nn.Module) -> tuple[bytes, bytes]:
    """Return the contents of ``config.json`` and ``model.safetensors`` of a network.

    Both are loadable by plain ``smp.from_pretrained``.

    Raises:
        ManifestError: the module is neither an smp model nor a :class:`DeepFlash2Unet`.
    """
    if isinstance(network, DeepFlash2Unet):
        config = {**network.config, _CLASS: "Unet", _VARIANT: "deepflash2"}
        state = network.plain_state_dict()
    elif type(network).__name__.lower() in smp.MODEL_ARCHITECTURES_MAPPING:
        arguments = cast("Any", network).config
        config = {**arguments, "encoder_weights": None, _CLASS: type(network).__name__}
        if is_truncated(network):
            config[_VARIANT] = "truncated"
        state = network.state_dict()
    else:
        message = (
            f"got a {type(network).__name__}; members are models of segmentation-models-pytorch or "
            "the paper's DeepFlash2Unet"
        )
        raise ManifestError(message)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), weights


def load_network(config: bytes, weights: bytes) -> nn.Module:
    """Build a network from the contents of its two files, in evaluation mode.

    Raises:
        ManifestError: ``config.json`` does not describe a network.
        IntegrityError: the weights are not safetensors, or not those of the described network.
    """
    try:
        arguments = json.loads(config)
    except ValueError as error:
        message = f"config.json of a member is not JSON: {error}"
        raise ManifestError(message) from error
    if not isinstance(arguments, dict):
        message = f"config.json of a member holds a {type(arguments).__name__}, expected an object"
        raise ManifestError(message)
    with _Uninitialized():  # all weights are replaced
        network = create_network(arguments)
    try:
        state = safetensors.torch.load(weights)
    except (SafetensorError, ValueError) as error:
        message = f"model.safetensors of a member cannot be read: {error}"
        raise IntegrityError(message) from error
    if isinstance(network, DeepFlash2Unet):
        extra = f"decoder.blocks.{len(_PAPER_CHANNELS)}."
        state = {key: value for key, value in state.items() if not key.startswith(extra)}
    return load_state(network, state)


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a network its tensors, and return it in evaluation mode.

    Raises:
        IntegrityError: they are not those of this network.
    """
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        message = f"the weights of a member do not fit its config.json: {error}"
        raise IntegrityError(message) from error
    return network.eval()


class _Uninitialized(TorchFunctionMode):
    """Leaves the weights of new networks as memory happens to be, which is faster."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM or getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _require_own_arguments(network_class: type[nn.Module], arguments: Mapping[str, Any]) -> None:
    """Refuse what smp would hand on to timm: files and repositories outside of the ensemble."""
    named = inspect.signature(network_class).parameters
    foreign = sorted(set(arguments) - set(named))
    if foreign or ":" in str(arguments.get("encoder_name")):
        what = ", ".join(foreign) or f"encoder_name={arguments['encoder_name']!r}"
        message = (
            f"cannot build {network_class.__name__} from its config.json: got {what}; expected "
            "named arguments of the class, and an encoder that smp or timm define"
        )
        raise ManifestError(message)


def _require_last_stage(network: nn.Module) -> None:
    """Refuse an encoder that smp cut short."""
    if is_truncated(network):
        arguments = cast("Any", network).config
        message = (
            f"encoder_depth={arguments['encoder_depth']} drops the last stage of "
            f"{arguments.get('encoder_name')!r}; use encoder_depth=5"
        )
        raise ConfigError(message)
