"""Decode files from strangers in a process that may die without harm."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from df2serve import errors
from df2serve.config import DecodeLimits, describe_validation_error
from df2serve.errors import DecodeError, InputError, LimitExceededError, UnsupportedFormatError
from df2serve.io._warm import Ending, Files, WarmDecoder
from df2serve.io.image import Image, PixelSize, Selection

__all__ = [
    "PIXELS_AT",
    "SMALL_BYTES",
    "Answer",
    "Refusal",
    "WarmDecoder",
    "inspect_image_isolated",
    "read_image_isolated",
    "warm_decoder",
]

PIXELS_AT = 1 << 20
"""Byte of the decoder's output where the pixels start; before it there is room for the answer."""

SMALL_BYTES = 1 << 23
"""Pixels up to this size come with the answer, in memory, and are copied before the decoder ends;
more of them come in a file, which is mapped when it has."""
_SHORT = 1 << 14
"""Length of most answers and more; to read all of the room takes longer than the rest."""
_TRIES = 3
"""A decoder that is killed may have been in the way of something else: it is not the image's fault
before it has happened several times."""
_START_SECONDS = 60.0
"""Time for the process to start, on a machine that is busy with other things."""
_NOTE_BYTES = 2000
"""How much of what the decoder wrote before its end is kept."""
_TIME_SIGNALS = ("SIGALRM", "SIGXCPU")
_MEMORY_SIGNALS = ("SIGKILL",)
_KEPT = ("HOME", "LANG", "LC_ALL", "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
"""What the decoder sees of the environment, besides Python's own settings; no secrets."""
_SINGLE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Thread pools and arenas would take address space that the decoder needs."""


class Refusal(BaseModel):
    """The decoder did not read the image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: str
    """Name of an exception of ``df2serve.errors``."""
    message: str


class Answer(BaseModel):
    """What the decoder says of the pixels that it left."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Channels, rows and columns."""
    dtype: Annotated[str, Field(pattern=r"^([<>]([ui][248]|f[248])|\|[bui]1)$")]
    """In NumPy's short form."""
    format: str
    channel_names: tuple[str, ...] | None
    pixel_size_um: PixelSize | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    axes: Annotated[str, Field(pattern="^[TCZYXS_]{2,16}$")] | None


_ANSWER: TypeAdapter[Answer | Refusal] = TypeAdapter(Answer | Refusal)


def read_image_isolated(
    source: str | Path | bytes,
    *,
    axes: str | None = None,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    pixel_size_um: PixelSize | None = None,
    limits: DecodeLimits = DecodeLimits(),  # noqa: B008 - frozen
    name: str | None = None,
    sha256: str | None = None,
    warm: WarmDecoder | None = None,
) -> Image:
    """Read an image in a process of its own, for input that is not trusted.

    The process has no more memory and time than ``limits`` allow, and sees neither the caller's
    environment nor its open files. A crash, too much memory and too much time of the decoder become
    errors; the caller survives all of them, and believes nothing that it has not checked.

    Args:
        source: a file, an OME-Zarr folder or the bytes of a file.
        axes: as in ``open_image``.
        selection: as in ``open_image``.
        pixel_size_um: as in ``open_image``.
        limits: as in ``open_image``; also time and memory of the process.
        name: name shown to people; the file's own when absent.
        sha256: hash of the file, where it is known.
        warm: starts the process faster, where many files are read.

    Returns:
        The image with its pixels in memory; beyond 8 MiB in a private memory map of a file without
        a name.

    Raises:
        LimitExceededError: the decoder needed more than allowed.
        DecodeError: the file is damaged, or the decoder crashed or gave nonsense.
        UnsupportedFormatError: the format is not read, or this system cannot limit processes.
        InputError: as in ``open_image``.
    """
    title = name or ("upload" if isinstance(source, bytes) else Path(source).name)
    request = _request(source, title, axes, selection, limits, pixels=True, sha256=sha256)
    with _answered(request, source, limits, warm) as (answer, files):
        data = _pixels(answer, files, title)
    return Image(
        data=data,
        source=title,
        format=answer.format,
        channel_names=answer.channel_names,
        pixel_size_um=pixel_size_um or answer.pixel_size_um,
        sha256=answer.sha256,
        axes=answer.axes,
        selection=selection,
    )


def inspect_image_isolated(
    source: str | Path | bytes,
    *,
    axes: str | None = None,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    limits: DecodeLimits = DecodeLimits(),  # noqa: B008 - frozen
    name: str | None = None,
    warm: WarmDecoder | None = None,
) -> Answer:
    """Read what the header of an image says, in a process of its own; no pixel is decoded.

    Arguments and errors are those of :func:`read_image_isolated`.
    """
    title = name or ("upload" if isinstance(source, bytes) else Path(source).name)
    request = _request(source, title, axes, selection, limits, pixels=False)
    with _answered(request, source, limits, warm) as (answer, _):
        return answer


def warm_decoder() -> WarmDecoder:
    """Return what starts decoders faster; use it as a context manager."""
    return WarmDecoder(_environment())


def _request(
    source: str | Path | bytes,
    title: str,
    axes: str | None,
    selection: Selection,
    limits: DecodeLimits,
    *,
    pixels: bool,
    sha256: str | None = None,
) -> dict[str, Any]:
    return {
        "source": None if isinstance(source, bytes) else os.fspath(Path(source).absolute()),
        "name": title,
        "axes": axes,
        "selection": asdict(selection),
        "limits": limits.model_dump(),
        "pixels": pixels,
        "sha256": sha256,
    }


@contextmanager
def _answered(
    request: dict[str, Any],
    source: str | Path | bytes,
    limits: DecodeLimits,
    warm: WarmDecoder | None,
) -> Iterator[tuple[Answer, Files]]:
    """Give what the decoder says, and the files that hold the pixels."""
    if find_spec("resource") is None:
        message = (
            f"{sys.platform} cannot limit the memory of a process; use read_image for files that "
            "you trust, or decode others on Linux or macOS"
        )
        raise UnsupportedFormatError(message)
    # none of these files has a name: whoever dies, nothing is left behind
    with (
        tempfile.TemporaryFile() as given,
        _memory_file() as output,
        tempfile.TemporaryFile() as spool,
        _memory_file() as complaints,
    ):
        files = Files(given, output, spool, complaints)
        if isinstance(source, bytes):
            given.write(source)
        for _ in range(_TRIES):
            given.seek(0)
            for file in (output, spool):
                file.seek(0)
                file.truncate()
            ending = _decode(request, files, limits, warm)
            if ending.code != -signal.SIGKILL:
                break
        title = request["name"]
        if ending.code:
            raise _death(ending.code, complaints, title, limits)
        answer = _checked_answer(output, title)
        if request["pixels"]:
            _check_pixels(answer, files, title, limits, gone=ending.gone)
        yield answer, files


def _memory_file() -> BinaryIO:
    """Return a file in memory, where the system has such: it costs less to create and to close."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("df2serve"), "w+b")
    return tempfile.TemporaryFile()


def _environment() -> dict[str, str]:
    """Return what decoders see of the environment."""
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith("PYTHON")}
    return kept | _SINGLE


def _decode(
    request: dict[str, Any], files: Files, limits: DecodeLimits, warm: WarmDecoder | None
) -> Ending:
    """Run the decoder."""
    late = Ending(-signal.SIGALRM, gone=False)
    seconds = _START_SECONDS + limits.max_seconds
    if warm is not None:
        return warm.run(request, files, seconds=seconds) or late
    # -P: never import from the working directory, which may be the stranger's
    command = [sys.executable, "-P", "-m", "df2serve.io._decoder", json.dumps(request)]
    spool = files.spool.fileno()
    try:
        process = subprocess.run(
            [*command, str(spool)],
            stdin=files.given,
            stdout=files.output,
            stderr=files.complaints,
            pass_fds=[spool],
            env=_environment(),
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return late
    return Ending(process.returncode, gone=True)


def _checked_answer(output: BinaryIO, title: str) -> Answer:
    """Return the decoder's answer, which may be that of a decoder taken over.

    Raises:
        InputError: the one that the decoder names.
        DecodeError: the answer is not one that the decoder gives.
    """
    text = os.pread(output.fileno(), _SHORT, 0)
    if not text.endswith(b"\0"):
        text = os.pread(output.fileno(), PIXELS_AT, 0)
    try:
        answer = _ANSWER.validate_json(text.rstrip(b"\0"))
    except ValidationError as error:
        raise _nonsense(title, describe_validation_error("answer", error)) from error
    if isinstance(answer, Refusal):
        raise _named_error(answer, title)
    return answer


def _check_pixels(
    answer: Answer, files: Files, title: str, limits: DecodeLimits, *, gone: bool
) -> None:
    """Refuse an answer that is not about the pixels that there are.

    Args:
        answer: of a decoder that may have been taken over.
        files: where the pixels are.
        title: name of the image.
        limits: what the image may ask for.
        gone: whether the decoder has ended; one that has not could take pixels away later.

    Raises:
        DecodeError: there are more or fewer of them, or too many.
    """
    expected = _size(answer)
    if expected <= SMALL_BYTES:
        stored = os.fstat(files.output.fileno()).st_size - PIXELS_AT
    else:
        stored = os.fstat(files.spool.fileno()).st_size if gone else 0
    if not expected == stored <= limits.max_bytes:
        raise _nonsense(title, f"{stored} bytes of pixels, {expected} announced")


def _pixels(answer: Answer, files: Files, title: str) -> NDArray[Any]:
    """Return the pixels of an answer.

    Raises:
        DecodeError: the decoder has taken some of them away meanwhile.
    """
    dtype, size = np.dtype(answer.dtype), _size(answer)
    if size > SMALL_BYTES:
        return np.memmap(files.spool, dtype, "c", 0, answer.shape)
    pixels = np.empty(answer.shape, dtype)
    into = pixels.reshape(-1).view(np.uint8).data
    count = os.preadv(files.output.fileno(), [into], PIXELS_AT)
    if count < size:
        raise _nonsense(title, f"{count} bytes of pixels, {size} announced")
    return pixels


def _size(answer: Answer) -> int:
    """Return the bytes that the pixels of an answer take."""
    return math.prod(answer.shape) * np.dtype(answer.dtype).itemsize


def _named_error(refusal: Refusal, title: str) -> InputError:
    kind = getattr(errors, refusal.error, None)
    if isinstance(kind, type) and issubclass(kind, InputError):
        return kind(refusal.message)
    return _nonsense(title, f"error {refusal.error}")


def _nonsense(title: str, what: str) -> DecodeError:
    error = DecodeError(
        f"{title} made the decoder give nonsense; the file is damaged or made to do harm"
    )
    error.add_note(what)
    return error


def _death(code: int, complaints: BinaryIO, title: str, limits: DecodeLimits) -> InputError:
    """Return the error for a decoder that ended without an answer."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if how in _TIME_SIGNALS:
        message = (
            f"{title} took the decoder more than {limits.max_seconds:g} s; choose a part of it, or "
            "raise DecodeLimits.max_seconds if you trust it"
        )
        return LimitExceededError(message)
    if how in _MEMORY_SIGNALS:
        message = (
            f"{title}: the system killed the decoder, most likely for want of memory; try a "
            "smaller image, or a machine with more memory"
        )
        return LimitExceededError(message)
    error = DecodeError(
        f"{title} made the decoder crash ({how}); the file is damaged or made to do harm"
    )
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _NOTE_BYTES))
    error.add_note(complaints.read(_NOTE_BYTES).decode(errors="replace"))
    return error
