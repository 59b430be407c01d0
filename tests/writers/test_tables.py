"""Tables as people open them."""

import csv
from pathlib import Path

import openpyxl
import pandas as pd
import pytest

from df2serve.errors import OutputError
from df2serve.writers import failure_row, write_table


def test_text_stays_text_and_numbers_stay_numbers(tmp_path: Path) -> None:
    rows = [
        {"name": "=1+1", "u": 0.25, "height": 7, "needs_review": True, "note": "bell \a"},
        {"name": "0001", "u": None, "height": 8, "needs_review": None, "note": ""},
        failure_row("ü.tif", ValueError("x, y")),
    ]
    table, sheet = write_table(rows, tmp_path / "scores")
    with table.open(encoding="utf-8", newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [row["name"] for row in read] == ["=1+1", "0001", ""]
    assert [row["height"] for row in read] == ["7", "8", ""]
    assert (read[2]["source"], read[2]["error"]) == ("ü.tif", "x, y")
    cells = openpyxl.load_workbook(sheet).active
    assert cells is not None
    assert [cell.value for cell in cells[1]] == list(read[0])
    assert (cells["A2"].value, cells["A2"].data_type) == ("=1+1", "s")
    assert (cells["A3"].value, cells["B2"].value, cells["B3"].value) == ("0001", 0.25, None)
    assert (cells["C2"].value, cells["D2"].value, cells["E2"].value) == (7, True, "bell ?")
    frame = pd.read_excel(sheet, dtype={"name": str})
    assert frame["name"].tolist()[:2] == ["=1+1", "0001"]


def test_a_table_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    write_table([{"name": "a"}], tmp_path / "scores")
    before = (tmp_path / "scores.csv").read_bytes()
    (tmp_path / "scores.xlsx").unlink()
    (tmp_path / "scores.xlsx").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*untouched"):
        write_table([{"name": "b"}], tmp_path / "scores")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv", "scores.xlsx"]
    assert (tmp_path / "scores.csv").read_bytes() in (before, b"name\nb\n")
