"""The original package in a virtual environment of its own, as a function that runs its engine."""

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray

# run only in the environment that is made for them
collect_ignore = ["run_original.py", "save_original.py"]
HERE = Path(__file__).parent
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
ORIGINAL = ("deepflash2==0.3.0", "segmentation-models-pytorch==0.5.0")
# all that `deepflash2.inference` and `deepflash2.models` import; the rest conflicts with ours
IMPORTS = (
    "fastcore==2.2.39", "fastdownload", "fastprogress", "numpy", "opencv-python-headless", "pip",
    "timm", "torch", "torchvision",
)  # fmt: skip


class OriginalPrediction(NamedTuple):
    """What the original engine returns."""

    argmax: NDArray[np.uint8]
    """Class indices, axes (Y, X)."""
    softmax: NDArray[np.float32]
    """Class probabilities, axes (K, Y, X)."""
    stdeviation: NDArray[np.float32]
    """The original's uncertainty map, axes (Y, X)."""


@dataclass(frozen=True)
class OriginalEngine:
    """`deepflash2.inference.InferenceEnsemble`, run by an interpreter that has the original."""

    python: Path
    folder: Path
    """Where images, members and results are exchanged."""

    def __call__(
        self,
        image: NDArray[np.float32],
        members: Sequence[torch.nn.Module],
        *,
        tile_shape: tuple[int, int],
        **settings: object,
    ) -> OriginalPrediction:
        """Predict an image of axes (C, Y, X); `settings` are the engine's own keywords."""
        channels = image.shape[0]
        np.save(self.folder / "image.npy", np.ascontiguousarray(image.transpose(1, 2, 0)))
        example = torch.zeros(1, channels, *tile_shape)
        paths = [self.folder / f"member_{index}.pt" for index in range(len(members))]
        for member, path in zip(members, paths, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the original knows only tracing
                torch.jit.trace(member.eval(), example).save(path)  # type: ignore[no-untyped-call]
        settings |= {"in_channels": channels, "tile_shape": tile_shape}
        output = self.folder / "output.npz"
        options = ["--settings", json.dumps(settings)]
        script = HERE / "run_original.py"
        _run(self.python, "-I", script, self.folder / "image.npy", output, *paths, *options)
        with np.load(output) as arrays:
            return OriginalPrediction(**arrays)


class OriginalFiles(NamedTuple):
    """What the original package saved, and what it made of an image then."""

    ensemble: Path
    """TorchScript, ``.pt``."""
    members: list[Path]
    """Pickles, ``.pth``."""
    recorded: Path
    """``.npz`` of ``image``, axes (Y, X, C), and of the original's three results."""


@pytest.fixture(scope="session")
def original_files(
    original_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., OriginalFiles]:
    """Let the original save two random members and their ensemble, and predict an image."""

    def save(
        image: NDArray[np.float32], *, network: dict[str, object], settings: dict[str, object]
    ) -> OriginalFiles:
        folder = tmp_path_factory.mktemp("saved")
        np.save(folder / "image.npy", image)
        options = ("--network", json.dumps(network), "--settings", json.dumps(settings))
        script = HERE / "save_original.py"
        _run(original_python, "-I", script, folder, *options, "--members", "2")
        members = sorted(folder.glob("*.pth"))
        return OriginalFiles(folder / "ensemble.pt", members, folder / "recorded.npz")

    return save


@pytest.fixture(scope="session")
def original_python() -> Path:
    """The interpreter of the original's environment, installed on first use."""
    requirements = "\n".join((*ORIGINAL, *IMPORTS, sys.version, CONSTRAINTS.read_text()))
    cache = Path(os.environ.get("DF2SERVE_CACHE", Path.home() / ".cache" / "df2serve"))
    folder = cache / "original" / hashlib.sha256(requirements.encode()).hexdigest()[:12]
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    installed = folder / "installed"
    with FileLock(folder.with_suffix(".lock")):
        if not installed.exists():
            try:
                _install(folder, python)
            except subprocess.CalledProcessError as error:
                pytest.skip(
                    f"{ORIGINAL[0]} cannot be installed here: {error.stderr.splitlines()[0]}"
                )
            installed.touch()
    return python


@pytest.fixture
def original_engine(original_python: Path, tmp_path: Path) -> OriginalEngine:
    """The original's engine as a function."""
    return OriginalEngine(original_python, tmp_path)


def _install(folder: Path, python: Path) -> None:
    install = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python)
    _run(sys.executable, "-m", "uv", "venv", "--quiet", "--clear", "-p", sys.executable, folder)
    _run(*install, "--constraint", CONSTRAINTS, *IMPORTS)
    _run(*install, "--no-deps", *ORIGINAL)


def _run(*command: str | Path) -> None:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        result.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note(result.stderr)
        raise
