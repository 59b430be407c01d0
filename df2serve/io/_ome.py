"""OME-XML: sizes, names, and whether other files are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import defusedxml.ElementTree

from df2serve.config import DecodeLimits
from df2serve.errors import LimitExceededError, UnsupportedFormatError
from df2serve.io._units import pixel_size
from df2serve.io.image import PixelSize

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["OmeImage", "parse_ome"]


@dataclass(frozen=True)
class OmeImage:
    """What OME-XML says about one image."""

    channel_names: tuple[str, ...] | None = None
    pixel_size_um: PixelSize | None = None


def parse_ome(name: str, xml: str | None, limits: DecodeLimits) -> list[OmeImage]:
    """Return the images that OME-XML describes.

    Args:
        name: for the message.
        xml: the text in the first page.
        limits: numbers of planes beyond ``max_pages`` are refused.

    Raises:
        UnsupportedFormatError: planes are in other files, or axes are split in two.
        LimitExceededError: more planes than allowed.
    """
    root = defusedxml.ElementTree.fromstring(xml or "")
    for element in root.iter():
        kind = _kind(element)
        if kind == "BinaryOnly" or (kind == "UUID" and not _is_this_file(element, root, name)):
            other = element.get("FileName") or element.get("MetadataFile") or element.text
            message = (
                f"{name} is one file of a set, it refers to {other!r}; save the image as a single "
                "OME-TIFF"
            )
            raise UnsupportedFormatError(message)
        if kind.startswith("ModuloAlong"):
            message = f"{name} splits an axis in two ({kind}); save it with axes T, C, Z, Y, X only"
            raise UnsupportedFormatError(message)
        if kind in ("Pixels", "TiffData"):
            _check_numbers(name, element, limits)
    return [_image(element) for element in root if _kind(element) == "Image"]


def _kind(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _is_this_file(element: Element, root: Element, name: str) -> bool:
    own = root.get("UUID")
    if own is not None:
        return element.text == own
    return element.get("FileName", "").lower() == name.lower()


def _check_numbers(name: str, element: Element, limits: DecodeLimits) -> None:
    """Refuse counts that would make tifffile reserve memory for planes that do not exist."""
    fields = ("IFD", "NumPlanes", "PlaneCount", "FirstT", "FirstZ", "FirstC")
    counts = [int(element.get(field, 0)) for field in fields]
    planes = math.prod(int(element.get(f"Size{axis}", 1)) for axis in "TZC")
    largest = max(planes, *counts)
    if largest > limits.max_pages:
        message = (
            f"{name} announces {largest} planes, at most {limits.max_pages} are allowed; split it "
            "or raise DecodeLimits.max_pages"
        )
        raise LimitExceededError(message)


def _image(element: Element) -> OmeImage:
    pixels = next((child for child in element if _kind(child) == "Pixels"), None)
    if pixels is None:
        return OmeImage()
    names = [child.get("Name") for child in pixels if _kind(child) == "Channel"]
    y, x = (
        # the schema's own default is the micrometer
        (pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        for axis in "YX"
    )
    return OmeImage(
        channel_names=tuple(str(text) for text in names) if names and all(names) else None,
        pixel_size_um=pixel_size(y[0], x[0], y[1], x[1]),
    )
