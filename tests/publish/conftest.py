"""A Hub on loopback, the real client pointed at it, and a tiny ensemble."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub import constants

from df2serve.artifact import Ensemble, load_ensemble
from df2serve.testing import random_ensemble

NAME = "lab/cells"


@pytest.fixture(scope="session")
def hub_server() -> ModuleType:
    """The module `hub_server.py`."""
    file = Path(__file__).with_name("hub_server.py")
    spec = importlib.util.spec_from_file_location("hub_server", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(
    hub_server: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[object]:
    """A fresh Hub, an empty cache, and nobody logged in."""
    with hub_server.Hub(tmp_path / "hub").serving() as hub:
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """Two members; not to be changed."""
    target = tmp_path_factory.mktemp("publish") / "ensemble"
    return random_ensemble(target, members=2, channels=1, classes=2, tile=64)


@pytest.fixture
def ensemble(original: Ensemble, tmp_path: Path) -> Ensemble:
    """A copy that a test may change."""
    return load_ensemble(shutil.copytree(original.source, tmp_path / "ensemble"))


@pytest.fixture
def shared(hub: object, hub_server: ModuleType, ensemble: Ensemble) -> object:
    """The repository of the ensemble, on the Hub."""
    repository = hub.create_repository(NAME)
    files = {
        path.relative_to(ensemble.source).as_posix(): path.read_bytes()
        for path in ensemble.source.rglob("*")
        if path.is_file()
    }
    files["README.md"] = b"# Cells\n"
    files["trap.pkl"] = b"\x80\x04cos\nsystem\n."
    files["package/rdf.yaml"] = b"type: model\n"
    repository.commit(hub_server.MAIN, files)
    return repository
