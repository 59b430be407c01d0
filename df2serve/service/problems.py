"""Errors as ``application/problem+json`` (RFC 9457), with codes that stay.

Nothing internal gets into an answer: no text of an unexpected exception, no traceback, no path.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from df2serve import errors
from df2serve.files import lacks_room

__all__ = [
    "Code",
    "Problem",
    "ProblemDetails",
    "UniformErrors",
    "describe_problems",
    "install",
    "problem_of",
    "response_of",
]

_log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
_RETRY_SECONDS = 5.0


class Code(Enum):
    """What went wrong: status and title; the name in lower case is what clients are told."""

    MALFORMED_REQUEST = (400, "The request is malformed")
    UNAUTHORIZED = (401, "A valid API key is needed")
    FORBIDDEN = (403, "The API key does not allow this")
    NOT_FOUND = (404, "There is nothing at this address")
    MODEL_NOT_FOUND = (404, "There is no such model")
    JOB_NOT_FOUND = (404, "There is no such job")
    UPLOAD_NOT_FOUND = (404, "There is no such upload")
    METHOD_NOT_ALLOWED = (405, "The method is not allowed here")
    NOT_ACCEPTABLE = (406, "The result cannot be sent as asked")
    IDEMPOTENCY_CONFLICT = (409, "The key was used for another request")
    JOB_NOT_READY = (409, "The job has no results yet")
    UPLOAD_INCOMPLETE = (409, "The upload is not whole yet")
    OFFSET_CONFLICT = (409, "The upload goes on at another byte")
    RESULT_EXPIRED = (410, "The results were removed")
    VERSION_MISMATCH = (412, "This version of the protocol is not spoken here")
    BODY_TOO_LARGE = (413, "The body is too large")
    IMAGE_TOO_LARGE = (413, "The image is too large")
    UNSUPPORTED_MEDIA_TYPE = (415, "The body is no image that is read here")
    UNSUPPORTED_FORMAT = (415, "The format of the image is not read")
    RANGE_NOT_SATISFIABLE = (416, "The range lies outside of the file")
    UNDECODABLE_IMAGE = (422, "The image cannot be decoded")
    AXES_MISMATCH = (422, "The axes of the image are not certain")
    CHANNEL_MISMATCH = (422, "The image does not fit the model")
    BAD_PARAMETER = (422, "A parameter is not valid")
    UPLOAD_LOCKED = (423, "Another request writes to the upload")
    RATE_LIMITED = (429, "Too many requests")
    QUOTA_EXCEEDED = (429, "There are too many uploads")
    CHECKSUM_MISMATCH = (460, "The bytes are not those of the checksum")
    CANCELLED = (499, "The request was cancelled")
    INTERNAL = (500, "Something went wrong")
    OVERLOADED = (503, "The service is busy")
    DRAINING = (503, "The service is about to end")
    MODEL_LOADING = (503, "The model is being loaded")
    MODEL_UNAVAILABLE = (503, "The model cannot be loaded")
    WORKER_LOST = (503, "The worker process ended several times")
    DEADLINE_EXCEEDED = (504, "The result took too long")
    INSUFFICIENT_STORAGE = (507, "The service has no space left")

    @property
    def status(self) -> int:
        """Status code."""
        return self.value[0]

    @property
    def title(self) -> str:
        """A sentence for people."""
        return self.value[1]

    @property
    def slug(self) -> str:
        """What stands in ``code``."""
        return self.name.lower()


_OF_ERRORS: tuple[tuple[type[errors.Df2ServeError], Code], ...] = (
    (errors.LimitExceededError, Code.IMAGE_TOO_LARGE),
    (errors.UnsupportedFormatError, Code.UNSUPPORTED_FORMAT),
    (errors.AxesError, Code.AXES_MISMATCH),
    (errors.ImageMismatchError, Code.CHANNEL_MISMATCH),
    (errors.ConfigError, Code.BAD_PARAMETER),
    (errors.InputError, Code.UNDECODABLE_IMAGE),
    (errors.ArtifactNotFoundError, Code.MODEL_NOT_FOUND),
    (errors.OutOfMemoryError, Code.INSUFFICIENT_STORAGE),
    (errors.OutputError, Code.INSUFFICIENT_STORAGE),
    (errors.ArtifactError, Code.MODEL_UNAVAILABLE),
    (errors.BackendUnavailableError, Code.MODEL_UNAVAILABLE),
    (errors.CancelledError, Code.CANCELLED),
)
_OF_STATUSES = {
    400: Code.MALFORMED_REQUEST,
    401: Code.UNAUTHORIZED,
    403: Code.FORBIDDEN,
    404: Code.NOT_FOUND,
    405: Code.METHOD_NOT_ALLOWED,
    406: Code.NOT_ACCEPTABLE,
    413: Code.BODY_TOO_LARGE,
    415: Code.UNSUPPORTED_MEDIA_TYPE,
    416: Code.RANGE_NOT_SATISFIABLE,
    422: Code.BAD_PARAMETER,
    503: Code.OVERLOADED,
}


class FieldProblem(BaseModel):
    """What is wrong with one value of a request."""

    pointer: str
    """Where it is, as ``/query/tile``."""
    detail: str


class ProblemDetails(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """``urn:df2serve:problem:`` and the code."""
    title: str
    status: int
    detail: str
    code: str = Field(examples=["undecodable_image"])
    """Stays the same over versions; the texts may change."""
    instance: str | None = None
    """Address of the request."""
    request_id: str | None = None
    """Names the request in the logs."""
    errors: list[FieldProblem] | None = None
    limit: float | None = None
    actual: float | None = None


@dataclass
class Problem(Exception):
    """An error that is to be told to the client."""

    code: Code
    detail: str
    retry_after: float | None = None
    """Seconds."""
    members: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the body."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give tracebacks and logs something to show."""
        super().__init__(f"{self.code.slug}: {self.detail}")


def problem_of(error: str, message: str) -> Problem:
    """Return the problem of an exception of a worker.

    Args:
        error: name of its class.
        message: its text; told only where the client can do something about it.
    """
    kind = getattr(errors, error, errors.Df2ServeError)
    code = next((code for base, code in _OF_ERRORS if issubclass(kind, base)), Code.INTERNAL)
    told = issubclass(kind, errors.InputError) or code in (Code.MODEL_NOT_FOUND, Code.CANCELLED)
    detail = message if told else "see the logs of the service"
    busy = code.status == HTTPStatus.SERVICE_UNAVAILABLE
    return Problem(code, detail, retry_after=_RETRY_SECONDS if busy else None)


def response_of(problem: Problem, request: Request) -> JSONResponse:
    """Return the answer to a request that has a problem."""
    status, slug = problem.code.status, problem.code.slug
    request_id = getattr(request.state, "request_id", None)
    body = {
        "type": f"urn:df2serve:problem:{slug}",
        "title": problem.code.title,
        "status": status,
        "detail": problem.detail,
        "code": slug,
        "instance": request.url.path,
        "request_id": request_id,
        **problem.members,
    }
    if request.url.path.startswith("/v2"):  # where the Open Inference Protocol looks for it
        body["error"] = problem.detail
    headers = dict(problem.headers)
    if problem.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after)))
    request.app.state.metrics.rejected(slug)
    _log.log(
        logging.ERROR if status == HTTPStatus.INTERNAL_SERVER_ERROR else logging.WARNING,
        "%s %s: %d %s",
        request.method,
        request.url.path,
        status,
        slug,
        extra={"request_id": request_id, "code": slug},
    )
    return JSONResponse(
        {key: value for key, value in body.items() if value is not None},
        status,
        headers,
        MEDIA_TYPE,
    )


def describe_problems(operation: dict[str, Any]) -> None:
    """Give the problems of an operation their own media type, in which FastAPI does not put them.

    Args:
        operation: of an OpenAPI document; changed in place.
    """
    for answer in operation["responses"].values():
        content = answer.get("content", {})
        if MEDIA_TYPE in content:
            (schema,) = (item["schema"] for item in content.values() if "schema" in item)
            answer["content"] = {MEDIA_TYPE: {"schema": schema}}


def install(app: FastAPI) -> None:
    """Answer every error of an app with a problem."""

    @app.exception_handler(Problem)
    async def _own(request: Request, problem: Problem) -> JSONResponse:
        return response_of(problem, request)

    @app.exception_handler(errors.Df2ServeError)
    async def _package(request: Request, error: errors.Df2ServeError) -> JSONResponse:
        return response_of(problem_of(type(error).__name__, str(error)), request)

    @app.exception_handler(OSError)
    async def _system(request: Request, error: OSError) -> JSONResponse:
        if not lacks_room(error):
            return await _unexpected(request, error)
        text = "the service cannot write its files at present; try again later"
        return response_of(Problem(Code.INSUFFICIENT_STORAGE, text), request)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return response_of(_validation_problem(error), request)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        code = _OF_STATUSES.get(error.status_code, Code.MALFORMED_REQUEST)
        detail = error.detail if code.status < HTTPStatus.INTERNAL_SERVER_ERROR else code.title
        headers = dict(error.headers or {})
        if code is Code.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_methods(request))
        return response_of(Problem(code, detail, headers=headers), request)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("unexpected error", exc_info=error)
        return response_of(Problem(Code.INTERNAL, "see the logs of the service"), request)


def _methods(request: Request) -> list[str]:
    """Return what may be done at an address, by all of its routes."""
    routes = iter_route_contexts(request.app.routes)  # also those of included routers
    found = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in found for method in route.methods or ()})


def _validation_problem(error: RequestValidationError) -> Problem:
    """Tell which values are wrong, without repeating them."""
    places = [
        {"pointer": "/" + "/".join(map(str, item["loc"])), "detail": str(item["msg"])}
        for item in error.errors()
    ]
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return Problem(Code.MALFORMED_REQUEST, "the body is no JSON")
    detail = "; ".join(f"{place['pointer']}: {place['detail']}" for place in places)
    return Problem(Code.BAD_PARAMETER, detail, members={"errors": places})


class UniformErrors:
    """Outermost ASGI layer: turns plain error answers of servers and middleware into problems."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on but error answers that are no problems."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        replaced = False

        async def inspect(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = {k.lower(): v for k, v in message["headers"]}
                if b"json" not in headers.get(b"content-type", b""):
                    replaced = True
                    body = _plain_body(message["status"], scope["path"])
                    kept = [(k, v) for k, v in message["headers"] if k.lower() in _KEPT_HEADERS]
                    kept += [
                        (b"content-type", MEDIA_TYPE.encode()),
                        (b"content-length", str(len(body)).encode()),
                    ]
                    await send({**message, "headers": kept})
                    content = b"" if scope["method"] == "HEAD" else body
                    await send({"type": "http.response.body", "body": content})
                    return
            if not replaced:
                await send(message)

        await self._app(scope, receive, inspect)


_KEPT_HEADERS = frozenset(
    {b"allow", b"retry-after", b"www-authenticate", b"content-range", b"connection"}
)


def _plain_body(status: int, path: str) -> bytes:
    other = Code.INTERNAL if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Code.MALFORMED_REQUEST
    code = _OF_STATUSES.get(status, other)
    return json.dumps(
        {
            "type": f"urn:df2serve:problem:{code.slug}",
            "title": code.title,
            "status": status,
            "detail": code.title,
            "code": code.slug,
            "instance": path,
        }
    ).encode()
