"""From an ensemble on disk to members that run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn

from df2serve.artifact import Ensemble, input_multiple
from df2serve.backends.runner import MemberRunner
from df2serve.config import Precision, RuntimeConfig
from df2serve.errors import BackendUnavailableError, ConfigError

__all__ = ["open_members"]


@contextmanager
def open_members(
    ensemble: Ensemble,
    *,
    runtime: RuntimeConfig,
    precision: Precision,
    tile_shape: tuple[int, int],
) -> Iterator[Sequence[MemberRunner]]:
    """Load all members; they are closed when the context ends.

    Args:
        ensemble: where the weights are.
        runtime: backend and device; ``auto`` takes torch.
        precision: arithmetic of the networks.
        tile_shape: rows and columns of the tiles that will come.

    Raises:
        BackendUnavailableError: backend, device or precision is not available here.
        ConfigError: a network cannot take tiles of this shape.
        ArtifactError: a member is damaged.
    """
    distance = ensemble.manifest.has_distance
    with ExitStack() as stack:
        yield [
            stack.enter_context(_open(network, runtime, precision, tile_shape, distance=distance))
            for network in map(ensemble.load_member, range(len(ensemble)))
        ]


def _open(
    network: nn.Module,
    runtime: RuntimeConfig,
    precision: Precision,
    tile_shape: tuple[int, int],
    *,
    distance: bool,
) -> MemberRunner:
    multiple = input_multiple(network)
    if any(side % multiple for side in tile_shape):
        message = (
            f"got tiles of {tile_shape[0]}x{tile_shape[1]} pixels, this network needs multiples of "
            f"{multiple}"
        )
        raise ConfigError(message)
    if runtime.backend == "onnx":
        return _open_onnx(network, runtime, precision, tile_shape, distance=distance)
    from df2serve.backends.torch import TorchMemberRunner

    return TorchMemberRunner(network, device=runtime.device, precision=precision, distance=distance)


def _open_onnx(
    network: nn.Module,
    runtime: RuntimeConfig,
    precision: Precision,
    tile_shape: tuple[int, int],
    *,
    distance: bool,
) -> MemberRunner:
    if precision not in ("auto", "fp32"):
        message = f"the onnx backend runs in fp32, got precision {precision!r}; use backend 'torch'"
        raise BackendUnavailableError(message)
    try:
        from df2serve.backends._onnx_graph import onnx_graph
        from df2serve.backends.onnx import OnnxMemberRunner
    except ImportError as error:
        message = f"the onnx backend is not installed ({error}); pip install 'df2serve[onnx]'"
        raise BackendUnavailableError(message) from error
    channels = int(network.config["in_channels"])  # type: ignore[index]  # every member has it
    graph = onnx_graph(network, channels=channels, side=max(tile_shape), distance=distance)
    return OnnxMemberRunner(graph, device=runtime.device, distance=distance)
