"""How the training of members goes: numbers, table and curves."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from df2serve_training._files import csv_of

__all__ = ["StepReport", "draw_curves", "read_history", "write_history"]

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DPI = 120


@dataclass(frozen=True)
class StepReport:
    """How the training of a member goes."""

    member: int
    step: int
    """Steps done."""
    steps: int
    """Steps in all."""
    loss: float
    """Mean over the steps since the last report."""
    rate: float
    """Learning rate of the last step."""
    dice: float | None = None
    """Mean over the images that the member is validated on, where it was validated at this step."""


def write_history(reports: Iterable[StepReport]) -> bytes:
    """Return reports as a CSV file."""
    return csv_of(reports, StepReport)


def read_history(table: bytes) -> list[StepReport]:
    """Return the reports of a CSV file.

    Example:
        >>> report = StepReport(member=0, step=10, steps=20, loss=0.1, rate=1e-3)
        >>> read_history(write_history([report])) == [report]
        True
    """
    rows = csv.DictReader(io.StringIO(table.decode()))
    return [
        StepReport(
            member=int(row["member"]),
            step=int(row["step"]),
            steps=int(row["steps"]),
            loss=float(row["loss"]),
            rate=float(row["rate"]),
            dice=float(row["dice"]) if row["dice"] else None,
        )
        for row in rows
    ]


def draw_curves(reports: Sequence[StepReport]) -> bytes:
    """Return a PNG with loss, validation where there is any, and learning rate over the steps."""
    members = defaultdict(list)
    for report in reports:
        members[report.member].append(report)
    shown = {"loss": "loss", "dice": "validation Dice", "rate": "learning rate"}
    if all(report.dice is None for report in reports):
        del shown["dice"]
    figure = Figure((8, 2.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), sharex=True)
    for axes, (field, title) in zip(panels, shown.items(), strict=True):
        for member, history in sorted(members.items()):
            pairs = [(r.step, y) for r in history if (y := getattr(r, field)) is not None]
            axes.plot(
                [step for step, _ in pairs],
                [value for _, value in pairs],
                marker="o" if field == "dice" else "",
                ms=3,
                lw=1,
                color=_COLORS[member % len(_COLORS)],
                label=f"member {member}",
            )
        axes.set_ylabel(title)
    panels[-1].set_xlabel("step")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()
