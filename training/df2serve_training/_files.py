"""Tables of dataclasses."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

__all__ = ["csv_of"]


def csv_of(rows: Iterable[Any], kind: type) -> bytes:
    """Return a CSV file with the fields of a dataclass as columns; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [item.name for item in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return text.getvalue().encode()
