"""``/v1/uploads``: images that come in several requests, by the protocol tus 1.0.0 (tus.io)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from pydantic import Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from df2serve.service.problems import Code, Problem
from df2serve.service.routes.context import Context, JobsKey, Service, problems
from df2serve.service.schemas import UploadInfo, UploadList
from df2serve.service.uploads import ALGORITHMS, UPLOAD_PATTERN, UploadSpec, parse_checksum

__all__ = ["TusLayer", "router"]

router = APIRouter(tags=["uploads"])
_PLACE = "/v1/uploads"
_VERSION = "1.0.0"
_EXTENSIONS = "creation,expiration,termination,checksum"
_PART = "application/offset+octet-stream"
_OVERRIDES = ("DELETE", "PATCH")
_METADATA_LENGTH = 4096
Length = Annotated[str, Field(pattern=r"^[0-9]{1,15}$")]
"""A number of bytes; a plain integer would also take ``1_0`` and ``1.0``."""


def _version(request: Request) -> None:
    """Refuse other versions of the protocol before anything is done.

    Raises:
        Problem: it is one.
    """
    given = request.headers.get("tus-resumable")
    if given != _VERSION:
        text = f"send the header 'Tus-Resumable: {_VERSION}'"
        raise Problem(Code.VERSION_MISMATCH, text, headers={"Tus-Version": _VERSION})


def _upload(
    upload: Annotated[str, Path(pattern=UPLOAD_PATTERN)], service: Service, key: JobsKey
) -> UploadSpec:
    return service.uploads.get(upload, key.name)


Version = Annotated[
    Literal["1.0.0"], Header(alias="Tus-Resumable", description="Version of the protocol")
]
"""For the document; :func:`_version` has checked it before."""
Upload = Annotated[UploadSpec, Depends(_upload)]
_TUS = [Depends(_version)]
_KEYS = (Code.UNAUTHORIZED, Code.FORBIDDEN)
_KNOWN = (*_KEYS, Code.UPLOAD_NOT_FOUND, Code.BAD_PARAMETER)


def _headers(**descriptions: str) -> dict[str, Any]:
    """Describe headers of an answer for the OpenAPI document."""
    return {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}}
        for name, text in descriptions.items()
    }


_EXPIRES = _headers(Upload_Expires="When it is removed; later with every byte")
_OFFSET = _headers(Upload_Offset="Bytes that have come")


@router.options(
    _PLACE,
    status_code=204,
    responses=problems(*_KEYS)
    | {
        204: {
            "headers": _headers(
                Tus_Version="Versions that are spoken",
                Tus_Max_Size="Bytes of an upload",
                Tus_Extension="Extensions that are spoken",
                Tus_Checksum_Algorithm="Checksums that are known",
            )
        }
    },
)
async def capabilities(service: Service, _: JobsKey) -> Response:
    """Tell what of the protocol is spoken."""
    headers = {
        "Tus-Version": _VERSION,
        "Tus-Max-Size": str(service.uploads.largest),
        "Tus-Extension": _EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }
    return Response(status_code=204, headers=headers)


@router.post(
    _PLACE,
    status_code=201,
    dependencies=_TUS,
    responses=problems(
        *_KEYS,
        Code.MALFORMED_REQUEST,
        Code.VERSION_MISMATCH,
        Code.BODY_TOO_LARGE,
        Code.BAD_PARAMETER,
        Code.RATE_LIMITED,
        Code.QUOTA_EXCEEDED,
        Code.DRAINING,
        Code.INSUFFICIENT_STORAGE,
    )
    | {201: {"headers": _headers(Location="Where its bytes are to be sent") | _EXPIRES}},
)
async def create_upload(
    request: Request,
    response: Response,
    service: Service,
    key: JobsKey,
    upload_length: Annotated[
        Length, Header(alias="Upload-Length", description="Bytes of the file")
    ],
    _: Version,
    upload_metadata: Annotated[
        str | None,
        Header(
            alias="Upload-Metadata",
            max_length=_METADATA_LENGTH,
            description="Names with values in base64, such as `filename Y2VsbHMudGlm`",
        ),
    ] = None,
) -> UploadInfo:
    """Announce a file, whose bytes come with further requests."""
    if service.pool.draining:
        raise Problem(Code.DRAINING, "the service ends; try again", retry_after=10)
    async for chunk in request.stream():
        if chunk:
            raise Problem(Code.MALFORMED_REQUEST, f"send the bytes with PATCH, as {_PART}")
    spec = await service.uploads.create(key.name, int(upload_length), upload_metadata)
    response.headers["Location"] = f"{_PLACE}/{spec.id}"
    response.headers["Upload-Expires"] = _expires(service, spec)
    return _info(service, spec)


@router.get(_PLACE, responses=problems(*_KEYS))
async def list_uploads(service: Service, key: JobsKey) -> UploadList:
    """List one's own uploads, the oldest first."""
    return UploadList(uploads=tuple(_infos(service, key.name)))


@router.head(
    _PLACE + "/{upload}",
    dependencies=_TUS,
    responses=problems(*_KNOWN, Code.VERSION_MISMATCH)
    | {
        200: {
            "headers": _OFFSET
            | _headers(Upload_Length="Bytes of the file")
            | _EXPIRES
            | _headers(Upload_Metadata="As it was announced, if it was")
        }
    },
    response_class=Response,
)
async def upload_offset(spec: Upload, service: Service, _: Version) -> Response:
    """Tell how many bytes have come."""
    headers = {
        "Upload-Offset": str(service.uploads.offset(spec)),
        "Upload-Length": str(spec.length),
        "Upload-Expires": _expires(service, spec),
    }
    if spec.metadata is not None:
        headers["Upload-Metadata"] = spec.metadata
    return Response(headers=headers)


@router.patch(
    _PLACE + "/{upload}",
    status_code=204,
    dependencies=_TUS,
    responses=problems(
        *_KNOWN,
        Code.MALFORMED_REQUEST,
        Code.OFFSET_CONFLICT,
        Code.VERSION_MISMATCH,
        Code.BODY_TOO_LARGE,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.UPLOAD_LOCKED,
        Code.CHECKSUM_MISMATCH,
        Code.CANCELLED,
        Code.INSUFFICIENT_STORAGE,
    )
    | {204: {"headers": _OFFSET | _EXPIRES}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {_PART: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def write_upload(
    spec: Upload,
    request: Request,
    service: Service,
    upload_offset: Annotated[
        Length, Header(alias="Upload-Offset", description="Bytes that have come before")
    ],
    _: Version,
    upload_checksum: Annotated[
        str | None,
        Header(
            alias="Upload-Checksum",
            max_length=200,
            description="Algorithm and hash of these bytes, in base64",
        ),
    ] = None,
) -> Response:
    """Send bytes of a file, from the offset on; what has come stays if the connection breaks."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _PART:
        raise Problem(Code.UNSUPPORTED_MEDIA_TYPE, f"send the bytes as {_PART}")
    offset = await service.uploads.receive(
        spec,
        int(upload_offset),
        request.stream(),
        announced=int(request.headers.get("content-length") or 0),
        checksum=None if upload_checksum is None else parse_checksum(upload_checksum),
    )
    headers = {"Upload-Offset": str(offset), "Upload-Expires": _expires(service, spec)}
    return Response(status_code=204, headers=headers)


@router.delete(
    _PLACE + "/{upload}",
    status_code=204,
    dependencies=_TUS,
    responses=problems(*_KNOWN, Code.VERSION_MISMATCH, Code.UPLOAD_LOCKED),
)
async def delete_upload(spec: Upload, service: Service, _: Version) -> None:
    """Remove an upload; jobs that were made of it keep its bytes."""
    await service.uploads.remove(spec)


def _expires(service: Context, spec: UploadSpec) -> str:
    return formatdate(service.uploads.expires(spec), usegmt=True)


def _info(service: Context, spec: UploadSpec) -> UploadInfo:
    expires = datetime.fromtimestamp(service.uploads.expires(spec), UTC)
    return UploadInfo(
        id=spec.id,
        name=spec.name,
        length=spec.length,
        offset=service.uploads.offset(spec),
        created=spec.created,
        expires=expires.isoformat(timespec="milliseconds"),
    )


def _infos(service: Context, owner: str) -> Iterator[UploadInfo]:
    for spec in service.uploads.of(owner):
        yield _info(service, spec)


class TusLayer:
    """ASGI layer for what the protocol wants of every request and every answer."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take the method that a client names that can send no other, and tell our version."""
        if scope["type"] != "http" or not scope["path"].startswith(_PLACE):
            await self._app(scope, receive, send)
            return
        named = dict(scope["headers"]).get(b"x-http-method-override", b"").decode("latin-1")
        if scope["method"] == "POST" and named in _OVERRIDES:
            scope["method"] = named

        async def mark(message: Message) -> None:
            if message["type"] == "http.response.start":
                version = (b"tus-resumable", _VERSION.encode())
                message = {**message, "headers": [*message["headers"], version]}
            await send(message)

        await self._app(scope, receive, mark)
