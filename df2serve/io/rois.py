"""Regions of ImageJ's ROI manager: which pixels they cover, and which objects they were."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from df2serve.config import DecodeLimits
from df2serve.core.instances import Box
from df2serve.core.outlines import fill_outlines
from df2serve.errors import DecodeError, LimitExceededError, SourceNotFoundError

__all__ = ["FORBIDDEN", "Region", "read_regions"]

_OUTLINED = {ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED}
_OURS = re.compile(r"\d{4,} .+ (?P<label>[1-9]\d{0,8}) u=\d+\.\d+")
"""Names of predicted regions; they stay when a region is drawn anew, its properties do not."""
FORBIDDEN = re.compile(r'[\\/:*?"<>|]')
"""What names of files cannot hold; ImageJ names regions by their files."""
_LARGEST_CLASS = 65_535
_LARGEST_LABEL = 1 << 24
"""Whole numbers up to this are exact in float32, which label images may be stored in."""
_DAMAGE = (ValueError, TypeError, IndexError, RuntimeError, OverflowError, struct.error)
"""What roifile raises over bytes that are no region."""


@dataclass(frozen=True, eq=False)
class Region:
    """One region of the ROI manager."""

    name: str
    kind: str | None
    """Name of its class, where it carries one."""
    class_index: int | None
    """Its class, 1 or more, where it carries one."""
    label: int | None
    """The object that it was, where it carries one."""
    plane: tuple[int, int, int]
    """Place in a stack, along Z and along T, counted from 1, 0 = not bound to one."""
    outlines: tuple[NDArray[np.float64], ...]
    """Closed loops of columns and rows, axes (N, 2); the corners of its frame for an oval."""
    oval: bool
    """Whether it is the ellipse in its frame."""

    def fill(self, shape: tuple[int, int]) -> tuple[Box, Bool[np.ndarray, "y x"]]:
        """Return the pixels that ImageJ takes as inside.

        Args:
            shape: rows and columns of the image; what is outside of it is left out.

        Returns:
            Rows and columns that hold the region, and where it is in there.
        """
        box, inside = fill_outlines(self.outlines, shape)
        if not self.oval:
            return box, inside
        frame = self.outlines[0]
        radius = (frame[2] - frame[0]) / 2
        middle = frame[0] + radius - 0.5
        column, row = (
            (np.arange(side.start, side.stop) - middle[axis]) ** 2 / radius[axis] ** 2
            for axis, side in ((0, box[1]), (1, box[0]))
        )
        return box, row[:, None] + column <= 1

    def reaches_out(self, shape: tuple[int, int]) -> bool:
        """Whether it goes beyond an image of so many rows and columns."""
        points = np.concatenate(self.outlines)
        return bool((points < 0).any() or (points > shape[::-1]).any())


def read_regions(
    source: str | Path | bytes,
    *,
    limits: DecodeLimits = DecodeLimits(),  # noqa: B008 - frozen
) -> tuple[Region, ...]:
    """Read the regions that ImageJ's ROI manager or ``df2serve predict --rois`` has saved.

    Args:
        source: a zip file of regions, a file of one region, or the bytes of either.
        limits: what the file may ask for.

    Raises:
        SourceNotFoundError: there is no such file.
        DecodeError: it is damaged, or a region has no area, or one whose pixels are not known.
        LimitExceededError: it asks for more than is allowed.
    """
    name = "the file" if isinstance(source, bytes) else str(source)
    content = source if isinstance(source, bytes) else _read(Path(source), limits)
    regions = []
    for entry, data in _entries(name, content, limits):
        try:
            regions.append(_region(ImagejRoi.frombytes(data), entry))
        except DecodeError as error:
            message = f"{name}: region {entry!r} {error}"
            raise DecodeError(message) from error
        except _DAMAGE as error:
            message = f"{name}: region {entry!r} is damaged ({error}); save it again from ImageJ"
            raise DecodeError(message) from error
    if not regions:
        message = f"{name} holds no regions (.roi); expected what the ROI manager saves"
        raise DecodeError(message)
    return tuple(regions)


def _read(path: Path, limits: DecodeLimits) -> bytes:
    try:
        if path.stat().st_size > limits.max_file_bytes:
            message = f"{path} has {path.stat().st_size} bytes, allowed are {limits.max_file_bytes}"
            raise LimitExceededError(message)
        return path.read_bytes()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}"
        raise SourceNotFoundError(message) from error


def _entries(name: str, content: bytes, limits: DecodeLimits) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each region."""
    if content[:4] == b"Iout":
        yield Path(name).stem, content
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = [
                file
                for file in archive.infolist()
                if file.filename.lower().endswith(".roi")
                and not file.filename.startswith("__MACOSX/")
            ]
            size = sum(file.file_size for file in files)
            if len(files) > limits.max_pages or size > limits.max_bytes:
                message = (
                    f"{name} holds {len(files)} regions of {size} bytes, allowed are "
                    f"{limits.max_pages} of {limits.max_bytes}"
                )
                raise LimitExceededError(message)
            for file in files:
                yield Path(file.filename).name[: -len(".roi")], archive.read(file)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        message = f"{name} is no zip file of regions, or a damaged one ({error}); save it again"
        raise DecodeError(message) from error


def _region(roi: ImagejRoi, entry: str) -> Region:
    outlines = [np.asarray(loop, np.float64) for loop in _outlines(roi)]
    if not outlines or not all(np.isfinite(loop).all() for loop in outlines):
        message = "has no corners, or some that are no numbers; draw it again"
        raise DecodeError(message)
    properties = _properties(roi.props)
    ours = _OURS.fullmatch(roi.name or entry)
    return Region(
        name=roi.name or entry,
        kind=properties.get("class"),
        class_index=_number(properties.get("class_index"), _LARGEST_CLASS),
        label=_number(properties.get("label") or (ours and ours["label"]), _LARGEST_LABEL),
        plane=(roi.position, roi.z_position, roi.t_position),
        outlines=tuple(outlines),
        oval=roi.roitype == ROI_TYPE.OVAL,
    )


def _number(text: str | None, largest: int) -> int | None:
    """Return a number from 1 to the largest, None for anything else."""
    number = int(text) if text and text.isdecimal() else 0
    return number if 1 <= number <= largest else None


def _outlines(roi: ImagejRoi) -> list[NDArray[np.generic]]:
    """Return closed loops of columns and rows.

    Raises:
        DecodeError: there are none, or they are not all there is to the region's pixels.
    """
    special = roi.subtype not in (ROI_SUBTYPE.UNDEFINED,) or roi.rounded_rect_arc_size
    if special or roi.options & ROI_OPTIONS.SPLINE_FIT:
        message = (
            "is a text, picture, fitted ellipse, rotated or rounded rectangle or a spline; turn it "
            "into an outline first (in Fiji: Edit > Selection > Create Mask, then Create Selection)"
        )
        raise DecodeError(message)
    if roi.composite:
        try:
            return _loops(roi)
        except NotImplementedError as error:
            message = (
                "has curved sides; turn it into an outline first (Create Mask, Create Selection)"
            )
            raise DecodeError(message) from error
    if roi.roitype in _OUTLINED:
        return _loops(roi)
    if roi.roitype not in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        message = f"is a {roi.roitype.name.lower()}, which has no area; delete it"
        raise DecodeError(message)
    left, top, right, bottom = roi.left, roi.top, roi.right, roi.bottom
    return [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])]


def _loops(roi: ImagejRoi) -> list[NDArray[np.generic]]:
    return [np.asarray(loop) for loop in roi.coordinates(multi=True) if len(loop)]


def _properties(text: str) -> dict[str, str]:
    """Return properties of a region; they are written as those of Java."""
    pairs = (re.split(r"\s*[:=]\s*", line, maxsplit=1) for line in text.splitlines())
    return {pair[0].strip(): _unescaped(pair[1]) for pair in pairs if len(pair) == 2}


def _unescaped(text: str) -> str:
    def meaning(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else match[2]

    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", meaning, text)
