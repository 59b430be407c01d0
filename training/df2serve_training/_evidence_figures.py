"""Figures of an examination."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from df2serve_training._evidence_rows import Evidence, ImageEvidence

__all__ = ["draw_evidence"]

_DPI = 120
_WIDE = 20.0
"""From this many times its median on, the largest score would hide all others."""
_SHOWN = (
    "u",
    "u_epistemic",
    "u_top",
    "one_minus_expected_dice",
    "one_minus_pairwise_dice",
    "feature_distance",
    "looks",
    "ood",
)
_COLORS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#f0e442", "#999999", "#cc79a7")


def draw_evidence(evidence: Evidence, folder: Path) -> None:
    """Write ``scores.png`` and, where there are masks, ``risk_coverage.png``."""
    _scores(evidence).savefig(folder / "scores.png", format="png", dpi=_DPI)
    if evidence.failures:
        _risk_coverage(evidence).savefig(folder / "risk_coverage.png", format="png", dpi=_DPI)


def _scores(evidence: Evidence) -> Figure:
    """Every image's scores by group, with the AUROC against the first one."""
    names = [row.group for row in evidence.groups]
    shown = [name for name in _SHOWN if all(name in row.scores for row in evidence.images)]
    auroc = {(row.group, row.score): row.auroc for row in evidence.detection}
    figure = Figure((1.5 + 0.9 * len(names), 1.9 * len(shown)), layout="constrained")
    every = figure.subplots(len(shown), squeeze=False, sharex=True)[:, 0]
    for axes, score in zip(every, shown, strict=True):
        for place, name in enumerate(names):
            values = [row.scores[score] for row in evidence.images if row.group == name]
            spread = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0.0]
            axes.plot(place + np.asarray(spread), sorted(values), ".", color=_COLORS[0], ms=4)
            if (name, score) in auroc:
                label = f"{auroc[name, score]:.2f}"
                axes.text(place, 1.03, label, transform=axes.get_xaxis_transform(), ha="center")
        axes.set_ylabel(score, fontsize=7)
        values = [row.scores[score] for row in evidence.images]
        if max(values) > _WIDE * np.quantile(values, 0.5) > 0:
            axes.set_yscale("symlog", linthresh=np.quantile(values, 0.5))
    every[-1].set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    figure.suptitle(f"Scores of images; above: AUROC against {names[0]}", fontsize=10)
    return figure


def _risk_coverage(evidence: Evidence) -> Figure:
    """Mean risk of the images that are kept, by how many are kept."""
    names = list(dict.fromkeys(row.group for row in evidence.failures))
    figure = Figure((3.1 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = [row for row in evidence.images if row.dice is not None]
        _draw_curves(axes, rows if name == "all" else [row for row in rows if row.group == name])
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("share of the images that are kept", fontsize=8)
    figure.axes[0].set_ylabel("mean of 1 - Dice", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=7)
    return figure


def _draw_curves(axes: Axes, rows: list[ImageEvidence]) -> None:
    risks = np.array([1 - (row.dice or 0.0) for row in rows])
    kept = np.arange(1, len(rows) + 1)
    for score, color in zip(_SHOWN, _COLORS, strict=True):
        if all(score in row.scores for row in rows):
            order = np.argsort([row.scores[score] for row in rows], kind="stable")
            axes.plot(kept / len(rows), np.cumsum(risks[order]) / kept, color=color, label=score)
    axes.plot(kept / len(rows), np.cumsum(np.sort(risks)) / kept, "k--", lw=1, label="best")
