"""What an ONNX file says of itself, read without running it and without its external data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxFacts", "OnnxFileError", "OnnxValue", "read_onnx"]


class OnnxFileError(Exception):
    """The file is no ONNX model."""


@dataclass(frozen=True)
class OnnxValue:
    """An input or an output of the graph."""

    name: str
    dtype: str
    """Element type in lower case, such as ``float``; ``undefined`` if it is no tensor."""
    rank: int | None
    """Number of axes; None if not stated."""


@dataclass(frozen=True)
class OnnxFacts:
    """Versions, domains and signature of a model."""

    ir_version: int
    opset: int | None
    """Version of the standard operators."""
    domains: frozenset[str]
    """Other operators' domains."""
    external: bool
    """Whether weights lie in other files."""
    inputs: tuple[OnnxValue, ...]
    """What a caller gives: without the weights."""
    outputs: tuple[OnnxValue, ...]


def read_onnx(path: Path) -> OnnxFacts:
    """Read an ONNX file.

    Raises:
        OnnxFileError: it is none.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError, OSError, RecursionError) as error:
        message = f"no ONNX model: {error}"
        raise OnnxFileError(message) from error
    opsets: Mapping[str, int] = {
        "" if item.domain == "ai.onnx" else item.domain: item.version for item in model.opset_import
    }
    graphs = list(_graphs(model.graph))
    used = {node.domain for graph in graphs for node in graph.node}
    weights = {tensor.name for tensor in model.graph.initializer}
    return OnnxFacts(
        ir_version=model.ir_version,
        opset=opsets.get(""),
        domains=frozenset((used | set(opsets)) - {"", "ai.onnx"}),
        external=any(_is_external(tensor) for graph in graphs for tensor in _tensors(graph)),
        inputs=tuple(_value(item) for item in model.graph.input if item.name not in weights),
        outputs=tuple(_value(item) for item in model.graph.output),
    )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the bodies of its branches and loops."""
    waiting = [graph]
    while waiting:
        current = waiting.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _is_external(tensor: onnx.TensorProto) -> bool:
    import onnx

    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _value(item: onnx.ValueInfoProto) -> OnnxValue:
    import onnx

    tensor = item.type.tensor_type
    return OnnxValue(
        name=item.name,
        dtype=onnx.TensorProto.DataType.Name(tensor.elem_type).lower(),
        rank=len(tensor.shape.dim) if tensor.HasField("shape") else None,
    )
