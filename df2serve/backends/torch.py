"""Members in PyTorch, on processors, CUDA and MPS devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from df2serve.artifact import activate
from df2serve.backends.runner import RunnerInfo, TileFeatures
from df2serve.config import Precision
from df2serve.core.augment import View
from df2serve.core.features import inside_shares
from df2serve.core.mixture import Mixture
from df2serve.errors import BackendError, BackendUnavailableError, OutOfMemoryError
from df2serve.types import TileBatch, TileProbs

__all__ = ["TorchMemberRunner", "choose_device", "choose_precision"]

_IDENTITY = View(transpose=False, flip_y=False, flip_x=False)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PREFERRED_PIXELS = {"cpu": 1 << 17, "cuda": 1 << 23, "mps": 1 << 21}


class TorchMemberRunner:
    """A network in evaluation mode; views are batched, reduced and kept on the device."""

    def __init__(
        self, network: nn.Module, *, device: str, precision: Precision, distance: bool = False
    ) -> None:
        """Move a network to a device; the network is changed in place.

        Args:
            network: maps normalised tiles to logits.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            precision: ``auto`` takes the fastest type that the device runs natively.
            distance: whether the network's last output channel is the distance.

        Raises:
            BackendUnavailableError: the device is not there.
            OutOfMemoryError: the weights do not fit.
        """
        self._device = choose_device(device)
        resolved = choose_precision(self._device, precision)
        self._dtype = _DTYPES[resolved]
        self._distance = distance
        self._info = RunnerInfo(
            backend=f"torch {torch.__version__}",
            device=_describe(self._device),
            precision=resolved,
            preferred_pixels=_PREFERRED_PIXELS[self._device.type],
        )
        with _memory_errors():
            placed = network.eval().to(device=self._device, dtype=self._dtype)
            self._network: nn.Module | None = placed.to(memory_format=torch.channels_last)

    @property
    def info(self) -> RunnerInfo:
        """Where and how it runs."""
        return self._info

    def run(self, tiles: TileBatch, /) -> TileProbs:
        """Return class probabilities; see :class:`~df2serve.backends.MemberRunner`."""
        with _running():
            return _to_numpy(self._maps(self._upload(tiles)))

    def run_views(self, tiles: TileBatch, views: Sequence[View], /) -> Mixture:
        """Return the mixture over views; see :class:`~df2serve.backends.MemberRunner`."""
        with _running():
            return self._mixture(tiles, views)

    def run_views_pooled(
        self, tiles: TileBatch, views: Sequence[View], kept: Sequence[tuple[slice, slice]], /
    ) -> tuple[Mixture, TileFeatures]:
        """Return features as well; see :class:`~df2serve.backends.FeatureRunner`."""
        with _running(), _hearing(self._network) as heard:
            mixture = self._mixture(tiles, views)
            start = list(views).index(_IDENTITY) * len(tiles)
            features = _deepest(heard)[start : start + len(tiles)].float()
            for axis, side in ((-2, tiles.shape[-2]), (-1, tiles.shape[-1])):
                cells = features.shape[axis]
                shares = [inside_shares(one[axis], side=side, cells=cells) for one in kept]
                weights = torch.from_numpy(np.stack(shares)).to(self._device)
                features = features * (
                    weights[:, None, :, None] if axis == -2 else weights[:, None, None, :]
                )
            return mixture, _to_numpy(features.sum(dim=(-2, -1)))

    def close(self) -> None:
        """Free the device's memory."""
        self._network = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the runner."""
        self.close()

    def _mixture(self, tiles: TileBatch, views: Sequence[View]) -> Mixture:
        uploaded = self._upload(tiles)
        maps = self._maps(torch.cat([_apply(view, uploaded) for view in views]))
        restored = [
            _invert(view, part)
            for view, part in zip(views, torch.split(maps, len(tiles)), strict=True)
        ]
        total, squares = restored[0].clone(), self._sum_of_squares(restored[0])
        for part in restored[1:]:
            total += part
            squares += self._sum_of_squares(part)
        probs, distance = (total[:, :-1], total[:, -1]) if self._distance else (total, None)
        return Mixture(
            probs=_to_numpy(probs),
            squares=_to_numpy(squares),
            count=len(views),
            distance=None if distance is None else _to_numpy(distance),
        )

    def _upload(self, tiles: TileBatch) -> Tensor:
        source = torch.from_numpy(np.require(tiles, requirements=["C", "W"]))
        return source.to(device=self._device, dtype=self._dtype)

    def _maps(self, tiles: Tensor) -> Tensor:
        if self._network is None:
            message = "the member was closed; open the ensemble again"
            raise BackendError(message)
        outputs = self._network(tiles.contiguous(memory_format=torch.channels_last))
        return activate(outputs.float(), distance=self._distance)

    def _sum_of_squares(self, maps: Tensor) -> Tensor:
        probs = maps[:, :-1] if self._distance else maps
        return probs.square().sum(dim=1)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` prefers CUDA, then MPS, then the processor.

    Raises:
        BackendUnavailableError: the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[device.type]
    index = device.index or 0
    if index >= count:
        message = (
            f"device {name!r} is not available, this machine has {count} {device.type} devices; "
            "choose 'cpu' or 'auto'"
        )
        raise BackendUnavailableError(message)
    return torch.device(device.type, index) if device.type == "cuda" else device


def choose_precision(device: torch.device, requested: Precision) -> Precision:
    """Return the precision that a request means on a device."""
    if requested != "auto":
        return requested
    match device.type:
        case "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return "bf16" if native else "fp16"
        case "mps":
            return "fp16"
        case _:
            # without matrix units for bf16, converting costs more than it saves
            capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
            return "bf16" if capabilities.get("amx_bf16") else "fp32"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


@contextmanager
def _running() -> Iterator[None]:
    """No gradients, repeatable kernels, float32 that is float32, and our own memory error."""
    kernels = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), kernels, _memory_errors():
        yield


@contextmanager
def _hearing(network: nn.Module | None) -> Iterator[list[Any]]:
    """Gather what the encoder of a network returns; what it computes stays the same."""
    heard: list[Any] = []
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        yield heard
        return
    hook = encoder.register_forward_hook(lambda _module, _inputs, output: heard.append(output))
    try:
        yield heard
    finally:
        hook.remove()


def _deepest(heard: Sequence[Any]) -> Tensor:
    """Return the last feature map (N, channels, rows, columns) of one forward pass."""
    found = heard[0][-1] if len(heard) == 1 and isinstance(heard[0], list | tuple) else None
    if not isinstance(found, Tensor) or found.ndim != len("NCYX"):
        message = (
            "the network has no encoder that gives feature maps, the deepest one last; features "
            "need one, as networks of segmentation-models-pytorch have"
        )
        raise BackendError(message)
    return found


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = f"the device's memory is full: {error}"
        raise OutOfMemoryError(message) from error
    except RuntimeError as error:
        # the allocator for processors has no exception of its own
        if "can't allocate memory" not in str(error):
            raise
        message = f"the memory is full: {error}"
        raise OutOfMemoryError(message) from error


def _apply(view: View, tiles: Tensor) -> Tensor:
    turned = tiles.transpose(-2, -1) if view.transpose else tiles
    return turned.flip(view.flipped_axes)


def _invert(view: View, maps: Tensor) -> Tensor:
    restored = maps.flip(view.flipped_axes)
    return restored.transpose(-2, -1) if view.transpose else restored


def _to_numpy(values: Tensor) -> TileProbs:
    return values.contiguous().cpu().numpy()
