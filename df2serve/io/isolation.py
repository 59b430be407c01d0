"""Decode files from strangers in a process that may die without harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from df2serve import errors
from df2serve.config import DecodeLimits
from df2serve.errors import (
    DecodeError,
    Df2ServeError,
    LimitExceededError,
    UnsupportedFormatError,
)
from df2serve.io.image import Image, PixelSize, Selection

__all__ = ["read_image_isolated"]

_START_SECONDS = 60.0
"""Time for the process to start, on a machine that is busy with other things."""
_NOTE_BYTES = 2000
"""How much of what the decoder wrote before its end is kept."""
_TIME_SIGNALS = ("SIGALRM", "SIGXCPU")
_MEMORY_SIGNALS = ("SIGKILL",)
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Thread pools and arenas would take address space that the decoder needs."""


def read_image_isolated(
    source: str | Path | bytes,
    *,
    axes: str | None = None,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    pixel_size_um: PixelSize | None = None,
    limits: DecodeLimits = DecodeLimits(),  # noqa: B008 - frozen
    name: str | None = None,
) -> Image:
    """Read an image in a process of its own, for input that is not trusted.

    The process has no more memory and time than ``limits`` allow. A crash, too much memory and too
    much time of the decoder become errors; the caller survives all of them.

    Args:
        source: a file, an OME-Zarr folder or the bytes of a file.
        axes: as in ``open_image``.
        selection: as in ``open_image``.
        pixel_size_um: as in ``open_image``.
        limits: as in ``open_image``; also time and memory of the process.
        name: name shown to people; the file's own when absent.

    Returns:
        The image with its pixels in a private memory map of a file that is gone already.

    Raises:
        LimitExceededError: the decoder needed more than allowed.
        DecodeError: the file is damaged, or the decoder crashed.
        UnsupportedFormatError: the format is not read, or this system cannot limit processes.
        InputError: as in ``open_image``.
    """
    if find_spec("resource") is None:
        message = (
            f"{sys.platform} cannot limit the memory of a process; use read_image for files that "
            "you trust, or decode others on Linux or macOS"
        )
        raise UnsupportedFormatError(message)
    with tempfile.TemporaryDirectory(prefix="df2serve-") as scratch:
        folder = Path(scratch)
        if isinstance(source, bytes):
            path, title = folder / "input", name or "upload"
            path.write_bytes(source)
        else:
            path, title = Path(source), name or Path(source).name
        request = {
            "source": os.fspath(path.absolute()),
            "name": title,
            "axes": axes,
            "selection": asdict(selection),
            "limits": limits.model_dump(),
        }
        answer = _decode(request, folder, title, limits)
        pixels = np.load(folder / "pixels.npy", mmap_mode="c", allow_pickle=False)
    found, names = answer["pixel_size_um"], answer["channel_names"]
    return Image(
        data=pixels,
        source=answer["source"],
        format=answer["format"],
        channel_names=names and tuple(names),
        pixel_size_um=pixel_size_um or (found and PixelSize(**found)),
        sha256=answer["sha256"],
    )


def _decode(
    request: dict[str, Any], folder: Path, title: str, limits: DecodeLimits
) -> dict[str, Any]:
    """Run the decoder and return its answer; the pixels are then in the folder."""
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    # -P: never import from the working directory, which may be the stranger's
    command = [sys.executable, "-P", "-m", "df2serve.io._decoder", str(folder)]
    complaints = folder / "stderr.txt"
    try:
        with complaints.open("wb") as stderr:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=os.environ | _ENVIRONMENT,
                timeout=_START_SECONDS + limits.max_seconds,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise _too_slow(title, limits) from error
    if result.returncode:
        raise _death(result.returncode, complaints, title, limits)
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    if "error" in answer:
        raise _named_error(answer["error"])(answer["message"])
    return answer


def _named_error(name: str) -> type[Df2ServeError]:
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, Df2ServeError) else DecodeError


def _death(code: int, complaints: Path, title: str, limits: DecodeLimits) -> Df2ServeError:
    """Return the error for a decoder that ended without an answer."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if how in _TIME_SIGNALS:
        return _too_slow(title, limits)
    if how in _MEMORY_SIGNALS:
        message = (
            f"{title}: the system killed the decoder, most likely for want of memory; try a "
            "smaller image, or a machine with more memory"
        )
        return LimitExceededError(message)
    error = DecodeError(
        f"{title} made the decoder crash ({how}); the file is damaged or made to do harm"
    )
    with complaints.open("rb") as stream:
        stream.seek(max(0, complaints.stat().st_size - _NOTE_BYTES))
        error.add_note(stream.read().decode(errors="replace"))
    return error


def _too_slow(title: str, limits: DecodeLimits) -> LimitExceededError:
    message = (
        f"{title} took the decoder more than {limits.max_seconds:g} s; choose a part of it, or "
        "raise DecodeLimits.max_seconds if you trust it"
    )
    return LimitExceededError(message)
