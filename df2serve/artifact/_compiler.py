"""Importing networks without the compiler of PyTorch, which takes longer to load than they do."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["compiler_deferred"]

_PACKAGE = "torch._dynamo"
_UTILS = "torch._dynamo.utils"


@contextmanager
def compiler_deferred() -> Iterator[None]:
    """Let packages that are imported mention the compiler, and load it when they need it.

    timm excludes a function from compilation, and torchvision asks whether a device has a compiler
    when it is about to use one. Both get stand-ins that load the compiler when they are called.
    Whoever imports anything else of it gets the real one, at once.
    """
    if _PACKAGE in sys.modules:
        yield
        return
    stand_in = _StandIn(_PACKAGE)
    stand_in.disable = _disable
    utils = _StandIn(_UTILS)
    utils.is_compile_supported = _is_compile_supported
    sys.modules |= {_PACKAGE: stand_in, _UTILS: utils}
    try:
        yield
    finally:
        _remove_stand_ins()


class _StandIn(ModuleType):
    """A module with few functions, which gives way to the real one when asked for others."""

    disable: Callable[..., Any]
    is_compile_supported: Callable[..., Any]

    def __getattr__(self, name: str) -> Any:
        # inspect asks all modules for their files; only packages have a path
        if name == "__file__" or (name == "__path__" and self.__name__ != _PACKAGE):
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(import_module(self.__name__), name)


def _remove_stand_ins() -> None:
    for name in (_PACKAGE, _UTILS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _disable(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Stand for ``torch._dynamo.disable``."""

    @functools.cache
    def real() -> Callable[..., Any]:
        disabled: Callable[..., Any] = import_module(_PACKAGE).disable(fn, *args, **kwargs)
        return disabled

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return real()(*args, **kwargs)

    return call


def _is_compile_supported(device: str) -> bool:
    """Stand for ``torch._dynamo.utils.is_compile_supported``."""
    return bool(import_module(_UTILS).is_compile_supported(device))
