"""TIFF files that are written some rows at a time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import DTypeLike, NDArray

from df2serve.io import PixelSize
from df2serve.types import AnyMask, LabelMap

__all__ = ["TiffRowWriter", "write_labels", "write_mask"]

_STRIP_BYTES = 1 << 18
_SPOOL_BYTES = 32 << 20
_IMAGEJ_BYTES = (1 << 32) - (1 << 25)
"""What ImageJ's own format can hold; larger images become plain BigTIFF."""
_FLOAT_LEVEL = 1
"""Of libdeflate; higher ones take up to ten times as long, and shrink maps of floats no further."""
_INTEGER_LEVEL = 2
"""Of zlib-ng, which is ten times as fast as libdeflate where values repeat, as in masks."""


class TiffRowWriter:
    """Writes planes of equal size from top to bottom, compressed, in bounded memory.

    The file opens in ImageJ with its pixel size and display range. Strips wait compressed in
    memory, beyond 32 MiB in a temporary file beside the result, until the context ends.
    """

    def __init__(
        self,
        path: Path,
        *,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        display_range: tuple[float, float],
        pixel_size_um: PixelSize | None = None,
        plane_names: tuple[str, ...] = (),
    ) -> None:
        """Describe the file.

        Args:
            path: file to create.
            shape: axes (Y, X), or (C, Y, X) for several planes.
            dtype: unsigned integers of 8 or 16 bits, or float32.
            display_range: values that viewers show as black and white.
            pixel_size_um: recorded as the resolution.
            plane_names: one per plane, shown by ImageJ.
        """
        self._path = path
        self._shape = shape
        self._dtype = np.dtype(dtype).newbyteorder(">")
        self._display_range = display_range
        self._pixel_size_um = pixel_size_um
        self._plane_names = plane_names
        self._strip_rows = min(
            shape[-2], max(1, _STRIP_BYTES // (shape[-1] * self._dtype.itemsize))
        )
        self._planes = shape[0] if len(shape) == 3 else 1
        self._rest = np.empty((self._planes, 0, shape[-1]), self._dtype)
        self._sizes: list[list[int]] = [[] for _ in range(self._planes)]
        self._spools: list[IO[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Begin."""
        for _ in range(self._planes):
            spool = tempfile.SpooledTemporaryFile(_SPOOL_BYTES, dir=str(self._path.parent))
            self._spools.append(self._stack.enter_context(spool))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the file, unless something went wrong."""
        with self._stack:
            if kind is None:
                self._compress(self._rest)
                self._write()

    def append(self, rows: NDArray[Any]) -> None:
        """Add the next rows, axes (Y, X) or (C, Y, X)."""
        planes = np.asarray(rows).reshape(self._planes, -1, self._shape[-1])
        waiting = np.concatenate([self._rest, planes], axis=1)
        whole = waiting.shape[1] // self._strip_rows * self._strip_rows
        for top in range(0, whole, self._strip_rows):
            self._compress(waiting[:, top : top + self._strip_rows])
        self._rest = waiting[:, whole:]

    def _compress(self, strip: NDArray[Any]) -> None:
        if not strip.shape[1]:
            return
        for plane, spool, sizes in zip(strip, self._spools, self._sizes, strict=True):
            pixels = plane.astype(self._dtype).tobytes()
            sizes.append(spool.write(self._encode(pixels)))

    def _encode(self, pixels: bytes) -> bytes:
        if self._dtype.kind == "f":
            return bytes(imagecodecs.deflate_encode(pixels, level=_FLOAT_LEVEL))
        return bytes(imagecodecs.zlibng_encode(pixels, level=_INTEGER_LEVEL))

    def _strips(self) -> Iterator[bytes]:
        for spool, sizes in zip(self._spools, self._sizes, strict=True):
            spool.seek(0)
            yield from (spool.read(size) for size in sizes)

    def _write(self) -> None:
        imagej = math.prod(self._shape) * self._dtype.itemsize < _IMAGEJ_BYTES
        tifffile.imwrite(
            self._path,
            self._strips(),
            # with a sample per pixel, because tifffile would take a single column for samples
            shape=(*self._shape, 1) if imagej else self._shape,
            dtype=self._dtype,
            byteorder=">",
            photometric="minisblack",
            compression="zlib",
            rowsperstrip=self._strip_rows,
            imagej=imagej,
            bigtiff=not imagej,
            **(self._imagej_metadata() if imagej else self._resolution("CENTIMETER", 1e4)),
        )

    def _imagej_metadata(self) -> dict[str, Any]:
        low, high = self._display_range
        metadata: dict[str, Any] = {
            "axes": "CYXS" if len(self._shape) == 3 else "YXS",
            "min": low,
            "max": high,
        }
        if self._plane_names:
            metadata["Labels"] = list(self._plane_names)
        if self._pixel_size_um is not None:
            metadata["unit"] = "um"
        return {"metadata": metadata, **self._resolution("NONE", 1)}

    def _resolution(self, unit: str, per_um: float) -> dict[str, Any]:
        """Return the tags of the resolution: pixels per unit, along x and y."""
        if self._pixel_size_um is None:
            return {}
        size = self._pixel_size_um
        return {"resolution": (per_um / size.x_um, per_um / size.y_um), "resolutionunit": unit}


def write_labels(path: Path, labels: LabelMap, pixel_size_um: PixelSize | None) -> None:
    """Write objects: 16 bits, float32 where their numbers are larger than that.

    Args:
        path: file to create.
        labels: objects, axes (Y, X), 0 = background.
        pixel_size_um: of the image.
    """
    dtype = np.uint16 if labels.max(initial=0) <= np.iinfo(np.uint16).max else np.float32
    _write_plane(path, labels.astype(dtype), pixel_size_um)


def write_mask(path: Path, mask: AnyMask, pixel_size_um: PixelSize | None) -> None:
    """Write class indices, axes (Y, X), of 8 or 16 bits; see :func:`write_labels`."""
    _write_plane(path, mask, pixel_size_um)


def _write_plane(path: Path, values: NDArray[Any], pixel_size_um: PixelSize | None) -> None:
    with TiffRowWriter(
        path,
        shape=values.shape,
        dtype=values.dtype,
        display_range=(0, max(1, float(values.max(initial=0)))),
        pixel_size_um=pixel_size_um,
    ) as writer:
        writer.append(values)
