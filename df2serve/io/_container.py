"""The files of a Zarr store, in a folder or in a zip file; nothing outside of it is reachable."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from df2serve.errors import UnsupportedFormatError
from df2serve.io._stored import File

__all__ = ["MARKERS", "Container", "Folder", "ReadStore", "ZipContainer"]

MARKERS = ("zarr.json", ".zgroup", ".zarray")
"""Files that make a folder a Zarr group or array."""
_METADATA_BYTES = 16 << 20
_BLOSC_SIZE_AT = 12
"""Where a chunk of Blosc states its size."""


class Container(Protocol):
    """Files by their path with forward slashes."""

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every file in bytes."""

    def read(self, path: str) -> bytes:
        """Return the contents of a file."""


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

    def read(self, path: str) -> bytes:
        """Return the contents of a file."""
        return (self.root / path).read_bytes()

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
        self._file = file
        with zipfile.ZipFile(file.stream) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
        roots = [
            member.filename.removesuffix(marker)
            for member in members
            for marker in MARKERS
            if member.filename.rpartition("/")[2] == marker
        ]
        self._prefix = min(roots, key=len, default="")
        self.sizes = {
            member.filename.removeprefix(self._prefix): member.file_size
            for member in members
            if member.filename.startswith(self._prefix)
        }

    def read(self, path: str) -> bytes:
        """Return the contents of a file."""
        with zipfile.ZipFile(self._file.stream) as archive:
            return archive.read(self._prefix + path)


class ReadStore(Store):
    """What zarr reads from: a container whose files must not exceed a size."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, container: Container) -> None:
        super().__init__(read_only=True)
        self._container = container
        self.max_bytes = _METADATA_BYTES
        """Size beyond which a file is not read."""
        self.blosc = False
        """Whether files are chunks of Blosc, which itself reads on behind the end of a cut one."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def read(self, path: str) -> bytes | None:
        """Return the contents of a file, or None if there is no such file.

        Raises:
            ValueError: the file is larger than what it should hold.
        """
        size = self._container.sizes.get(path)
        if size is None:
            return None
        if size > self.max_bytes:
            message = f"{path} has {size} bytes, at most {self.max_bytes} were expected"
            raise ValueError(message)
        return self._container.read(path)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file or a part of it."""
        data = self.read(key)
        if data is None:
            return None
        if self.blosc and struct.unpack_from("<I", data, _BLOSC_SIZE_AT)[0] != len(data):
            message = f"{key} has {len(data)} bytes, which is not what it announces"
            raise ValueError(message)
        match byte_range:
            case RangeByteRequest(start, end):
                data = data[start:end]
            case OffsetByteRequest(offset):
                data = data[offset:]
            case SuffixByteRequest(suffix):
                data = data[-suffix:]
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Return parts of files."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return key in self._container.sizes

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse to write."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Yield the paths of all files."""
        for path in self._container.sizes:
            yield path

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the paths that begin with a text."""
        for path in self._container.sizes:
            if path.startswith(prefix):
                yield path

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names in a folder."""
        start = prefix.rstrip("/") + "/" if prefix else ""
        inside = [path for path in self._container.sizes if path.startswith(start)]
        for name in sorted({path[len(start) :].partition("/")[0] for path in inside}):
            yield name
