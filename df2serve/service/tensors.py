"""Tensors of the Open Inference Protocol, version 2: as JSON, or as bytes behind the JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from fastapi import Request
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import BaseModel, Field, JsonValue, ValidationError

from df2serve.config import describe_validation_error
from df2serve.service.problems import Code, Problem

__all__ = [
    "DATATYPES",
    "HEADER_LENGTH",
    "InferRequest",
    "RequestedOutput",
    "encode",
    "receive_tensor",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
_JSON_BYTES = 32 << 20
"""Largest JSON; its numbers take many times its memory. Bytes behind it are not counted."""

Datatype: TypeAlias = Literal[
    "UINT8", "UINT16", "UINT32", "INT8", "INT16", "INT32", "FP16", "FP32", "FP64"
]
DATATYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind).newbyteorder("<")
    for name, kind in {
        "UINT8": np.uint8,
        "UINT16": np.uint16,
        "UINT32": np.uint32,
        "INT8": np.int8,
        "INT16": np.int16,
        "INT32": np.int32,
        "FP16": np.float16,
        "FP32": np.float32,
        "FP64": np.float64,
    }.items()
}
_NAMES = {dtype.newbyteorder("="): name for name, dtype in DATATYPES.items()}


class InputTensor(BaseModel):
    """The image."""

    name: Literal["image"]
    shape: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1 << 31)], ...], Field(min_length=2, max_length=3)
    ]
    """Channels, rows and columns; rows and columns where there is one channel."""
    datatype: Datatype
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """``binary_data_size``: bytes of the tensor, which then follow the JSON."""
    data: list[Any] | None = None
    """Values in row-major order, flat or nested."""


class RequestedOutput(BaseModel):
    """An output that is asked for."""

    name: Literal["mask", "uncertainty", "probabilities", "labels"]
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """``binary_data``: send it as bytes behind the JSON."""


class InferRequest(BaseModel):
    """A request of the protocol."""

    id: Annotated[str, Field(max_length=255)] | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """Those of ``/v1/models/{model}/predict``, and ``binary_data_output``."""
    inputs: Annotated[tuple[InputTensor, ...], Field(min_length=1, max_length=1)]
    outputs: Annotated[tuple[RequestedOutput, ...], Field(max_length=4)] = ()


async def receive_tensor(request: Request, target: Path) -> InferRequest:
    """Read a request, and write its image as NPY; bytes go to the file as they come.

    Args:
        request: JSON, with tensors as bytes behind it where a header tells the length of the JSON.
        target: path of the NPY file, which does not exist.

    Raises:
        Problem: it is no request of the protocol.
    """
    length = _header_length(request)
    stream = request.stream()
    head = bytearray()
    async for chunk in stream:
        head += chunk
        if length is not None and len(head) >= length:
            break
        _check_size(len(head))
    cut = len(head) if length is None else length
    if len(head) < cut:
        text = f"got {len(head)} bytes; {HEADER_LENGTH} promises {cut} of JSON"
        raise Problem(Code.MALFORMED_REQUEST, text)
    asked = _parse(bytes(head[:cut]))
    tensor = asked.inputs[0]
    dtype = DATATYPES[tensor.datatype]
    if tensor.data is not None:
        if len(head) > cut:
            raise Problem(Code.BAD_PARAMETER, "the tensor image comes twice, in JSON and in bytes")
        np.save(target, _from_json(tensor), allow_pickle=False)
        return asked
    count = int(np.prod(tensor.shape, dtype=object)) * dtype.itemsize
    if tensor.parameters.get("binary_data_size") != count:
        text = (
            f"the tensor image has neither data nor binary_data_size={count}, which is what its "
            "shape and datatype take"
        )
        raise Problem(Code.BAD_PARAMETER, text)
    with target.open("xb") as file:
        facts = {"descr": dtype.str, "fortran_order": False, "shape": tensor.shape}
        npy.write_array_header_1_0(file, facts)
        written = file.write(head[cut:])
        async for chunk in stream:
            written += file.write(chunk)
    if written != count:
        text = f"got {written} bytes of the tensor image, expected {count}"
        raise Problem(Code.MALFORMED_REQUEST, text)
    return asked


def encode(
    answer: dict[str, JsonValue], arrays: Mapping[str, NDArray[Any]], binary: frozenset[str]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON if bytes follow.

    Args:
        answer: members beside the outputs.
        arrays: outputs by name.
        binary: which of them are sent as bytes.
    """
    outputs: list[JsonValue] = []
    tail = []
    for name, array in arrays.items():
        output: dict[str, JsonValue] = {
            "name": name,
            "datatype": _NAMES[array.dtype.newbyteorder("=")],
            "shape": list(array.shape),
        }
        if name in binary:
            tail.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    head = json.dumps(answer | {"outputs": outputs}, allow_nan=False).encode()
    return b"".join([head, *tail]), len(head) if tail else None


def _header_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 12:
        raise Problem(Code.MALFORMED_REQUEST, f"{HEADER_LENGTH} is no number")
    _check_size(int(text))
    return int(text)


def _check_size(size: int) -> None:
    if size > _JSON_BYTES:
        text = f"more than {_JSON_BYTES} bytes of JSON; send the tensor as bytes behind it"
        raise Problem(Code.BODY_TOO_LARGE, text, members={"limit": _JSON_BYTES})


def _parse(content: bytes) -> InferRequest:
    try:
        return InferRequest.model_validate_json(content)
    except ValidationError as error:
        if any(item["type"] == "json_invalid" for item in error.errors()):
            raise Problem(Code.MALFORMED_REQUEST, "the body is no JSON") from error
        raise Problem(Code.BAD_PARAMETER, describe_validation_error("request", error)) from error


def _from_json(tensor: InputTensor) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.array(tensor.data)
        if values.dtype.kind not in "iuf":
            message = "they are no numbers"
            raise ValueError(message)  # noqa: TRY301
        array = values.astype(DATATYPES[tensor.datatype]).reshape(tensor.shape)
    except (ValueError, OverflowError) as error:
        text = f"the data of the tensor image are no {tensor.datatype} {list(tensor.shape)}"
        raise Problem(Code.BAD_PARAMETER, f"{text}: {error}") from error
    if not np.array_equal(array, values.reshape(tensor.shape)) and array.dtype.kind in "iu":
        text = f"the data of the tensor image do not fit into {tensor.datatype}"
        raise Problem(Code.BAD_PARAMETER, text)
    return array
