"""A whole ensemble as one ONNX graph that takes images of any size, each as a single tile."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from df2serve.backends._onnx_graph import trace_onnx
from df2serve.errors import ExportError
from df2serve.export.parity import Deviation, Reference, Run, measure
from df2serve.export.settings import Opset
from df2serve.export.system import INPUT, ExportSource

__all__ = ["OPSETS", "onnx_bytes", "onnx_runner"]

OPSETS: dict[Opset, int] = {"fiji": 17, "modern": 20}
"""Versions of the operators; what Fiji's engine reads ends at 17 with IR version 8."""

_SPACE = {0: "n", 2: "y", 3: "x"}
_LIMIT = (1 << 31) - (1 << 24)


def onnx_bytes(
    source: ExportSource, reference: Reference, facts: dict[str, Any]
) -> tuple[bytes, Deviation]:
    """Return an ONNX file and how far it deviates from the ensemble.

    Members and views share their weights. The file's metadata hold ``df2serve``: the facts and the
    deviation as JSON.

    Args:
        source: what is exported.
        reference: the ensemble, loaded.
        facts: what the file says about itself.

    Raises:
        ExportError: the weights exceed what an ONNX file holds.
        ParityError: the graph does not compute what the ensemble computes.
        BackendUnavailableError: this torch has no tracing exporter any more.
    """
    size = sum(
        tensor.nbytes for network in source.networks for tensor in network.state_dict().values()
    )
    if size > _LIMIT:
        message = f"got {size} bytes of weights, an ONNX file ends at 2 GiB; export single members"
        raise ExportError(message)
    settings = source.settings
    names = source.output_names
    rows, columns = source.tile_shape
    content = trace_onnx(
        source.whole(),
        torch.zeros(1, source.ensemble.manifest.num_channels, rows - 3, columns - 5),
        axes={INPUT: _SPACE} | {name: {0: "n"} if name == "score" else _SPACE for name in names},
        opset=OPSETS[settings.opset],
    )
    model = onnx.load_from_string(content)
    if settings.precision == "fp16":
        _store_half(model)
    deviation = measure(
        onnx_runner(model.SerializeToString()), reference.cases(whole=True), settings.variant
    )
    deviation.require(settings.tolerance, "the ONNX file")
    entry = model.metadata_props.add()
    entry.key, entry.value = "df2serve", json.dumps(facts | {"deviation": deviation.largest})
    return model.SerializeToString(), deviation


def onnx_runner(content: bytes) -> Run:
    """Return an ONNX file as a function, run on the processor."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        outputs: list[np.ndarray[Any, Any]] = session.run(None, {INPUT: images})
        return outputs

    return run


def _store_half(model: onnx.ModelProto) -> None:
    """Store weights in float16; a cast brings them back to float32 where they are used."""
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.ndim < 2:
            continue
        name = tensor.name
        half = numpy_helper.from_array(values.astype(np.float16), name=f"{name}_half")
        casts.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
        tensor.CopyFrom(half)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
