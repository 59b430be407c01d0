"""Pickled data as data: what a pickle describes, without doing what it says.

A pickle is a program for a machine with a stack. The machine here knows the instructions that
PyTorch writes, and builds nothing but numbers, text, lists, dictionaries and the records below. It
imports nothing and calls nothing that a pickle names.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from df2serve.errors import IntegrityError, UnsafeArtifactError

__all__ = ["PICKLE_LIMIT", "Array", "Module", "Pickled", "Storage", "StoredTensor", "read_pickle"]

PICKLE_LIMIT = 8 << 20
"""Bytes of the largest pickle that is read; those of five large networks have a tenth of it."""


@dataclass(frozen=True)
class Global:
    """The name of a class or function. Nothing is looked up under it."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Where the numbers of tensors are in the file."""

    kind: str
    """Name of the element type, such as ``Float``."""
    key: str
    count: int
    """Elements."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a view of stored elements."""

    storage: Storage
    offset: int
    """First element."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements between neighbors, per axis."""


@dataclass(eq=False)
class Module:
    """An object of a TorchScript class."""

    name: str
    """Qualified name of the class."""
    state: dict[str, Any] = field(default_factory=dict)
    """Attributes by name."""


@dataclass(eq=False)
class Array:
    """The numbers of a NumPy array."""

    values: list[float] = field(default_factory=list)


@dataclass(eq=False)
class _DType:
    code: str


_DTYPE = re.compile(r"[fiu][1248]")
_TENSOR = "torch._utils._rebuild_tensor_v2"
_SCRIPT = "__torch__."
_NAMES = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|torch\.[A-Z][A-Za-z0-9]+Storage"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.jit\._pickle\.(build_(int|double|bool|tensor)list|restore_type_tag)"
    r"|numpy\.(ndarray|dtype|core\.multiarray\.(_reconstruct|scalar))"
    r"|__torch__\.[\w.]+"
)


@dataclass(frozen=True)
class Pickled:
    """What a pickle describes."""

    value: Any
    """Numbers, text, lists, dictionaries with text or integers as keys, and the records above."""
    storages: Mapping[str, Storage]
    """All storages that its tensors name, by their keys."""


def read_pickle(stream: io.BytesIO) -> Pickled:
    """Return what a pickle describes; the stream is left behind its end.

    Args:
        stream: at the start of a pickle, with at most ``PICKLE_LIMIT`` bytes.

    Raises:
        UnsafeArtifactError: it names anything but tensors and containers, or has instructions that
            PyTorch does not write.
        IntegrityError: it is damaged.
    """
    try:
        machine = _Machine()
        return Pickled(value=machine.run(stream), storages=machine.storages)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        message = f"its pickled part is damaged: {error}"
        raise IntegrityError(message) from error


class _Machine:
    """Runs a pickle's instructions on a stack of data."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, stream: io.BytesIO) -> Any:
        for instruction, argument, _ in pickletools.genops(cast("Any", stream)):
            name = instruction.name
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _MADE:
                self._stack.append(_MADE[name]())
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                message = f"it has the pickle instruction {name}, which PyTorch does not write"
                raise UnsafeArtifactError(message + _UNTOUCHED)
        message = "it does not end"
        raise ValueError(message)

    def mark(self, _: object) -> None:
        self._marks.append(len(self._stack))

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def make_tuple(self, _: object) -> None:
        self._stack.append(tuple(self._since_mark()))

    def make_short_tuple(self, length: int) -> None:
        items = [self._stack.pop() for _ in range(length)]
        self._stack.append(tuple(reversed(items)))

    def append(self, _: object) -> None:
        item = self._stack.pop()
        _list(self._stack[-1]).append(item)

    def extend(self, _: object) -> None:
        items = self._since_mark()
        _list(self._stack[-1]).extend(items)

    def set_item(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _dict(self._stack[-1])[_key(key)] = value

    def set_items(self, _: object) -> None:
        items = self._since_mark()
        target = _dict(self._stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def name(self, argument: str | None) -> None:
        if argument is None:
            attribute, module = self._stack.pop(), self._stack.pop()
        else:
            module, _, attribute = argument.partition(" ")
        dotted = f"{module}.{attribute}".replace("numpy._core.", "numpy.core.")
        if not _NAMES.fullmatch(dotted):
            message = f"it wants {dotted:.80}, which is neither a tensor nor a container"
            raise UnsafeArtifactError(message + _UNTOUCHED)
        self._stack.append(Global(dotted))

    def call(self, _: object) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        builder = _BUILDERS.get(called.name) if isinstance(called, Global) else None
        if builder is None:
            message = f"it calls {getattr(called, 'name', 'something')!s:.80}"
            raise UnsafeArtifactError(message + _UNTOUCHED)
        self._stack.append(builder(*arguments))

    def make_object(self, _: object) -> None:
        arguments, made = self._stack.pop(), self._stack.pop()
        if not isinstance(made, Global) or not made.name.startswith(_SCRIPT) or arguments != ():
            message = "it makes objects that are no modules of TorchScript"
            raise UnsafeArtifactError(message + _UNTOUCHED)
        self._stack.append(Module(made.name))

    def build(self, _: object) -> None:
        state = self._stack.pop()
        match self._stack[-1]:
            case Module() as module:
                module.state.update(_dict(state))
            case Array() as array:
                array.values = _numbers(state[2].code, state[4])
            case _DType():
                if state[1] not in ("<", "|"):
                    message = "its numbers are not little endian"
                    raise ValueError(message)
            case dict():
                pass  # attributes of a state dict, which say nothing of its tensors
            case other:
                message = f"it gives a state to a {type(other).__name__}"
                raise UnsafeArtifactError(message + _UNTOUCHED)

    def load_storage(self, _: object) -> None:
        tag, kind, key, _location, count, *view = self._stack.pop()
        if tag != "storage" or any(part is not None for part in view):
            message = "it stores something that is no plain tensor"
            raise ValueError(message)
        name = kind.name.removeprefix("torch.").removesuffix("Storage")
        storage = Storage(kind=name, key=_text(key), count=_count(count))
        if self.storages.setdefault(storage.key, storage) != storage:
            message = f"it describes the storage {storage.key:.20} in two ways"
            raise ValueError(message)
        self._stack.append(storage)


_UNTOUCHED = "; nothing of it was run. Ask its author for a file of weights alone"
_LITERALS = frozenset(
    {
        "BINBYTES", "BINFLOAT", "BININT", "BININT1", "BININT2", "BINUNICODE", "LONG1",
        "SHORT_BINBYTES", "SHORT_BINUNICODE",
    }
)  # fmt: skip
_MADE: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.make_short_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_short_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_short_tuple(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.make_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load_storage,
}


def _tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: object) -> StoredTensor:
    return StoredTensor(
        storage=storage,
        offset=_count(offset),
        shape=tuple(_count(size) for size in shape),
        strides=tuple(_count(step) for step in strides),
    )


def _scalar(dtype: _DType, content: bytes) -> float:
    (value,) = _numbers(dtype.code, content)
    return value


def _numbers(code: str, content: bytes) -> list[float]:
    return cast("list[float]", np.frombuffer(content, dtype=f"<{code}").tolist())


def _dtype(code: str, *_: object) -> _DType:
    if not _DTYPE.fullmatch(code):
        message = f"its array holds {code:.20}, expected numbers"
        raise ValueError(message)
    return _DType(code)


_BUILDERS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},
    _TENSOR: _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.jit._pickle.build_intlist": lambda items: items,
    "torch.jit._pickle.build_doublelist": lambda items: items,
    "torch.jit._pickle.build_boollist": lambda items: items,
    "torch.jit._pickle.build_tensorlist": lambda items: items,
    "torch.jit._pickle.restore_type_tag": lambda value, _: value,
    "_codecs.encode": lambda text, _: text.encode("latin-1"),
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": lambda *_: Array(),
}
"""What stands for the functions that PyTorch and NumPy let a pickle call."""


def _list(target: object) -> list[Any]:
    if not isinstance(target, list):
        message = f"it appends to a {type(target).__name__}"
        raise TypeError(message)
    return target


def _dict(target: object) -> dict[Any, Any]:
    if not isinstance(target, dict):
        message = f"it takes a {type(target).__name__} for a dictionary"
        raise TypeError(message)
    return target


def _key(key: object) -> str | int:
    if not isinstance(key, str | int):  # the hash of deep tuples would exhaust the stack
        message = f"it has a {type(key).__name__} as a key"
        raise TypeError(message)
    return key


def _text(value: object) -> str:
    if not isinstance(value, str):
        message = f"it has a {type(value).__name__} in place of text"
        raise TypeError(message)
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        message = "it has a negative or huge number in place of a count"
        raise ValueError(message)
    return value
