"""Fixtures for every test: no network, no caches of the user, and the real data where it exists."""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# before any test imports a library that reads them
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("DF2SERVE_TEST_GPU", "")


def _data_folder() -> Path:
    return Path(os.environ.get("DF2SERVE_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images with experts' masks, kept beside the project."""
    folder = _data_folder()
    if not folder.is_dir():
        pytest.skip("real data not found; set DF2SERVE_DATA to the folder that holds cfos_hc")
    return folder


@pytest.fixture(scope="session")
def golden(shared_data: Path) -> Path:
    """Numbers of the original implementation and of the paper."""
    return shared_data.parent / "golden"


@pytest.fixture(autouse=True)
def hermetic(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep caches and settings of the user's account out of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in [name for name in os.environ if name.startswith("DF2SERVE_")]:
        if name not in {"DF2SERVE_DATA", "DF2SERVE_TEST_GPU", "DF2SERVE_CACHE"}:
            monkeypatch.delenv(name)


class Finished(NamedTuple):
    """What a call of the program came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def df2serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """Run the program in this process; arguments in, exit code, output and errors out."""
    from df2serve.cli import main

    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["df2serve", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run


@functools.cache
def _load_hostile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hostile", ROOT / "tests/io/hostile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hostile() -> ModuleType:
    """The generator of hostile files, ``tests/io/hostile.py``."""
    return _load_hostile()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``hostile_name`` once for every kind."""
    if "hostile_name" in metafunc.fixturenames:
        metafunc.parametrize("hostile_name", _load_hostile().hostile_names())
