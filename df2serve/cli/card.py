"""``df2serve card``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df2serve.cli._terminal import AsJson, EnsembleArgument, print_json, say

__all__ = ["card"]


def card(
    ensemble: EnsembleArgument,
    facts: Annotated[
        Path | None, typer.Option("--card", help="YAML file of all that people say.")
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; README.md of the ensemble if absent."),
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="org/name on the Hub, for the examples.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model card of an ensemble, and list what is stated nowhere."""
    from df2serve.artifact import load_ensemble
    from df2serve.errors import OutputError
    from df2serve.export import load_card
    from df2serve.files import replace_file
    from df2serve.publish import render_card

    opened = load_ensemble(ensemble)
    rendered = render_card(opened, load_card(facts), repository=repository)
    if output is None and not opened.source.is_dir():
        message = f"{ensemble} is no folder to write README.md into; name a file with --output"
        raise OutputError(message)
    target = output or opened.source / "README.md"
    replace_file(target, rendered.text.encode())
    for fact in rendered.missing:
        say(f"missing: {fact}")
    if as_json:
        print_json({"output": str(target), "missing": list(rendered.missing)})
        return
    typer.echo(str(target))
