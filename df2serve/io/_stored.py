"""What a format module hands over, and the one place where decoder errors become ours."""

from __future__ import annotations

import errno
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from df2serve.config import DecodeLimits
from df2serve.errors import (
    DecodeError,
    Df2ServeError,
    LimitExceededError,
    UnsupportedFormatError,
)
from df2serve.io.image import PixelSize

__all__ = ["File", "Reader", "Stored", "check_bytes", "check_dtype", "check_size", "decoding"]

Reader: TypeAlias = Callable[[tuple[slice, ...]], NDArray[Any]]
"""Returns the window given by one slice per stored axis; keeps every axis."""

_PART_BYTES = 1 << 20
_WIDEST_BYTES = 8


@dataclass(frozen=True, eq=False)
class Stored:
    """A stored array as its header describes it; nothing is decoded yet."""

    format: str
    """Name of the file format."""
    axes: str
    """One letter of TCZYXS per axis, or ``?`` where the file does not say."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Reader
    channel_names: tuple[str, ...] | None = None
    pixel_size_um: PixelSize | None = None
    alpha: bool = False
    """The last sample is transparency."""


@dataclass(frozen=True, eq=False)
class File:
    """The bytes of one file, on the disk or uploaded."""

    name: str
    """Name shown to people."""
    stream: BinaryIO
    size: int
    data: bytes | None = None
    """All bytes, where they are in memory anyway."""

    def head(self, count: int) -> bytes:
        """Return the first bytes, and leave the stream at its start."""
        self.stream.seek(0)
        data = self.stream.read(count)
        self.stream.seek(0)
        return data

    def sha256(self) -> str:
        """Return the hash of all bytes."""
        digest = hashlib.sha256()
        self.stream.seek(0)
        while part := self.stream.read(_PART_BYTES):
            digest.update(part)
        return digest.hexdigest()

    def array(
        self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, fortran: bool = False
    ) -> NDArray[Any]:
        """Return raw values without reading them all, where the stream is a file on the disk.

        Raises:
            ValueError: the file ends before the values do.
        """
        count = math.prod(shape)
        if min(shape, default=1) < 0 or offset + count * dtype.itemsize > self.size:
            message = (
                f"an array of shape {shape} and type {dtype} is announced from byte {offset} on, "
                f"the file is {self.size} bytes long"
            )
            raise ValueError(message)
        if count == 0:
            return np.empty(shape, dtype)
        order: Literal["F", "C"] = "F" if fortran else "C"
        if self.data is not None:
            return np.frombuffer(self.data, dtype, count, offset).reshape(shape, order=order)
        return np.memmap(self.stream, dtype, "r", offset, shape, order)


@contextmanager
def decoding(name: str, form: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into one error.

    Args:
        name: name shown to people.
        form: name of the format that is read.

    Raises:
        LimitExceededError: there was not enough memory.
        DecodeError: the body raised anything else that is not an error of df2serve.
    """
    try:
        yield
    except Df2ServeError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            message = f"{name} needs more memory than there is; choose a part of it"
            raise LimitExceededError(message) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"{name} cannot be read as {form}: {reason}; the file is damaged or incomplete"
        raise DecodeError(message) from error


def check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Refuse values that are no intensities.

    Raises:
        UnsupportedFormatError: neither integers, floats nor bool, or wider than 64 bits.
    """
    if dtype.kind not in "buif" or dtype.itemsize > _WIDEST_BYTES:
        message = f"{name} has values of type {dtype}; expected integers, floats or bool"
        raise UnsupportedFormatError(message)


def check_size(
    name: str,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    stored_bytes: int,
    limits: DecodeLimits,
) -> None:
    """Refuse what would decode to too much.

    Args:
        name: for the message.
        shape: channels, rows and columns.
        dtype: type of the intensities.
        stored_bytes: bytes of the file.
        limits: what is allowed.

    Raises:
        DecodeError: there are no pixels.
        LimitExceededError: too many channels, pixels or bytes, or too many per stored byte.
    """
    channels, height, width = shape
    if min(shape) < 1:
        message = f"{name} has {channels} channels of {height} x {width} pixels; it has no pixels"
        raise DecodeError(message)
    _at_most(name, channels, limits.max_channels, "channels", "max_channels")
    _at_most(name, height * width, limits.max_pixels, "pixels per plane", "max_pixels")
    check_bytes(name, math.prod(shape) * dtype.itemsize, stored_bytes, limits)


def check_bytes(name: str, decoded: int, stored: int, limits: DecodeLimits) -> None:
    """Refuse too many decoded bytes, or too many of them for each stored byte.

    Raises:
        LimitExceededError: there are more than allowed.
    """
    _at_most(name, decoded, limits.max_bytes, "decoded bytes", "max_bytes")
    ratio = decoded / max(1, stored)
    _at_most(name, ratio, limits.max_ratio, "decoded bytes per stored byte", "max_ratio")


def _at_most(name: str, value: float, limit: float, what: str, field: str) -> None:
    if value > limit:
        message = (
            f"{name} asks for {value:,.0f} {what}, at most {limit:,.0f} are allowed; choose a part "
            f"of it, or raise DecodeLimits.{field} if you trust it"
        )
        raise LimitExceededError(message)
