"""Small pictures of results as data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image as PillowImage
from skimage.segmentation import find_boundaries

from df2serve.errors import SourceNotFoundError
from df2serve.io import open_image
from df2serve.writers.preview import UNCERTAINTY_COLORS
from df2serve.writers.records import OutputFile, OutputKind, RunInfo

__all__ = ["Pictures", "draw_pictures", "longest_side"]

_PIXELS_OF_ALL = 75_000_000
"""Of the plain pictures of a report together: some 25 MB with the other layers."""
_SIDES = (256, 1024)
_LEVELS = 64
"""Colors of an uncertainty map; more would double its size and look the same."""
_QUALITY = 75
_BAND_ROWS = 1024


@dataclass(frozen=True)
class Pictures:
    """The layers of one image, all of one size, as data URIs."""

    width: int
    height: int
    plain: str
    """The image as it is shown."""
    outlines: str
    """Outlines of the classes on nothing."""
    uncertainty: str
    """Total uncertainty in color; the same color means the same value in every picture."""


def longest_side(images: int) -> int:
    """Return the longest side of pictures, such that so many of them fit into one file.

    Example:
        >>> longest_side(10), longest_side(500), longest_side(10_000)
        (1024, 387, 256)
    """
    low, high = _SIDES
    return min(high, max(low, math.isqrt(_PIXELS_OF_ALL // images)))


def draw_pictures(
    folder: Path, files: Mapping[OutputKind, OutputFile], run: RunInfo, *, side: int
) -> Pictures:
    """Draw a result.

    Args:
        folder: results.
        files: of one image, its pictures and its mask among them.
        run: what all results have in common.
        side: longest side in pixels.

    Raises:
        SourceNotFoundError: a file is missing or damaged.
    """
    places = {kind: _place(folder, files, kind) for kind in ("image", "picture", "mask")}
    plain, levels = _opened(places["image"]).convert("RGB"), _opened(places["picture"])
    full = plain.size
    plain.thumbnail((side, side), PillowImage.Resampling.BOX)
    size = plain.size
    outlines = _outlines(_reduced_mask(places["mask"], full), size)
    values = PillowImage.fromarray(np.asarray(levels)).resize(size, PillowImage.Resampling.BOX)
    return Pictures(
        width=size[0],
        height=size[1],
        plain=_uri(plain, "WEBP", quality=_QUALITY),
        outlines=_uri(_palette_of_classes(outlines, run), "PNG", transparency=0, optimize=True),
        uncertainty=_uri(_palette_of_levels(values), "PNG", optimize=True),
    )


def _place(folder: Path, files: Mapping[OutputKind, OutputFile], kind: OutputKind) -> Path:
    if kind not in files:
        message = (
            f"{folder} holds results without the file {kind!r}; 'df2serve predict --resume' makes "
            "what is missing"
        )
        raise SourceNotFoundError(message)
    return folder / files[kind].path


def _opened(path: Path) -> PillowImage.Image:
    try:
        with PillowImage.open(path) as picture:
            picture.load()
            return picture
    except OSError as error:
        message = f"cannot read {path}; 'df2serve predict --resume' makes what is missing"
        raise SourceNotFoundError(message) from error


def _reduced_mask(path: Path, size: tuple[int, int]) -> NDArray[Any]:
    """Return the rows and columns of a mask that its pictures show; ``size`` is theirs."""
    with open_image(path) as image:
        height, width = image.shape[1:]
        step = math.ceil(max(height, width) / max(size))
        rows = _BAND_ROWS // step * step or step
        return np.concatenate(
            [
                image.data[0:1, top : min(top + rows, height), 0:width][0, ::step, ::step]
                for top in range(0, height, rows)
            ]
        )


def _outlines(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the class of every pixel of a smaller picture that an outline runs through."""
    width, height = size
    rows, columns = np.nonzero(find_boundaries(mask, mode="inner"))  # type: ignore[no-untyped-call]
    small = np.zeros((height, width), np.uint8)
    small[rows * height // mask.shape[0], columns * width // mask.shape[1]] = mask[rows, columns]
    return small


def _palette_of_classes(classes: NDArray[np.uint8], run: RunInfo) -> PillowImage.Image:
    picture = PillowImage.fromarray(classes)
    colors = np.array([to_rgb(item.color) for item in run.classes])
    picture.putpalette((colors * 255).round().astype(np.uint8).tobytes())
    return picture


def _palette_of_levels(values: PillowImage.Image) -> PillowImage.Image:
    step = 256 // _LEVELS
    picture = PillowImage.fromarray(np.asarray(values) // step)
    colors = mpl.colormaps[UNCERTAINTY_COLORS](np.linspace(0, 1, _LEVELS), bytes=True)[:, :3]
    picture.putpalette(colors.tobytes())
    return picture


def _uri(picture: PillowImage.Image, kind: str, **options: Any) -> str:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    encoded = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"
