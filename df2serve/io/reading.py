"""Open and read images of every format, and find them in folders."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from natsort import natsorted, ns

from df2serve.config import DecodeLimits
from df2serve.errors import (
    InputError,
    LimitExceededError,
    SourceNotFoundError,
    UnsupportedFormatError,
)
from df2serve.io._array import read_npy, read_npz
from df2serve.io._axes import resolve_axes, select_plane
from df2serve.io._container import Folder, is_zarr
from df2serve.io._raster import read_jpeg, read_png
from df2serve.io._sniff import FORMATS, sniff
from df2serve.io._stored import File, Stored, decoding
from df2serve.io._tiff import read_tiff
from df2serve.io.image import Image, PixelSize, Selection

__all__ = ["list_images", "open_image", "read_image"]

_WHOLE = Selection()
_LIMITS = DecodeLimits()
_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".btf", ".tf2", ".tf8", ".npy", ".npz",
    ".zarr", ".zarr.zip", ".ozx",
)  # fmt: skip


@contextmanager
def open_image(
    source: str | Path | bytes | BinaryIO,
    *,
    axes: str | None = None,
    selection: Selection = _WHOLE,
    pixel_size_um: PixelSize | None = None,
    limits: DecodeLimits = _LIMITS,
    name: str | None = None,
    sha256: str | None = None,
) -> Iterator[Image]:
    """Open an image; its pixels are read window by window while the context lasts.

    The format is told by the content. PNG, JPEG and NPZ are decoded as a whole at the first window.

    Args:
        source: a file, an OME-Zarr folder, the bytes of a file or a file object.
        axes: letters of TCZYX in stored order, where the file does not say which axis is which.
        selection: which plane and channels of a larger data set.
        pixel_size_um: wins over what the file says.
        limits: what the file may ask for.
        name: name shown to people; the file's own when absent.
        sha256: hash of the file, where it is known.

    Yields:
        The image; intensities that are NaN or infinite are found when they are read.

    Raises:
        SourceNotFoundError: there is no such file, or it may not be read.
        UnsupportedFormatError: a format, codec or layout that is not read.
        DecodeError: the file is damaged.
        LimitExceededError: it asks for more than allowed.
        AxesError: axes are not certain, or a longer axis needs a choice.
        InputError: the selection does not exist.
    """
    with ExitStack() as stack:
        file = _open(stack, source, limits, name)
        _check_file_size(file, limits)
        kind = "OME-Zarr" if isinstance(file, Folder) else sniff(file)
        with decoding(file.name, kind):
            stored = _describe(file, kind, selection, limits)
            letters = resolve_axes(file.name, stored, axes)
            plane = select_plane(file.name, stored, letters, selection, limits, file.size)
            digest = sha256 or file.sha256()
        yield Image(
            data=plane,
            source=file.name,
            format=stored.format,
            channel_names=_names(stored, plane.channels),
            pixel_size_um=pixel_size_um or stored.pixel_size_um,
            sha256=digest,
            axes="".join(letter or "_" for letter in letters),
            selection=selection,
        )


def read_image(
    source: str | Path | bytes | BinaryIO,
    *,
    axes: str | None = None,
    selection: Selection = _WHOLE,
    pixel_size_um: PixelSize | None = None,
    limits: DecodeLimits = _LIMITS,
    name: str | None = None,
) -> Image:
    """Read an image with all its pixels; arguments and errors are those of ``open_image``."""
    with open_image(
        source,
        axes=axes,
        selection=selection,
        pixel_size_um=pixel_size_um,
        limits=limits,
        name=name,
    ) as image:
        return image.read()


def list_images(path: str | Path, *, pattern: str = "*") -> list[Path]:
    """Return the images of a folder in natural order of their paths.

    Hidden files and suffixes of no image format are left out; an OME-Zarr folder is one image.

    Args:
        path: a folder, or a file, which is returned whatever its suffix.
        pattern: names to take, such as ``*.tif``; ``**/*`` looks into subfolders.

    Raises:
        SourceNotFoundError: there is nothing.
        InputError: the pattern leads out of the folder.
    """
    root = Path(path)
    if root.is_file() or (root.is_dir() and is_zarr(root)):
        return [root]
    if not root.is_dir():
        message = f"{root} does not exist; give a file or a folder of images"
        raise SourceNotFoundError(message)
    try:
        found = [entry for entry in root.glob(pattern) if _is_image(entry.relative_to(root), entry)]
    except (ValueError, NotImplementedError) as error:
        message = f"got pattern={pattern!r}; expected names inside of {root}, such as '*.tif'"
        raise InputError(message) from error
    if not found:
        message = f"{root} holds no images that match {pattern!r}; expected {FORMATS} files"
        raise SourceNotFoundError(message)
    return natsorted(found, key=lambda entry: str(entry.relative_to(root)), alg=ns.PATH)


def _is_image(relative: Path, entry: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    inside = any(parent.suffix.lower() == ".zarr" for parent in relative.parents)
    named = relative.name.lower().endswith(_SUFFIXES)
    whole = entry.is_file() or (entry.is_dir() and entry.suffix.lower() == ".zarr")
    return named and whole and not hidden and not inside


def _open(
    stack: ExitStack, source: str | Path | bytes | BinaryIO, limits: DecodeLimits, name: str | None
) -> File | Folder:
    """Return the bytes of the source, or the folder that it is."""
    if isinstance(source, str | Path):
        return _open_path(stack, Path(source), name)
    title = name or str(getattr(source, "name", "") or "upload")
    if not isinstance(source, bytes):
        try:
            source.fileno()
            return File(title, source, source.seek(0, io.SEEK_END))
        except (OSError, AttributeError):
            if source.seekable():
                source.seek(0)
            source = source.read(limits.max_file_bytes + 1)
    return File(title, io.BytesIO(source), len(source), source)


def _open_path(stack: ExitStack, path: Path, name: str | None) -> File | Folder:
    title = name or path.name
    try:
        mode = path.stat().st_mode
        stream = stack.enter_context(path.open("rb")) if stat.S_ISREG(mode) else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"{path} cannot be opened: {reason}; give the path of an image that exists"
        raise SourceNotFoundError(message) from error
    if stream is not None:
        return File(title, stream, stream.seek(0, io.SEEK_END))
    if not stat.S_ISDIR(mode):
        message = f"{path} is neither a file nor a folder; give an image"
        raise UnsupportedFormatError(message)
    if not is_zarr(path):
        message = f"{path} is a folder but no OME-Zarr; give one of the files in it"
        raise UnsupportedFormatError(message)
    return Folder(title, path)


def _check_file_size(file: File | Folder, limits: DecodeLimits) -> None:
    if file.size > limits.max_file_bytes:
        message = (
            f"{file.name} has {file.size:,} bytes, at most {limits.max_file_bytes:,} are allowed; "
            "raise DecodeLimits.max_file_bytes if you trust it"
        )
        raise LimitExceededError(message)


def _describe(file: File | Folder, kind: str, selection: Selection, limits: DecodeLimits) -> Stored:
    if isinstance(file, Folder) or kind == "OME-Zarr":
        from df2serve.io._zarr import read_zarr  # zarr takes as long to import as all the rest

        return read_zarr(file, selection, limits)
    match kind:
        case "PNG":
            return read_png(file, limits)
        case "JPEG":
            return read_jpeg(file, limits)
        case "NPY":
            return read_npy(file)
        case "NPZ":
            return read_npz(file, selection, limits)
        case _:
            return read_tiff(file, selection, limits)


def _names(stored: Stored, channels: tuple[int, ...]) -> tuple[str, ...] | None:
    names = stored.channel_names
    if names is None or max(channels) >= len(names):
        return None
    return tuple(names[channel] for channel in channels)
