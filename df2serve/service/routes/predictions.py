"""``/v1/models/{model}/predict`` and ``validate``: one image in, its result out."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field, ValidationError
from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from df2serve.config import describe_validation_error
from df2serve.service.formats import (
    FORMATS,
    Format,
    FormatName,
    Output,
    Rendering,
    choose,
    negotiate,
)
from df2serve.service.ingest import receive_image
from df2serve.service.messages import Done, Predict, Validate
from df2serve.service.params import PredictParams
from df2serve.service.pool import Ticket
from df2serve.service.problems import Code, Problem
from df2serve.service.routes.context import Context, PredictKey, Service, problems
from df2serve.service.routes.models import ModelName
from df2serve.service.schemas import ResultInfo, Validation

__all__ = ["PredictQuery", "ValidateQuery", "rendering_of", "result_headers", "router"]

router = APIRouter(tags=["predictions"])
_POLL_SECONDS = 0.25
_IMAGE_TYPES = (
    "image/tiff", "image/ome.tiff", "image/png", "image/jpeg", "application/x-npy",
    "application/zip", "application/octet-stream",
)  # fmt: skip


class ValidateQuery(PredictParams):
    """Parameters of ``validate``."""

    name: Annotated[str, Field(max_length=255)] | None = None
    """Name of the image, shown in results."""


class PredictQuery(ValidateQuery):
    """Parameters of ``predict``."""

    format: FormatName | None = None
    """Format of the answer; wins over ``Accept``."""
    outputs: Annotated[str, Field(pattern=r"^[a-z]{1,16}(,[a-z]{1,16}){0,15}$")] | None = None
    """What the answer holds, such as ``mask,uncertainty``; depends on the format when absent."""


def _body(**fields: str) -> dict[str, Any]:
    """Describe the body of an image for the OpenAPI document."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "format": "binary"}}
            | {name: {"type": "string", "description": text} for name, text in fields.items()},
        }
    }
    content = dict.fromkeys(_IMAGE_TYPES, binary) | {"multipart/form-data": form}
    return {"requestBody": {"required": True, "content": content}}


_PROBLEMS = problems(
    Code.MALFORMED_REQUEST,
    Code.UNAUTHORIZED,
    Code.FORBIDDEN,
    Code.MODEL_NOT_FOUND,
    Code.NOT_ACCEPTABLE,
    Code.BODY_TOO_LARGE,
    Code.IMAGE_TOO_LARGE,
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.UNSUPPORTED_FORMAT,
    Code.UNDECODABLE_IMAGE,
    Code.AXES_MISMATCH,
    Code.CHANNEL_MISMATCH,
    Code.BAD_PARAMETER,
    Code.RATE_LIMITED,
    Code.OVERLOADED,
    Code.DRAINING,
    Code.MODEL_UNAVAILABLE,
    Code.WORKER_LOST,
    Code.DEADLINE_EXCEEDED,
    Code.INSUFFICIENT_STORAGE,
)
_ANSWERS = {
    200: {
        "description": "The result, in the format of `format` or `Accept`",
        "content": {
            item.media_type: (
                {
                    "schema": ResultInfo.model_json_schema(
                        ref_template="#/components/schemas/{model}"
                    )
                }
                if item.name == "json"
                else {"schema": {"type": "string", "format": "binary"}}
            )
            for item in FORMATS.values()
        },
    }
}


@router.post(
    "/v1/models/{model}/predict",
    response_class=FileResponse,
    responses=_ANSWERS | _PROBLEMS,
    openapi_extra=_body(params="JSON object of parameters, which win over those of the address"),
)
async def predict(
    model: ModelName,
    query: Annotated[PredictQuery, Query()],
    request: Request,
    service: Service,
    _: PredictKey,
) -> FileResponse:
    """Segment an image, and say how much the result is to be doubted."""
    facts = service.pool.model(model)
    rendering_of(query, request)
    service.pool.admit(int(request.headers.get("content-length") or 0))
    async with _folder(service) as folder:
        upload, fields = await receive_image(request, folder, service.settings)
        query = _merged(query, fields)
        rendering = rendering_of(query, request)
        ticket = service.pool.submit(
            Predict(
                id=folder.name,
                model=facts.name,
                image=str(upload.path),
                name=upload.name,
                params=params_of(query),
                rendering=rendering,
                target=str(folder),
            ),
            size=upload.size,
        )
        done = await wait_for(ticket, request, service)
        return _answer(service, done, rendering, folder)
    raise AssertionError  # the folder's context never swallows


@router.post(
    "/v1/models/{model}/validate",
    responses=_PROBLEMS,
    openapi_extra=_body(params="JSON object of parameters, which win over those of the address"),
)
async def validate(
    model: ModelName,
    query: Annotated[ValidateQuery, Query()],
    request: Request,
    service: Service,
    _: PredictKey,
) -> Validation:
    """Say what a prediction of an image would be, from its header alone."""
    facts = service.pool.model(model)
    async with _folder(service, keep=False) as folder:
        upload, fields = await receive_image(request, folder, service.settings)
        query = _merged(query, fields)
        done = await service.pool.ask(
            Validate(
                id=folder.name,
                model=facts.name,
                image=str(upload.path),
                name=upload.name,
                params=params_of(query),
            )
        )
        if done.validation is None:
            raise Problem(Code.INTERNAL, "see the logs of the service")
        seconds = service.pool.seconds_for(done.validation.passes)
        return done.validation.model_copy(update={"seconds": seconds})


def params_of(query: ValidateQuery) -> PredictParams:
    """Return the part of the parameters that concerns the computation."""
    return PredictParams(**query.model_dump(include=set(PredictParams.model_fields)))


def rendering_of(query: PredictQuery, request: Request) -> Rendering:
    """Return what the answer is to be.

    Raises:
        Problem: the client takes nothing that we have.
        ConfigError: format and outputs do not fit each other.
    """
    item: Format | None = negotiate(request.headers.get("accept"), query.format)
    if item is None:
        offered = ", ".join(item.media_type for item in FORMATS.values())
        raise Problem(Code.NOT_ACCEPTABLE, f"the result can be sent as {offered}")
    return choose(item, outputs_of(query), objects=query.instances is not None)


def outputs_of(query: PredictQuery) -> tuple[Output, ...]:
    """Return the outputs that were named.

    Raises:
        Problem: one of them does not exist.
    """
    named = query.outputs.split(",") if query.outputs else []
    known = {output for item in FORMATS.values() for output in item.holds}
    if unknown := sorted(set(named) - known):
        text = f"unknown outputs {', '.join(unknown)}; choose of {', '.join(sorted(known))}"
        raise Problem(Code.BAD_PARAMETER, text)
    return tuple(named)  # type: ignore[arg-type]  # checked above


async def wait_for(ticket: Ticket, request: Request, service: Context) -> Done:
    """Wait for a task while the client does.

    Raises:
        Problem: the task failed, or took too long.
    """
    deadline = asyncio.get_running_loop().time() + service.settings.sync_seconds
    while True:
        done, _ = await asyncio.wait([ticket.future], timeout=_POLL_SECONDS)
        if done:
            return ticket.future.result()
        if await request.is_disconnected():
            service.pool.cancel(ticket)
            raise Problem(Code.CANCELLED, "the client went away")
        if asyncio.get_running_loop().time() > deadline:
            service.pool.cancel(ticket)
            text = f"the result took more than {service.settings.sync_seconds:g} s"
            raise Problem(Code.DEADLINE_EXCEEDED, text)


def result_headers(info: ResultInfo) -> dict[str, str]:
    """Return what every answer with a result says in its headers."""
    quality = info.quality
    headers = {
        "DF2-Model": info.model.name,
        "DF2-Model-Digest": f"sha256:{info.model.sha256}",
        "DF2-Software": f"df2serve {info.software['df2serve']}; {info.software['device']}",
    }
    if quality.uncertainty_score is not None:
        headers["DF2-Uncertainty"] = repr(quality.uncertainty_score)
    if quality.undefined_reason is not None:
        headers["DF2-Undefined-Reason"] = quality.undefined_reason
    if quality.needs_review is not None:
        headers["DF2-Needs-Review"] = str(quality.needs_review).lower()
    return headers


def _answer(service: Context, done: Done, rendering: Rendering, folder: Path) -> FileResponse:
    if done.result is None or done.path is None:
        raise Problem(Code.INTERNAL, "see the logs of the service")
    service.metrics.result(done.result)
    item = FORMATS[rendering.format]
    stem = Path(done.result.input.name).stem
    return FileResponse(
        done.path,
        media_type=item.media_type,
        filename=f"{stem}{item.suffix}",
        content_disposition_type="inline" if item.name == "json" else "attachment",
        headers=result_headers(done.result),
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )


def _merged(query: Any, fields: Mapping[str, str]) -> Any:
    """Return the parameters with those of a form's field ``params``.

    Raises:
        Problem: they are none.
    """
    if "params" not in fields:
        return query
    try:
        given = type(query).model_validate_json(fields["params"])
    except ValidationError as error:
        raise Problem(Code.BAD_PARAMETER, describe_validation_error("params", error)) from error
    return query.model_copy(update=given.model_dump(exclude_unset=True))


@asynccontextmanager
async def _folder(service: Context, *, keep: bool = True) -> AsyncIterator[Path]:
    """Give a folder for one request; it is removed unless all goes well and it is to be kept."""
    folder = service.work / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
