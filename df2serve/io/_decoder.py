"""The process behind ``read_image_isolated``: ``python -m df2serve.io._decoder REQUEST SPOOL``.

The request is JSON; the bytes of an upload come from standard input. Answer and pixels go to
standard output, which is a file; many pixels go to another one, the spool, whose descriptor is
given. With the number of a socket alone, it forks such processes, see ``WarmDecoder``.
"""

from __future__ import annotations

import io
import json
import math
import os
import resource
import signal
import socket
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import psutil  # type: ignore[import-untyped]
import tifffile

from df2serve.config import DecodeLimits
from df2serve.errors import Df2ServeError, LimitExceededError
from df2serve.io._warm import serve
from df2serve.io.image import Selection
from df2serve.io.isolation import PIXELS_AT, SMALL_BYTES, Answer, Refusal
from df2serve.io.reading import open_image

_MESSAGE_LENGTH = 100_000
"""Keeps the answer in front of the pixels, even if every letter is escaped."""


def main(request: dict[str, Any], output: BinaryIO, spool: BinaryIO) -> None:
    """Do what is requested and write the answer, and the pixels behind it or into the spool."""
    limits = DecodeLimits(**request["limits"])
    _confine(limits)
    try:
        answer: Answer | Refusal = _read(request, limits, output, spool)
    except Df2ServeError as error:
        answer = _refusal(type(error), str(error))
    except MemoryError:
        message = (
            f"{request['name']} needs more than the {limits.max_memory_bytes:,} bytes of memory "
            "that DecodeLimits.max_memory_bytes allows; choose a part of it, or raise the limit"
        )
        answer = _refusal(LimitExceededError, message)
    output.seek(0)
    output.write(answer.model_dump_json().encode())


def _read(
    request: dict[str, Any], limits: DecodeLimits, output: BinaryIO, spool: BinaryIO
) -> Answer:
    chosen = request["selection"]
    channels = chosen["channels"]
    with open_image(
        sys.stdin.buffer if request["source"] is None else request["source"],
        axes=request["axes"],
        selection=Selection(**chosen | {"channels": channels and tuple(channels)}),
        limits=limits,
        name=request["name"],
        sha256=request["sha256"],
    ) as image:
        if request["pixels"]:
            pixels = np.asarray(image.read().data)
            if pixels.nbytes > SMALL_BYTES:
                pixels.tofile(spool)
            else:
                output.seek(PIXELS_AT)
                pixels.tofile(output)
        count, height, width = image.shape
        return Answer(
            shape=(count, height, width),
            dtype=image.dtype.str,
            format=image.format,
            channel_names=image.channel_names,
            pixel_size_um=image.pixel_size_um,
            sha256=image.sha256,
            axes=image.axes,
        )


def _rehearse(picture: bytes) -> None:
    """Read a picture of our own, because memory that a forked process writes to first is slow."""
    psutil.Process().memory_info()
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as spool,
    ):
        given.write(picture)
        request = {
            "source": given,
            "name": "rehearsal",
            "axes": None,
            "selection": asdict(Selection()),
            "pixels": True,
            "sha256": None,
        }
        _read(request, DecodeLimits(), output, spool).model_dump_json()


def _refusal(kind: type[Df2ServeError], message: str) -> Refusal:
    # names of files may hold bytes that are no text
    text = message.encode(errors="backslashreplace").decode()
    return Refusal(error=kind.__name__, message=text[:_MESSAGE_LENGTH])


def _confine(limits: DecodeLimits) -> None:
    """Give up everything beyond the limits, for good."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + limits.max_seconds)
    memory = psutil.Process().memory_info().vms
    _limit(resource.RLIMIT_AS, memory + limits.max_memory_bytes)
    # SIGXCPU tells that it was time; at the hard limit the system sends SIGKILL instead
    _limit(resource.RLIMIT_CPU, seconds, grace=1)
    _limit(resource.RLIMIT_FSIZE, PIXELS_AT + limits.max_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    # the alarm's default action ends the process, even inside of a decoder
    signal.setitimer(signal.ITIMER_REAL, limits.max_seconds)


def _limit(kind: int, soft: int, *, grace: int = 0) -> None:
    """Lower a limit; one that is lower already stays."""
    _, allowed = resource.getrlimit(kind)
    hard = soft + grace if allowed == resource.RLIM_INFINITY else min(soft + grace, allowed)
    resource.setrlimit(kind, (min(soft, hard), hard))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        tifffile.imwrite(picture := io.BytesIO(), np.zeros((64, 64), np.uint8))
        rehearse = partial(_rehearse, picture.getvalue())
        serve(socket.socket(fileno=int(sys.argv[1])), main, rehearse)
        sys.exit()
    # what libraries print must not get among the pixels
    with (
        os.fdopen(os.dup(sys.stdout.fileno()), "wb") as stream,
        os.fdopen(int(sys.argv[2]), "wb") as many,
    ):
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        stream.truncate(0)
        main(json.loads(sys.argv[1]), stream, many)
