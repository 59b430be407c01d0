"""Files of PyTorch, with their tensors where they are: nothing in them is run.

Three forms: TorchScript archives and what ``torch.save`` writes today are zip files of one pickle
and one file per storage; what ``torch.save`` wrote before is a row of pickles, with the storages
behind them.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from df2serve.errors import IntegrityError, SourceNotFoundError, UnsupportedFormatError
from df2serve.importing._pickle import PICKLE_LIMIT, Storage, StoredTensor, read_pickle

__all__ = ["TorchFile", "open_torch_file"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DIMENSIONS = 8
_DTYPES: Mapping[str, torch.dtype] = {
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Short": torch.int16,
}


@dataclass(frozen=True)
class TorchFile:
    """What a file describes, and its tensors on demand."""

    root: Any
    """Numbers, text, containers and records; tensors are ``StoredTensor``."""
    is_script: bool
    """Whether it is a TorchScript archive."""
    _read: Callable[[Storage, int], bytes]

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Return a tensor with memory of its own.

        Raises:
            IntegrityError: its numbers are not in the file, or not all its own.
        """
        dtype = _dtype(stored.storage)
        _require_inside(stored)
        if stored.storage.count == 0:
            return torch.empty(stored.shape, dtype=dtype)
        content = self._read(stored.storage, stored.storage.count * dtype.itemsize)
        flat = torch.frombuffer(bytearray(content), dtype=dtype)
        return flat.as_strided(stored.shape, stored.strides, stored.offset).clone()


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Open a file of weights; tensors are read while it is open.

    Raises:
        SourceNotFoundError: there is no such file.
        UnsupportedFormatError: it is none of the three forms.
        UnsafeArtifactError: it asks for more than data.
        IntegrityError: it is damaged.
    """
    if not path.is_file():
        message = f"no file at {path}; expected a .pt or .pth file"
        raise SourceNotFoundError(message)
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            with _zip_errors():
                archive = zipfile.ZipFile(file)
            with archive:
                yield _open_archive(archive)
        elif path.stat().st_size == 0:
            message = "it is empty"
            raise IntegrityError(message)
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                yield _open_row(content)


# -- archives -----------------------------------------------------------------------------------


@contextmanager
def _zip_errors() -> Iterator[None]:
    """Translate what reading damaged, encrypted and unusual zip files raises."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        message = f"it is damaged: {error}"
        raise IntegrityError(message) from error


def _open_archive(archive: zipfile.ZipFile) -> TorchFile:
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if not pickles:
        message = "it is a zip file without data.pkl; expected a file that PyTorch saved"
        raise UnsupportedFormatError(message)
    prefix = min(pickles, key=lambda name: name.count("/")).removesuffix("data.pkl")
    with _zip_errors(), archive.open(f"{prefix}data.pkl") as file:
        content = file.read(PICKLE_LIMIT)
    _require_little_endian(archive, f"{prefix}byteorder")

    def read(storage: Storage, size: int) -> bytes:
        name = f"{prefix}data/{storage.key}"
        entry = archive.NameToInfo.get(name)
        if entry is None or entry.file_size != size or entry.compress_type != zipfile.ZIP_STORED:
            message = f"it lacks {size} bytes under {name:.80}"
            raise IntegrityError(message)
        with _zip_errors():
            return archive.read(entry)

    is_script = f"{prefix}constants.pkl" in archive.NameToInfo
    root = read_pickle(io.BytesIO(content)).value
    return TorchFile(root=root, is_script=is_script, _read=read)


def _require_little_endian(archive: zipfile.ZipFile, name: str) -> None:
    if name not in archive.NameToInfo:
        return
    with _zip_errors(), archive.open(name) as file:
        order = file.read(7)
    if order != b"little":
        message = f"its numbers are {order.decode('ascii', 'replace')} endian; save it elsewhere"
        raise UnsupportedFormatError(message)


# -- rows of pickles ----------------------------------------------------------------------------


def _open_row(content: mmap.mmap) -> TorchFile:
    _require_head(content)
    pickles, position = [], 0
    for _ in range(5):  # magic number, protocol, facts of the machine, the object, keys
        stream = io.BytesIO(content[position : position + PICKLE_LIMIT])
        pickles.append(read_pickle(stream))
        position += stream.tell()
    *_, described, keys = pickles
    starts = _storage_starts(content, position, keys.value, described.storages)

    def read(storage: Storage, size: int) -> bytes:
        start = starts[storage.key]
        return content[start : start + size]

    return TorchFile(root=described.value, is_script=False, _read=read)


def _require_head(content: mmap.mmap) -> None:
    """Refuse pickles that PyTorch did not write."""
    head = pickle.dumps(_MAGIC, protocol=2) + pickle.dumps(_PROTOCOL, protocol=2)
    if content[: len(head)] != head:
        message = "it is no file that PyTorch saved; expected a .pt or .pth file"
        raise UnsupportedFormatError(message)


def _storage_starts(
    content: mmap.mmap, position: int, keys: object, storages: Mapping[str, Storage]
) -> dict[str, int]:
    """Return where the elements of each storage start; each stands behind its count."""
    starts = {}
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or content[position : position + 8] != struct.pack("<q", storage.count):
            break
        starts[storage.key] = position + 8
        position += 8 + storage.count * _dtype(storage).itemsize
    if starts.keys() != storages.keys() or position > len(content):
        message = "it is damaged: it does not hold the numbers of all tensors"
        raise IntegrityError(message)
    return starts


def _require_inside(stored: StoredTensor) -> None:
    """Refuse a tensor that leaves its storage, or that repeats elements."""
    axes = list(zip(stored.shape, stored.strides, strict=False))
    last = stored.offset + sum((size - 1) * stride for size, stride in axes)
    count, elements = stored.storage.count, math.prod(stored.shape[:_DIMENSIONS])
    if not len(stored.strides) == len(stored.shape) <= _DIMENSIONS:
        message = f"it has a tensor of {len(stored.shape)} axes and {len(stored.strides)} strides"
    elif elements > count or (elements and last >= count):
        message = f"it has a tensor of shape {stored.shape}, but {count} numbers for it"
    else:
        return
    raise IntegrityError(message)


def _dtype(storage: Storage) -> torch.dtype:
    if storage.kind not in _DTYPES:
        message = f"it has numbers of the type {storage.kind:.20}; expected {', '.join(_DTYPES)}"
        raise IntegrityError(message)
    return _DTYPES[storage.kind]
