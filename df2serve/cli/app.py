"""The program: its verbs, its version, and how errors are told."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from df2serve._version import __version__
from df2serve.cli.card import card
from df2serve.cli.check import check
from df2serve.cli.demo import demo
from df2serve.cli.doctor import doctor
from df2serve.cli.export import export
from df2serve.cli.info import info
from df2serve.cli.predict import predict
from df2serve.cli.pull import pull
from df2serve.cli.push import push
from df2serve.cli.rank import rank
from df2serve.cli.serve import serve

__all__ = ["app", "main"]

_PLUGINS = "df2serve.commands"
"""Entry-point group of functions that take the program and add verbs to it."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def _print_version(value: bool) -> None:  # noqa: FBT001 - Typer calls it with the option's value
    if value:
        typer.echo(f"df2serve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Run k-fold segmentation ensembles with calibrated uncertainty."""


for _verb in (demo, predict, rank, serve, info, export, check, card, push, pull, doctor):
    app.command()(_verb)


def main() -> None:
    """Run the command line; the caller's mistakes give one line and exit code 2."""
    from df2serve.errors import Df2ServeError

    for plugin in entry_points(group=_PLUGINS):
        plugin.load()(app)
    try:
        app()
    except Df2ServeError as error:
        if "--debug" in sys.argv:
            raise
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        typer.echo(f"error: {error}{notes}", err=True)
        sys.exit(error.exit_code)
