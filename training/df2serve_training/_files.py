"""Small files: tables, and such as others read while they are written anew."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from df2serve.errors import OutputError

__all__ = ["csv_of", "replace_file"]


def csv_of(rows: Iterable[Any], kind: type) -> bytes:
    """Return a CSV file with the fields of a dataclass as columns; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [item.name for item in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return text.getvalue().encode()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that others may be reading.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise OutputError(message) from error
