"""The process behind ``read_image_isolated``; run as ``python -m df2serve.io._decoder FOLDER``."""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from df2serve.config import DecodeLimits
from df2serve.errors import Df2ServeError, LimitExceededError
from df2serve.io.image import Selection
from df2serve.io.reading import read_image

_HEADER_BYTES = 1 << 16
"""Room for the header of the pixels' file and for the answer."""


def main(folder: Path) -> None:
    """Read the request in a folder, and leave answer and pixels there."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    limits = DecodeLimits(**request["limits"])
    _confine(limits)
    try:
        answer = _read(request, limits, folder / "pixels.npy")
    except Df2ServeError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        message = (
            f"{request['name']} needs more than the {limits.max_memory_bytes:,} bytes of memory "
            "that DecodeLimits.max_memory_bytes allows; choose a part of it, or raise the limit"
        )
        answer = {"error": LimitExceededError.__name__, "message": message}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def _read(request: dict[str, Any], limits: DecodeLimits, output: Path) -> dict[str, Any]:
    chosen = request["selection"]
    channels = chosen["channels"]
    image = read_image(
        request["source"],
        axes=request["axes"],
        selection=Selection(**chosen | {"channels": channels and tuple(channels)}),
        limits=limits,
        name=request["name"],
    )
    np.save(output, np.asarray(image.data), allow_pickle=False)
    return {
        "source": image.source,
        "format": image.format,
        "channel_names": image.channel_names,
        "pixel_size_um": image.pixel_size_um and asdict(image.pixel_size_um),
        "sha256": image.sha256,
    }


def _confine(limits: DecodeLimits) -> None:
    """Give up everything beyond the limits, for good."""
    process = psutil.Process()
    used = process.cpu_times()
    seconds = math.ceil(used.user + used.system + limits.max_seconds)
    _limit(resource.RLIMIT_AS, process.memory_info().vms + limits.max_memory_bytes)
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_FSIZE, limits.max_bytes + _HEADER_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    # the alarm's default action ends the process, even inside of a decoder
    signal.setitimer(signal.ITIMER_REAL, limits.max_seconds)


def _limit(kind: int, value: int) -> None:
    """Lower a limit; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
