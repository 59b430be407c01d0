"""What reading gives: pixels with axes that are certain, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from df2serve.errors import AxesError, DecodeError, UnsupportedFormatError
from df2serve.types import PixelSource

__all__ = ["Image", "PixelSize", "Selection", "require_finite"]


@dataclass(frozen=True)
class PixelSize:
    """Edge lengths of a pixel in micrometers."""

    y_um: float
    x_um: float


@dataclass(frozen=True)
class Selection:
    """Which plane of a larger data set is meant; indices count from 0.

    ``None`` takes an axis of length 1 and is an error on a longer one, except for ``channels``,
    where it takes all of them in order.
    """

    series: int | None = None
    """Image series of a TIFF, array of an NPZ in file order."""
    t: int | None = None
    z: int | None = None
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Image:
    """One plane of intensities with all its channels."""

    data: PixelSource
    """Raw intensities in the file's own type, axes (C, Y, X); in memory or read on demand."""
    source: str
    """Name shown to people."""
    format: str
    """Name of the file format, such as ``OME-TIFF``; ``array`` for arrays."""
    channel_names: tuple[str, ...] | None = None
    pixel_size_um: PixelSize | None = None
    """From the file's metadata or from the caller; absent where neither states it."""
    sha256: str | None = None
    """Hash of the file's bytes."""
    axes: str | None = None
    """The stored axes in order; ``S`` samples, ``_`` one of length 1 without a meaning."""
    selection: Selection = Selection()
    """The plane and channels that were taken."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, rows and columns."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the intensities."""
        return self.data.dtype

    def read(self) -> Self:
        """Return the image with all pixels in memory.

        Raises:
            DecodeError: an intensity is NaN or infinite, or the file is damaged.
        """
        channels, height, width = self.shape
        pixels = np.asarray(self.data[0:channels, 0:height, 0:width])
        require_finite(pixels, self.source)
        return replace(self, data=pixels)

    @classmethod
    def from_array(
        cls,
        array: NDArray[Any],
        *,
        axes: str | None = None,
        pixel_size_um: PixelSize | None = None,
        source: str = "array",
    ) -> Self:
        """Wrap an array.

        Args:
            array: intensities, 8 to 32 bit integers, floats or bool.
            axes: its axes in order, ``C``, ``Y`` and ``X`` once each; ``YX`` needs no saying.
            pixel_size_um: if known.
            source: name shown to people.

        Raises:
            AxesError: the axes are missing or do not fit the array.
            UnsupportedFormatError: the type is not an intensity.
            DecodeError: the array is empty, or holds NaN or infinite values.

        Example:
            >>> Image.from_array(np.zeros((4, 5, 3)), axes="YXC").shape
            (3, 4, 5)
        """
        pixels = np.asarray(array)
        if axes is None and pixels.ndim == 2:
            axes = "YX"
        if axes is None:
            message = (
                f"{source} has shape {pixels.shape}; say which axis is which, for example "
                "axes='CYX' for channels first or axes='YXC' for channels last"
            )
            raise AxesError(message)
        if sorted(axes) not in (["X", "Y"], ["C", "X", "Y"]) or len(axes) != pixels.ndim:
            message = (
                f"{source} has {pixels.ndim} axes {pixels.shape}, got axes={axes!r}; expected the "
                "letters C, Y and X once each (C may be missing), one per axis"
            )
            raise AxesError(message)
        if pixels.dtype.kind not in "buif" or pixels.dtype.itemsize > 8:
            message = f"{source} has type {pixels.dtype}; expected integers, floats or bool"
            raise UnsupportedFormatError(message)
        if pixels.size == 0:
            message = f"{source} has shape {pixels.shape}; it has no pixels"
            raise DecodeError(message)
        require_finite(pixels, source)
        if "C" not in axes:
            pixels = pixels[None]
        order = axes if "C" in axes else "C" + axes
        return cls(
            data=pixels.transpose([order.index(letter) for letter in "CYX"]),
            source=source,
            format="array",
            pixel_size_um=pixel_size_um,
            axes=axes,
        )


def require_finite(pixels: NDArray[Any], where: str) -> None:
    """Refuse intensities that are NaN or infinite.

    Args:
        pixels: any array; integers pass at once.
        where: for the message.

    Raises:
        DecodeError: gives the number of such values and the place of the first.
    """
    if pixels.dtype.kind != "f":
        return
    finite = np.isfinite(pixels)
    if finite.all():
        return
    count = pixels.size - int(np.count_nonzero(finite))
    first = tuple(int(i) for i in np.argwhere(~finite)[0])
    message = (
        f"{where}: {count} of {pixels.size} intensities are NaN or infinite, the first at {first}; "
        "replace them before predicting"
    )
    raise DecodeError(message)
