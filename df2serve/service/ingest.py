"""Uploads: from the body of a request to a file, without ever holding it in memory."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from df2serve.service.problems import Code, Problem
from df2serve.service.settings import Settings

__all__ = ["Upload", "receive_files", "receive_image", "safe_name"]

_REFUSED = ("application/json", "text/", "application/xml", "video/", "audio/", "multipart/")
"""Types of bodies that are certainly no images; of all others the content decides."""
_CHUNK = 1 << 20
_NAME_LENGTH = 120


@dataclass(frozen=True)
class Upload:
    """A file that a client has sent."""

    path: Path
    name: str
    """What the client calls it; shown to people only."""
    size: int
    """Bytes."""
    sha256: str


def safe_name(name: str | None) -> str:
    r"""Return the last part of a file's name, without what could mislead people or programs.

    Example:
        >>> safe_name("C:\\images\\cells 1.tif"), safe_name("../.."), safe_name(None)
        ('cells 1.tif', 'image', 'image')
    """
    last = re.split(r"[/\\]", name or "")[-1]
    kept = "".join(mark for mark in last if mark.isprintable() and mark not in '<>:"|?*')
    return kept.strip(". ")[:_NAME_LENGTH] or "image"


async def receive_image(
    request: Request, folder: Path, settings: Settings
) -> tuple[Upload, Mapping[str, str]]:
    """Write the one image of a request to a file.

    Args:
        request: its body is the image, or a form with the image in the field ``image``.
        folder: where to write it; exists.
        settings: limits.

    Returns:
        The upload and the other fields of the form.

    Raises:
        Problem: the body is no image or none at all.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        uploads, fields = await receive_files(request, folder, settings, largest=1)
        return uploads[0], fields
    if kind.startswith(_REFUSED):
        text = f"got a body of type {kind}; send the bytes of an image, or a form with one"
        raise Problem(Code.UNSUPPORTED_MEDIA_TYPE, text)
    return await _receive_body(request, folder), {}


async def receive_files(
    request: Request, folder: Path, settings: Settings, *, largest: int
) -> tuple[list[Upload], Mapping[str, str]]:
    """Write the images of a form, its files in the field ``image``, to files.

    Raises:
        Problem: there are none, or other files.
    """
    async with request.form(max_files=largest, max_fields=50) as form:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile) and key != "image":
                raise Problem(Code.BAD_PARAMETER, "files are expected in the field 'image'")
        files = [value for value in form.getlist("image") if isinstance(value, UploadFile)]
        if not files or len(files) < len(form.getlist("image")):
            raise Problem(
                Code.BAD_PARAMETER,
                "the field 'image' is missing, or a text; send it as a file",
                members={"errors": [{"pointer": "/body/image", "detail": "expected a file"}]},
            )
        uploads = [
            await asyncio.to_thread(_copy, file.file, folder, file.filename) for file in files
        ]
        return uploads, _texts(form)


async def _receive_body(request: Request, folder: Path) -> Upload:
    digest, size = hashlib.sha256(), 0
    path = folder / f"{uuid.uuid4().hex}.upload"
    try:
        with path.open("xb") as file:
            async for chunk in request.stream():
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
    except ClientDisconnect as error:
        raise Problem(Code.CANCELLED, "the client went away") from error
    if not size:
        raise Problem(Code.MALFORMED_REQUEST, "the body is empty; send the bytes of an image")
    name = safe_name(request.query_params.get("name"))
    return Upload(path, name, size, digest.hexdigest())


def _copy(source: BinaryIO, folder: Path, name: str | None) -> Upload:
    path = folder / f"{uuid.uuid4().hex}.upload"
    source.seek(0)
    with path.open("xb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not path.stat().st_size:
        raise Problem(Code.MALFORMED_REQUEST, "a file of the form is empty")
    return Upload(path, safe_name(name), path.stat().st_size, digest)


def _texts(form: FormData) -> dict[str, str]:
    return {key: value for key, value in form.multi_items() if isinstance(value, str)}
