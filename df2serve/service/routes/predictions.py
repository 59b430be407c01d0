"""``/v1/models/{model}/predict`` and ``validate``: one image in, its result out."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field, ValidationError
from starlette.background import BackgroundTask
from starlette.types import Receive, Scope, Send

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
from df2serve.service.ingest import Upload, receive_image
from df2serve.service.jobs.info import describe
from df2serve.service.jobs.schemas import JobInfo
from df2serve.service.jobs.store import ItemSpec, JobSpec, now
from df2serve.service.messages import Done, Predict, Validate
from df2serve.service.params import PredictParams
from df2serve.service.pool import Ticket
from df2serve.service.prefer import parse_prefer
from df2serve.service.problems import Code, Problem
from df2serve.service.routes.context import Context, PredictKey, Service, problems
from df2serve.service.routes.models import ModelName
from df2serve.service.schemas import ResultInfo, Validation
from df2serve.service.uploads import UPLOAD_PATTERN

__all__ = [
    "PredictQuery",
    "ValidateQuery",
    "predict_now",
    "rendering_of",
    "result_headers",
    "router",
]

router = APIRouter(tags=["predictions"])
_POLL_SECONDS = 0.25
_SMALL_BYTES = 1 << 20
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


def image_body(*, many: bool = False) -> dict[str, Any]:
    """Describe the body of a request with images for the OpenAPI document."""
    binary = {"type": "string", "format": "binary"}
    text = "JSON object of parameters, which win over those of the address"
    id = {"type": "string", "pattern": UPLOAD_PATTERN, "description": "An upload that is whole"}
    form = {
        "type": "object",
        "anyOf": [{"required": ["image"]}, {"required": ["upload"]}],
        "properties": {
            "image": {"type": "array", "items": binary, "minItems": 1} if many else binary,
            "upload": {"type": "array", "items": id, "minItems": 1} if many else id,
            "params": {
                "type": "string",
                "contentMediaType": "application/json",
                "description": text,
            },
        },
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    if not many:
        content |= {name: {"schema": binary} for name in _IMAGE_TYPES}
    return {"requestBody": {"required": True, "content": content}}


_PROBLEMS = problems(
    Code.MALFORMED_REQUEST,
    Code.UNAUTHORIZED,
    Code.FORBIDDEN,
    Code.MODEL_NOT_FOUND,
    Code.UPLOAD_NOT_FOUND,
    Code.NOT_ACCEPTABLE,
    Code.UPLOAD_INCOMPLETE,
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
_BYTES = {"type": "string", "format": "binary"}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result, in the format of `format` or `Accept`",
        "model": ResultInfo,
        "content": {
            item.media_type: {"schema": {"type": "object"} if "json" in item.media_type else _BYTES}
            for item in FORMATS.values()
            if item.name != "json"
        },
    },
    202: {"description": "The result becomes that of a job", "model": JobInfo},
}


@router.post(
    "/v1/models/{model}/predict",
    response_class=FileResponse,
    responses=_ANSWERS | _PROBLEMS,
    openapi_extra=image_body(),
)
async def predict(
    model: ModelName,
    query: Annotated[PredictQuery, Query()],
    request: Request,
    service: Service,
    key: PredictKey,
) -> Response:
    """Segment an image, and say how much the result is to be doubted.

    A result that is not there in time, or that the client does not want to wait for, becomes a job.
    """
    facts = service.pool.model(model)
    rendering_of(query, request)  # what cannot be sent is refused before anything is received
    service.pool.admit(int(request.headers.get("content-length") or 0))
    prefer = parse_prefer(request.headers.get("prefer"))
    id = uuid.uuid4().hex
    async with service.folder(id) as folder:
        item = service.jobs.store.item(id, 0)
        item.mkdir(parents=True)
        upload, fields = await receive_image(request, item, service.take(key))
        query = merged(query, fields)
        rendering, params = rendering_of(query, request), params_of(query)
        spec = JobSpec(
            id=id,
            owner=key.name,
            created=now(),
            model=facts.name,
            params=params,
            rendering=rendering,
            items=(ItemSpec.of(upload),),
            digest=request_digest(facts.name, params, rendering, [upload]),
        )
        if not prefer.respond_async:
            ticket = service.pool.submit(service.jobs.task(spec, 0), size=upload.size)
            most = service.settings.sync_seconds
            seconds = most if prefer.wait is None else min(most, prefer.wait)
            done = await wait_for(ticket, request, service, seconds)
            if done is not None:
                folder.keep = True
                return _answer(service, done, rendering, folder.path)
        if "jobs" not in key.scopes:
            raise Problem(
                Code.DEADLINE_EXCEEDED, "the result took too long, and the key has no jobs"
            )
        folder.keep = True
        job = await service.jobs.add(spec)
    place = f"/v1/jobs/{id}"
    headers = {"Location": place, "Preference-Applied": "respond-async"}
    return JSONResponse(describe(service.jobs, job).model_dump(mode="json"), 202, headers)


@router.post(
    "/v1/models/{model}/validate",
    responses=_PROBLEMS,
    openapi_extra=image_body(),
)
async def validate(
    model: ModelName,
    query: Annotated[ValidateQuery, Query()],
    request: Request,
    service: Service,
    key: PredictKey,
) -> Validation:
    """Say what a prediction of an image would be, from its header alone."""
    facts = service.pool.model(model)
    id = uuid.uuid4().hex
    async with service.folder(id) as folder:
        upload, fields = await receive_image(request, folder.path, service.take(key))
        query = merged(query, fields)
        done = await service.pool.ask(
            Validate(
                id=id,
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


async def wait_for(
    ticket: Ticket, request: Request, service: Context, seconds: float
) -> Done | None:
    """Wait for a task while the client does; None if that takes longer.

    Raises:
        Problem: the task failed.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while (left := deadline - asyncio.get_running_loop().time()) > 0:
        done, _ = await asyncio.wait([ticket.future], timeout=min(left, _POLL_SECONDS))
        if done:
            return ticket.future.result()
        if await request.is_disconnected():
            service.pool.cancel(ticket)
            raise Problem(Code.CANCELLED, "the client went away")
    return None


async def predict_now(service: Context, request: Request, task: Predict, *, size: int) -> Done:
    """Predict an image for a client that cannot be given a job.

    Raises:
        Problem: it fails, or takes longer than a request may.
    """
    ticket = service.pool.submit(task, size=size)
    done = await wait_for(ticket, request, service, service.settings.sync_seconds)
    if done is None:
        service.pool.cancel(ticket)
        text = "the result took too long; ask at /v1/models/{model}/predict, which makes a job"
        raise Problem(Code.DEADLINE_EXCEEDED, text)
    return done


def request_digest(
    model: str, params: PredictParams, rendering: Rendering, uploads: Sequence[Upload]
) -> str:
    """Return a hash of everything that was asked for."""
    asked = [
        model,
        params.model_dump(mode="json", exclude_none=True),
        rendering.format,
        rendering.outputs,
        [(upload.name, upload.sha256) for upload in uploads],
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def repr_digest(digest: bytes) -> dict[str, str]:
    """Return the header with the hash of a file (RFC 9530)."""
    return {"Repr-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:"}


def result_headers(info: ResultInfo) -> dict[str, str]:
    """Return what every answer with a result says in its headers."""
    quality = info.quality
    phases = info.timing.model_dump().items()
    headers = {
        "Server-Timing": ", ".join(f"{name};dur={1e3 * seconds:.1f}" for name, seconds in phases),
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


class _FileAnswer(FileResponse):
    """A file; a small one is sent at once, where threads would take longer to read it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if int(self.headers["content-length"]) > _SMALL_BYTES:
            await super().__call__(scope, receive, send)
        else:
            self.body = Path(self.path).read_bytes()
            await Response.__call__(self, scope, receive, send)


def _answer(service: Context, done: Done, rendering: Rendering, folder: Path) -> FileResponse:
    if done.result is None or done.path is None:
        raise Problem(Code.INTERNAL, "see the logs of the service")
    service.metrics.result(done.result)
    item = FORMATS[rendering.format]
    stem = Path(done.result.input.name).stem
    return _FileAnswer(
        done.path,
        stat_result=Path(done.path).stat(),
        media_type=item.media_type,
        filename=f"{stem}{item.suffix}",
        content_disposition_type="inline" if item.name == "json" else "attachment",
        headers=result_headers(done.result),
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )


def merged(query: Any, fields: Mapping[str, str]) -> Any:
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
