"""Facts on disk as JSON: each file whole or not there, whatever process is killed."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from df2serve.config import Frozen
from df2serve.files import replacing

__all__ = ["read_record", "write_record"]

_log = logging.getLogger(__name__)
M = TypeVar("M", bound=Frozen)


def write_record(path: Path, content: Frozen) -> None:
    """Write facts to a file, which survives everything from then on.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path, parents=True) as temporary, temporary.open("wb") as file:
        file.write(content.model_dump_json().encode())
        file.flush()
        os.fsync(file.fileno())


def read_record(path: Path, kind: type[M]) -> M | None:
    """Return the facts of a file; None if there are none."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        _log.exception("%s cannot be read", path)
        return None
