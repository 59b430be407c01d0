"""PyTorch modules as ONNX graphs, by the exporter that traces."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from df2serve.artifact import activate
from df2serve.errors import BackendUnavailableError

__all__ = ["onnx_graph", "trace_onnx"]

_OPSET = 17
_AXES = {0: "n", 2: "y", 3: "x"}


class _Activated(nn.Module):
    """A network and what its outputs mean."""

    def __init__(self, network: nn.Module, *, distance: bool) -> None:
        super().__init__()
        self.network = network
        self.distance = distance

    def forward(self, tiles: Tensor) -> Tensor:
        return activate(self.network(tiles), distance=self.distance)


def onnx_graph(network: nn.Module, *, channels: int, side: int, distance: bool = False) -> bytes:
    """Return the ONNX model of a member: normalised tiles in, class probabilities out.

    Batch size, rows and columns are free.

    Args:
        network: maps tiles (N, C, Y, X) to logits (N, K, Y, X), and the distance where it has one.
        channels: C.
        side: rows and columns of the tile that is traced; a multiple of the network's own.
        distance: whether the network's last output channel is the distance; it comes out behind
            the probabilities then.

    Raises:
        BackendUnavailableError: this torch has no tracing exporter any more.
    """
    return trace_onnx(
        _Activated(network, distance=distance).eval().cpu(),
        torch.zeros(1, channels, side, side),
        axes={"tiles": _AXES, "probs": _AXES},
        opset=_OPSET,
    )


def trace_onnx(
    module: nn.Module, example: Tensor, *, axes: Mapping[str, Mapping[int, str]], opset: int
) -> bytes:
    """Return the ONNX model of a module with one input.

    The exporter that traces is used as long as torch has it: it takes a second where its successor
    takes a minute, and lets the opset be chosen.

    Args:
        module: in evaluation mode, on the processor.
        example: an input to trace with.
        axes: free axes of the input and then of the outputs, by the names that they get.
        opset: version of the operators.

    Raises:
        BackendUnavailableError: this torch has no tracing exporter any more.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # deprecation and tracer notices, checked by parity instead
        try:
            torch.onnx.export(
                module,
                (example,),
                buffer,  # type: ignore[arg-type]  # the tracing exporter writes to streams as well
                dynamo=False,
                opset_version=opset,
                input_names=list(axes)[:1],
                output_names=list(axes)[1:],
                dynamic_axes=axes,
            )
        except TypeError as error:
            message = (
                f"torch {torch.__version__} has no tracing ONNX exporter any more ({error}); "
                "use an older torch, or what needs no ONNX"
            )
            raise BackendUnavailableError(message) from error
    return buffer.getvalue()
