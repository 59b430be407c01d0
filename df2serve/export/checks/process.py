"""Processes in which strangers' models run: bounded in time, with a home of their own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "run_confined"]

_KEPT = ("CUDA_VISIBLE_DEVICES", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PATH")
"""What the process sees of the environment, besides Python's own settings; no secrets."""
_HOMES = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "BIOIMAGEIO_CACHE_PATH")
_NOTE_CHARACTERS = 600


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    ok: bool
    note: str
    """The end of what it wrote to standard error, or what stopped it."""


def run_confined(
    command: Sequence[str],
    home: Path,
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a program in a folder that is also its home, and wait for its end.

    Args:
        command: program and arguments.
        home: folder for everything that it writes.
        seconds: time until it is stopped, together with what it started.
        environment: variables to add.
    """
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith("PYTHON")}
    variables = kept | dict.fromkeys(_HOMES, str(home)) | dict(environment or {})
    log = home / "process.log"
    with log.open("wb") as complaints:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=complaints,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return Ended(ok=False, note=f"stopped after {seconds:g} s")
        finally:
            _end(process)
    text = log.read_bytes()[-4 * _NOTE_CHARACTERS :].decode("utf-8", errors="replace")
    note = " ".join(text.split())[-_NOTE_CHARACTERS:]
    if code < 0:
        note = f"ended by {signal.Signals(-code).name}: {note}"
    return Ended(ok=code == 0, note=note)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
