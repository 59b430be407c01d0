"""The files of a Zarr store, in a folder or in a zip file; nothing outside of it is reachable."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Protocol

from df2serve.errors import UnsupportedFormatError
from df2serve.io._stored import File

__all__ = ["Container", "Folder", "ZipContainer", "is_zarr"]

_MARKERS = ("zarr.json", ".zgroup", ".zarray")
"""Files that make a folder a Zarr group or array."""
_ALL = slice(None)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((path / marker).is_file() for marker in _MARKERS)


class Container(Protocol):
    """Files by their path with forward slashes."""

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every file in bytes."""

    def read(self, path: str, part: slice = _ALL) -> bytes:
        """Return the contents of a file, or the bytes of it from one place to another."""


@dataclass(frozen=True, eq=False)
class Folder:
    """A Zarr store in a folder."""

    name: str
    """Name shown to people."""
    root: Path

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of every file in bytes.

        Raises:
            UnsupportedFormatError: a link leads out of the folder.
        """
        home, sizes = self.root.resolve(), {}
        for folder, folders, files in os.walk(self.root):
            for entry in (Path(folder, name) for name in [*folders, *files]):
                if entry.is_symlink() and not entry.resolve().is_relative_to(home):
                    message = f"{self.name}: {entry.name} is a link that leads out of the folder"
                    raise UnsupportedFormatError(message)
                if entry.is_file():
                    sizes[entry.relative_to(self.root).as_posix()] = entry.stat().st_size
        return sizes

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def read(self, path: str, part: slice = _ALL) -> bytes:
        """Return the contents of a file, or the bytes of it from one place to another."""
        with (self.root / path).open("rb") as stream:
            return _read(stream, part, self.sizes[path])

    def sha256(self) -> str:
        """Return the hash over the sorted names and contents of all files."""
        digest = hashlib.sha256()
        for path in sorted(self.sizes):
            with (self.root / path).open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{path}\0{content}\n".encode())
        return digest.hexdigest()


class ZipContainer:
    """A Zarr store in a zip file, at its top or in its only folder."""

    def __init__(self, file: File) -> None:
        self._archive = zipfile.ZipFile(file.stream)
        members = [member for member in self._archive.infolist() if not member.is_dir()]
        roots = [
            member.filename.removesuffix(marker)
            for member in members
            for marker in _MARKERS
            if member.filename.rpartition("/")[2] == marker
        ]
        self._prefix = min(roots, key=len, default="")
        self.sizes = {
            member.filename.removeprefix(self._prefix): member.file_size
            for member in members
            if member.filename.startswith(self._prefix)
        }

    def read(self, path: str, part: slice = _ALL) -> bytes:
        """Return the contents of a file, or the bytes of it from one place to another."""
        with self._archive.open(self._prefix + path) as stream:
            return _read(stream, part, self.sizes[path])


def _read(stream: IO[bytes], part: slice, size: int) -> bytes:
    start, stop, _ = part.indices(size)
    stream.seek(start)
    return stream.read(stop - start)
