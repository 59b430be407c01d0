"""Tables of scores as CSV and as a spreadsheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from df2serve.io.corrections import Change
from df2serve.writers._staging import staging
from df2serve.writers.records import Record, RunInfo
from df2serve.writers.review import ReviewList, ReviewPlace

__all__ = [
    "Row",
    "failure_row",
    "needs_review",
    "ranking_rows",
    "score_row",
    "write_changes",
    "write_sheet",
    "write_table",
]

Row = Mapping[str, str | int | float | bool | None]


def score_row(record: Record, run: RunInfo) -> Row:
    """Return the scores of one image under the names of their columns."""
    scores, provenance = record.scores, record.provenance
    shares = dict(zip(run.classes, scores.class_fractions, strict=False))
    return {
        "name": record.name,
        "source": provenance.source,
        "u": scores.u,
        "needs_review": needs_review(scores.u, run),
        "u_epistemic": scores.u_epistemic,
        "u_class_balanced": scores.u_class_balanced,
        "u_top": scores.u_top,
        "one_minus_expected_dice": scores.one_minus_expected_dice,
        "one_minus_pairwise_dice": scores.one_minus_pairwise_dice,
        "one_minus_member_dice": scores.one_minus_member_dice,
        **_where_defined(feature_distance=scores.feature_distance),
        "foreground_fraction": scores.foreground_fraction,
        **{f"fraction {item.name}": shares.get(item) for item in run.classes[1:]},
        "empty_prediction": scores.empty_prediction,
        "components": scores.components,
        "median_component_px": scores.median_component_px,
        **_instance_counts(record, run),
        "height": provenance.image_shape[1],
        "width": provenance.image_shape[2],
        "seconds": round(record.seconds, 3),
        "notes": "; ".join(record.notes),
        "error": "",
    }


def _where_defined(**scores: float | None) -> Row:
    """Return the scores that few ensembles give, so that others have no column of them."""
    return {name: score for name, score in scores.items() if score is not None}


def failure_row(source: str, error: Exception) -> Row:
    """Return the row of an image that has no result."""
    return {"source": source, "error": str(error)}


def ranking_rows(found: ReviewList, run: RunInfo) -> list[Row]:
    """Return the review list, what to look at first on top.

    Args:
        found: results in order.
        run: what they have in common.
    """
    return [_place_row(place, run) for place in found.places]


def write_table(rows: Sequence[Row], target: Path) -> tuple[Path, Path]:
    """Write rows as CSV and as XLSX.

    Args:
        rows: one mapping per row; columns come in the order in which they appear first.
        target: path without a suffix.

    Returns:
        Both files.

    Raises:
        OutputError: they cannot be written.
    """
    frame = pd.DataFrame(list(rows)).convert_dtypes()
    files = target.with_name(f"{target.name}.csv"), target.with_name(f"{target.name}.xlsx")
    with staging() as staged:
        frame.to_csv(staged.path(files[0]), index=False, encoding="utf-8")
        write_sheet(frame, staged.path(files[1]), title=target.name)
    return files


def write_changes(path: Path, changes: Sequence[Change]) -> None:
    """Write what became of objects as CSV, one row per object.

    Args:
        path: file to create.
        changes: in the order of the rows.
    """
    frame = pd.DataFrame([asdict(change) for change in changes]).convert_dtypes()
    frame.to_csv(path, index=False, encoding="utf-8", lineterminator="\n")


def write_sheet(frame: pd.DataFrame, path: Path, *, title: str) -> None:
    """Write a spreadsheet in which text stays text, also where it looks like a formula."""
    printable = frame.map(
        lambda value: ILLEGAL_CHARACTERS_RE.sub("?", value) if isinstance(value, str) else value
    )
    with path.open("wb") as stream, pd.ExcelWriter(stream, engine="openpyxl") as writer:
        printable.to_excel(writer, sheet_name=title, index=False, freeze_panes=(1, 0))
        for row in writer.sheets[title].iter_rows():
            for cell in row:
                if cell.data_type == "f":
                    cell.data_type = "s"


def _place_row(place: ReviewPlace, run: RunInfo) -> Row:
    low, high = place.dice or (None, None)
    overlay = place.record.files.get("overlay")
    row = dict(score_row(place.record, run)) | {"needs_review": place.needs_review}
    del row["error"]
    return {
        "rank": place.rank,
        "name": place.record.name,
        "source": place.record.provenance.source,
        "score": place.score,
        "percentile": place.percentile,
        "p_value": place.p_value,
        "out_of_distribution": place.out_of_distribution,
        "dice_low": low,
        "dice_high": high,
        "reasons": "; ".join(map(str, place.reasons)),
        **row,
        "picture": None if overlay is None else overlay.path,
    }


def _instance_counts(record: Record, run: RunInfo) -> Row:
    if run.instances is None:
        return {}
    count = record.instances
    return {
        "instances": None if count is None else count.kept,
        "removed_instances": None if count is None else count.removed,
    }


def needs_review(u: float | None, run: RunInfo) -> bool | None:
    """Return whether U reaches the threshold; undefined U does, and without a threshold none is."""
    if run.threshold is None:
        return None
    return u is None or u >= run.threshold.value
