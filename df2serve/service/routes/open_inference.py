"""``/v2``: the Open Inference Protocol of KServe, Triton and others, version 2."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from df2serve._version import __version__
from df2serve.config import describe_validation_error
from df2serve.service.formats import Output, Rendering
from df2serve.service.messages import Done, Predict
from df2serve.service.params import PredictParams
from df2serve.service.problems import Code, Problem
from df2serve.service.routes.context import PredictKey, Service, problems
from df2serve.service.routes.models import ModelName
from df2serve.service.routes.predictions import predict_now, result_headers
from df2serve.service.schemas import ModelFacts
from df2serve.service.tensors import HEADER_LENGTH, InferRequest, encode, receive_tensor

__all__ = ["COMPONENTS", "router"]

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
_BINARY = "binary_data_output"
_DEFAULT: tuple[Output, ...] = ("mask", "uncertainty", "probabilities")
_KNOWN = problems(Code.UNAUTHORIZED, Code.FORBIDDEN, Code.MODEL_NOT_FOUND, Code.BAD_PARAMETER)
_SCHEMA = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
COMPONENTS: dict[str, Any] = _SCHEMA.pop("$defs")
"""Schemas that the document of the service has to hold, because we read the body ourselves."""
_TENSORS: dict[str, Any] = {
    "application/json": {"schema": {"type": "object"}},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}
"""JSON, or JSON with tensors as bytes behind it."""
_EXAMPLE = {
    "inputs": [{"name": "image", "shape": [2, 2], "datatype": "UINT8", "data": [1, 2, 3, 4]}]
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": _TENSORS | {"application/json": {"schema": _SCHEMA, "example": _EXAMPLE}},
    }
}
_INFER = (
    {200: {"description": "The outputs", "content": _TENSORS}}
    | _KNOWN
    | problems(
        Code.MALFORMED_REQUEST,
        Code.BODY_TOO_LARGE,
        Code.IMAGE_TOO_LARGE,
        Code.CHANNEL_MISMATCH,
        Code.RATE_LIMITED,
        Code.OVERLOADED,
        Code.DEADLINE_EXCEEDED,
        Code.INSUFFICIENT_STORAGE,
    )
)


@router.get("")
async def server() -> dict[str, JsonValue]:
    """Tell what the server is."""
    return {"name": "df2serve", "version": __version__, "extensions": ["binary_tensor_data"]}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """Answer as long as the process runs."""
    return {"live": True}


@router.get("/health/ready", responses={503: {"model": dict[str, bool]}})
async def ready(service: Service, response: Response) -> dict[str, bool]:
    """Say whether requests are taken."""
    is_ready = not service.pool.reasons_not_ready()
    response.status_code = 200 if is_ready else 503
    return {"ready": is_ready}


def _chosen(request: Request, model: ModelName, service: Service, _: PredictKey) -> ModelFacts:
    """Return the model of an address, whose one version is the revision of the ensemble."""
    facts = service.pool.model(model)
    if request.path_params.get("version", facts.revision) != facts.revision:
        text = f"the model has the version {facts.revision} alone"
        raise Problem(Code.MODEL_NOT_FOUND, text)
    return facts


Chosen = Annotated[ModelFacts, Depends(_chosen)]
_VERSION: dict[str, Any] = {
    "parameters": [
        {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
}


@router.get("/models/{model}/versions/{version}/ready", responses=_KNOWN, openapi_extra=_VERSION)
@router.get("/models/{model}/ready", responses=_KNOWN)
async def model_ready(facts: Chosen) -> dict[str, JsonValue]:
    """Say whether a model can be used; it is loaded with its first request."""
    if facts.state == "failed":
        raise Problem(Code.MODEL_UNAVAILABLE, "see the logs of the service", retry_after=30)
    return {"name": facts.name, "ready": True}


@router.get("/models/{model}/versions/{version}", responses=_KNOWN, openapi_extra=_VERSION)
@router.get("/models/{model}", responses=_KNOWN)
async def describe_model(facts: Chosen) -> dict[str, Any]:
    """Tell the tensors of a model; its one version is the revision of the ensemble."""
    classes = len(facts.classes)
    return {
        "name": facts.name,
        "versions": [facts.revision],
        "platform": "df2serve_ensemble",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [len(facts.channels), -1, -1]}],
        "outputs": [
            {"name": "mask", "datatype": "UINT8", "shape": [-1, -1]},
            {"name": "uncertainty", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [classes, -1, -1]},
        ],
    }


@router.post(
    "/models/{model}/versions/{version}/infer",
    responses=_INFER,
    response_class=Response,
    openapi_extra=_BODY | _VERSION,
)
@router.post(
    "/models/{model}/infer", responses=_INFER, response_class=Response, openapi_extra=_BODY
)
async def infer(facts: Chosen, request: Request, service: Service) -> Response:
    """Predict a tensor ``image``: channels, rows and columns, of any number type.

    Outputs are ``mask``, ``uncertainty``, ``probabilities`` and, with the parameter ``instances``,
    ``labels``. Parameters of the answer tell U and whether it calls for review.
    """
    size = int(request.headers.get("content-length") or 0)
    service.pool.admit(size)
    id = uuid.uuid4().hex
    async with service.folder(id) as folder:
        image = folder.path / "image.npy"
        asked = await receive_tensor(request, image)
        task = Predict(
            id=id,
            model=facts.name,
            image=str(image),
            name="image",
            params=_params(asked),
            rendering=Rendering("npz", _outputs(asked)),
            target=str(folder.path),
        )
        done = await predict_now(service, request, task, size=size)
        body, length = await asyncio.to_thread(_encode, asked, facts, done)
    if done.result is None:
        raise Problem(Code.INTERNAL, "see the logs of the service")
    service.metrics.result(done.result)
    headers = result_headers(done.result)
    if length is None:
        return Response(body, media_type="application/json", headers=headers)
    headers[HEADER_LENGTH] = str(length)
    return Response(body, media_type="application/octet-stream", headers=headers)


def _params(asked: InferRequest) -> PredictParams:
    given = {name: value for name, value in asked.parameters.items() if name != _BINARY}
    axes = "CYX"[-len(asked.inputs[0].shape) :]
    try:
        return PredictParams.model_validate({"axes": axes} | given)
    except ValidationError as error:
        raise Problem(Code.BAD_PARAMETER, describe_validation_error("parameters", error)) from error


def _outputs(asked: InferRequest) -> tuple[Output, ...]:
    if asked.outputs:
        return tuple(dict.fromkeys(output.name for output in asked.outputs))
    return (*_DEFAULT, "labels") if asked.parameters.get("instances") else _DEFAULT


def _encode(asked: InferRequest, facts: ModelFacts, done: Done) -> tuple[bytes, int | None]:
    if done.result is None or done.path is None:
        raise Problem(Code.INTERNAL, "see the logs of the service")
    quality = done.result.quality
    told = {
        "uncertainty_score": quality.uncertainty_score,
        "undefined_reason": quality.undefined_reason,
        "needs_review": quality.needs_review,
    }
    answer: dict[str, JsonValue] = {
        "model_name": facts.name,
        "model_version": done.result.model.revision,
        "parameters": {name: value for name, value in told.items() if value is not None},
    }
    if asked.id is not None:
        answer["id"] = asked.id
    arrays: dict[str, NDArray[Any]]
    with np.load(Path(done.path), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in _outputs(asked)}
    everything = bool(asked.parameters.get(_BINARY))
    chosen: dict[str, bool] = {
        o.name: bool(o.parameters.get("binary_data", everything)) for o in asked.outputs
    }
    binary = frozenset(name for name in arrays if chosen.get(name, everything))
    return encode(answer, arrays, binary)
