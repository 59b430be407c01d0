"""The review list as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image as PillowImage

from df2serve.errors import SourceNotFoundError
from df2serve.writers._staging import staging
from df2serve.writers.preview import UNCERTAINTY_COLORS
from df2serve.writers.records import RunInfo
from df2serve.writers.review import SCORE_TITLES, ReviewList, ReviewPlace

__all__ = ["draw_ranking"]

_SHOWN = 12
_COLUMNS = 3
_CELL_INCHES = (4.4, 2.5)
_LONGEST_SIDE_PX = 360


def draw_ranking(folder: Path, found: ReviewList, run: RunInfo) -> Path:
    """Draw the images on top of a review list with their outlines and uncertainty.

    Args:
        folder: results; its pictures are shown.
        found: what it holds, in order.
        run: what the results have in common.

    Returns:
        ``ranking.png`` in the folder.

    Raises:
        SourceNotFoundError: a picture is missing or damaged.
        OutputError: it cannot be written.
    """
    places = found.places[:_SHOWN]
    rows = -(-len(places) // _COLUMNS)
    columns = min(len(places), _COLUMNS)
    figure = Figure((columns * _CELL_INCHES[0] + 0.8, rows * _CELL_INCHES[1]), layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, left, right in zip(places, axes.flat[::2], axes.flat[1::2], strict=False):
        made = place.record.files
        left.imshow(_thumbnail(folder / made["overlay"].path))
        right.imshow(_thumbnail(folder / made["picture"].path))
        left.set_title(_title(place, found.score), loc="left", fontsize=9)
    scale = mpl.cm.ScalarMappable(Normalize(0, run.largest_uncertainty), UNCERTAINTY_COLORS)
    figure.colorbar(scale, ax=axes, label="total uncertainty per pixel", fraction=0.02)
    target = folder / "ranking.png"
    with staging() as staged:
        figure.savefig(staged.path(target), format="png", dpi=110)
    return target


def _title(place: ReviewPlace, score: str) -> str:
    value = "undefined" if place.score is None else f"{place.score:.3f}"
    review = ", review" if place.needs_review else ""
    return f"{place.rank}. {place.record.name}  {SCORE_TITLES[score]} = {value}{review}"


def _thumbnail(path: Path) -> PillowImage.Image:
    try:
        with PillowImage.open(path) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        message = f"cannot read {path}; 'df2serve predict --resume' makes what is missing"
        raise SourceNotFoundError(message) from error
    else:
        small.thumbnail((_LONGEST_SIDE_PX, _LONGEST_SIDE_PX))
        return small
