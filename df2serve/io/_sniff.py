"""Which format a file has, told by its first bytes and never by its name."""

from __future__ import annotations

import zipfile
from typing import Literal, TypeAlias

from df2serve.errors import DecodeError, UnsupportedFormatError
from df2serve.io._stored import File

__all__ = ["FORMATS", "Kind", "sniff"]

Kind: TypeAlias = Literal["PNG", "JPEG", "TIFF", "NPY", "NPZ", "OME-Zarr"]

FORMATS = "PNG, JPEG, TIFF, OME-TIFF, ImageJ TIFF, NPY, NPZ and OME-Zarr"

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x93NUMPY", "NPY"),
)
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_ZARR = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_HEAD = 16


def sniff(file: File) -> Kind:
    """Return the format of a file.

    Raises:
        DecodeError: the file is empty, or a zip file that is damaged.
        UnsupportedFormatError: it is none of the formats that are read.
    """
    if file.size == 0:
        message = f"{file.name} is empty (0 bytes)"
        raise DecodeError(message)
    head = file.head(_HEAD)
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(_ZIP):
        return _sniff_zip(file)
    message = f"{file.name} starts with {head[:8]!r}; the formats that are read are {FORMATS}"
    raise UnsupportedFormatError(message)


def _sniff_zip(file: File) -> Kind:
    try:
        with zipfile.ZipFile(file.stream) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        message = f"{file.name} cannot be read as a zip file: {error}; it is damaged or incomplete"
        raise DecodeError(message) from error
    if any(name.rpartition("/")[2] in _ZARR for name in names):
        return "OME-Zarr"
    if names and all(name.endswith(".npy") for name in names):
        return "NPZ"
    message = (
        f"{file.name} is a zip file of {len(names)} files that is neither an NPZ nor an OME-Zarr; "
        "unpack it first"
    )
    raise UnsupportedFormatError(message)
