"""Networks of cellpose: what is refused, and that nothing differs from cellpose itself."""

import json
import os
import pickle
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from df2serve.backends.cellpose import Cellpose
from df2serve.config import InstanceConfig
from df2serve.errors import (
    ArtifactError,
    BackendUnavailableError,
    ConfigError,
    SourceNotFoundError,
    UnsafeArtifactError,
)
from df2serve.testing import random_ensemble
from df2serve.writers import ResultFolder

HERE = Path(__file__).parent
CELLPOSE3 = HERE.parents[1] / ".venv/foreign/cellpose3"
CYTO = CELLPOSE3.with_name("cyto")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", ["cpsam", "cpsam_v2", "cyto", "no/such/file"])
def test_names_are_not_fetched(name: str) -> None:
    with pytest.raises(SourceNotFoundError, match="nothing is downloaded"):
        Cellpose(name)


def require_cellpose_4() -> None:
    """Skip without it; the package does not tell its version itself."""
    pytest.importorskip("cellpose")
    if not version("cellpose").startswith("4."):
        pytest.skip(f"cellpose {version('cellpose')} is installed")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, 2))])
def test_programs_are_refused_and_not_run(
    tmp_path: Path, save: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    pytest.importorskip("cellpose")
    save({"W2": Touch(tmp_path / "touched")}, tmp_path / "weights")
    with pytest.raises(UnsafeArtifactError, match="asks for more than tensors"):
        Cellpose(tmp_path / "weights")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.zeros(1)}, "holds no network"),
        (torch.zeros(1), "holds no network"),
        ({"output.2.weight": torch.zeros(1)}, "is a network of cellpose 3"),
        ({"W2": torch.zeros(1)}, "cannot load"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, state: object, message: str) -> None:
    require_cellpose_4()
    torch.save(state, tmp_path / "weights")
    with pytest.raises(ArtifactError, match=message):
        Cellpose(tmp_path / "weights", device="cpu")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").touch()
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(BackendUnavailableError, match=r"pip install 'df2serve\[cellpose\]'"):
        Cellpose(tmp_path / "weights")


def test_results_need_the_network_of_their_settings(tmp_path: Path) -> None:
    ensemble = random_ensemble(tmp_path / "e", members=1, channels=1, classes=2, tile=64)
    with pytest.raises(ConfigError, match="--cellpose-weights FILE"):
        ResultFolder(
            tmp_path / "results",
            ensemble,
            ensemble.manifest.inference,
            instances=InstanceConfig(method="cellpose"),
        )


@pytest.mark.slow
@pytest.mark.parametrize("major", ["3", "4"])
def test_objects_are_those_of_cellpose(major: str) -> None:
    path = os.environ.get("PYTHONPATH", "")
    if major == "3":
        if not (CELLPOSE3.is_dir() and CYTO.is_dir()):
            pytest.skip("no cellpose 3; 'make foreign' fetches it")
        path = f"{CELLPOSE3}{os.pathsep}{path}"
    else:
        require_cellpose_4()
    done = subprocess.run(
        [sys.executable, HERE / "cellpose_networks.py", major],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["network"]["version"].startswith(f"{major}.")
    assert min(found["dynamics"]) > 10
    assert found["network"]["inside"] > 0
    assert major == "4" or found["network"]["objects"] > 10
