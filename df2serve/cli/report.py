"""``df2serve report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    results: Annotated[Path, typer.Argument(help="Folder that 'df2serve predict' has written.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; report.html in the folder if absent."),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Folder of 'df2serve evaluate': adds quality and experts."),
    ] = None,
) -> None:
    """Write the review list as one HTML file that needs nothing else."""
    from df2serve.writers import write_report

    path = write_report(results, target=output, evaluation=evaluation)
    typer.echo(f"report: {path}")
