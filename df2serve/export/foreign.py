"""Bioimage.io packages of others, run through bioimageio.core."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from df2serve.config import CheckLimits
from df2serve.errors import BackendError, ConfigError, ImageMismatchError, IntegrityError
from df2serve.export._core_predict import STACKS
from df2serve.export.checks.check import require_packages
from df2serve.export.checks.fiji import Subject
from df2serve.export.checks.package import open_package
from df2serve.export.checks.process import run_confined
from df2serve.export.checks.tensors import Axis, Fixed, Parametrized, Tensor
from df2serve.export.checks.validation import obstacle

__all__ = ["ForeignOutput", "ForeignPackage", "open_foreign"]

_ImageArray: TypeAlias = NDArray[Any]
_LETTERS = {"batch": "b", "channel": "c", "index": "i", "time": "t"}


@dataclass(frozen=True, eq=False)
class ForeignOutput:
    """One output of a model."""

    id: str
    """Its name in the description."""
    axes: str
    """One letter per axis of ``data``, such as ``bcyx``."""
    data: NDArray[Any]


@dataclass(frozen=True, eq=False)
class ForeignPackage:
    """A package that can be run as long as the context of :func:`open_foreign` lasts."""

    weights: str
    """The weight format that runs."""
    _subject: Subject

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self._subject.rdf.get("name", "no name"))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Inputs as the description tells them."""
        return self._subject.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Outputs as the description tells them."""
        return self._subject.outputs

    def predict(self, images: Sequence[_ImageArray]) -> list[list[ForeignOutput]]:
        """Run the model, in one process of its own without network.

        An image that is larger than the model may see, or than 2048 pixels, is cut into blocks with
        the model's halo; one of a size that the model does not allow is padded by reflection.
        Preprocessing and postprocessing are those of the description.

        Args:
            images: raw intensities, axes (C, Y, X).

        Returns:
            For each image the outputs in the order of the description.

        Raises:
            ImageMismatchError: an image has another number of channels than the model.
            BackendError: the model failed, or took longer than ``CheckLimits.max_seconds``.
        """
        for position, image in enumerate(images):
            self._check(position, image)
        package = self._subject.package
        with tempfile.TemporaryDirectory(prefix="df2serve-run-") as home:
            paths = [Path(home, f"image-{index}.npy") for index in range(len(images))]
            for path, image in zip(paths, images, strict=True):
                np.save(path, image)
            request, answer = Path(home, "request.json"), Path(home, "answer.json")
            asked = {
                "rdf": str((package.folder / package.rdf_name).absolute()),
                "weights": self.weights,
                "images": list(map(str, paths)),
            }
            request.write_text(json.dumps(asked), encoding="utf-8")
            command = [sys.executable, "-P", "-m", "df2serve.export._core_predict"]
            ended = run_confined(
                [*command, str(request), str(answer)],
                Path(home),
                seconds=package.limits.max_seconds,
            )
            if not ended.ok or not answer.is_file():
                message = f"{self.name} did not run: {ended.note or 'it gave no answer'}"
                raise BackendError(message)
            found = json.loads(answer.read_text(encoding="utf-8"))
            return [[_output(Path(home), item) for item in outputs] for outputs in found]

    def _check(self, position: int, image: _ImageArray) -> None:
        expected = _channels(self.inputs[0])
        if image.ndim != 3 or (expected is not None and image.shape[0] != expected):
            message = (
                f"image {position} has shape {image.shape}; {self.name} expects axes (C, Y, X) "
                f"with {expected or 'any number of'} channels; choose channels when reading"
            )
            raise ImageMismatchError(message)


def _stack(tensor: Tensor) -> Axis | None:
    """Return the axis for an image's channels."""
    return next((axis for kind in STACKS for axis in tensor.axes if axis.kind == kind), None)


def _channels(tensor: Tensor) -> int | None:
    """Return the number of channels that a model wants; None if it takes any."""
    match _stack(tensor):
        case None:
            return 1
        case Axis(channel_names=names) if names:
            return len(names)
        case Axis(size=Fixed(size=size)):
            return size
    return None


def _output(home: Path, item: dict[str, str]) -> ForeignOutput:
    axes = "".join(_LETTERS.get(name, name[:1]) for name in item["axes"].split())
    return ForeignOutput(item["id"], axes, np.load(home / item["file"], allow_pickle=False))


@contextmanager
def open_foreign(
    path: str | Path,
    *,
    weights: str | None = None,
    trust: Collection[str] = (),
    limits: CheckLimits = CheckLimits(),  # noqa: B008 - frozen
) -> Iterator[ForeignPackage]:
    """Open a bioimage.io package, whoever wrote it, to run it.

    Nothing of it is executed before :meth:`ForeignPackage.predict`, and then only weights that need
    no code of the package, or code whose hash is among ``trust``.

    Args:
        path: a package as a zip file or a folder, or an ``rdf.yaml`` among its files.
        weights: weight format to run; by default the first that can be run.
        trust: SHA-256 hashes of code that may run.
        limits: how much the package may ask for.

    Raises:
        SourceNotFoundError: nothing is there.
        IntegrityError: the package cannot be opened.
        ConfigError: the model needs more than one plane, or none of its weights run here.
        BackendUnavailableError: bioimageio.core is not installed.
    """
    require_packages()
    with open_package(Path(path), limits) as (package, refused):
        if package is None:
            message = "; ".join(f"{item.place} {item.message}".strip() for item in refused)
            raise IntegrityError(message)
        subject = Subject(package)
        _require_planar(subject)
        yield ForeignPackage(_runnable(subject, weights, trust), subject)


def _require_planar(subject: Subject) -> None:
    """Refuse models that want more than one image with channels, rows and columns."""
    inputs = subject.inputs
    if len(inputs) != 1:
        message = f"the model has {len(inputs)} inputs; models with one image as input can be run"
        raise ConfigError(message)
    for axis in inputs[0].axes:
        if axis.letter not in "byx" and axis != _stack(inputs[0]) and not _may_be_one(axis.size):
            message = f"the model's axes are {inputs[0].order}; it needs more than one plane"
            raise ConfigError(message)


def _may_be_one(size: object) -> bool:
    match size:
        case Fixed(size=1):
            return True
        case Parametrized(min=least, step=step):
            return least <= 1 and (1 - least) % max(step, 1) == 0
    return False


def _runnable(subject: Subject, wanted: str | None, trust: Collection[str]) -> str:
    """Return the weight format to run."""
    trusted = {item.lower() for item in trust}
    obstacles = {name: obstacle(subject, name, trusted) for name in subject.weights}
    if wanted is not None and wanted not in obstacles:
        message = f"got weights {wanted}; the package has {', '.join(obstacles) or 'none'}"
        raise ConfigError(message)
    for name in obstacles if wanted is None else (wanted,):
        if obstacles[name] is None:
            return name
    reasons = ", ".join(f"{name}: {reason}" for name, reason in obstacles.items())
    message = (
        f"no weights of the package run here ({reasons or 'there are none'}); "
        "'df2serve check' names code and its hash"
    )
    raise ConfigError(message)
