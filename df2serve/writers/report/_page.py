"""From a folder of results to the page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.colors import to_hex

from df2serve._version import __version__
from df2serve.files import replacing
from df2serve.writers.folder import read_results
from df2serve.writers.preview import UNCERTAINTY_COLORS
from df2serve.writers.records import RunInfo
from df2serve.writers.report._charts import Axis, histogram, span_chart
from df2serve.writers.report._entries import Entry, entries_of
from df2serve.writers.report._evaluation import read_evaluation
from df2serve.writers.report._pictures import Pictures, draw_pictures, longest_side
from df2serve.writers.report._references import References, read_references

__all__ = ["write_report"]

_STOPS = 12
"""Colors of the scale of uncertainty; browsers mix those between."""
_BUFFERED = 16
_DRAWN_AT_ONCE = 16
_SHOWN_METRICS = ("dice", "map")


def write_report(
    folder: str | Path, *, target: Path | None = None, evaluation: Path | None = None
) -> Path:
    """Write the review list of a folder of results as one HTML file.

    The file asks for nothing else: pictures, style and script are in it, and its own policy forbids
    every request. It names files beside it where it lies in the folder of results.

    Args:
        folder: results.
        target: file to write; ``report.html`` in the folder when absent.
        evaluation: folder that 'df2serve evaluate' has written, of the same ensemble.

    Returns:
        The file.

    Raises:
        SourceNotFoundError: there are no results or no evaluation, or a file of them is missing.
        DecodeError: a record or the evaluation is damaged.
        InputError: the evaluation is one of another ensemble.
        OutputError: the file cannot be written.
    """
    root = Path(folder)
    run, records = read_results(root)
    target = root / "report.html" if target is None else target
    references = read_references(run)
    judged = None if evaluation is None else read_evaluation(evaluation, run)
    entries = list(entries_of(root, records, run, references=references, evaluation=judged))
    ranges = judged.expert_ranges if judged else run.calibration.expert_ranges
    axis = _axis(entries, run, references)
    data = _data(entries, run, references) | {
        "axis": axis.end,
        "beside": target.resolve().parent == root.resolve(),
    }
    style, script = _part("page.css"), _part("page.js")
    page = _template().stream(
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        run=run,
        version=__version__,
        entries=entries,
        illustrated=zip(entries, _illustrations(root, entries, run), strict=True),
        data=data,
        references=references,
        axis=axis,
        bars=histogram([entry.u for entry in entries if entry.u is not None], axis),
        summary=_summary(entries, run),
        stops=_stops(),
        settings=run.config.model_dump(mode="json"),
        ranges=[row for row in ranges if row.metric in _SHOWN_METRICS],
        spans=span_chart(list(judged.spans("dice").values())) if judged else None,
    )
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as stream:
        page.enable_buffering(_BUFFERED)
        stream.writelines(page)
    return target


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment.get_template("page.html")


def _part(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the policy by which a browser asks for nothing and runs our script alone."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(script)}'"
    )


def _illustrations(folder: Path, entries: Sequence[Entry], run: RunInfo) -> Iterator[Pictures]:
    """Yield the pictures of all images; few of them are in memory at a time."""
    draw = partial(draw_pictures, folder, run=run, side=longest_side(len(entries)))
    step = _DRAWN_AT_ONCE
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(entries), step):
            yield from pool.map(
                draw, (entry.record.files for entry in entries[first : first + step])
            )


def _data(entries: Sequence[Entry], run: RunInfo, references: References) -> dict[str, Any]:
    """Return what the script needs."""
    return {
        "images": [entry.for_script() for entry in entries],
        "threshold": run.threshold.value if run.threshold else None,
        "levels": [(level.threshold, level.miss) for level in references.levels],
        "references": [(point.u, point.failed) for point in references.points],
        "failure": references.failure,
    }


def _axis(entries: Sequence[Entry], run: RunInfo, references: References) -> Axis:
    """Return an axis of U that holds all images, all references and the threshold."""
    values = [entry.u for entry in entries if entry.u is not None]
    values += [point.u for point in references.points]
    values += [run.threshold.value] if run.threshold else []
    return Axis.up_to(max(values, default=run.largest_uncertainty))


def _summary(entries: Sequence[Entry], run: RunInfo) -> dict[str, str]:
    """Return the facts on all images together."""
    scores = [entry.u for entry in entries if entry.u is not None]
    counts = [entry.record.instances for entry in entries if entry.record.instances]
    facts = {
        "images": f"{len(entries)}",
        "median U": f"{median(scores):.3f}" if scores else "undefined",
        "nothing found": f"{sum(entry.record.scores.empty_prediction for entry in entries)}",
    }
    if run.instances is not None:
        facts["objects"] = f"{sum(count.kept for count in counts):,}"
    return facts


def _stops() -> list[tuple[str, str]]:
    """Return places and colors of the scale of uncertainty."""
    shares = [index / _STOPS for index in range(_STOPS + 1)]
    colors = mpl.colormaps[UNCERTAINTY_COLORS]
    return [(f"{share:.1%}", to_hex(colors(share))) for share in shares]
