"""``df2serve predict``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from df2serve.cli._terminal import AsJson, EnsembleArgument, ImageProgress, print_json, say

if TYPE_CHECKING:
    from df2serve.backends import RunnerInfo
    from df2serve.backends.cellpose import Cellpose
    from df2serve.config import InferenceConfig, InstanceConfig
    from df2serve.inference import Outcome
    from df2serve.io import Image, Selection
    from df2serve.writers import ResultFolder, Written
    from df2serve.writers.records import ShapeKind

__all__ = ["predict", "selection_of", "sources_of"]

_reading = partial(typer.Option, rich_help_panel="How images are read")
_computing = partial(typer.Option, rich_help_panel="What is computed")
_running = partial(typer.Option, rich_help_panel="Where it is computed")


def predict(
    ensemble: EnsembleArgument,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")],
    *,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write class probabilities as well.")
    ] = False,
    instances: Annotated[
        str | None, typer.Option(help="Write objects as well: watershed, components or cellpose.")
    ] = None,
    min_size: Annotated[int | None, typer.Option(help="Leave out objects of fewer pixels.")] = None,
    cellpose_weights: Annotated[
        Path | None, typer.Option(help="Network for --instances cellpose: a file of weights.")
    ] = None,
    cellpose_diameter: Annotated[
        float | None, typer.Option(min=1, help="Diameter of objects in pixels, for cellpose.")
    ] = None,
    rois: Annotated[
        bool, typer.Option("--rois", help="Write objects for Fiji's ROI manager as well.")
    ] = False,
    geojson: Annotated[
        bool, typer.Option("--geojson", help="Write objects for QuPath as well.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write the review list as a page.")
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with results; reuse those that are whole.")
    ] = False,
    as_json: AsJson = False,
    pattern: Annotated[str, _reading(help="Names to take; '**/*' for subfolders too.")] = "*",
    axes: Annotated[
        str | None, _reading(help="Axes as stored, letters of TCZYX, where files state none.")
    ] = None,
    channels: Annotated[
        str | None, _reading(help="Channels to take, in this order, such as 0,2.")
    ] = None,
    z: Annotated[int | None, _reading(help="Plane, counted from 0.")] = None,
    t: Annotated[int | None, _reading(help="Time point, counted from 0.")] = None,
    series: Annotated[int | None, _reading(help="Image series, counted from 0.")] = None,
    pixel_size: Annotated[
        float | None, _reading(min=1e-9, help="Side of a pixel in um, whatever files say.")
    ] = None,
    untrusted: Annotated[
        bool, _reading("--untrusted", help="Decode each file in a confined process.")
    ] = False,
    preset: Annotated[
        str | None, _computing(help="accurate, fast or deepflash2; else the ensemble's own.")
    ] = None,
    tile: Annotated[int | None, _computing(help="Rows and columns of a tile.")] = None,
    views: Annotated[int | None, _computing(help="Test-time views: 1, 4 or 8.")] = None,
    precision: Annotated[str | None, _computing(help="auto, fp32, bf16 or fp16.")] = None,
    backend: Annotated[str | None, _running(help="auto, torch or onnx.")] = None,
    device: Annotated[str | None, _running(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    batch_size: Annotated[int | None, _running(help="Network inputs per forward pass.")] = None,
) -> None:
    """Segment images, and say how much each result is to be doubted."""
    from df2serve.artifact import load_ensemble
    from df2serve.config import RuntimeConfig
    from df2serve.inference import Predictor
    from df2serve.io import PixelSize, open_image, read_image_isolated
    from df2serve.writers import ResultFolder, relative_names

    opened = load_ensemble(ensemble)
    config = _config(opened.manifest.inference, preset).updated(
        tile_shape=tile and (tile, tile), views=views, precision=precision
    )
    cellpose = _cellpose(instances, cellpose_weights, cellpose_diameter, device)
    objects = _instance_config(instances, min_size, cellpose)
    wanted: dict[ShapeKind, bool] = {"rois": rois, "geojson": geojson}
    runtime = RuntimeConfig().updated(backend=backend, device=device, batch_size=batch_size)
    sources = sources_of(images, pattern, output)
    names = relative_names(sources)
    selection = selection_of(channels, z=z, t=t, series=series)
    size = None if pixel_size is None else PixelSize(pixel_size, pixel_size)

    def opener(path: str | Path) -> AbstractContextManager[Image]:
        name = names[Path(path)]
        if untrusted:
            return nullcontext(
                read_image_isolated(
                    path, axes=axes, selection=selection, pixel_size_um=size, name=name
                )
            )
        return open_image(path, axes=axes, selection=selection, pixel_size_um=size, name=name)

    with Predictor(opened, config=config, runtime=runtime) as predictor:
        results = ResultFolder(
            output,
            opened,
            predictor.config,
            sources=list(names.values()),
            resume=resume,
            probabilities=probabilities,
            instances=objects,
            shapes=[kind for kind in wanted if wanted[kind]],
            cellpose=cellpose,
        )
        outcomes = {}
        with ImageProgress(len(sources)) as progress:
            for outcome in predictor.predict_many(
                sources, consume=results.write, opener=opener, listener=progress
            ):
                name = names[Path(outcome.source)]
                outcomes[name] = outcome
                progress.finish(name)
        runner = predictor.engine.runners[0].info
    _report(results, outcomes, runner, page=report, as_json=as_json)


def _config(recommended: InferenceConfig, name: str | None) -> InferenceConfig:
    from df2serve.config import preset

    return recommended if name is None else preset(name)


def _cellpose(
    method: str | None, weights: Path | None, diameter: float | None, device: str | None
) -> Cellpose | None:
    from df2serve.errors import ConfigError

    if method != "cellpose":
        if weights is not None or diameter is not None:
            message = "--cellpose-weights and --cellpose-diameter need --instances cellpose"
            raise ConfigError(message)
        return None
    from df2serve.backends.cellpose import Cellpose

    if weights is None:
        message = (
            "--instances cellpose needs the weights of a network, and never downloads any; give "
            "their file with --cellpose-weights FILE, or use --instances watershed"
        )
        raise ConfigError(message)
    return Cellpose(weights, diameter=diameter, device=device or "auto")


def _instance_config(
    method: str | None, min_size: int | None, cellpose: Cellpose | None
) -> InstanceConfig | None:
    from df2serve.config import InstanceConfig
    from df2serve.errors import ConfigError

    if method is not None:
        return InstanceConfig().updated(
            method=method, min_size=min_size, cellpose=cellpose and cellpose.config
        )
    if min_size is not None:
        message = "--min-size needs --instances watershed, components or cellpose"
        raise ConfigError(message)
    return None


def selection_of(
    channels: str | None, *, z: int | None = None, t: int | None = None, series: int | None = None
) -> Selection:
    """Return which planes of an image are meant, channels such as ``0,2``."""
    from df2serve.errors import ConfigError
    from df2serve.io import Selection

    try:
        chosen = None if channels is None else tuple(int(part) for part in channels.split(","))
    except ValueError as error:
        message = f"got --channels {channels!r}; expected numbers from 0, such as 0,2"
        raise ConfigError(message) from error
    return Selection(series=series, t=t, z=z, channels=chosen)


def sources_of(images: Sequence[Path], pattern: str, output: Path) -> list[Path]:
    """Return all images, each once and none of earlier results."""
    from df2serve.errors import SourceNotFoundError
    from df2serve.io import list_images

    found = dict.fromkeys(path for image in images for path in list_images(image, pattern=pattern))
    results = output.absolute()
    sources = [path for path in found if not path.absolute().is_relative_to(results)]
    if not sources:
        message = f"all images lie in the folder of results {output}; choose another folder"
        raise SourceNotFoundError(message)
    return sources


def _report(
    results: ResultFolder,
    outcomes: Mapping[str, Outcome[Written]],
    runner: RunnerInfo,
    *,
    page: bool,
    as_json: bool,
) -> None:
    """Write tables and page, tell what happened, and exit with an error if images failed."""
    from df2serve.writers import (
        failure_row,
        score_row,
        write_instance_table,
        write_report,
        write_table,
    )

    failures = {name: outcome.error for name, outcome in outcomes.items() if outcome.error}
    written = [outcome.result for outcome in outcomes.values() if outcome.result]
    rows = [score_row(item.record, results.run) for item in written]
    rows += [failure_row(name, error) for name, error in failures.items()]
    _, spreadsheet = write_table(rows, results.target / "scores")
    if with_objects := [item.record for item in written if item.record.instances]:
        write_instance_table(results.target, with_objects)
    path = write_report(results.target) if page and written else None
    for name, error in failures.items():
        say(f"error: {error}" if name in str(error) else f"error: {name}: {error}")
    if as_json:
        print_json(
            {
                "output": str(results.target),
                "run": results.run.model_dump(mode="json"),
                "runner": asdict(runner),
                "images": rows,
            }
        )
    else:
        _summarize(results, written, runner, spreadsheet)
        if path:
            typer.echo(f"report: {path}")
    if failures:
        sys.exit(max(error.exit_code for error in failures.values()))


def _summarize(
    results: ResultFolder, written: Sequence[Written], runner: RunnerInfo, spreadsheet: Path
) -> None:
    """Tell people what is where."""
    for note in sorted({note for item in written for note in item.record.notes}):
        say(f"note: {note}")
    reused = sum(item.reused for item in written)
    found = f", {reused} of them found finished" if reused else ""
    typer.echo(
        f"{len(written)} images{found}: {results.run.ensemble_name}, "
        f"{runner.backend} on {runner.device} in {runner.precision}"
    )
    threshold = results.run.threshold
    if threshold is not None:
        scores = [item.record.scores.u for item in written]
        doubtful = sum(u is None or u >= threshold.value for u in scores)
        typer.echo(f"{doubtful} of {len(written)} need review (U >= {threshold.value:.3f})")
    counts = [item.record.instances for item in written if item.record.instances]
    if counts:
        removed = sum(count.removed for count in counts)
        typer.echo(
            f"{sum(count.kept for count in counts)} objects, {removed} too small ones left out: "
            f"{results.target / 'instances.csv'}"
        )
    typer.echo(f"scores: {spreadsheet}")
    typer.echo(f"review list: df2serve rank {results.target}")
