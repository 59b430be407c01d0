"""Experts' folders: which masks there are, whether they can be used, and what they say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from df2serve.errors import InputError, SourceNotFoundError
from df2serve.io import list_images, read_mask
from df2serve_training._annotations import Annotation
from df2serve_training._gt_settings import GroundTruthSettings
from df2serve_training.pairing import image_name, natural_order

__all__ = ["ExpertFiles", "find_expert_files", "read_annotation"]


@dataclass(frozen=True)
class ExpertFiles:
    """The masks of one folder per expert, by image and expert."""

    root: Path
    experts: tuple[str, ...]
    """Names of the folders, in natural order."""
    paths: Mapping[str, Mapping[str, Path]]
    """Mask of every image by expert; images and experts in natural order, experts may lack some."""


def find_expert_files(root: Path, settings: GroundTruthSettings) -> ExpertFiles:
    """List the masks ``root/EXPERT/FILE`` and read each of them once.

    Masks belong together by the stems of their names.

    Raises:
        SourceNotFoundError: there is no such folder, or no folders in it.
        InputError: masks cannot be used; the message lists all that is wrong.
    """
    if not root.is_dir():
        message = f"{root} is no folder; expected one with a folder of masks for each expert"
        raise SourceNotFoundError(message)
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    experts = natural_order(path.name for path in folders)
    if not experts:
        message = f"{root} holds no folders; expected masks as EXPERT/FILE, a folder per expert"
        raise SourceNotFoundError(message)
    problems: list[str] = []
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for expert in experts:
        for name, path in _masks_of(root / expert, problems).items():
            found[name][expert] = path
    files = ExpertFiles(root, tuple(experts), {name: found[name] for name in natural_order(found)})
    problems += _alike(files)
    problems += _unusable(files, settings)
    if found and all(len(paths) == 1 for paths in found.values()):
        problems.append(
            "no image has masks of two experts; masks of one image have the same name in every "
            "expert's folder"
        )
    if problems:
        message = f"masks in {root} cannot be used:" + "".join(f"\n- {text}" for text in problems)
        raise InputError(message)
    return files


def read_annotation(path: Path, settings: GroundTruthSettings) -> tuple[Annotation, str | None]:
    """Return what a mask says, and the hash of its file.

    Raises:
        InputError: the file is no mask of the kind in the settings.
    """
    match settings.masks:
        case "instances":
            instances = read_mask(path, kind="instances")
            return Annotation.of_instances(instances.labels), instances.sha256
        case "classes":
            mask = read_mask(path, kind="classes", num_classes=settings.num_classes)
        case "binary":
            mask = read_mask(path, kind="binary")
    return Annotation.of_classes(mask.classes), mask.sha256


def _masks_of(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Return an expert's masks by image; what is wrong with their names becomes problems."""
    try:
        paths = list_images(folder)
    except SourceNotFoundError:
        problems.append(f"{folder.name} holds no masks; fill or remove the folder")
        return {}
    alike = defaultdict(list)
    for path in paths:
        alike[image_name(path)].append(path)
    for group in alike.values():
        if len(group) > 1:
            names = " and ".join(path.name for path in group)
            problems.append(f"{folder.name} holds {names} for one image; keep one of them")
    return {name: group[0] for name, group in alike.items()}


def _alike(files: ExpertFiles) -> list[str]:
    """Return names that are one name where upper and lower case do not differ."""
    spellings = defaultdict(list)
    for name in files.paths:
        spellings[name.casefold()].append(name)
    return [
        f"{' and '.join(group)} differ in upper and lower case alone; spell an image's name alike"
        for group in spellings.values()
        if len(group) > 1
    ]


def _unusable(files: ExpertFiles, settings: GroundTruthSettings) -> list[str]:
    """Return what is wrong with the content of masks."""
    problems = []
    for name, paths in files.paths.items():
        shapes = {}
        for expert, path in paths.items():
            try:
                shapes[expert] = read_annotation(path, settings)[0].classes.shape
            except InputError as error:
                problems.append(f"{expert}/{path.name}: {error}")
        if len(set(shapes.values())) > 1:
            sizes = ", ".join(f"{expert} {h} x {w}" for expert, (h, w) in shapes.items())
            problems.append(f"{name} has masks of several sizes (rows x columns): {sizes}")
    return problems
