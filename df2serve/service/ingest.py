"""Uploads: from the body of a request to a file, without ever holding it in memory."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from df2serve.service.problems import Code, Problem

__all__ = ["Take", "Upload", "receive_files", "receive_image", "safe_name"]

_REFUSED = ("application/json", "text/", "application/xml", "video/", "audio/", "multipart/")
"""Types of bodies that are certainly no images; of all others the content decides."""
_CHUNK = 1 << 20
_NAME_LENGTH = 120
_TEXT_BYTES = 1 << 16
"""Of a field of a form that is no file."""
_OTHER_FIELDS = 50


@dataclass(frozen=True)
class Upload:
    """A file that a client has sent."""

    path: Path
    name: str
    """What the client calls it; shown to people only."""
    size: int
    """Bytes."""
    sha256: str


Take: TypeAlias = Callable[[str, Path], Awaitable[Upload]]
"""Puts an upload that has come before into a folder, by its id."""


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
    request: Request, folder: Path, take: Take
) -> tuple[Upload, Mapping[str, str]]:
    """Write the one image of a request to a file.

    Args:
        request: its body is the image, or a form with the image in the field ``image`` or the id of
            an upload in the field ``upload``.
        folder: where to write it; exists.
        take: gets the upload.

    Returns:
        The upload and the other fields of the form.

    Raises:
        Problem: the body is no image or none at all.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        uploads, fields = await receive_files(request, folder, take, largest=1)
        return uploads[0], fields
    if kind.startswith(_REFUSED):
        text = f"got a body of type {kind}; send the bytes of an image, or a form with one"
        raise Problem(Code.UNSUPPORTED_MEDIA_TYPE, text)
    return await _receive_body(request, folder), {}


async def receive_files(
    request: Request, folder: Path, take: Take, *, largest: int
) -> tuple[list[Upload], Mapping[str, str]]:
    """Write the images of a form, in its order, to files.

    Args:
        request: files in the field ``image``, ids of uploads in the field ``upload``.
        folder: where to write them; exists.
        take: gets the uploads.
        largest: number of images.

    Returns:
        The images and the other fields of the form.

    Raises:
        Problem: there are none, too many, or other files.
    """
    limits = {"max_fields": largest + _OTHER_FIELDS, "max_part_size": _TEXT_BYTES}
    async with request.form(max_files=largest, **limits) as form:
        uploads = []
        for key, value in form.multi_items():
            if isinstance(value, UploadFile) and key == "image":
                uploads.append(await asyncio.to_thread(_copy, value.file, folder, value.filename))
            elif isinstance(value, UploadFile):
                raise Problem(Code.BAD_PARAMETER, "files are expected in the field 'image'")
            elif key == "image":
                raise _no_image()
            elif key == "upload":
                uploads.append(await take(value, folder))
            if len(uploads) > largest:
                raise Problem(Code.BAD_PARAMETER, f"expected {largest} images at most")
        if not uploads:
            raise _no_image()
        return uploads, _texts(form)


def _no_image() -> Problem:
    text = (
        "the field 'image' is missing, or a text; send it as a file, or the id of an upload in the "
        "field 'upload'"
    )
    places = [{"pointer": "/body/image", "detail": "expected a file"}]
    return Problem(Code.BAD_PARAMETER, text, members={"errors": places})


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
