"""``df2serve rank``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from df2serve.cli._terminal import AsJson, print_json, print_table, say

if TYPE_CHECKING:
    from df2serve.writers import RunInfo
    from df2serve.writers.tables import Row

__all__ = ["rank"]

_SHOWN = 20


def rank(
    results: Annotated[Path, typer.Argument(help="Folder that 'df2serve predict' has written.")],
    *,
    threshold: Annotated[
        float | None,
        typer.Option(help="U from which on images need review; else the ensemble's U_min."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List images by decreasing uncertainty: what to look at first."""
    from df2serve.writers import draw_ranking, ranking_rows, read_results, write_table

    run, records = read_results(results)
    if threshold is None and run.threshold is not None:
        threshold = run.threshold.value
    rows = ranking_rows(records, run, threshold=threshold)
    _, spreadsheet = write_table(rows, results / "ranking")
    picture = draw_ranking(results, records, run, threshold=threshold)
    if as_json:
        print_json({"threshold": threshold, "images": rows})
        return
    print_table([_shown(row) for row in rows[:_SHOWN]])
    if len(rows) > _SHOWN:
        typer.echo(f"… and {len(rows) - _SHOWN} more")
    _explain(run, rows, threshold)
    typer.echo(f"table: {spreadsheet}")
    typer.echo(f"picture: {picture}")


def _shown(row: Row) -> dict[str, str]:
    u, share = row["u"], row["foreground_fraction"]
    review = {True: "yes", False: "no", None: "?"}[row["needs_review"]]  # type: ignore[index]
    return {
        "rank": str(row["rank"]),
        "image": str(row["source"]),
        "U": "undefined" if u is None else f"{u:.3f}",
        "review": review,
        "foreground": "none" if row["empty_prediction"] else f"{share:.1%}",
    }


def _explain(run: RunInfo, rows: list[Row], threshold: float | None) -> None:
    if threshold is None:
        say("no threshold: the ensemble carries no U_min; give --threshold to mark images")
        return
    doubtful = sum(bool(row["needs_review"]) for row in rows)
    typer.echo(f"{doubtful} of {len(rows)} images need review (U >= {threshold:.3f})")
    if run.threshold is not None and run.threshold.value == threshold:
        typer.echo(run.threshold.meaning)
