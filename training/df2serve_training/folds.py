"""Which images every member of the ensemble is validated on.

Images are told apart by their names, and chance enters through a hash of seed and name, so that
folds depend neither on the order of a folder nor on the platform.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from df2serve.config import Frozen, describe_validation_error
from df2serve.errors import InputError, SourceNotFoundError
from df2serve.files import replace_file
from df2serve_training.pairing import natural_order
from df2serve_training.settings import FoldSettings

if TYPE_CHECKING:
    from df2serve_training.dataset import TrainingImage

__all__ = ["SplitImage", "Splits", "find_fold_problems", "load_splits", "make_splits"]


class SplitImage(Frozen):
    """One image of the training set and its place."""

    fold: Annotated[int, Field(ge=0)]
    """Fold that it is in: the member of this number is validated on it."""
    image_sha256: str
    mask_sha256: str
    group: str | None = None
    """Its group or stratum in the table, where one was given."""


class Splits(Frozen):
    """The content of ``splits.json``."""

    title: ClassVar[str] = "splits.json"
    schema_version: Literal[1] = 1
    folds: FoldSettings
    """How the folds were made."""
    images: Annotated[dict[str, SplitImage], Field(min_length=1)]
    """All images by name, in natural order."""

    @model_validator(mode="after")
    def _consistent(self) -> Splits:
        wrong = [name for name, image in self.images.items() if image.fold >= self.folds.count]
        if wrong:
            message = f"fold out of range, there are {self.folds.count}: {', '.join(wrong)}"
            raise ValueError(message)
        return self

    def validation_names(self, fold: int) -> tuple[str, ...]:
        """Return the images that a member is validated on; a single image is in every fold."""
        alone = len(self.images) == 1
        return tuple(name for name, image in self.images.items() if image.fold == fold or alone)

    def training_names(self, fold: int) -> tuple[str, ...]:
        """Return the images that a member is trained on."""
        alone = len(self.images) == 1
        return tuple(name for name, image in self.images.items() if image.fold != fold or alone)

    def require_same(self, images: Iterable[TrainingImage]) -> None:
        """Refuse a training set that is not the one that was split.

        Raises:
            InputError: lists images that are new, gone or changed.
        """
        now = {image.name: (image.image_sha256, image.mask_sha256) for image in images}
        then = {
            name: (image.image_sha256, image.mask_sha256) for name, image in self.images.items()
        }
        differences = {
            "new": now.keys() - then.keys(),
            "gone": then.keys() - now.keys(),
            "changed": {name for name in now.keys() & then.keys() if now[name] != then[name]},
        }
        listed = [
            f"{what}: {', '.join(natural_order(names))}"
            for what, names in differences.items()
            if names
        ]
        if listed:
            message = (
                f"the training set is not the one of splits.json ({'; '.join(listed)}); restore "
                "the files, or start a new training with folds of its own"
            )
            raise InputError(message)

    def save(self, path: str | Path) -> None:
        """Write ``splits.json``; equal splits give equal bytes.

        Raises:
            OutputError: it cannot be written.
        """
        content = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        replace_file(Path(path), content.encode())


def load_splits(path: str | Path) -> Splits:
    """Read ``splits.json``.

    Raises:
        SourceNotFoundError: there is no such file.
        InputError: it does not hold splits.
    """
    try:
        return Splits.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}; give the splits.json of a training"
        raise SourceNotFoundError(message) from error
    except ValidationError as error:
        raise InputError(describe_validation_error(str(path), error)) from error


def make_splits(images: Sequence[TrainingImage], settings: FoldSettings) -> Splits:
    """Divide images into folds.

    Args:
        images: of the training set; their ``group`` is used where the settings name a column.
        settings: number of folds, method and seed.

    Returns:
        The folds. With ``plain`` and ``stratified`` their sizes differ by one image at most; with
        ``grouped`` the largest groups are placed first, each into the smallest fold.

    Raises:
        InputError: there are fewer images or groups than folds.
    """
    groups = {image.name: image.group for image in images if image.group is not None}
    problems = find_fold_problems([image.name for image in images], groups, settings)
    if problems:
        raise InputError("; ".join(problems))
    if settings.method == "grouped":
        fold_of = _place_groups(groups, settings)
    else:
        fold_of = _deal(_strata(images, groups, settings), settings)
    by_name = {image.name: image for image in images}
    return Splits(
        folds=settings,
        images={
            name: SplitImage(
                fold=fold_of[name],
                image_sha256=by_name[name].image_sha256,
                mask_sha256=by_name[name].mask_sha256,
                group=by_name[name].group,
            )
            for name in natural_order(by_name)
        },
    )


def find_fold_problems(
    names: Sequence[str], groups: Mapping[str, str], settings: FoldSettings
) -> list[str]:
    """Return why images cannot be divided into folds, one sentence per reason.

    Args:
        names: of all images.
        groups: or strata by name, for those that have one.
        settings: number of folds and method.
    """
    count = settings.count
    if len(names) == 1:
        if settings.allow_train_as_validation:
            return []
        return [
            "there is a single image, so that nothing would be left to validate on; add images, or "
            "set allow_train_as_validation and take no score for real"
        ]
    problems = []
    if len(names) < count:
        problems.append(
            f"{len(names)} images are fewer than {count} folds; add images or lower count"
        )
    lacking = [name for name in names if name not in groups]
    if settings.column is not None and lacking:
        problems.append(f"no {settings.column} is known of {', '.join(natural_order(lacking))}")
    found = natural_order(set(groups.values()))
    if settings.method == "grouped" and len(found) < count:
        problems.append(
            f"{len(found)} groups in {settings.column} ({', '.join(found)}) are too few for "
            f"{count} folds; lower count"
        )
    return problems


def _strata(
    images: Sequence[TrainingImage], groups: Mapping[str, str], settings: FoldSettings
) -> list[list[str]]:
    """Return names by stratum; similar strata are neighbors."""
    if settings.method == "plain":
        return [[image.name for image in images]]
    if settings.column is not None:
        members = defaultdict(list)
        for name, stratum in groups.items():
            members[stratum].append(name)
        return [members[stratum] for stratum in natural_order(members)]
    presence = Counter(index for image in images for index in image.present_classes)
    rarest_first = sorted(presence, key=lambda index: (presence[index], index))
    ranked = sorted(
        images,
        key=lambda image: (
            [index in image.present_classes for index in rarest_first],
            image.foreground_share,
            image.name,
        ),
    )
    names = [image.name for image in ranked]
    return [names[first : first + settings.count] for first in range(0, len(names), settings.count)]


def _deal(strata: Iterable[Iterable[str]], settings: FoldSettings) -> dict[str, int]:
    """Deal the shuffled strata out like cards, so that every fold gets its part of each."""
    ordered = [name for stratum in strata for name in _shuffled(stratum, settings.seed)]
    return {name: place % settings.count for place, name in enumerate(ordered)}


def _place_groups(groups: Mapping[str, str], settings: FoldSettings) -> dict[str, int]:
    """Place groups, the largest first, into the fold with the fewest images."""
    sizes = Counter(groups.values())
    filled = [0] * settings.count
    fold_of_group = {}
    for group in sorted(_shuffled(sizes, settings.seed), key=lambda group: -sizes[group]):
        fold = min(range(settings.count), key=filled.__getitem__)
        filled[fold] += sizes[group]
        fold_of_group[group] = fold
    return {name: fold_of_group[group] for name, group in groups.items()}


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Return names in an order that depends on the seed and on the names alone."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
