"""TIFF, BigTIFF, OME-TIFF and ImageJ hyperstacks through tifffile, header first."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffFrame, TiffPage, TiffPageSeries

from df2serve.config import DecodeLimits
from df2serve.errors import LimitExceededError, UnsupportedFormatError
from df2serve.io._axes import choose_series
from df2serve.io._ome import OmeImage, parse_ome
from df2serve.io._stored import File, Reader, Stored, check_size
from df2serve.io._units import pixel_size
from df2serve.io.image import PixelSize, Selection

__all__ = ["read_tiff"]

_CODECS = {
    COMPRESSION.NONE: "none",
    COMPRESSION.ADOBE_DEFLATE: "deflate",
    COMPRESSION.DEFLATE: "deflate",
    COMPRESSION.LZW: "LZW",
    COMPRESSION.ZSTD: "Zstandard",
    COMPRESSION.PACKBITS: "PackBits",
    COMPRESSION.JPEG: "JPEG",
}
_ALPHA = (1, 2)
"""Values of ExtraSamples that mean transparency."""
_CENTIMETER = 3
"""ResolutionUnit; an inch is what programs write that do not know the size."""
_AXES = "TCZYXS"
_VENDORS = (
    "avs", "bif", "eer", "fluoview", "lsm", "mdgel", "mmstack", "ndpi", "ndtiff", "nih", "philips",
    "qpi", "scanimage", "scn", "sis", "stk", "svs", "uniform",
)  # fmt: skip
"""Flavors of which tifffile interprets private tags or companion files; read as plain TIFF."""
_PLAIN: dict[str, Any] = {f"is_{vendor}": False for vendor in _VENDORS}

_complaints: ContextVar[list[str] | None] = ContextVar("complaints", default=None)


def _listen(record: logging.LogRecord) -> bool:
    """Take what tifffile logs while one of our files is parsed."""
    heard = _complaints.get()
    if heard is None:
        return True
    if record.levelno >= logging.ERROR:
        heard.append(record.getMessage())
    return False


logging.getLogger("tifffile").addFilter(_listen)


@contextmanager
def _strict() -> Iterator[None]:
    """Make errors of what tifffile only logs, and keep it silent."""
    heard: list[str] = []
    token = _complaints.set(heard)
    try:
        yield
    finally:
        _complaints.reset(token)
    if heard:
        raise ValueError(heard[0])


def read_tiff(file: File, selection: Selection, limits: DecodeLimits) -> Stored:
    """Describe one image of a TIFF file; only the strips and tiles of a window are decoded.

    Args:
        file: the file.
        selection: ``series`` chooses the image.
        limits: what is allowed.

    Raises:
        AxesError: there are several images and none is chosen.
        InputError: there is no such image.
        DecodeError: the file is damaged or pixels are missing.
        UnsupportedFormatError: a codec or layout that is not read, or other files are needed.
        LimitExceededError: there are too many pages, or strips and tiles are too large.
    """
    with _strict():
        tiff = TiffFile(
            file.stream,
            name=file.name,
            _multifile=False,
            **_PLAIN,
        )
        _check_page_count(file, tiff, limits)
        ome = parse_ome(file.name, tiff.ome_metadata, limits) if tiff.is_ome else []
        found = [series for series in tiff.series if math.prod(series.shape)]
        if not found:
            message = "no page holds an image"
            raise ValueError(message)
        index = choose_series(file.name, [series.name for series in found], selection.series)
    series = found[index]
    if tiff.is_ome and series.kind != "ome":
        message = "its OME-XML does not describe its pages"
        raise ValueError(message)
    page = series.keyframe
    _check_layout(file.name, page, colormapped=tiff.is_ome or tiff.is_imagej)
    described = ome[index] if len(ome) == len(found) else OmeImage()
    form = "OME-TIFF" if tiff.is_ome else "ImageJ TIFF" if tiff.is_imagej else "TIFF"
    return Stored(
        format=form,
        axes="".join(letter if letter in _AXES else "?" for letter in series.axes),
        shape=tuple(series.shape),
        dtype=np.dtype(series.dtype),
        read=_reader(file, tiff, series, limits),
        channel_names=described.channel_names,
        pixel_size_um=described.pixel_size_um if tiff.is_ome else _pixel_size(tiff, page),
        alpha=page.axes.endswith("S") and page.extrasamples[-1:] in [(kind,) for kind in _ALPHA],
    )


def _check_page_count(file: File, tiff: TiffFile, limits: DecodeLimits) -> None:
    try:
        tiff.pages[limits.max_pages]
    except IndexError:
        return
    message = (
        f"{file.name} has more than {limits.max_pages} pages; split it or raise "
        "DecodeLimits.max_pages"
    )
    raise LimitExceededError(message)


def _check_layout(name: str, page: TiffPage, *, colormapped: bool) -> None:
    """Refuse what is not plain intensities in a codec of the list.

    Args:
        name: for the message.
        page: first page of the image.
        colormapped: a color table is only for display, as in ImageJ.
    """
    if page.compression not in _CODECS:
        codec = getattr(page.compression, "name", page.compression)
        choices = ", ".join(sorted(set(_CODECS.values())))
        message = f"{name} is compressed with {codec}; save it with one of {choices}"
        raise UnsupportedFormatError(message)
    meanings = [PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB]
    if colormapped:
        meanings.append(PHOTOMETRIC.PALETTE)
    if page.compression == COMPRESSION.JPEG:
        meanings.append(PHOTOMETRIC.YCBCR)
    if page.photometric not in meanings:
        kind = getattr(page.photometric, "name", page.photometric)
        message = f"{name} stores {kind} values; save it as gray or RGB"
        raise UnsupportedFormatError(message)
    if page.dtype is None or page.imagedepth > 1:
        message = (
            f"{name} has {page.bitspersample} bits per sample and depth {page.imagedepth}; "
            "expected planes of integers or floats"
        )
        raise UnsupportedFormatError(message)


def _reader(file: File, tiff: TiffFile, series: TiffPageSeries, limits: DecodeLimits) -> Reader:
    """Return what reads windows: memory-mapped where possible, segment by segment elsewhere."""
    shape, offset = tuple(series.shape), series.dataoffset
    if offset is not None:
        kind = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
        return file.array(offset, shape, kind).__getitem__
    pages = [page for page in series.pages if page is not None]
    frame = series.keyframe
    lead = shape[: len(shape) - frame.ndim]
    if math.prod(lead) != len(pages) or shape[len(lead) :] != frame.shape:
        message = f"{len(pages)} pages of shape {frame.shape} do not fill an image of shape {shape}"
        raise ValueError(message)
    layout = _Layout(frame)
    check_size(file.name, layout.segment_shape, np.dtype(frame.dtype), file.size, limits)
    for number, page in enumerate(pages):
        _check_segments(file, number, page, layout)
    return _Pages(file, pages, lead, layout).read


class _Layout:
    """How the pages of an image are cut into strips or tiles."""

    def __init__(self, page: TiffPage) -> None:
        self.page = page
        self.planes, _, self.height, self.width, self.samples = page.shaped
        self.tall = page.tilelength if page.is_tiled else page.rowsperstrip
        self.wide = page.tilewidth if page.is_tiled else self.width
        if min(self.tall, self.wide) < 1:
            message = f"strips or tiles of {self.tall} x {self.wide} pixels"
            raise ValueError(message)
        self.down = math.ceil(self.height / self.tall)
        self.across = math.ceil(self.width / self.wide)
        self.count = self.planes * self.down * self.across

    @property
    def segment_shape(self) -> tuple[int, int, int]:
        """Samples, rows and columns of a strip or tile."""
        return self.samples, self.tall, self.wide

    def split(self, window: tuple[slice, ...]) -> tuple[range, range, range, slice]:
        """Return the planes, rows, columns and samples of a window of a page."""
        axes = self.page.axes
        parts = dict(zip(axes, window, strict=True))
        samples = parts.get("S", slice(None))
        planar = self.planes > 1
        return (
            range(self.planes)[samples if planar else slice(None)],
            range(self.height)[parts["Y"]],
            range(self.width)[parts["X"]],
            slice(None) if planar else samples,
        )


def _check_segments(file: File, number: int, page: TiffPage | TiffFrame, layout: _Layout) -> None:
    """Refuse pages of which strips or tiles are missing; tifffile would fill in zeros."""
    offsets, sizes = page.dataoffsets, page.databytecounts
    if page.is_final:
        offsets, sizes, expected = offsets[:1], (page.nbytes,), 1
    else:
        expected = layout.count
    if not len(offsets) == len(sizes) == expected:
        message = f"page {number} has {len(offsets)} of {expected} strips or tiles"
        raise ValueError(message)
    for offset, size in zip(offsets, sizes, strict=True):
        if offset <= 0 or size <= 0 or offset + size > file.size:
            message = (
                f"page {number} has a strip or tile of {size} bytes at byte {offset}, the file is "
                f"{file.size} bytes long"
            )
            raise ValueError(message)


class _Pages:
    """Windows of an image whose planes are pages of a file."""

    def __init__(
        self,
        file: File,
        pages: Sequence[TiffPage | TiffFrame],
        lead: tuple[int, ...],
        layout: _Layout,
    ) -> None:
        self._file = file
        self._pages = pages
        self._lead = lead
        self._layout = layout
        self._kept: dict[tuple[int, int], NDArray[Any]] = {}
        """Segments that the next window below will need again."""

    def read(self, window: tuple[slice, ...]) -> NDArray[Any]:
        """Return a window, one slice per axis of the image."""
        depth = len(self._lead)
        numbers = np.arange(len(self._pages)).reshape(self._lead)[window[:depth]]
        kept, parts = self._kept, []
        self._kept = {}
        for number in numbers.ravel().tolist():
            parts.append(self._read_page(number, window[depth:], kept))
        return np.stack(parts).reshape(numbers.shape + parts[0].shape)

    def _read_page(
        self, number: int, window: tuple[slice, ...], kept: dict[tuple[int, int], NDArray[Any]]
    ) -> NDArray[Any]:
        page, layout = self._pages[number], self._layout
        if page.is_final:
            kind = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
            return self._file.array(page.dataoffsets[0], page.shape, kind)[window]
        planes, rows, columns, samples = layout.split(window)
        pixels = np.empty(
            (len(planes), len(rows), len(columns), layout.samples), np.dtype(page.dtype)
        )
        for top in range(rows.start // layout.tall, math.ceil(rows.stop / layout.tall)):
            for left in range(columns.start // layout.wide, math.ceil(columns.stop / layout.wide)):
                for place, plane in enumerate(planes):
                    index = (plane * layout.down + top) * layout.across + left
                    block = kept.get((number, index))
                    if block is None:
                        block = self._decode(page, index)
                    if (top + 1) * layout.tall >= rows.stop:
                        self._kept[number, index] = block
                    y, x = top * layout.tall, left * layout.wide
                    _paste(block, (y, x), pixels[place], (rows.start, columns.start))
        pixels = pixels[..., samples]
        shape = (len(planes), len(rows), len(columns), pixels.shape[-1])
        order = {"S": 0 if layout.planes > 1 else 3, "Y": 1, "X": 2}
        keep = [order[letter] for letter in layout.page.axes]
        drop = tuple(axis for axis in range(len(shape)) if axis not in keep)
        return pixels.squeeze(axis=drop)

    def _decode(self, page: TiffPage | TiffFrame, index: int) -> NDArray[Any]:
        """Return a strip or tile, axes (Y, X, S)."""
        stream = self._file.stream
        stream.seek(page.dataoffsets[index])
        data = stream.read(page.databytecounts[index])
        frame = self._layout.page
        tables: dict[str, Any] = {}
        if frame.compression == COMPRESSION.JPEG:
            self._check_jpeg(data)
            tables = {"jpegtables": page.jpegtables, "jpegheader": frame.jpegheader}
        block, _, _ = frame.decode(data, index, **tables)
        pixels: NDArray[Any] = np.asarray(block)[0]
        return pixels

    def _check_jpeg(self, data: bytes) -> None:
        """Refuse a segment that is larger than its place; other codecs stop there by themselves."""
        width, height = JpegImageFile(io.BytesIO(data)).size
        if height > self._layout.tall or width > self._layout.wide:
            message = (
                f"a JPEG of {height} x {width} pixels in a strip or tile of {self._layout.tall} x "
                f"{self._layout.wide}"
            )
            raise ValueError(message)


def _paste(
    block: NDArray[Any],
    corner: tuple[int, int],
    target: NDArray[Any],
    target_corner: tuple[int, int],
) -> None:
    """Copy the part of a block that lies in the target; corners are (row, column) of the image."""
    here, there = [], []
    for axis in (0, 1):
        start = max(corner[axis], target_corner[axis])
        stop = min(corner[axis] + block.shape[axis], target_corner[axis] + target.shape[axis])
        here.append(slice(start - corner[axis], stop - corner[axis]))
        there.append(slice(start - target_corner[axis], stop - target_corner[axis]))
    target[tuple(there)] = block[tuple(here)]


def _pixel_size(tiff: TiffFile, page: TiffPage) -> PixelSize | None:
    """Return the pixel size of the resolution tags, where their unit is a real one."""
    unit = "cm" if page.tags.valueof("ResolutionUnit") == _CENTIMETER else ""
    if tiff.is_imagej:
        stated = str((tiff.imagej_metadata or {}).get("unit", unit))
        unit = stated.replace("\\u00B5", "µ")
    steps = []
    for name in ("YResolution", "XResolution"):
        pixels, per = page.tags.valueof(name) or (0, 1)
        steps.append(per / pixels if pixels else None)
    return pixel_size(steps[0], steps[1], unit, unit)
