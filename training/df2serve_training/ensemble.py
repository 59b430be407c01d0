"""From a training set to an ensemble folder: folds, members, out-of-fold scores, assembly."""

from __future__ import annotations

import csv
import io
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import tomli_w

from df2serve._version import __version__
from df2serve.artifact import Ensemble, GoldenTensors, load_ensemble, save_ensemble
from df2serve.artifact.manifest import Member, colored_classes
from df2serve.backends.torch import choose_device
from df2serve.config import Frozen, Normalization, RuntimeConfig
from df2serve.errors import ConfigError, InputError, OutputError
from df2serve.files import replace_file
from df2serve.inference import Predictor
from df2serve_training.dataset import TrainingSet
from df2serve_training.folds import Splits, load_splits, make_splits
from df2serve_training.history import StepReport, draw_curves, read_history
from df2serve_training.members import HISTORY, OUT_OF_FOLD, Training, list_unfinished, train_member
from df2serve_training.normalization import fit_scale
from df2serve_training.recipe import Recipe
from df2serve_training.settings import JobSettings
from df2serve_training.targets import IGNORED
from df2serve_training.workers import train_side_by_side

__all__ = ["EnsembleFacts", "train_ensemble"]

_CURVES_FILE, _SPLITS = "curves.png", "splits.json"
_CURVES_SECONDS = 60.0
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


def train_ensemble(
    data: TrainingSet,
    target: str | Path,
    recipe: Recipe,
    *,
    facts: EnsembleFacts,
    device: str = "auto",
    jobs: JobSettings | None = None,
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
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; several, separated by commas,
            train members side by side, each in a process of its own.
        jobs: where members are trained as jobs of a cluster, each on the device.
        listener: called every few steps.

    Raises:
        OutputError: the target exists, or cannot be written.
        InputError: data or recipe are not those of the work that lies there.
        ConfigError: names do not fit, there are too few images for the folds, or jobs are wanted
            and submitit is not installed.
        BackendError: a device or a cluster is not there, or what trained a member was ended.
    """
    path = Path(target).absolute()
    if path.exists():
        message = f"{path} exists; remove it or choose another folder"
        raise OutputError(message)
    work = path.with_name(f"{path.name}.training")
    work.mkdir(parents=True, exist_ok=True)
    scale = fit_scale(data)
    training = Training(
        data=data,
        recipe=recipe,
        splits=_splits(data, recipe, work / _SPLITS),
        scale=scale,
        fields=_fields(data, recipe, facts, scale.recorded),
        work=work,
    )
    _train_members(training, device, jobs, _Curves(training, listener))
    ensemble = _assemble(training, path)
    shutil.rmtree(work)
    return ensemble


def _train_members(
    training: Training,
    device: str,
    jobs: JobSettings | None,
    listener: Callable[[StepReport], None],
) -> None:
    """Train what is unfinished: here, in processes per device, or as jobs."""
    folds = list_unfinished(training)
    names = [RuntimeConfig().updated(device=name.strip()).device for name in device.split(",")]
    if jobs is not None:
        if len(names) > 1:
            message = f"got the devices {device} for jobs, which train on one each; name one"
            raise ConfigError(message)
        try:
            from df2serve_training.jobs import train_by_jobs
        except ImportError as error:
            message = f"jobs need submitit ({error}); pip install 'df2serve[slurm]'"
            raise ConfigError(message) from error
        train_by_jobs(training, folds, jobs, device=names[0], listener=listener)
        return
    devices = [choose_device(name) for name in names]
    if len(devices) > 1:
        train_side_by_side(training, folds, devices=devices, listener=listener)
        return
    for fold in folds:
        train_member(training, fold, device=devices[0], listener=listener)


class _Curves:
    """Passes reports on, and draws them all now and then for those who look into the work."""

    def __init__(self, training: Training, listener: Callable[[StepReport], None]) -> None:
        self._training = training
        self._listener = listener
        self._drawn = -math.inf

    def __call__(self, report: StepReport) -> None:
        self._listener(report)
        if time.monotonic() - self._drawn > _CURVES_SECONDS:
            replace_file(self._training.work / _CURVES_FILE, draw_curves(self._reports()))
            self._drawn = time.monotonic()

    def _reports(self) -> list[StepReport]:
        """Return what the members have written so far."""
        found = []
        for fold in range(self._training.recipe.num_members):
            for path in (self._training.folder(fold) / HISTORY, self._training.history(fold)):
                if path.is_file():
                    found += read_history(path.read_bytes())
                    break
        return found


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
    data: TrainingSet, recipe: Recipe, facts: EnsembleFacts, normalization: Normalization
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
        "classes": colored_classes(class_names),
        "channels": [{"name": name} for name in channel_names],
        "pixel_size_um": None if size is None else asdict(size),
        "normalization": normalization,
        "tile_shape": recipe.sampling.patch_shape,
        "zoom_out": recipe.data.zoom_out,
        "distance_channel": "relative" if recipe.network.distance_head else None,
        "versions": {package: version(package) for package in _PACKAGES}
        | {"df2serve": __version__},
    }


def _assemble(training: Training, target: Path) -> Ensemble:
    """Put finished members together."""
    recipe = training.recipe
    members = [load_ensemble(training.folder(fold)) for fold in range(recipe.num_members)]
    described = [
        Member(
            folder=f"members/fold-{fold}",
            fold=fold,
            validation=_mean_dice(member.read(OUT_OF_FOLD)),
        )
        for fold, member in enumerate(members)
    ]
    fields = dict(training.fields) | {
        "members": described,
        "encoder_weights": members[0].manifest.encoder_weights,
        "training": {
            "images": len(training.data),
            "recipe": training.plain_recipe(),
            "members": [
                {key: member.manifest.training[key] for key in ("seconds", "device")}
                for member in members
            ],
        },
    }
    tables = {
        name: _stacked([member.read(name) for member in members]) for name in (HISTORY, OUT_OF_FOLD)
    }
    files = {
        **tables,
        _CURVES_FILE: draw_curves(read_history(tables[HISTORY])),
        _SPLITS: (training.work / _SPLITS).read_bytes(),
        "training.toml": tomli_w.dumps(training.plain_recipe()).encode(),
    }
    networks = [member.load_member(0) for member in members]
    shutil.rmtree(training.work / "draft", ignore_errors=True)
    draft = save_ensemble(training.work / "draft", fields, networks, files={})
    files |= _golden(draft, training)
    return save_ensemble(target, fields, networks, files=files)


def _stacked(tables: list[bytes]) -> bytes:
    """Return CSV files as one, under the first one's header."""
    return tables[0] + b"".join(table.split(b"\n", 1)[1] for table in tables[1:])


def _mean_dice(table: bytes) -> dict[str, float]:
    """Return the mean over the rows that have one."""
    rows = csv.DictReader(io.StringIO(table.decode()))
    scores = [float(row["dice"]) for row in rows if row["dice"]]
    return {"dice": fmean(scores)} if scores else {}


def _golden(ensemble: Ensemble, training: Training) -> dict[str, bytes]:
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
    config = ensemble.manifest.inference.updated(zoom_out=1.0)
    with Predictor(ensemble, config=config, runtime=RuntimeConfig(device="cpu")) as predictor:
        prediction = predictor.predict(np.ascontiguousarray(part), axes="CYX")
    golden = GoldenTensors(
        image=part,
        probs=prediction.probs,
        total=prediction.total,
        distance=prediction.distance,
    )
    return golden.to_files()
