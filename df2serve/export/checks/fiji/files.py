"""Rules on the files of a package, and on what partner programs of the Zoo ask for."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from df2serve.export.checks.fiji.rule import Problem, Subject, rule
from df2serve.export.checks.package import Package, is_remote
from df2serve.export.checks.report import Severity
from df2serve.export.checks.tensors import list_at, mapping_at

__all__ = ["RULES", "NamedFile", "named_files"]

_LISTS = ("covers", "sample_inputs", "sample_outputs", "test_inputs", "test_outputs")
_CLASS_KEYS = ("classes", "n_classes", "out_channels", "output_channels")
_TASK_TAGS = ("segmentation", "semantic-segmentation")
_DIMENSION_TAGS = ("2d", "3d")
_RUNTIME = frozenset({"numpy", "timm", "torch", "torchvision"})
"""Packages of the environment in which the Zoo's website runs models."""
_STANDARD = frozenset({"__future__", "collections", "dataclasses", "functools", "math", "typing"})
_SECTIONS = ("Description", "Intended Use", "Validation", "Citation")
_COVER_BYTES = 500_000
_COVER_RATIOS = (1.0, 2.0)
_COVER_SUFFIXES = (".jpeg", ".jpg", ".png")
_README_BYTES = 1 << 20
_CODE_BYTES = 1 << 20


class NamedFile(NamedTuple):
    """A file that the description names."""

    place: str
    name: str
    sha256: object
    """The recorded hash, if any."""
    needs_hash: bool


def named_files(rdf: Mapping[str, Any]) -> Iterator[NamedFile]:
    """Yield the files that a description names, without addresses."""
    for found in _named(rdf):
        if not is_remote(found.name):
            yield found


def _named(rdf: Mapping[str, Any]) -> Iterator[NamedFile]:
    if isinstance(documentation := rdf.get("documentation"), str):
        yield NamedFile("documentation", documentation, None, needs_hash=False)
    for key in _LISTS:
        for index, name in enumerate(list_at(rdf, key)):
            if isinstance(name, str):
                yield NamedFile(f"{key}[{index}]", name, None, needs_hash=False)
    for index, name in enumerate(list_at(rdf.get("attachments"), "files")):
        if isinstance(name, str):
            yield NamedFile(f"attachments.files[{index}]", name, None, needs_hash=False)
    yield from _old_architecture(rdf)
    for key, value in rdf.items():
        if key not in {"config", "license", "training_data"}:
            yield from _sources(value, key)


def _old_architecture(rdf: Mapping[str, Any]) -> Iterator[NamedFile]:
    """Yield the code of a network in format 0.4: ``file.py:Class``."""
    entry = mapping_at(rdf, "weights", "pytorch_state_dict")
    if isinstance(given := entry.get("architecture"), str) and ".py:" in given:
        name = given.rpartition(":")[0]
        place = "weights.pytorch_state_dict.architecture"
        yield NamedFile(place, name, entry.get("architecture_sha256"), needs_hash=True)


def _sources(value: object, place: str) -> Iterator[NamedFile]:
    """Yield every mapping with a source, wherever it is."""
    if isinstance(value, Mapping):
        if isinstance(source := value.get("source"), str):
            needs_hash = place.split(".")[0] not in {"covers", "documentation"}
            yield NamedFile(f"{place}.source", source, value.get("sha256"), needs_hash)
        for key, item in value.items():
            yield from _sources(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _sources(item, f"{place}[{index}]")


@rule(
    "FIJI058",
    Severity.WARNING,
    demand="The hash of every file is recorded, and is right.",
    reason="A damaged or exchanged file goes unnoticed, or the validation fails.",
    remedy="Write the sha256 beside each source.",
)
def _hashes(subject: Subject) -> Iterator[Problem]:
    for file in named_files(subject.rdf):
        path = subject.package.find(file.name)
        if path is None or not (file.needs_hash or file.sha256):
            continue
        if not isinstance(file.sha256, str):
            yield Problem(file.place, f"{file.name:.80} has no sha256")
        elif file.sha256 != (found := subject.package.sha256(path)):
            yield Problem(
                file.place, f"{file.name:.80} has sha256 {found[:12]}…, recorded is another"
            )


@rule(
    "FIJI059",
    Severity.ERROR,
    demand="Every file that the description names is in the package.",
    reason="The package cannot be installed, tested or shown.",
    remedy="Add the file, or remove its name from the description.",
)
def _present(subject: Subject) -> Iterator[Problem]:
    for file in named_files(subject.rdf):
        if subject.package.find(file.name) is None:
            yield Problem(file.place, f"{file.name:.80} is not in the package")


@rule(
    "FIJI060",
    Severity.WARNING,
    demand="BiaPy and the Zoo's website can run the state dict: no dependencies, an integer "
    "'classes' among the arguments of the architecture, the tags semantic-segmentation and 2d or "
    "3d, and code that imports torch, torchvision, timm and numpy only.",
    reason="BiaPy does not list the model, or the website cannot run it.",
    remedy="Leave dependencies out, write the network with torch alone, and name the classes.",
)
def _partners(subject: Subject) -> Iterator[Problem]:
    entry = subject.weights.get("pytorch_state_dict")
    if entry is None:
        yield Problem("weights", "no pytorch_state_dict")
        return
    place = "weights.pytorch_state_dict"
    if entry.get("dependencies") is not None:
        yield Problem(f"{place}.dependencies", "present")
    kwargs = entry.get("kwargs") if subject.is_old else mapping_at(entry, "architecture", "kwargs")
    classes = [mapping_at(kwargs).get(key) for key in _CLASS_KEYS]
    if not any(isinstance(value, int) and not isinstance(value, bool) for value in classes):
        yield Problem(f"{place}.architecture.kwargs", f"no integer among {', '.join(_CLASS_KEYS)}")
    yield from _tags(subject)
    for package in sorted(_imports(subject) - _RUNTIME - _STANDARD):
        yield Problem(f"{place}.architecture", f"imports {package:.60}")


def _tags(subject: Subject) -> Iterator[Problem]:
    tags = {str(tag).lower() for tag in list_at(subject.rdf, "tags")}
    for wanted in (_TASK_TAGS, _DIMENSION_TAGS):
        if not tags & set(wanted):
            yield Problem("tags", f"none of {', '.join(wanted)}")


def _imports(subject: Subject) -> set[str]:
    """Return the packages that the code of the network imports; the code is only parsed."""
    architecture = subject.weights["pytorch_state_dict"].get("architecture")
    if isinstance(architecture, str):
        architecture = architecture.rpartition(":")[0]
    path = subject.package.find(architecture)
    if path is None or path.stat().st_size > _CODE_BYTES:
        return set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module=module, level=level):
                found.add((module or "").partition(".")[0] if level == 0 else "a neighboring file")
    return found


@rule(
    "FIJI061",
    Severity.WARNING,
    demand="The state dict holds tensors and nothing else.",
    reason="Current torch refuses to load anything else unless it is told to trust the file, "
    "because pickles are programs.",
    remedy="Save network.state_dict(), not the network.",
)
def _plain_weights(subject: Subject) -> Iterator[Problem]:
    from torch.serialization import get_unsafe_globals_in_checkpoint

    path = subject.weights_file("pytorch_state_dict")
    if path is None or path.suffix == ".safetensors":
        return
    try:
        foreign = get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # noqa: BLE001 - what torch raises on damaged files is not listed
        message = f"cannot be read: {' '.join(str(error).split()):.120}"
        yield Problem("weights.pytorch_state_dict", message)
        return
    if foreign:
        yield Problem("weights.pytorch_state_dict", f"holds {', '.join(sorted(foreign)):.120}")


@rule(
    "FIJI062",
    Severity.WARNING,
    demand="The README has the sections Description, Intended Use, Validation and Citation; the "
    "cover is a PNG or JPEG file of shape 2:1 or 1:1 below 500 kB.",
    reason="The Zoo's guide asks for them; reviewers send packages back.",
    remedy="Write the sections; crop and shrink the cover.",
)
def _presentation(subject: Subject) -> Iterator[Problem]:
    readme = subject.package.find(subject.rdf.get("documentation"))
    if readme is not None and readme.stat().st_size <= _README_BYTES:
        text = readme.read_text(encoding="utf-8", errors="replace")
        for section in _SECTIONS:
            if not re.search(rf"^#+\s*{section}\b", text, re.MULTILINE | re.IGNORECASE):
                yield Problem("documentation", f"no section '{section}'")
    covers = list_at(subject.rdf, "covers")
    if not covers:
        yield Problem("covers", "no cover")
    for index, cover in enumerate(covers):
        path = subject.package.find(cover)
        if path is not None and (message := _cover_problem(path)):
            yield Problem(f"covers[{index}]", message)


def _cover_problem(path: Path) -> str | None:
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() not in _COVER_SUFFIXES:
        return f"{path.name:.60} is neither PNG nor JPEG"
    if path.stat().st_size >= _COVER_BYTES:
        return f"{path.stat().st_size} bytes, expected less than {_COVER_BYTES}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                width, height = image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return f"{path.name:.60} cannot be read as PNG or JPEG"
    if width / max(height, 1) not in _COVER_RATIOS:
        return f"{width} x {height} pixels, expected 2:1 or 1:1"
    return None


@rule(
    "FIJI063",
    Severity.WARNING,
    demand="The package holds only files that the description names.",
    reason="The Zoo's reviewers ask what the others are for; they are lost when it is packed anew.",
    remedy="Remove them, or list them as attachments.",
)
def _unreferenced(subject: Subject) -> Iterator[Problem]:
    package = subject.package
    if package.listing is None:
        return
    named = {_normal(package, file.name) for file in named_files(subject.rdf)}
    for name in package.listing:
        if name not in {*named, package.rdf_name, "bioimageio.yaml", "rdf.yaml"}:
            yield Problem(name, "not named in the description")


def _normal(package: Package, name: str) -> str:
    path = package.find(name)
    return path.resolve().relative_to(package.folder.resolve()).as_posix() if path else name


RULES = (
    _hashes,
    _present,
    _partners,
    _plain_weights,
    _presentation,
    _unreferenced,
)
