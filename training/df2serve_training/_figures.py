"""Figures of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from df2serve_training._evaluation_rows import Evaluation
from df2serve_training._evaluation_settings import Metric
from df2serve_training._pixels import UncertaintyBin

__all__ = ["draw_figures"]

_DPI = 120
_BLUE, _GRAY, _GREEN, _ORANGE, _SKY = "#0072b2", "#999999", "#009e73", "#d55e00", "#56b4e9"
_SHARES = {
    "below_worst": ("below worst expert", _ORANGE),
    "in_range": ("in expert range", _SKY),
    "above_best": ("above best expert", _GREEN),
}
"""Fields of an expert range with their label and color."""
_TITLES: dict[str, str] = {
    "dice": "Dice",
    "map": "mAP",
    "ap50": "AP at IoU 0.5",
    "aji": "AJI",
    "aji_plus": "AJI+",
    "pq": "PQ",
}
_SHOWN: tuple[Metric, ...] = ("dice", "map")


def draw_figures(evaluation: Evaluation, folder: Path) -> None:
    """Write the figures for which there are numbers, as PNG."""
    drawings: dict[str, tuple[bool, Callable[[Evaluation], Figure]]] = {
        "quality": (True, _quality),
        "uncertainty_quality": (True, _uncertainty_quality),
        "expert_ranges": (bool(evaluation.expert_ranges), _expert_ranges),
        "uncertainty": (any(row.pixels for row in evaluation.uncertainty), _uncertainty),
    }
    for name, (wanted, draw) in drawings.items():
        if wanted:
            draw(evaluation).savefig(folder / f"{name}.png", format="png", dpi=_DPI)


def _quality(evaluation: Evaluation) -> Figure:
    """Every image's quality, with the range of the experts behind it."""
    figure = Figure((9, 3.2 * len(_SHOWN)), layout="constrained")
    for axes, metric in zip(figure.subplots(len(_SHOWN)), _SHOWN, strict=True):
        scored = [
            (row.file, value) for row in evaluation.images if (value := row.of(metric)) is not None
        ]
        scored.sort(key=lambda pair: pair[1])
        place_of = {file: place for place, (file, _) in enumerate(scored)}
        for row in evaluation.relative:
            if (row.metric, row.reference) == (metric, "estimate"):
                axes.vlines(place_of[row.file], row.worst, row.best, color=_GRAY, lw=5, alpha=0.4)
                axes.plot(place_of[row.file], row.mean, "_", color=_GRAY)
        axes.plot([value for _, value in scored], "o", color=_BLUE, ms=4)
        axes.set_xticks(range(len(scored)), [file for file, _ in scored], rotation=90, fontsize=6)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel(_TITLES[metric])
    figure.suptitle("Predictions (dots) and range of the experts (bars), both against the truth")
    return figure


def _uncertainty_quality(evaluation: Evaluation) -> Figure:
    """Quality over U, and how they go together."""
    figure = Figure((4.2 * len(_SHOWN), 3.8), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(_SHOWN)), _SHOWN, strict=True):
        pairs = [
            (row.u, value)
            for row in evaluation.images
            if row.u is not None and (value := row.of(metric)) is not None
        ]
        axes.plot([u for u, _ in pairs], [value for _, value in pairs], "o", color=_BLUE, ms=4)
        if metric == evaluation.settings.metric:
            axes.axhline(evaluation.settings.required, color=_GRAY, lw=1, ls="--")
        axes.set_xlabel("uncertainty U")
        axes.set_ylabel(_TITLES[metric])
        for row in evaluation.correlations:
            if (row.score, row.metric) == ("u", metric):
                title = (
                    f"Pearson {row.pearson:.2f}, Spearman {row.spearman:.2f}, {row.images} images"
                )
                axes.set_title(title, fontsize=9)
    return figure


def _expert_ranges(evaluation: Evaluation) -> Figure:
    """Shares of the predictions below, in and above the range of the experts."""
    ranges = evaluation.expert_ranges
    names = [f"{_TITLES[row.metric]}\n{row.reference.replace('_', ' ')}" for row in ranges]
    figure = Figure((1.5 + 0.9 * len(ranges), 3.6), layout="constrained")
    axes: Axes = figure.subplots()
    bottom = [0.0] * len(ranges)
    for field, (label, color) in _SHARES.items():
        shares = [getattr(row, field) for row in ranges]
        axes.bar(names, shares, bottom=bottom, color=color, label=label)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    axes.set_ylabel("share of the images")
    axes.tick_params(axis="x", labelsize=7)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def _uncertainty(evaluation: Evaluation) -> Figure:
    """Errors by uncertainty of the pixel."""
    figure = Figure((6, 3.8), layout="constrained")
    axes: Axes = figure.subplots()
    rows = [row for row in evaluation.uncertainty if row.pixels]
    errors = [row.error or 0 for row in rows]
    axes.bar([_middle(row) for row in rows], errors, 0.036, color=_BLUE, label="not the truth")
    drawn = [row for row in rows if row.expert_pixels]
    if drawn:
        middles = [_middle(row) for row in drawn]
        dissent = [row.expert_error or 0 for row in drawn]
        unanimous = [row.expert_agreement or 0 for row in drawn]
        axes.plot(middles, dissent, "o-", color=_ORANGE, ms=4, label="not what experts say")
        axes.plot(middles, unanimous, "s-", color=_GREEN, ms=4, label="all experts agree")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("uncertainty of the pixel")
    axes.set_ylabel("share of the pixels")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def _middle(row: UncertaintyBin) -> float:
    return (row.low + row.high) / 2
