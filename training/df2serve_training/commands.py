"""The verbs that training adds to the command line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from df2serve.artifact import Calibration
    from df2serve_training.dataset import TrainingSet
    from df2serve_training.evaluate import Evaluation, Keep
    from df2serve_training.ground_truth import GroundTruthReport, GroundTruthWarning
    from df2serve_training.history import StepReport
    from df2serve_training.recipe import Recipe

__all__ = ["compare", "evaluate", "evidence", "find_rate", "gt", "register", "train"]

_WARNINGS_SHOWN = 5
_RESULTS = "results"

_Images = Annotated[Path, typer.Argument(help="Folder of images.")]
_Masks = Annotated[Path, typer.Argument(help="Folder of masks, named after the images.")]
_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")]
_RecipeName = Annotated[str, typer.Option("--recipe", help="Name of a recipe, or a TOML file.")]
_Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting over the recipe's, as training.steps=500."),
]
_Ignore = Annotated[Path | None, typer.Option(help="Folder of masks of pixels that do not count.")]
_Table = Annotated[
    Path | None, typer.Option(help="CSV or XLSX file with the column of grouped folds.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (gt, train, find_rate, evaluate, compare, evidence):
        app.command()(verb)


def gt(
    experts: Annotated[Path, typer.Argument(help="Folder with one folder of masks per expert.")],
    output: _Output,
    *,
    method: Annotated[str | None, typer.Option(help="staple, majority or instance.")] = None,
    masks: Annotated[str | None, typer.Option(help="binary, classes or instances.")] = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes, the background included.")
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Pixels from which on an object counts.")
    ] = None,
) -> None:
    """Estimate ground truth from several experts, and how far they agree."""
    from df2serve_training.ground_truth import GroundTruthSettings, estimate_folder

    settings = GroundTruthSettings().updated(
        method=method, masks=masks, num_classes=classes, min_size=min_size
    )
    with _progress() as bar:
        task = bar.add_task("estimating", total=None)
        report = estimate_folder(
            experts,
            output,
            settings=settings,
            listener=lambda step: bar.update(
                task, completed=step.done, total=step.total, description=step.source
            ),
        )
    _tell_ground_truth(report, output)


def train(
    images: _Images,
    masks: _Masks,
    output: Annotated[Path, typer.Option("--output", "-o", help="Ensemble folder to create.")],
    *,
    recipe: _RecipeName = "default",
    setting: _Settings = None,
    name: Annotated[str | None, typer.Option(help="Title; the folder's name when absent.")] = None,
    description: Annotated[str, typer.Option(help="What it segments, in which images.")] = "",
    ensemble_license: Annotated[
        str | None, typer.Option("--license", help="Licence that you choose for the ensemble.")
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(help="As background,cell; in the order of the mask's values.")
    ] = None,
    channel_names: Annotated[str | None, typer.Option(help="As cFOS,NeuN.")] = None,
    ignore: _Ignore = None,
    table: _Table = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:N or mps; several as cuda:0,cuda:1.")
    ] = "auto",
    executor: Annotated[
        str | None, typer.Option(help="slurm: a job per member; local: the same without SLURM.")
    ] = None,
    job: Annotated[
        list[str] | None,
        typer.Option(help="An option of sbatch, as partition=gpu, time=240 or gpus_per_node=1."),
    ] = None,
) -> None:
    """Train a k-fold ensemble; the same command goes on after an interruption."""
    from df2serve_training._options import (
        parse_jobs,
        parse_overrides,
        short_name,
        split_names,
    )
    from df2serve_training.ensemble import EnsembleFacts, train_ensemble
    from df2serve_training.recipe import load_recipe

    chosen = load_recipe(recipe, parse_overrides(setting or []))
    facts = EnsembleFacts(
        id=short_name(output.name),
        name=name or output.name,
        description=description,
        license=ensemble_license,
        class_names=split_names(class_names),
        channel_names=split_names(channel_names),
    )
    jobs = parse_jobs(executor, job or [])
    data = _checked(images, masks, chosen, ignore=ignore, table=table)
    with _progress() as bar:
        ensemble = train_ensemble(
            data, output, chosen, facts=facts, device=device, jobs=jobs, listener=_shown(bar)
        )
    for member in ensemble.manifest.members:
        score = member.validation.get("dice")
        told = "no foreground to score" if score is None else f"out-of-fold Dice {score:.3f}"
        typer.echo(f"member {member.fold}: {told}")
    typer.echo(f"ensemble: {output}")


def find_rate(
    images: _Images,
    masks: _Masks,
    output: _Output,
    *,
    recipe: _RecipeName = "default",
    setting: _Settings = None,
    steps: Annotated[int | None, typer.Option(help="Steps in which the rate rises.")] = None,
    lowest: Annotated[float | None, typer.Option(help="Rate of the first step.")] = None,
    highest: Annotated[float | None, typer.Option(help="Rate of the last step.")] = None,
    ignore: _Ignore = None,
    table: _Table = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Try learning rates on a member that is thrown away, and suggest some."""
    from df2serve.errors import OutputError
    from df2serve_training import rate_finder
    from df2serve_training._options import parse_overrides
    from df2serve_training.recipe import load_recipe

    if output.exists():
        message = f"{output} exists; remove it or choose another folder"
        raise OutputError(message)
    chosen = load_recipe(recipe, parse_overrides(setting or []))
    settings = rate_finder.RateSettings().updated(steps=steps, start=lowest, end=highest)
    data = _checked(images, masks, chosen, ignore=ignore, table=table)
    with _progress() as bar:
        task = bar.add_task("trying rates", total=settings.steps)
        curve = rate_finder.find_rate(
            data,
            chosen,
            settings=settings,
            device=device,
            listener=lambda point: bar.update(
                task, advance=1, description=f"rate {point.rate:.1e}  loss {point.smoothed:.4f}"
            ),
        )
    rate_finder.write_curve(curve, output)
    typer.echo(f"loss falls fastest at {curve.steepest:.1e}")
    typer.echo(f"middle of its longest fall: {curve.valley:.1e}")
    typer.echo(f"curve: {output}")


def evaluate(
    ensemble: Annotated[
        str, typer.Argument(help="Ensemble: a folder, a zip file or hf://org/name[@revision].")
    ],
    images: _Images,
    masks: _Masks,
    output: _Output,
    *,
    experts: Annotated[
        Path | None, typer.Option(help="Folder with one folder of masks per expert.")
    ] = None,
    ignore: _Ignore = None,
    kind: Annotated[
        str | None, typer.Option("--masks", help="binary, classes or instances.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Axes as stored, where image files state none.")
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Pixels from which on an object counts.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Quality that decides what failed, such as dice.")
    ] = None,
    required: Annotated[
        float | None, typer.Option(help="A lower quality is a failure: the paper's tau.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Put thresholds and references into the ensemble."),
    ] = False,
    features: Annotated[
        bool,
        typer.Option(
            "--features",
            help="With --calibrate: let the images be what feature_distance compares with.",
        ),
    ] = False,
) -> None:
    """Compare predictions with masks and with experts; find the threshold for review."""
    from df2serve.artifact import load_ensemble
    from df2serve.config import InferenceConfig, RuntimeConfig
    from df2serve.errors import ConfigError
    from df2serve.writers import ResultFolder, redescribe, write_report
    from df2serve_training.calibrate import with_calibration
    from df2serve_training.evaluate import (
        EvaluationSettings,
        evaluate_ensemble,
        find_labeled_files,
    )
    from df2serve_training.settings import DataSettings

    if features and not calibrate:
        message = "got --features without --calibrate, which puts them into the ensemble; add it"
        raise ConfigError(message)
    opened = load_ensemble(ensemble)
    classes = opened.manifest.num_classes
    described = DataSettings().updated(
        masks=kind or ("classes" if classes > 2 else "binary"), num_classes=classes, axes=axes
    )
    settings = EvaluationSettings().updated(
        min_size=min_size, metric=metric, required=required, features=features
    )
    data = find_labeled_files(images, masks, settings=described, experts=experts, ignore=ignore)

    def keeper(folder: Path, config: InferenceConfig) -> Keep:
        return ResultFolder(folder / _RESULTS, opened, config).write_whole

    with _progress() as bar:
        task = bar.add_task("evaluating", total=len(data.pairs))
        evaluation = evaluate_ensemble(
            opened,
            data,
            target=output,
            settings=settings,
            runtime=RuntimeConfig().updated(device=device),
            listener=lambda step: bar.update(task, completed=step.done, description=step.source),
            keeper=keeper,
        )
    _tell_evaluation(evaluation, output)
    if calibrate:
        calibrated = with_calibration(opened, evaluation, output)
        redescribe(
            output / _RESULTS,
            calibrated,
            feature_distances={
                row.image_sha256: row.feature_distance
                for row in evaluation.images
                if row.feature_distance is not None
            },
        )
        _tell_threshold(calibrated.calibration)
    report = write_report(output / _RESULTS, target=output / "report.html", evaluation=output)
    typer.echo(f"report: {report}")


def _checked(
    images: Path, masks: Path, recipe: Recipe, *, ignore: Path | None, table: Path | None
) -> TrainingSet:
    """Return the training set, and tell people what they should know of it."""
    from df2serve_training.preflight import check_training_set

    data = check_training_set(
        images, masks, settings=recipe.data, folds=recipe.folds, ignore=ignore, table=table
    )
    for remark in data.remarks:
        typer.echo(f"note: {remark}", err=True)
    return data


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation.")],
    others: Annotated[list[Path], typer.Argument(help="Evaluations of the same images.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Compare trainings by their evaluations: what differs, and how alike their masks are."""
    from df2serve_training.evaluate import read_evaluation
    from df2serve_training.repeats import compare_evaluations, reproducibility

    reference = read_evaluation(first)
    differences = {
        str(other): compare_evaluations(reference, read_evaluation(other)) for other in others
    }
    alike = reproducibility([first, *others])
    if as_json:
        content = {
            "differences": {
                name: [row.model_dump(mode="json") for row in rows]
                for name, rows in differences.items()
            },
            "reproducibility": alike.model_dump(mode="json"),
        }
        typer.echo(json.dumps(content, indent=2))
        return
    for name, rows in differences.items():
        typer.echo(f"{first} and {name}")
        for row in rows:
            interval = "" if row.low is None else f" ({row.low:+.3f} to {row.high:+.3f})"
            p_value = "no image differs" if row.p_value is None else f"p = {row.p_value:.2g}"
            typer.echo(
                f"  {row.metric}: {row.first:.3f} and {row.second:.3f}, difference "
                f"{row.difference:+.3f}{interval}, {p_value}, {row.images} images"
            )
    if alike.mean.dice is not None:
        typer.echo(f"masks of {alike.runs} runs agree with each other: Dice {alike.mean.dice:.3f}")


def evidence(
    ensemble: Annotated[
        str, typer.Argument(help="Ensemble: a folder, a zip file or hf://org/name[@revision].")
    ],
    groups: Annotated[
        list[str],
        typer.Argument(
            help="NAME=IMAGES or NAME=IMAGES,MASKS[,KIND] with folders; ordinary images first."
        ),
    ],
    output: _Output,
    *,
    preset: Annotated[str | None, typer.Option(help="accurate, fast or deepflash2.")] = None,
    views: Annotated[int | None, typer.Option(help="Test-time views: 1, 4 or 8.")] = None,
    required: Annotated[
        float | None, typer.Option(help="A lower Dice score is a failure: the paper's tau.")
    ] = None,
    out_of_fold: Annotated[
        bool,
        typer.Option(
            "--out-of-fold", help="Compare each member with itself, on images that are new to it."
        ),
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
) -> None:
    """Measure which ranking finds odd images and failures, on groups of images."""
    from df2serve.artifact import load_ensemble
    from df2serve.config import RuntimeConfig
    from df2serve.config import preset as named
    from df2serve_training.evidence import EvidenceSettings, examine, parse_group

    opened = load_ensemble(ensemble)
    recommended = named(preset) if preset else opened.manifest.inference
    chosen = [parse_group(text, num_classes=opened.manifest.num_classes) for text in groups]
    with _progress() as bar:
        task = bar.add_task("examining", total=None)
        found = examine(
            opened,
            chosen,
            target=output,
            settings=EvidenceSettings().updated(required=required),
            config=recommended.updated(views=views),
            runtime=RuntimeConfig().updated(device=device),
            out_of_fold=out_of_fold,
            listener=lambda step: bar.update(
                task, completed=step.done, total=step.total, description=step.source
            ),
        )
    for remark in found.remarks:
        typer.echo(f"note: {remark}", err=True)
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"tables and figures: {output}")


def _shown(bar: Progress) -> Callable[[StepReport], None]:
    """Return a listener that gives every member a bar of its own."""
    tasks: dict[int, TaskID] = {}

    def show(report: StepReport) -> None:
        if report.member not in tasks:
            tasks[report.member] = bar.add_task("", total=report.steps)
        bar.update(
            tasks[report.member],
            completed=report.step,
            description=f"member {report.member}  loss {report.loss:.4f}",
        )

    return show


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _tell_ground_truth(report: GroundTruthReport, output: Path) -> None:
    """Tell people how far experts agree, and what to look at."""
    of_kind: dict[str, list[GroundTruthWarning]] = {}
    for warning in report.warnings:
        of_kind.setdefault(warning.kind, []).append(warning)
    for kind, warnings in of_kind.items():
        for warning in warnings[:_WARNINGS_SHOWN]:
            whose = f" of {warning.expert}" if warning.expert else ""
            typer.echo(f"{kind}: {warning.file}{whose}: {warning.message}", err=True)
        if (more := len(warnings) - _WARNINGS_SHOWN) > 0:
            typer.echo(f"{kind}: … and {more} more in report.json", err=True)
    for row in report.summary:
        dice = "undefined" if row.loo_dice_score is None else f"{row.loo_dice_score:.3f}"
        typer.echo(f"{row.expert}: Dice {dice} with the estimate of the others")
    typer.echo(f"{len(report.images)} images: {output}")


def _tell_evaluation(evaluation: Evaluation, output: Path) -> None:
    """Tell people the means with their intervals, and where predictions lie among experts."""
    for remark in evaluation.remarks:
        typer.echo(f"note: {remark}", err=True)
    for row in evaluation.summary:
        if row.class_name == "mean" and row.mean is not None:
            interval = "" if row.low is None else f" ({row.low:.3f} to {row.high:.3f})"
            typer.echo(f"{row.metric}: {row.mean:.3f}{interval}, {row.images} images")
    places = Counter(
        row.place
        for row in evaluation.relative
        if (row.metric, row.reference) == ("dice", "estimate")
    )
    for place, count in places.most_common():
        typer.echo(f"{place}: {count / places.total():.0%} of the comparisons by Dice")
    typer.echo(f"tables and figures: {output}")


def _tell_threshold(calibration: Calibration) -> None:
    threshold = calibration.threshold("u")
    if threshold is None:
        bound = calibration.failure_bound
        found = "no prediction failed" if bound is None else bound.meaning
        typer.echo(f"no threshold for review: {found}")
        return
    typer.echo(f"review from U >= {threshold.value:.3f}: {threshold.meaning}")
