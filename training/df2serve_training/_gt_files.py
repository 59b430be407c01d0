"""Files of a ground-truth folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from PIL import Image

from df2serve.config import Frozen
from df2serve.types import LabelMap, MaskArray, ProbMap

__all__ = ["write_labels", "write_map", "write_mask", "write_tables"]


def write_mask(path: Path, classes: MaskArray, *, n_classes: int) -> None:
    """Write class indices (Y, X) as PNG; the foreground of a binary mask is 255."""
    values = classes * np.uint8(255) if n_classes == 2 else classes
    Image.fromarray(values).save(path, "PNG")


def write_labels(path: Path, labels: LabelMap) -> None:
    """Write objects, axes (Y, X), as TIFF."""
    _write_tiff(path, labels, axes="YX")


def write_map(path: Path, shares: ProbMap) -> None:
    """Write shares per class, axes (K, Y, X), as TIFF; of two classes the foreground alone."""
    values = shares.astype(np.float32, copy=False)
    if len(values) == 2:
        _write_tiff(path, values[1], axes="YX")
    else:
        _write_tiff(path, values, axes="CYX")


def write_tables(folder: Path, name: str, tables: Mapping[str, Sequence[Frozen]]) -> None:
    """Write every table as CSV, and all of them as sheets of one spreadsheet.

    Args:
        folder: where to.
        name: of the spreadsheet, without suffix.
        tables: rows by the name of the table; tables without rows are left out.
    """
    frames = {
        title: pd.json_normalize([row.model_dump() for row in rows]).convert_dtypes()
        for title, rows in tables.items()
        if rows
    }
    with pd.ExcelWriter(folder / f"{name}.xlsx", engine="openpyxl") as writer:
        for title, frame in frames.items():
            frame.to_csv(folder / f"{title}.csv", index=False, encoding="utf-8")
            _write_sheet(frame, writer, title)


def _write_sheet(frame: pd.DataFrame, writer: pd.ExcelWriter[Any], title: str) -> None:
    """Add a sheet in which text stays text, also where it looks like a formula."""
    printable = frame.map(
        lambda value: ILLEGAL_CHARACTERS_RE.sub("?", value) if isinstance(value, str) else value
    )
    printable.to_excel(writer, sheet_name=title, index=False, freeze_panes=(1, 0))
    for row in writer.sheets[title].iter_rows():
        for cell in row:
            if cell.data_type == "f":
                cell.data_type = "s"


def _write_tiff(path: Path, pixels: np.ndarray, *, axes: str) -> None:
    tifffile.imwrite(
        path, pixels, photometric="minisblack", compression="zlib", metadata={"axes": axes}
    )
