"""What verbs share: progress and hints on standard error, results on standard output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from df2serve.inference import Progress as TileProgress

__all__ = ["AsJson", "EnsembleArgument", "ImageProgress", "print_json", "print_table", "say"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

EnsembleArgument = Annotated[
    str,
    typer.Argument(help="Ensemble: a folder, a zip file, a package or hf://org/name[@revision]."),
]
"""Not a path, which would make one slash of the two."""

_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Tell people something on standard error."""
    _errors.print(message, markup=False)


def print_json(content: object) -> None:
    """Print a result for machines."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """Print rows under the names of their columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        # not as markup: names come from files
        table.add_row(*(Text(_printable(cell)) for cell in row.values()))
    Console(highlight=False).print(table)


def _printable(text: str) -> str:
    """Replace what could command a terminal."""
    return "".join(mark if mark.isprintable() or mark == "\n" else "\ufffd" for mark in text)


class ImageProgress(AbstractContextManager["ImageProgress", None]):
    """A bar of images that moves with their tiles; a listener of predictions."""

    def __init__(self, total: int) -> None:
        """Prepare for so many images."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *columns, console=_errors, transient=True, disable=not _errors.is_terminal
        )
        self._shares: dict[str, float] = {}
        self._finished = 0
        self._task = self._bar.add_task("predicting", total=total)

    def __enter__(self) -> Self:
        """Show the bar, where standard error is a terminal."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the bar."""
        self._bar.stop()

    def __call__(self, progress: TileProgress) -> None:
        """Take note of tiles."""
        self._shares[progress.source] = progress.done / progress.total
        self._show(progress.source)

    def finish(self, source: str) -> None:
        """Take note of an image that is done."""
        self._shares.pop(source, None)
        self._finished += 1
        self._show(source)

    def _show(self, source: str) -> None:
        completed: Any = self._finished + sum(self._shares.values())
        self._bar.update(self._task, completed=completed, description=source)
