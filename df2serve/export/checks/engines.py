"""Weights in the engines that Fiji and browsers have, each in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from df2serve.export.checks.fiji import Subject
from df2serve.export.checks.fiji.data import read_tensor
from df2serve.export.checks.onnx_file import OnnxFacts
from df2serve.export.checks.process import run_confined
from df2serve.export.checks.report import Run, Status
from df2serve.export.checks.tensors import Parametrized, Tensor
from df2serve.export.checks.torchscript import TorchScriptFacts

__all__ = ["ENGINES", "Engine", "EngineUnavailableError", "Recipe", "run_engines"]

_ABSOLUTE, _RELATIVE = 1.5e-4, 1e-4
"""Differences that the Zoo's test with DeepImageJ allows."""
_ODD_STEPS = (3, 10)
"""How many steps another size lies above the minimum, in y and x."""
_BUILD_SECONDS = 1800
_READY = "ready"


class EngineUnavailableError(Exception):
    """The environment of an engine cannot be made here."""


@dataclass(frozen=True)
class Recipe:
    """How the environment of an engine is made."""

    name: str
    """Engine and version."""
    packages: tuple[str, ...]
    python: str | None
    """Version of Python; None for packages of Node.js."""


@dataclass(frozen=True)
class Engine:
    """An engine that weights are run in."""

    weights: str
    """Format of the weights."""
    recipes: tuple[Recipe, ...]
    """The wanted version first, then the nearest ones that install elsewhere."""


def _onnxruntime(version: str, python: str, numpy: str = "numpy<1.25") -> Recipe:
    return Recipe(f"onnxruntime {version}", (f"onnxruntime=={version}", numpy), python)


_OLDEST = _onnxruntime("1.15.0", "3.11", "numpy<2")
_TORCH = ("torch==2.0.0", "numpy<1.25")

ENGINES = (
    Engine(
        "onnx",
        (_onnxruntime("1.12.1", "3.10"), _onnxruntime("1.12.1", "3.9"), _OLDEST),
    ),
    Engine(
        "onnx",
        (_onnxruntime("1.13.1", "3.10"), _onnxruntime("1.13.1", "3.9"), _OLDEST),
    ),
    Engine(
        "onnx",
        (Recipe("onnxruntime-node 1.12.1", ("onnxruntime-node@1.12.1",), None),),
    ),
    Engine(
        "torchscript",
        (Recipe("torch 2.0.0", _TORCH, "3.10"), Recipe("torch 2.0.0", _TORCH, "3.11")),
    ),
)
"""The engines of Fiji, and the one of browsers and Node.js."""


def run_engines(subject: Subject, engines: tuple[Engine, ...], cache: Path) -> tuple[Run, ...]:
    """Run weights in other engines and compare with the current ones.

    Args:
        subject: the package.
        engines: which ones.
        cache: folder for their environments, which are made once.
    """
    runs: dict[str, Run] = {}
    for engine in engines:
        if engine.weights in subject.weights:
            run = _run(subject, engine, cache)
            runs.setdefault(run.name, run)
    return tuple(runs.values())


def _run(subject: Subject, engine: Engine, cache: Path) -> Run:
    name = f"{engine.weights} in {engine.recipes[0].name}"
    path, image = subject.weights_file(engine.weights), _test_image(subject)
    obstacle = _obstacle(subject, engine.weights)
    if obstacle or path is None:
        return Run(name, Status.SKIPPED, obstacle or "there is no file")
    if isinstance(image, str):
        return Run(name, Status.SKIPPED, image)
    try:
        recipe, environment = _build_first(engine.recipes, cache)
    except EngineUnavailableError as error:
        return Run(name, Status.SKIPPED, str(error))
    name = f"{engine.weights} in {recipe.name}"
    images = [image, *_other_images(subject.inputs[0], image)]
    job = _Job(path.absolute(), engine.weights, images, subject.package.limits.max_seconds)
    expected, found = job.run(None, None), job.run(recipe, environment)
    if isinstance(expected, str):
        return Run(name, Status.SKIPPED, f"the current engine does not run it: {expected}")
    if isinstance(found, str):
        return Run(name, Status.FAILED, found)
    return _compare(name, images, expected, found)


def _obstacle(subject: Subject, weights: str) -> str | None:
    """Return why weights are not to be run."""
    match subject.torchscript if weights == "torchscript" else subject.onnx:
        case str(error):
            return error
        case TorchScriptFacts(unsafe=reason):
            return reason
        case OnnxFacts(external=True):
            return "weights in other files"
    return None


def _test_image(subject: Subject) -> NDArray[np.float32] | str:
    """Return the test tensor of the only input, or why there is none that can be used."""
    if len(subject.inputs) != 1:
        return "only models with one input are run in other engines"
    path = subject.package.find(subject.inputs[0].test)
    array = read_tensor(path) if path else "no test tensor"
    if isinstance(array, str):
        return array
    if array.dtype != np.float32:
        return f"the test tensor is {array.dtype}, not float32"
    return np.ascontiguousarray(array)


def _other_images(tensor: Tensor, test: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield an odd size in a batch of two, if sizes may vary: the test image, mirrored and flipped.

    Shuffled pixels would not do: masks without foreground are alike in every engine.
    """
    if test.ndim != len(tensor.axes):
        return
    image, steps, spaces = test, iter(_ODD_STEPS), []
    for index, axis in enumerate(tensor.axes):
        if axis.kind == "space" and isinstance(axis.size, Parametrized):
            size = axis.size.min + next(steps, 0) * axis.size.step
            widths = [(0, 0)] * test.ndim
            widths[index] = (0, max(0, size - test.shape[index]))
            image = np.pad(image, widths, mode="symmetric").take(range(size), axis=index)
            spaces.append(index)
    for index, axis in enumerate(tensor.axes):
        if axis.kind == "batch" and axis.size is None:
            first = image.take([0], axis=index)
            image = np.concatenate([first, np.flip(first, tuple(spaces))], axis=index)
    if image.shape != test.shape:
        yield np.ascontiguousarray(image)


def _compare(
    name: str,
    images: list[NDArray[np.float32]],
    expected: list[list[NDArray[np.float32]]],
    found: list[list[NDArray[np.float32]]],
) -> Run:
    worst, outside = 0.0, 0
    for wanted, got in zip(expected, found, strict=True):
        for left, right in zip(wanted, got, strict=True):
            if left.shape != right.shape:
                message = f"output of shape {right.shape}, expected {left.shape}"
                return Run(name, Status.FAILED, message)
            difference = np.abs(left - right)
            allowed = _ABSOLUTE + _RELATIVE * np.abs(left)
            worst = max(worst, float(difference.max(initial=0.0)))
            outside += int((~(difference <= allowed)).sum())
    sizes = " and ".join("x".join(map(str, image.shape)) for image in images)
    detail = f"largest difference {worst:.1e} on {sizes}"
    if outside:
        return Run(name, Status.FAILED, f"{detail}; {outside} values differ too much")
    return Run(name, Status.PASSED, detail)


@dataclass(frozen=True)
class _Job:
    """A model and images to run it on."""

    model: Path
    weights: str
    images: list[NDArray[np.float32]]
    seconds: float

    def run(
        self, recipe: Recipe | None, environment: Path | None
    ) -> list[list[NDArray[np.float32]]] | str:
        """Return the outputs for every image, or why there are none; no recipe: this Python."""
        with tempfile.TemporaryDirectory(prefix="df2serve-engine-") as folder:
            home, request = Path(folder), Path(folder, "request.json")
            for number, image in enumerate(self.images):
                image.tofile(home / f"input-{number}.bin")
            content: dict[str, Any] = {
                "model": str(self.model),
                "format": self.weights,
                "shapes": [image.shape for image in self.images],
            }
            request.write_text(json.dumps(content))
            with _program(recipe, environment) as command:
                ended = run_confined(
                    [*command, str(request)],
                    home,
                    seconds=self.seconds,
                    environment={"DF2SERVE_ENGINE": str(environment)},
                )
            if not ended.ok:
                return ended.note
            return list(self._outputs(home))

    def _outputs(self, home: Path) -> Iterator[list[NDArray[np.float32]]]:
        shapes = json.loads((home / "answer.json").read_text())
        for number, outputs in enumerate(shapes):
            yield [
                np.fromfile(home / f"output-{number}-{index}.bin", np.float32).reshape(shape)
                for index, shape in enumerate(outputs)
            ]


@contextmanager
def _program(recipe: Recipe | None, environment: Path | None) -> Iterator[list[str]]:
    """Give the interpreter and the script that run a model."""
    if recipe is None or environment is None:
        suffix, interpreter = "py", sys.executable
    elif recipe.python:
        suffix, interpreter = "py", str(environment / "bin" / "python")
    else:
        suffix, interpreter = "cjs", "node"
    with as_file(files(__package__) / f"_engine_script.{suffix}") as script:
        yield [interpreter, str(script)]


# -- environments -------------------------------------------------------------------------------


def _build_first(recipes: tuple[Recipe, ...], cache: Path) -> tuple[Recipe, Path]:
    """Return the first recipe that works here, and its environment.

    Raises:
        EngineUnavailableError: none does.
    """
    failures = []
    for recipe in recipes:
        try:
            return recipe, _build(recipe, cache)
        except EngineUnavailableError as error:
            failures.append(f"{recipe.name}: {error}")
    message = "; ".join(failures)
    raise EngineUnavailableError(message)


def _build(recipe: Recipe, cache: Path) -> Path:
    """Return the environment of a recipe, made now if there is none."""
    name = recipe.name.replace(" ", "-")
    home = cache.absolute() / (f"{name}-py{recipe.python}" if recipe.python else name)
    if (home / _READY).is_file():
        return home
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    if recipe.python:
        _execute(_uv(), "venv", "--allow-existing", "--python", _python(recipe.python), str(home))
        python = str(home / "bin" / "python")
        _execute(_uv(), "pip", "install", "--python", python, *recipe.packages)
    else:
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            message = "Node.js with npm is not installed"
            raise EngineUnavailableError(message)
        _execute(npm, "install", "--ignore-scripts", "--prefix", str(home), *recipe.packages)
    (home / _READY).touch()
    return home


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        message = "uv is not installed"
        raise EngineUnavailableError(message)
    return found


def _python(version: str) -> str:
    """Return an interpreter that is there; none is downloaded."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    pattern = f".pyenv/versions/{version}.*/bin/python"
    for candidate in (shutil.which(f"python{version}"), *Path.home().glob(pattern)):
        if candidate and _answers(str(candidate)):
            return str(candidate)
    message = f"there is no Python {version}"
    raise EngineUnavailableError(message)


def _answers(python: str) -> bool:
    """Whether an interpreter starts; version managers leave programs that do not."""
    return subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0


def _execute(*command: str) -> None:
    try:
        result = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_BUILD_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{Path(command[0]).name} {command[1]} failed: {error}"
        raise EngineUnavailableError(message) from error
    if result.returncode:
        note = " ".join(result.stderr.split())[-300:]
        message = f"{Path(command[0]).name} {command[1]} failed: {note}"
        raise EngineUnavailableError(message)
