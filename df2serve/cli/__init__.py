"""The command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from df2serve._version import __version__

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(*, value: bool) -> None:
    if value:
        typer.echo(f"df2serve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: FBT002
        bool, typer.Option("--version", callback=lambda value: _print_version(value=value))
    ] = False,
) -> None:
    """Run k-fold segmentation ensembles with uncertainty."""


@app.command()
def info(ensemble: Annotated[Path, typer.Argument(help="Folder or zip file.")]) -> None:
    """Print what an ensemble says about itself, as JSON."""
    from df2serve.artifact import load_ensemble

    opened = load_ensemble(ensemble)
    content = opened.manifest.model_dump(mode="json") | {"sha256": opened.sha256}
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def main() -> None:
    """Run the command line; the caller's mistakes give one line and exit code 2."""
    from df2serve.errors import Df2ServeError

    try:
        app()
    except Df2ServeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
