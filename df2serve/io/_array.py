"""NPY and NPZ, header first and never unpickled."""

from __future__ import annotations

import math
import zipfile
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from df2serve.config import DecodeLimits
from df2serve.errors import UnsupportedFormatError
from df2serve.io._axes import choose_series
from df2serve.io._stored import File, Stored, check_bytes, check_dtype
from df2serve.io.image import Selection

__all__ = ["read_npy", "read_npz"]


def read_npy(file: File) -> Stored:
    """Describe an NPY file; its values are memory-mapped.

    Raises:
        DecodeError: the file is damaged.
        UnsupportedFormatError: the values are not plain numbers.
    """
    file.stream.seek(0)
    shape, fortran, dtype = _header(file.name, file.stream)
    values = file.array(file.stream.tell(), shape, dtype, fortran=fortran)
    return Stored(
        format="NPY", axes="?" * len(shape), shape=shape, dtype=dtype, read=values.__getitem__
    )


def read_npz(file: File, selection: Selection, limits: DecodeLimits) -> Stored:
    """Describe one array of an NPZ file.

    Args:
        file: the file.
        selection: ``series`` chooses the array, in file order.
        limits: what the whole array may ask for.

    Raises:
        AxesError: there are several arrays and none is chosen.
        InputError: there is no such array.
        DecodeError: the file is damaged.
        UnsupportedFormatError: the values are not plain numbers.
        LimitExceededError: the array is too large.
    """
    with zipfile.ZipFile(file.stream) as archive:
        members = archive.infolist()
        member = members[choose_series(file.name, [m.filename for m in members], selection.series)]
        with archive.open(member) as stream:
            shape, fortran, dtype = _header(file.name, stream)
            offset = stream.tell()
    count = math.prod(shape)
    if offset + count * dtype.itemsize != member.file_size:
        message = (
            f"{member.filename} announces shape {shape} of type {dtype} in {member.file_size} bytes"
        )
        raise ValueError(message)
    check_bytes(file.name, count * dtype.itemsize, file.size, limits)

    @cache
    def values() -> NDArray[Any]:
        with zipfile.ZipFile(file.stream) as archive, archive.open(member) as stream:
            _header(file.name, stream)
            flat = np.frombuffer(stream.read(), dtype)
        return flat.reshape(shape, order="F" if fortran else "C")

    return Stored(
        format="NPZ",
        axes="?" * len(shape),
        shape=shape,
        dtype=dtype,
        read=lambda window: values()[window],
    )


def _header(name: str, stream: BinaryIO | Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        message = f"{name} has NPY version {version}; versions 1.0 to 3.0 are read"
        raise UnsupportedFormatError(message)
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = reader(stream)
    check_dtype(name, dtype)
    return shape, fortran, dtype
