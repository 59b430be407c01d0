"""What can be imported from the package, and what an import costs."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

import df2serve
import df2serve_training

HEAVY = {"bentoml", "numpy", "onnxruntime", "pandas", "pydantic", "torch"}


def walk(package: ModuleType) -> Iterator[str]:
    """Dotted names of a package and everything in it that is public."""
    yield package.__name__
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            yield module.name


MODULES = sorted([*walk(df2serve), *walk(df2serve_training)])
CORE = [name for name in MODULES if name.startswith("df2serve.core.")]


def test_the_package_imports_nothing_heavy() -> None:
    code = "import sys, df2serve; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "df2serve" in loaded
    assert HEAVY.isdisjoint(loaded)


@pytest.mark.parametrize("name", MODULES)
def test_exports_exist(name: str) -> None:
    """That they are sorted is checked by ruff (RUF022)."""
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert len(exported) == len(set(exported))
    assert [item for item in exported if not hasattr(module, item)] == []


def test_the_package_lists_its_exports() -> None:
    assert set(df2serve.__all__) <= set(dir(df2serve))


@pytest.mark.parametrize("name", CORE)
def test_core_has_no_float_defaults(name: str) -> None:
    """Every default lives in `df2serve.config`."""
    defaults = {
        f"{label}({parameter.name})": parameter.default
        for label, function in functions_of(importlib.import_module(name))
        for parameter in inspect.signature(function).parameters.values()
        if isinstance(parameter.default, float)
    }
    assert defaults == {}


def functions_of(module: ModuleType) -> Iterator[tuple[str, Callable[..., object]]]:
    """Functions and methods that a module defines, with their names."""
    for name, member in vars(module).items():
        if getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(member):
            yield name, member
        elif inspect.isclass(member):
            for label, method in inspect.getmembers(member, inspect.isfunction):
                yield f"{name}.{label}", method
