"""Addresses that Hugging Face Inference Endpoints and SageMaker call, for the default model."""

from __future__ import annotations

import asyncio
import base64
import binascii
import uuid
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from df2serve.service.formats import Output, Rendering
from df2serve.service.ingest import safe_name
from df2serve.service.messages import Done, Predict
from df2serve.service.problems import Code, Problem
from df2serve.service.routes.context import PredictKey, Service, problems
from df2serve.service.routes.predictions import ValidateQuery, params_of, predict_now
from df2serve.service.schemas import ResultInfo, Schema

__all__ = ["router"]

router = APIRouter(tags=["predictions"])
_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4"
    "AAAADklEQVR4nGNkZGRhYgQAACYAC45g50EAAAAASUVORK5CYII="
)
"""A PNG of 2 by 2 pixels, as an example."""


class InvocationParameters(ValidateQuery):
    """Parameters of an invocation."""

    outputs: Annotated[tuple[Output, ...], Field(max_length=16)] = ("mask", "uncertainty")
    """What the answer holds."""


class Invocation(Schema):
    """An image and what to do with it."""

    inputs: Annotated[
        str, Field(examples=[_PICTURE], json_schema_extra={"contentEncoding": "base64"})
    ]
    """The file of an image, such as TIFF, NPY or PNG, in base64."""
    parameters: InvocationParameters = InvocationParameters()


class Invoked(Schema):
    """A result."""

    result: ResultInfo
    outputs: dict[Output, str]
    """Files of the outputs in base64: TIFF, PNG for pictures, CSV for the table of objects."""


@router.post("/", include_in_schema=False)
@router.post("/predict", include_in_schema=False)
@router.post(
    "/invocations",
    responses=problems(
        Code.MALFORMED_REQUEST,
        Code.UNAUTHORIZED,
        Code.FORBIDDEN,
        Code.MODEL_NOT_FOUND,
        Code.BODY_TOO_LARGE,
        Code.IMAGE_TOO_LARGE,
        Code.UNSUPPORTED_FORMAT,
        Code.BAD_PARAMETER,
        Code.RATE_LIMITED,
        Code.OVERLOADED,
        Code.DEADLINE_EXCEEDED,
        Code.INSUFFICIENT_STORAGE,
    ),
)
async def invoke(asked: Invocation, request: Request, service: Service, _: PredictKey) -> Invoked:
    """Predict an image that comes as text, as hosts of models send it."""
    name, given = service.pool.default, asked.parameters
    if name is None:
        raise Problem(Code.MODEL_NOT_FOUND, "the service has no models")
    content = await asyncio.to_thread(_decoded, asked.inputs)
    id = uuid.uuid4().hex
    service.pool.admit(len(content))
    async with service.folder(id) as folder:
        image = folder.path / f"{id}.upload"
        await asyncio.to_thread(image.write_bytes, content)
        task = Predict(
            id=id,
            model=name,
            image=str(image),
            name=safe_name(given.name),
            params=params_of(given),
            rendering=Rendering("json", tuple(dict.fromkeys(given.outputs))),
            target=str(folder.path),
        )
        done = await predict_now(service, request, task, size=len(content))
        service.metrics.result(_result(done))
        return await asyncio.to_thread(_invoked, done, given.outputs, folder.path)


def _decoded(text: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(
            Code.BAD_PARAMETER, "inputs: expected the file of an image, in base64"
        ) from error
    if not content:
        raise Problem(Code.MALFORMED_REQUEST, "inputs is empty; send the file of an image")
    return content


def _result(done: Done) -> ResultInfo:
    if done.result is None:
        raise Problem(Code.INTERNAL, "see the logs of the service")
    return done.result


def _invoked(done: Done, outputs: tuple[Output, ...], folder: Path) -> Invoked:
    files = {output: (folder / done.files[output]).read_bytes() for output in outputs}
    texts = {output: base64.b64encode(content).decode() for output, content in files.items()}
    return Invoked(result=_result(done), outputs=texts)
