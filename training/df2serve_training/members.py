"""One member from its fold to a folder of its own, which later runs find finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from df2serve.artifact import Ensemble, load_ensemble, save_ensemble, with_files
from df2serve.artifact.manifest import Member
from df2serve.config import RuntimeConfig
from df2serve.core.metrics import mean_dice
from df2serve.errors import InputError
from df2serve.files import replace_file
from df2serve.inference import Predictor
from df2serve.io import Image
from df2serve_training._files import csv_of
from df2serve_training.dataset import TrainingSet
from df2serve_training.fit import MemberFit
from df2serve_training.folds import Splits
from df2serve_training.history import StepReport, write_history
from df2serve_training.normalization import InputScale
from df2serve_training.recipe import Recipe
from df2serve_training.targets import IGNORED

__all__ = [
    "HISTORY",
    "OUT_OF_FOLD",
    "OutOfFold",
    "Training",
    "create_fit",
    "list_unfinished",
    "train_member",
]

HISTORY, OUT_OF_FOLD = "history.csv", "out_of_fold.csv"


@dataclass(frozen=True)
class Training:
    """What all members share; goes to other processes and machines."""

    data: TrainingSet
    recipe: Recipe
    splits: Splits
    scale: InputScale
    fields: Mapping[str, Any]
    """Of the manifest, but for the members."""
    work: Path
    """Folder of what is not finished; absolute."""

    def folder(self, fold: int) -> Path:
        """Return where a finished member lies."""
        return self.work / f"fold-{fold}"

    def history(self, fold: int) -> Path:
        """Return where the reports of a member lie while it is trained."""
        return self.work / f"fold-{fold}.csv"

    def plain_recipe(self) -> dict[str, Any]:
        """Return the recipe as it stands in TOML and JSON files: without what is absent.

        Of a file of weights only the name is told; its folder means nothing elsewhere.
        """
        plain = self.recipe.model_dump(mode="json", exclude_none=True)
        plain["network"]["weights"] = Path(self.recipe.network.weights).name
        return plain

    def without_pixels(self) -> Training:
        """Return the same training, whose images are read from their files again."""
        return replace(self, data=replace(self.data, cached={}))


@dataclass(frozen=True)
class OutOfFold:
    """How a member did on an image that it did not see."""

    fold: int
    name: str
    dice: float | None
    """Mean over the foreground classes; absent where neither mask has any."""
    u: float | None
    """Of this member alone."""


def create_fit(
    data: TrainingSet,
    recipe: Recipe,
    *,
    splits: Splits,
    fold: int,
    scale: InputScale,
    device: torch.device,
) -> MemberFit:
    """Load the images that a member is trained on, and build its network.

    Args:
        data: all images.
        recipe: settings.
        splits: of all images.
        fold: that the member is validated on.
        scale: of all images.
        device: to train on.
    """
    seen = splits.training_names(fold)
    unseen = splits.validation_names(fold) if recipe.training.validate_every else ()
    return MemberFit(
        recipe=recipe,
        member=fold,
        images=[scale.load(data, image) for image in data.take(seen).images],
        intensities=scale.intensities,
        normalization=scale.constants,
        device=device,
        validation=[scale.load(data, image) for image in data.take(unseen).images],
    )


def train_member(
    training: Training,
    fold: int,
    *,
    device: torch.device,
    listener: Callable[[StepReport], None],
) -> Ensemble:
    """Return a member as an ensemble of one with its out-of-fold scores; what is there is kept.

    Raises:
        InputError: what is there is of another training.
        OutputError: the folder of the work cannot be written.
    """
    member = _found(training, fold) or _trained(training, fold, device, listener)
    if OUT_OF_FOLD not in member.manifest.files:
        scores = csv_of(_out_of_fold(training, member, fold, device), OutOfFold)
        member = with_files(member, {OUT_OF_FOLD: scores})
    return member


def list_unfinished(training: Training) -> list[int]:
    """Return the folds whose members are yet to be trained or scored.

    Raises:
        InputError: what is there is of another training.
    """
    found = {fold: _found(training, fold) for fold in range(training.recipe.num_members)}
    return [
        fold
        for fold, member in found.items()
        if member is None or OUT_OF_FOLD not in member.manifest.files
    ]


def _found(training: Training, fold: int) -> Ensemble | None:
    """Return a member that was trained before."""
    folder = training.folder(fold)
    if not folder.exists():
        return None
    member = load_ensemble(folder)
    if member.manifest.training.get("recipe") != training.plain_recipe():
        message = f"{folder} was trained by another recipe; train into another folder"
        raise InputError(message)
    return member


def _trained(
    training: Training, fold: int, device: torch.device, listener: Callable[[StepReport], None]
) -> Ensemble:
    fit = create_fit(
        training.data,
        training.recipe,
        splits=training.splits,
        fold=fold,
        scale=training.scale,
        device=device,
    )
    checkpoint, history = training.work / f"fold-{fold}.checkpoint", training.history(fold)

    def report(latest: StepReport) -> None:
        replace_file(history, write_history(fit.history))
        listener(latest)

    network = fit.run(checkpoint=checkpoint, listener=report)
    fields = dict(training.fields) | {
        "members": [Member(folder="members/fold-0", fold=fold)],
        "encoder_weights": fit.origin,
        "training": {
            "recipe": training.plain_recipe(),
            "seconds": round(fit.seconds, 1),
            "device": str(device),
        },
    }
    files = {HISTORY: write_history(fit.history)}
    saved = save_ensemble(training.folder(fold), fields, [network], files=files)
    for leftover in (checkpoint, history):
        leftover.unlink(missing_ok=True)
    return saved


def _out_of_fold(
    training: Training, member: Ensemble, fold: int, device: torch.device
) -> Iterator[OutOfFold]:
    names = training.splits.validation_names(fold)
    runtime = RuntimeConfig().updated(device=str(device))
    config = member.manifest.inference.updated(zoom_out=1.0)  # images are at that resolution
    with Predictor(member, config=config, runtime=runtime) as predictor:
        for image in training.data.take(names).images:
            labeled = training.data.load(image)
            pixels = Image.from_array(labeled.pixels, axes="CYX", source=image.name)
            prediction = predictor.predict(pixels)
            valid = labeled.target != IGNORED
            score = mean_dice(
                np.where(valid, labeled.target, 0),
                prediction.mask,
                n_classes=training.recipe.data.num_classes,
                valid=valid,
            )
            yield OutOfFold(fold=fold, name=image.name, dice=score, u=prediction.scores.u)
