"""``df2serve rank``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from df2serve.cli._terminal import AsJson, print_json, print_table, say

if TYPE_CHECKING:
    from df2serve.writers.review import ReviewList, ReviewPlace

__all__ = ["rank"]

_SHOWN = 20
_REASONS_SHOWN = 3


def rank(
    results: Annotated[Path, typer.Argument(help="Folder that 'df2serve predict' has written.")],
    *,
    by: Annotated[
        str | None,
        typer.Option(
            help="paper: mean uncertainty U. failure: disagreement of the members. ood: unlike the "
            "ensemble's reference images."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score from which on images need review; else the ensemble's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List images in the order in which to look at them, and say why."""
    from df2serve.config import ReviewConfig
    from df2serve.writers import draw_ranking, ranking_rows, read_results, review, write_table

    run, records = read_results(results)
    found = review(records, run, config=ReviewConfig().updated(by=by), threshold=threshold)
    rows = ranking_rows(found, run)
    _, spreadsheet = write_table(rows, results / "ranking")
    picture = draw_ranking(results, found, run)
    if as_json:
        print_json(
            {
                "by": found.by,
                "score": found.score,
                "threshold": found.threshold,
                "remarks": found.remarks,
                "images": rows,
            }
        )
        return
    _tell(found)
    typer.echo(f"table: {spreadsheet}")
    typer.echo(f"picture: {picture}")


def _tell(found: ReviewList) -> None:
    """Print the top of the list, what is odd about it, and what the numbers promise."""
    shown = found.places[:_SHOWN]
    rows = [_shown(place, found.score) for place in shown]
    columns = dict.fromkeys((column for row in rows for column in row), "")
    print_table([columns | row for row in rows])
    if len(found.places) > _SHOWN:
        typer.echo(f"… and {len(found.places) - _SHOWN} more")
    for place in shown:
        if place.reasons:
            reasons = "; ".join(map(str, place.reasons[:_REASONS_SHOWN]))
            typer.echo(f"{place.record.provenance.source}: {reasons}")
    if found.by != "ood" and found.threshold is None:
        say("no threshold: the ensemble carries none; give --threshold to mark images")
    else:
        doubtful = sum(bool(place.needs_review) for place in found.places)
        typer.echo(f"{doubtful} of {len(found.places)} images need review{_condition(found)}")
    for remark in found.remarks:
        typer.echo(remark)


def _condition(found: ReviewList) -> str:
    from df2serve.writers.review import SCORE_TITLES

    if found.threshold is None:
        return ""
    return f" ({SCORE_TITLES[found.score]} >= {found.threshold:.3f})"


def _shown(place: ReviewPlace, score: str) -> dict[str, str]:
    from df2serve.writers.review import SCORE_TITLES

    scores = place.record.scores
    row = {
        "rank": str(place.rank),
        "image": place.record.provenance.source,
        SCORE_TITLES[score]: "undefined" if place.score is None else f"{place.score:.3f}",
        "review": {True: "yes", False: "no", None: "?"}[place.needs_review],
        "foreground": "none" if scores.empty_prediction else f"{scores.foreground_fraction:.1%}",
    }
    if place.percentile is not None:
        row["percentile"] = f"{100 * place.percentile:.0f}"
    if place.p_value is not None:
        row["p"] = f"{place.p_value:.3f}"
    if place.out_of_distribution is not None:
        row["ordinary"] = "no" if place.out_of_distribution else "yes"
    if place.dice is not None:
        row["Dice"] = "{:.2f} to {:.2f}".format(*place.dice)
    return row
