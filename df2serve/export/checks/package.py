"""A package of strangers on disk: unpacked with suspicion, its description read as data."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from df2serve.config import CheckLimits
from df2serve.errors import SourceNotFoundError
from df2serve.export.checks.report import Finding, Severity

__all__ = ["PACKAGE_PROBLEMS", "Opened", "Package", "PackageProblem", "open_package"]

_NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
"""Names of descriptions, the preferred one first."""
_ENCRYPTED = 1
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
)


class PackageProblem(NamedTuple):
    """Why a package is not looked into any further."""

    code: str
    demand: str
    reason: str
    remedy: str


_NO_PACKAGE = PackageProblem(
    "PKG001",
    "The package is a zip file, a folder or a description.",
    "Nothing else can be read.",
    "Give the .zip file, its folder or the rdf.yaml.",
)
_OUTSIDE = PackageProblem(
    "PKG002",
    "Every path stays inside the package.",
    "Careless programs would write to, or read from, places outside of their folder.",
    "Do not open the package elsewhere; ask its author for a clean one.",
)
_SPECIAL = PackageProblem(
    "PKG003",
    "The package holds plain files only.",
    "A link or device gives access to files outside of the package.",
    "Replace it by the file that is meant.",
)
_TOO_LARGE = PackageProblem(
    "PKG004",
    "The package stays within limits.",
    "It would fill the disk or the memory.",
    "If the package is honest, raise the limit (df2serve.config.CheckLimits).",
)
_BROKEN = PackageProblem(
    "PKG005",
    "The package can be unpacked.",
    "Files are damaged, encrypted or ambiguous.",
    "Fetch the package again or write it anew.",
)
_NO_DESCRIPTION = PackageProblem(
    "PKG006",
    "The package holds a description.",
    "Without rdf.yaml it is no bioimage.io package.",
    "Put rdf.yaml at the top of the package.",
)
_UNREADABLE = PackageProblem(
    "PKG007",
    "The description is YAML with fields.",
    "No program can read it.",
    "Correct the YAML.",
)
_NO_MODEL = PackageProblem(
    "PKG008",
    "The description is that of a model.",
    "Only models run.",
    "Check a package with 'type: model'.",
)
PACKAGE_PROBLEMS = (
    _NO_PACKAGE,
    _OUTSIDE,
    _SPECIAL,
    _TOO_LARGE,
    _BROKEN,
    _NO_DESCRIPTION,
    _UNREADABLE,
    _NO_MODEL,
)


@dataclass(frozen=True, eq=False)
class Package:
    """A description, and the files that it may name."""

    folder: Path
    rdf_name: str
    """Name of the description in the folder."""
    prefix: str
    """Folder inside the zip file that holds the description; empty if at the top."""
    rdf: Mapping[str, Any]
    listing: tuple[str, ...] | None
    """Every file, relative to the folder; None if only the description was given."""
    limits: CheckLimits

    @property
    def version(self) -> tuple[int, ...]:
        """Format version as numbers, such as (0, 5, 10); empty if there is none."""
        try:
            return tuple(map(int, str(self.rdf.get("format_version", "")).split(".")))
        except ValueError:
            return ()

    def find(self, source: object) -> Path | None:
        """Return the file that the description names, if it is there and inside the folder."""
        name = source.get("source") if isinstance(source, Mapping) else source
        if not isinstance(name, str) or not name or "\0" in name or is_remote(name):
            return None
        path = self.folder / name
        try:
            inside = path.resolve().is_relative_to(self.folder.resolve())
            return path if inside and path.is_file() else None
        except (OSError, RuntimeError):
            return None

    @cached_property
    def _hashes(self) -> dict[Path, str]:
        return {}

    def sha256(self, path: Path) -> str:
        """Return the hash of a file, computed once."""
        if path not in self._hashes:
            with path.open("rb") as file:
                self._hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[path]


class Opened(NamedTuple):
    """A package, or why it was not opened."""

    package: Package | None
    findings: tuple[Finding, ...]


class _RefusedError(Exception):
    """The package is not looked into any further."""

    def __init__(self, problem: PackageProblem, place: str, message: str) -> None:
        super().__init__(message)
        self.finding = Finding(
            code=problem.code,
            severity=Severity.ERROR,
            place=place,
            message=message,
            reason=problem.reason,
            remedy=problem.remedy,
        )


def is_remote(name: str) -> bool:
    """Whether a source is an address, which is never fetched."""
    return "://" in name


@contextmanager
def open_package(path: Path, limits: CheckLimits) -> Iterator[Opened]:
    """Open a package for reading; a zip file is unpacked into a temporary folder.

    Raises:
        SourceNotFoundError: nothing is there.
    """
    if not path.exists():
        message = f"{path} does not exist; give a package (zip file, folder or rdf.yaml)"
        raise SourceNotFoundError(message)
    with tempfile.TemporaryDirectory(prefix="df2serve-check-", ignore_cleanup_errors=True) as home:
        try:
            opened = Opened(_open(path, Path(home), limits), ())
        except _RefusedError as refusal:
            opened = Opened(None, (refusal.finding,))
        yield opened


def _open(path: Path, home: Path, limits: CheckLimits) -> Package:
    if path.is_dir():
        return _package(path, _names_in(path, limits), limits)
    if path.suffix.lower() in {".yaml", ".yml"}:
        rdf = _read_description(path, limits)
        return Package(path.parent, path.name, "", rdf, None, limits)
    if not zipfile.is_zipfile(path):
        raise _RefusedError(
            _NO_PACKAGE, path.name, "neither a zip file nor a folder nor a .yaml file"
        )
    return _package(home, _unpack(path, home, limits), limits)


def _package(folder: Path, names: list[str], limits: CheckLimits) -> Package:
    """Find the description, the shallowest of the best name."""
    found = [
        (name.count("/"), _NAMES.index(base), name)
        for name in names
        if (base := name.rpartition("/")[2]) in _NAMES
    ]
    if not found:
        message = f"none of {', '.join(_NAMES)} among {len(names)} files"
        raise _RefusedError(_NO_DESCRIPTION, "", message)
    prefix, _, base = min(found)[2].rpartition("/")
    root = folder / prefix
    rdf = _read_description(root / base, limits)
    top = f"{prefix}/" if prefix else ""
    listing = tuple(name.removeprefix(top) for name in sorted(names) if name.startswith(top))
    return Package(root, base, prefix, rdf, listing, limits)


def _names_in(root: Path, limits: CheckLimits) -> list[str]:
    """Return the files of a folder."""
    home, names = root.resolve(), []
    for folder, folders, files in os.walk(root):
        for entry in (Path(folder, name) for name in [*folders, *files]):
            name = entry.relative_to(root).as_posix()
            if entry.is_symlink() and not entry.resolve().is_relative_to(home):
                raise _RefusedError(_SPECIAL, name, "a link that leads out of the folder")
            if entry.is_file():
                names.append(name)
            elif not entry.is_dir():
                raise _RefusedError(_SPECIAL, name, "neither a file nor a folder")
        if len(names) > limits.max_files:
            raise _RefusedError(_TOO_LARGE, "", f"more than {limits.max_files} files")
    return names


# -- zip files ----------------------------------------------------------------------------------


def _unpack(path: Path, home: Path, limits: CheckLimits) -> list[str]:
    """Unpack a zip file after all of its entries have been looked at; return the files' names."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_entries(members, path.stat().st_size, limits)
            files = [member for member in members if not member.is_dir()]
            for member in files:
                _unpack_one(archive, member, home)
    except _BROKEN_ZIP as error:
        raise _RefusedError(_BROKEN, path.name, str(error) or type(error).__name__) from error
    return [member.filename for member in files]


def _unpack_one(archive: zipfile.ZipFile, member: zipfile.ZipInfo, home: Path) -> None:
    target = home / member.filename
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # zipfile gives no more than the size that the entry states, which was checked
        with archive.open(member) as source, target.open("xb") as file:
            shutil.copyfileobj(source, file)
    except _BROKEN_ZIP as error:
        message = str(error) or type(error).__name__
        raise _RefusedError(_BROKEN, member.filename, message) from error


def _check_entries(members: list[zipfile.ZipInfo], packed: int, limits: CheckLimits) -> None:
    if len(members) > limits.max_files:
        message = f"{len(members)} entries, at most {limits.max_files} are unpacked"
        raise _RefusedError(_TOO_LARGE, "", message)
    seen: set[str] = set()
    for member in members:
        _check_entry(member)
        key = member.filename.rstrip("/").casefold()
        if key in seen:
            raise _RefusedError(_BROKEN, member.filename, "the name occurs twice")
        seen.add(key)
    total = sum(member.file_size for member in members)
    if total > limits.max_bytes:
        message = f"{total} bytes unpacked, at most {limits.max_bytes} are allowed"
        raise _RefusedError(_TOO_LARGE, "", message)
    if total > limits.free_bytes and total > limits.max_ratio * packed:
        message = (
            f"{total} bytes unpacked from {packed}, at most {limits.max_ratio:g} times as many"
        )
        raise _RefusedError(_TOO_LARGE, "", message)


def _check_entry(member: zipfile.ZipInfo) -> None:
    # orig_filename: zipfile cuts names at a zero byte and, on Windows, replaces separators
    name = member.orig_filename
    place = name.replace("\0", "\\0")
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or PureWindowsPath(name).anchor
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or not path.parts
    ):
        raise _RefusedError(_OUTSIDE, place, "a path that leads out of the package")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _RefusedError(_SPECIAL, place, "a link or a device, not a file")
    if member.flag_bits & _ENCRYPTED:
        raise _RefusedError(_BROKEN, place, "encrypted")


# -- the description ----------------------------------------------------------------------------


def _read_description(path: Path, limits: CheckLimits) -> Mapping[str, Any]:
    import yaml

    size = path.stat().st_size
    if size > limits.max_description_bytes:
        message = f"{size} bytes, at most {limits.max_description_bytes} are read"
        raise _RefusedError(_TOO_LARGE, path.name, message)
    text = path.read_bytes()
    try:
        _check_depth(yaml.parse(text, Loader=yaml.CSafeLoader), path.name, limits)
        content = yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        message = " ".join(str(error).split())[:300]
        raise _RefusedError(_UNREADABLE, path.name, message) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        message = f"got {type(content).__name__}, expected fields with names"
        raise _RefusedError(_UNREADABLE, path.name, message)
    _check_extent(content, path.name, limits)
    if content.get("type", "model") != "model":
        raise _RefusedError(_NO_MODEL, path.name, f"type is {content['type']!r:.40}")
    return content


def _check_depth(events: Iterable[object], place: str, limits: CheckLimits) -> None:
    """Refuse what is so deep that libyaml's loader would overflow the stack."""
    from yaml import CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > limits.max_description_depth:
            message = f"more than {limits.max_description_depth} levels deep"
            raise _RefusedError(_TOO_LARGE, place, message)


def _check_extent(content: object, place: str, limits: CheckLimits) -> None:
    """Refuse what is too large or, through aliases, too deep for whoever walks through it."""
    waiting, seen = [(content, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > limits.max_description_nodes:
            message = f"expands to more than {limits.max_description_nodes} values"
            raise _RefusedError(_TOO_LARGE, place, message)
        if depth > limits.max_description_depth:
            message = f"more than {limits.max_description_depth} levels deep"
            raise _RefusedError(_TOO_LARGE, place, message)
        match value:
            case dict():
                waiting += [(item, depth + 1) for item in value.values()]
            case list() | set() | tuple():
                waiting += [(item, depth + 1) for item in value]
