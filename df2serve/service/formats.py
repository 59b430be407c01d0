"""What a result can be sent as: media types, and the outputs that each can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from df2serve.errors import ConfigError

__all__ = ["FORMATS", "Format", "FormatName", "Output", "Rendering", "negotiate"]

Output: TypeAlias = Literal[
    "mask",
    "uncertainty",
    "probabilities",
    "image",
    "overlay",
    "picture",
    "labels",
    "instances",
    "rois",
    "geojson",
]
"""Outputs of a prediction, as in the record of a result."""

FormatName: TypeAlias = Literal[
    "tiff", "ome.tiff", "zip", "json", "npz", "png", "csv", "rois", "geojson"
]

OBJECTS: frozenset[Output] = frozenset({"labels", "instances", "rois", "geojson"})
"""Outputs that need objects."""


@dataclass(frozen=True)
class Format:
    """One representation of a result."""

    name: FormatName
    media_type: str
    suffix: str
    holds: tuple[Output, ...]
    """Outputs that it can hold."""
    default: tuple[Output, ...]
    """Outputs that it holds unless others are chosen."""
    single: bool = False
    """It is one file of the result as it is, so that exactly one output is chosen."""


_RASTERS: tuple[Output, ...] = ("mask", "uncertainty", "probabilities", "labels")
_EVERYTHING: tuple[Output, ...] = (
    *_RASTERS,
    "image",
    "overlay",
    "picture",
    "instances",
    "rois",
    "geojson",
)

FORMATS: dict[FormatName, Format] = {
    item.name: item
    for item in (
        Format("tiff", "image/tiff", ".tif", _RASTERS, ("mask",), single=True),
        Format(
            "ome.tiff",
            "image/ome.tiff",
            ".ome.tif",
            _RASTERS,
            ("mask", "probabilities", "uncertainty"),
        ),
        Format(
            "zip",
            "application/zip",
            ".zip",
            _EVERYTHING,
            ("mask", "uncertainty", "probabilities", "overlay", "picture"),
        ),
        Format("json", "application/json", ".json", (), ()),
        Format(
            "npz", "application/x-npz", ".npz", _RASTERS, ("mask", "uncertainty", "probabilities")
        ),
        Format("png", "image/png", ".png", ("overlay", "picture"), ("overlay",), single=True),
        Format("csv", "text/csv", ".csv", ("instances",), ("instances",), single=True),
        Format("rois", "application/zip", ".zip", ("rois",), ("rois",), single=True),
        Format(
            "geojson", "application/geo+json", ".geojson", ("geojson",), ("geojson",), single=True
        ),
    )
}


@dataclass(frozen=True)
class Rendering:
    """What the answer to a request is."""

    format: FormatName
    outputs: tuple[Output, ...]

    @property
    def needs_objects(self) -> bool:
        """Whether objects have to be found."""
        return not OBJECTS.isdisjoint(self.outputs)


def negotiate(accept: str | None, name: FormatName | None) -> Format | None:
    """Return the format that a client prefers, or None if it takes none of ours.

    Args:
        accept: its header ``Accept``.
        name: its parameter ``format``, which wins.

    Example:
        >>> negotiate("text/html, application/json;q=0.9, */*;q=0.1", None).name
        'json'
        >>> negotiate(None, None).name
        'tiff'
        >>> negotiate("image/webp", None) is None
        True
    """
    if name is not None:
        return FORMATS[name]
    best: tuple[float, int, Format] | None = None
    for pattern, quality in _ranges(accept or "*/*"):
        for item in FORMATS.values():
            specific = 2 - pattern.count("*")
            if quality > 0 and _matches(pattern, item.media_type):
                if best is None or (quality, specific) > best[:2]:
                    best = (quality, specific, item)
                break
    return best[2] if best else None


def choose(item: Format, outputs: Sequence[Output], *, objects: bool) -> Rendering:
    """Return which outputs a format is going to hold.

    Args:
        item: the format.
        outputs: chosen ones; the format's own when empty.
        objects: whether objects are found anyway.

    Raises:
        ConfigError: the format cannot hold them.
    """
    chosen = tuple(dict.fromkeys(outputs)) or item.default
    if not outputs and objects and not item.single:
        chosen += tuple(output for output in item.holds if output in OBJECTS)
    foreign = [output for output in chosen if output not in item.holds]
    if foreign and item.holds:
        message = (
            f"format {item.name} cannot hold {', '.join(foreign)}; it holds {', '.join(item.holds)}"
        )
        raise ConfigError(message)
    if item.single and len(chosen) != 1:
        message = f"format {item.name} holds one output, got {', '.join(chosen)}; ask for zip"
        raise ConfigError(message)
    return Rendering(item.name, chosen if item.holds else ())


def _ranges(accept: str) -> list[tuple[str, float]]:
    """Return the media ranges of an Accept header with their qualities."""
    ranges = []
    for part in accept.split(","):
        pattern, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            ranges.append((pattern, float(quality)))
        except ValueError:
            ranges.append((pattern, 0.0))
    return ranges


def _matches(pattern: str, media_type: str) -> bool:
    kind, _, subtype = pattern.partition("/")
    own_kind, _, own_subtype = media_type.partition("/")
    return kind in ("*", own_kind) and subtype in ("*", own_subtype)
