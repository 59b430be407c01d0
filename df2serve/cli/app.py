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
from df2serve.cli.importing import import_networks
from df2serve.cli.info import info
from df2serve.cli.predict import predict
from df2serve.cli.pull import pull
from df2serve.cli.push import push
from df2serve.cli.rank import rank
from df2serve.cli.report import report
from df2serve.cli.review import review
from df2serve.cli.rois import rois
from df2serve.cli.run import run
from df2serve.cli.serve import serve
from df2serve.cli.upload import upload
from df2serve.cli.uploaded import uploaded

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


_VERBS = (
    demo,
    predict,
    rank,
    serve,
    report,
    review,
    run,
    info,
    export,
    check,
    card,
    push,
    pull,
    upload,
    uploaded,
    doctor,
)
for _verb in _VERBS:
    app.command()(_verb)
app.add_typer(rois, name="rois")
app.command("import")(import_networks)


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
