"""What a TorchScript archive says of itself: its code is read as text, never loaded."""

from __future__ import annotations

import ast
import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from df2serve.config import CheckLimits

__all__ = [
    "TorchScriptFacts",
    "TorchScriptFileError",
    "operators_of_torch_2_0_0",
    "read_torchscript",
]

_OPERATORS = "torch_2_0_0_operators.txt"
_UNSAFE = re.compile(r"\b(?:save|from_file|rpc_\w+|torch\s*\.\s*classes)\b")
"""Words of operators that touch files or networks, and of classes written in C++."""
_NAMESPACES = frozenset(
    {"aten", "prim", "quantized", "_quantized", "prepacked", "mkldnn", "sparse"}
)
"""Namespaces whose operators only compute."""


class TorchScriptFileError(Exception):
    """The file is no TorchScript archive that can be read."""


@dataclass(frozen=True)
class TorchScriptFacts:
    """What the code of an archive uses."""

    operators: Mapping[str, str]
    """Operators such as ``aten::conv2d``, each with a file that uses it."""
    devices: Mapping[str, str]
    """Devices that are written into the code, each with a file that uses it."""
    outputs: int | None
    """Number of tensors that the model returns; None if its code does not say."""
    unsafe: str | None
    """Why the archive is not run; None if it only computes."""


@cache
def operators_of_torch_2_0_0() -> frozenset[str]:
    """Return the operators that torch 2.0.0 knows."""
    text = (files(__package__) / _OPERATORS).read_text(encoding="utf-8")
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return frozenset(f"{space}::{name}" for space, *names in lines for name in names)


def read_torchscript(path: Path, limits: CheckLimits) -> TorchScriptFacts:
    """Read the code of an archive.

    Raises:
        TorchScriptFileError: it is no archive, damaged, too large, or its code cannot be parsed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sources, root = _read(archive, limits)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        message = f"no TorchScript archive: {error}"
        raise TorchScriptFileError(message) from error
    if not sources:
        message = "no TorchScript archive: it holds no code"
        raise TorchScriptFileError(message)
    trees = {name: _parse(name, text) for name, text in sources.items()}
    operators: dict[str, str] = {}
    devices: dict[str, str] = {}
    for name, tree in trees.items():
        for operator in _operators(tree):
            operators.setdefault(operator, name)
        for device in _devices(tree):
            devices.setdefault(device, name)
    return TorchScriptFacts(
        operators=operators,
        devices=devices,
        outputs=_outputs(trees, root),
        unsafe=_unsafe(sources, operators),
    )


def _read(archive: zipfile.ZipFile, limits: CheckLimits) -> tuple[dict[str, str], str | None]:
    """Return the text of every source file, and the dotted name of the model's class."""
    members = [member for member in archive.infolist() if member.filename.endswith(".py")]
    pickles = [item for item in archive.infolist() if item.filename.endswith("/data.pkl")]
    size = sum(member.file_size for member in [*members, *pickles[:1]])
    if size > limits.max_code_bytes:
        message = f"{size} bytes of code, at most {limits.max_code_bytes} are read"
        raise TorchScriptFileError(message)
    if len({item.filename for item in archive.infolist()}) < len(archive.infolist()):
        message = "a name occurs twice in the archive"
        raise TorchScriptFileError(message)
    sources = {
        member.filename: archive.read(member).decode("utf-8", errors="replace")
        for member in members
    }
    return sources, _root_class(archive.read(pickles[0])) if pickles else None


def _root_class(pickle: bytes) -> str | None:
    """Return the first class that a pickle names; the pickle is not loaded."""
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(pickle)):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
    except (ValueError, EOFError, UnicodeDecodeError):
        return None
    return None


def _parse(name: str, text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = f"{name} cannot be parsed: {error}"
        raise TorchScriptFileError(message) from error


def _operators(tree: ast.Module) -> Iterator[str]:
    """Yield ``torch.conv2d`` as ``aten::conv2d`` and ``ops.prim.device`` as ``prim::device``."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)):
                yield f"aten::{name}"
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id="ops"), attr=space), attr=name
            ):
                yield f"{space}::{name}"


def _devices(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="torch"), attr="device"),
                args=[ast.Constant(value=str(device))],
            ):
                yield device


def _outputs(trees: Mapping[str, ast.Module], root: str | None) -> int | None:
    """Return how many tensors ``forward`` of the model's class says that it returns."""
    module, _, name = (root or "").rpartition(".")
    ending = f"/code/{module.replace('.', '/')}.py"
    for path, tree in trees.items():
        if path.endswith(ending):
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return _returned(node)
    return None


def _returned(model: ast.ClassDef) -> int | None:
    for node in model.body:
        match node:
            case ast.FunctionDef(name="forward", returns=ast.Name(id="Tensor")):
                return 1
            case ast.FunctionDef(
                name="forward",
                returns=ast.Subscript(value=ast.Name(id="Tuple"), slice=ast.Tuple(elts=elements)),
            ):
                return len(elements)
    return None


def _unsafe(sources: Mapping[str, str], operators: Mapping[str, str]) -> str | None:
    for name, text in sources.items():
        if found := _UNSAFE.search(text):
            return f"{name} mentions {' '.join(found[0].split())}"
    for operator, name in operators.items():
        if operator.partition("::")[0] not in _NAMESPACES:
            return f"{name} uses {operator}"
    return None
