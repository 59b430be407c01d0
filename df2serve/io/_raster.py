"""PNG and JPEG through Pillow, 16-bit PNG through imagecodecs."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from df2serve.config import DecodeLimits
from df2serve.errors import UnsupportedFormatError
from df2serve.io._stored import File, Stored, check_size

__all__ = ["read_jpeg", "read_png"]

_HEADER = struct.Struct(">24xBB")
"""Bit depth and color type of a PNG."""
_SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}
"""Samples per pixel by color type of a PNG."""


def read_png(file: File, limits: DecodeLimits) -> Stored:
    """Describe a PNG file; it is decoded when the first window is asked for.

    Raises:
        DecodeError: the file is damaged.
        UnsupportedFormatError: it is animated.
        LimitExceededError: it is too large.
    """
    depth, color = _HEADER.unpack(file.head(_HEADER.size))
    # the class itself rather than Image.open, whose limit is a setting of the whole process
    image = PngImageFile(file.stream)
    if getattr(image, "n_frames", 1) > 1:
        message = f"{file.name} is an animation; save its frames as files of their own"
        raise UnsupportedFormatError(message)
    transparent = image.has_transparency_data
    if depth == 16:
        samples = _SAMPLES[color] + (transparent and color in (0, 2))

        def decode() -> NDArray[Any]:
            return np.asarray(imagecodecs.png_decode(file.head(file.size)))
    else:
        mode = _mode(image, transparent=transparent)
        samples = len(PillowImage.new(mode, (1, 1)).getbands())

        def decode() -> NDArray[Any]:
            return np.asarray(image if image.mode == mode else image.convert(mode))

    dtype = np.dtype(np.uint16 if depth == 16 else bool if image.mode == "1" else np.uint8)
    check_size(file.name, (samples, image.height, image.width), dtype, file.size, limits)
    shape = (image.height, image.width, samples)
    return _stored("PNG", shape, dtype, decode, alpha=transparent)


def read_jpeg(file: File, limits: DecodeLimits) -> Stored:
    """Describe a JPEG file; it is decoded when the first window is asked for.

    Raises:
        DecodeError: the file is damaged.
        UnsupportedFormatError: it is neither gray nor RGB.
        LimitExceededError: it is too large.
    """
    image = JpegImageFile(file.stream)
    if image.mode not in ("L", "RGB"):
        message = f"{file.name} is a JPEG of type {image.mode}; save it as gray or RGB"
        raise UnsupportedFormatError(message)
    samples = len(image.getbands())
    check_size(file.name, (samples, image.height, image.width), np.dtype("u1"), file.size, limits)
    shape = (image.height, image.width, samples)
    return _stored("JPEG", shape, np.dtype("u1"), lambda: np.asarray(image), alpha=False)


def _mode(image: PillowImage.Image, *, transparent: bool) -> str:
    """Return the mode in which the pixels are intensities."""
    if transparent:
        return "LA" if image.mode in ("1", "L", "LA") else "RGBA"
    return "RGB" if image.mode == "P" else image.mode


def _stored(
    form: str, shape: tuple[int, int, int], dtype: np.dtype[Any], decode: Any, *, alpha: bool
) -> Stored:
    @cache
    def pixels() -> NDArray[Any]:
        return np.asarray(decode()).reshape(shape)

    return Stored(
        format=form,
        axes="YXS",
        shape=shape,
        dtype=dtype,
        read=lambda window: pixels()[window],
        alpha=alpha,
    )
