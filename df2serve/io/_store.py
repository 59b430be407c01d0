"""The store that zarr reads from."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from df2serve.io._container import Container

__all__ = ["ReadStore"]

_ALL = slice(None)
_METADATA_BYTES = 16 << 20
_BLOSC_SIZE_AT = 12
"""Where a chunk of Blosc states its size."""


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

    def read(self, path: str, part: slice = _ALL) -> bytes | None:
        """Return the contents of a file or a part of it, or None if there is no such file.

        Raises:
            ValueError: the file is larger than what it should hold.
        """
        size = self._container.sizes.get(path)
        if size is None:
            return None
        if size > self.max_bytes:
            message = f"{path} has {size} bytes, at most {self.max_bytes} were expected"
            raise ValueError(message)
        return self._container.read(path, part)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file or a part of it."""
        match byte_range:
            case RangeByteRequest(start, end):
                data = self.read(key, slice(start, end))
            case OffsetByteRequest(offset):
                data = self.read(key, slice(offset, None))
            case SuffixByteRequest(suffix):
                data = self.read(key, slice(-suffix, None))
            case _:
                data = self.read(key)
        if data is None:
            return None
        if self.blosc and struct.unpack_from("<I", data, _BLOSC_SIZE_AT)[0] != len(data):
            message = f"{key} has {len(data)} bytes, which is not what it announces"
            raise ValueError(message)
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
