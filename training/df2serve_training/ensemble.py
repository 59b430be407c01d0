"""From a training set to an ensemble folder: folds, members, out-of-fold scores, assembly."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import tomli_w
import torch

from df2serve._version import __version__
from df2serve.artifact import Ensemble, GoldenTensors, load_ensemble, save_ensemble
from df2serve.artifact.manifest import Member
from df2serve.backends.torch import choose_device
from df2serve.config import Frozen, RuntimeConfig, TrainingNormalization
from df2serve.core.metrics import mean_dice
from df2serve.core.normalize import fit_training_normalization
from df2serve.errors import ConfigError, InputError, OutputError
from df2serve.inference import Predictor
from df2serve.io import Image
from df2serve_training.dataset import LabeledImage, TrainingImage, TrainingSet
from df2serve_training.fit import MemberFit, StepReport
from df2serve_training.folds import Splits, load_splits, make_splits
from df2serve_training.recipe import Recipe
from df2serve_training.targets import IGNORED

__all__ = ["EnsembleFacts", "train_ensemble"]

_COLORS = ("#000000", "#00b300", "#e69f00", "#56b4e9", "#cc79a7", "#d55e00", "#f0e442")
_SPLITS = "splits.json"
_PACKAGES = ("torch", "segmentation-models-pytorch", "timm", "numpy")


class EnsembleFacts(Frozen):
    """What only the author knows of an ensemble."""

    id: str
    """Short name in lower case."""
    name: str
    """Title for people."""
    description: str = ""
    license: str | None = None
    """Licence of the ensemble, as an SPDX identifier; never filled in by a tool."""
    class_names: tuple[str, ...] = ()
    """In order, background first; ``background``, ``class 1``, … when empty."""
    channel_names: tuple[str, ...] = ()
    """In order; ``channel 0``, … when empty."""


@dataclass(frozen=True)
class _Training:
    """What all members share."""

    data: TrainingSet
    recipe: Recipe
    splits: Splits
    normalization: TrainingNormalization
    fields: Mapping[str, Any]
    """Of the manifest, but for the members."""
    device: torch.device


def train_ensemble(
    data: TrainingSet,
    target: str | Path,
    recipe: Recipe,
    *,
    facts: EnsembleFacts,
    device: str = "auto",
    listener: Callable[[StepReport], None] = lambda report: None,
) -> Ensemble:
    """Train one member per fold and write the ensemble.

    The work lies in a folder beside the target, ``NAME.training``, until the ensemble is written:
    each finished member as an ensemble of its own, the one in work as a checkpoint. Called again
    after an interruption, with the same data and recipe, it goes on there.

    Args:
        data: checked training set.
        target: folder to create.
        recipe: settings.
        facts: what the author says of the ensemble.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        listener: called every few steps.

    Raises:
        OutputError: the target exists, or cannot be written.
        InputError: data or recipe are not those of the work that lies there.
        ConfigError: names do not fit, or there are too few images for the folds.
    """
    path = Path(target)
    if path.exists():
        message = f"{path} exists; remove it or choose another folder"
        raise OutputError(message)
    work = path.with_name(f"{path.name}.training")
    work.mkdir(parents=True, exist_ok=True)
    splits = _splits(data, recipe, work / _SPLITS)
    normalization = fit_training_normalization(data.load(image).pixels for image in data.images)
    training = _Training(
        data=data,
        recipe=recipe,
        splits=splits,
        normalization=normalization,
        fields=_fields(data, recipe, facts, normalization),
        device=choose_device(device),
    )
    members = [
        _trained_member(training, fold, work, listener) for fold in range(recipe.num_members)
    ]
    ensemble = _assemble(training, members, work, path)
    shutil.rmtree(work)
    return ensemble


def _splits(data: TrainingSet, recipe: Recipe, path: Path) -> Splits:
    """Return the folds of an interrupted training, or new ones."""
    if path.is_file():
        splits = load_splits(path)
        splits.require_same(data.images)
        if splits.folds != recipe.folds:
            message = f"{path} has folds of other settings; train into another folder"
            raise InputError(message)
        return splits
    splits = make_splits(data.images, recipe.folds)
    splits.save(path)
    return splits


def _fields(
    data: TrainingSet, recipe: Recipe, facts: EnsembleFacts, normalization: TrainingNormalization
) -> dict[str, Any]:
    """Return the fields of the manifest that are known before the training."""
    classes, channels = recipe.data.num_classes, data.num_channels
    class_names = facts.class_names or ("background", *(f"class {k}" for k in range(1, classes)))
    channel_names = facts.channel_names or tuple(f"channel {c}" for c in range(channels))
    for what, names, count in (
        ("class", class_names, classes),
        ("channel", channel_names, channels),
    ):
        if len(names) != count:
            message = f"got {len(names)} {what} names ({', '.join(names)}), expected {count}"
            raise ConfigError(message)
    sizes = {image.pixel_size_um for image in data.images}
    size = sizes.pop() if len(sizes) == 1 else None
    return {
        **facts.model_dump(exclude={"class_names", "channel_names"}),
        "classes": [
            {"name": name, "color": _COLORS[k % len(_COLORS)]} for k, name in enumerate(class_names)
        ],
        "channels": [{"name": name} for name in channel_names],
        "pixel_size_um": None if size is None else asdict(size),
        "normalization": normalization,
        "tile_shape": recipe.sampling.patch_shape,
        "distance_channel": "relative" if recipe.network.distance_head else None,
        "versions": {package: version(package) for package in _PACKAGES}
        | {"df2serve": __version__},
    }


def _trained_member(
    training: _Training, fold: int, work: Path, listener: Callable[[StepReport], None]
) -> Ensemble:
    """Return a finished member as an ensemble of one; train it if it is not there."""
    folder = work / f"fold-{fold}"
    if folder.exists():
        finished = load_ensemble(folder)
        if finished.manifest.training.get("recipe") != _plain(training.recipe):
            message = f"{folder} was trained by another recipe; train into another folder"
            raise InputError(message)
        return finished
    names = training.splits.training_names(fold)
    images = [training.data.load(image) for image in training.data.take(names).images]
    fit = MemberFit(
        recipe=training.recipe,
        member=fold,
        images=images,
        intensities=training.data.intensity_range(),
        normalization=training.normalization,
        device=training.device,
    )
    checkpoint = work / f"fold-{fold}.checkpoint"
    network = fit.run(checkpoint=checkpoint, listener=listener)
    fields = dict(training.fields) | {
        "members": [Member(folder="members/fold-0", fold=fold)],
        "encoder_weights": fit.origin,
        "training": {
            "recipe": _plain(training.recipe),
            "seconds": round(fit.seconds, 1),
            "device": str(training.device),
        },
    }
    saved = save_ensemble(folder, fields, [network], files={"history.csv": _history(fit.history)})
    checkpoint.unlink(missing_ok=True)
    return saved


def _assemble(training: _Training, members: list[Ensemble], work: Path, target: Path) -> Ensemble:
    """Score members on the images that they did not see, and write the ensemble."""
    rows = [row for member in members for row in _out_of_fold(training, member)]
    described = [
        Member(
            folder=f"members/fold-{fold}",
            fold=fold,
            validation=_mean_scores(row for row in rows if row.fold == fold),
        )
        for fold in range(len(members))
    ]
    recipe = training.recipe
    fields = dict(training.fields) | {
        "members": described,
        "encoder_weights": members[0].manifest.encoder_weights,
        "training": {
            "images": len(training.data),
            "recipe": _plain(recipe),
            "members": [
                {key: member.manifest.training[key] for key in ("seconds", "device")}
                for member in members
            ],
        },
    }
    files = {
        "history.csv": b"".join(
            member.read("history.csv") if fold == 0 else _without_header(member.read("history.csv"))
            for fold, member in enumerate(members)
        ),
        "out_of_fold.csv": _table([asdict(row) for row in rows], _OutOfFold),
        _SPLITS: (work / _SPLITS).read_bytes(),
        "training.toml": tomli_w.dumps(_plain(recipe)).encode(),
    }
    networks = [member.load_member(0) for member in members]
    draft = save_ensemble(work / "draft", fields, networks, files={})
    files |= _golden(draft, training)
    return save_ensemble(target, fields, networks, files=files)


@dataclass(frozen=True)
class _OutOfFold:
    """How a member did on an image that it did not see."""

    fold: int
    name: str
    dice: float | None
    """Mean over the foreground classes; absent where neither mask has any."""
    u: float | None
    """Of this member alone."""


def _out_of_fold(training: _Training, member: Ensemble) -> Iterator[_OutOfFold]:
    fold = member.manifest.members[0].fold or 0
    names = training.splits.validation_names(fold)
    runtime = RuntimeConfig().updated(device=str(training.device))
    with Predictor(member, runtime=runtime) as predictor:
        for image in training.data.take(names).images:
            labeled = training.data.load(image)
            prediction = predictor.predict(_as_image(image, labeled))
            score = mean_dice(
                np.where(labeled.target == IGNORED, 0, labeled.target),
                prediction.mask,
                n_classes=training.recipe.data.num_classes,
                valid=labeled.target != IGNORED,
            )
            yield _OutOfFold(fold=fold, name=image.name, dice=score, u=prediction.scores.u)


def _as_image(image: TrainingImage, labeled: LabeledImage) -> Image:
    return Image.from_array(labeled.pixels, axes="CYX", source=image.name)


def _mean_scores(rows: Iterator[_OutOfFold]) -> dict[str, float]:
    scores = [row.dice for row in rows if row.dice is not None]
    return {"dice": fmean(scores)} if scores else {}


def _golden(ensemble: Ensemble, training: _Training) -> dict[str, bytes]:
    """Return golden tensors of a part of an image that shows as many classes as possible."""
    image = max(training.data.images, key=lambda item: len(item.present_classes))
    labeled = training.data.load(image)
    rows, columns = np.nonzero((labeled.target > 0) & (labeled.target != IGNORED))
    middle = (rows[len(rows) // 2], columns[len(rows) // 2]) if len(rows) else (0, 0)
    window = tuple(
        slice(max(0, min(int(center) - side // 2, length - side)), None)
        for center, side, length in zip(
            middle, training.recipe.sampling.patch_shape, labeled.target.shape, strict=True
        )
    )
    sides = training.recipe.sampling.patch_shape
    part = labeled.pixels[:, window[0], window[1]][:, : sides[0], : sides[1]]
    with Predictor(ensemble, runtime=RuntimeConfig(device="cpu")) as predictor:
        prediction = predictor.predict(np.ascontiguousarray(part), axes="CYX")
    golden = GoldenTensors(
        image=part,
        probs=prediction.probs,
        total=prediction.total,
        distance=prediction.distance,
    )
    return golden.to_files()


def _history(reports: list[StepReport]) -> bytes:
    return _table([asdict(report) for report in reports], StepReport)


def _table(rows: list[dict[str, Any]], kind: type) -> bytes:
    """Return a CSV file with the fields of a dataclass as columns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [item.name for item in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _without_header(table: bytes) -> bytes:
    return table.split(b"\n", 1)[1]


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as it stands in TOML and JSON files: without what is absent."""
    return recipe.model_dump(mode="json", exclude_none=True)
