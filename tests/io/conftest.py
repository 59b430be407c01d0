"""The generator of hostile files, for every test of this room."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _load_hostile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hostile", Path(__file__).with_name("hostile.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOSTILE = _load_hostile()


@pytest.fixture
def hostile() -> ModuleType:
    """Module ``tests/io/hostile.py``."""
    return HOSTILE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``hostile_name`` once for every kind."""
    if "hostile_name" in metafunc.fixturenames:
        metafunc.parametrize("hostile_name", HOSTILE.hostile_names())
