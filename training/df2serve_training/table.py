"""What a table of the user's says about every image."""

from __future__ import annotations

import csv
import zipfile
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from df2serve.errors import InputError, SourceNotFoundError
from df2serve_training.pairing import image_name, natural_order

__all__ = ["read_column"]


def read_column(
    table: str | Path, column: str, *, names: Collection[str], file_column: str | None
) -> dict[str, str]:
    """Return the value of a column for every image.

    Args:
        table: a CSV file with any separator, or an XLSX file, of which the first sheet is read.
        column: title of the column.
        names: of the images, as in ``image_name``.
        file_column: title of the column of file names, with or without folder and suffix; the
            first one that names every image when absent.

    Raises:
        SourceNotFoundError: there is no such table.
        InputError: a column is missing; or images have no value, or several that differ.
    """
    frame = _read(Path(table))
    for title in (column, file_column):
        if title is not None and title not in frame.columns:
            message = (
                f"{table} has no column {title!r}; it has {', '.join(map(str, frame.columns))}"
            )
            raise InputError(message)
    files = file_column or _find_file_column(frame, names, table)
    values = defaultdict(set)
    for file, value in zip(frame[files], frame[column], strict=True):
        if value.strip():
            values[_name(file, names)].add(value.strip())
    missing = natural_order(name for name in names if not values[name])
    several = natural_order(name for name in names if len(values[name]) > 1)
    if missing or several:
        message = f"{table}, column {column!r} by {files!r}, must have one value for every image"
        message += f"; no value for {', '.join(missing)}" if missing else ""
        message += f"; several values for {', '.join(several)}" if several else ""
        raise InputError(message)
    return {name: min(values[name]) for name in names}


def _read(table: Path) -> pd.DataFrame:
    """Return all cells as text, empty ones as an empty string."""
    try:
        if table.suffix.lower() == ".xlsx":
            return pd.read_excel(table, dtype=str, na_filter=False)
        return pd.read_csv(
            table, dtype=str, na_filter=False, sep=None, engine="python", encoding="utf-8-sig"
        )
    except OSError as error:
        message = f"{table} cannot be read: {error.strerror}; give a table as CSV or XLSX"
        raise SourceNotFoundError(message) from error
    except (ValueError, KeyError, zipfile.BadZipFile, csv.Error) as error:
        message = f"{table} is no table as CSV or XLSX: {error}"
        raise InputError(message) from error


def _find_file_column(frame: pd.DataFrame, names: Collection[str], table: str | Path) -> str:
    for title in frame.columns:
        if set(names) <= {_name(file, names) for file in frame[title]}:
            return str(title)
    message = (
        f"no column of {table} names every image; name the column with file_column, and add the "
        f"images that it lacks. Images are called {', '.join(natural_order(names)[:3])}, ..."
    )
    raise InputError(message)


def _name(file: str, names: Collection[str]) -> str:
    """Return the name of an image that a cell means, with or without folder and suffix."""
    plain = file.strip()
    return plain if plain in names else image_name(plain.replace("\\", "/"))
