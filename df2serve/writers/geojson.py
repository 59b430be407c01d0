"""Objects as GeoJSON, to look at and correct them in QuPath."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from df2serve.artifact.manifest import ClassInfo
from df2serve.core.instances import Instance
from df2serve.core.outlines import Outline, trace_outlines
from df2serve.types import AnyLabels

__all__ = ["geojson"]


def geojson(
    labels: AnyLabels,
    objects: Sequence[Instance],
    *,
    classes: Sequence[ClassInfo],
    channels: Sequence[str] = (),
) -> str:
    """Return a collection of features, one annotation of QuPath per object.

    Polygons run along the sides of pixels, so that their areas are those of the objects; outer
    rings run counterclockwise in coordinates of pixels and holes clockwise, as RFC 7946 wants it.

    Args:
        labels: objects, axes (Y, X), 0 = background.
        objects: what is known of those that are written.
        classes: names and colors of the classes, background first.
        channels: names of the image's channels, for mean intensities.
    """
    outlines = trace_outlines(labels)
    features = (
        json.dumps(_feature(item, outlines[item.label], classes[item.class_index], channels))
        for item in objects
    )
    return '{"type": "FeatureCollection", "features": [\n' + ",\n".join(features) + "\n]}\n"


def _feature(
    item: Instance, parts: Sequence[Sequence[Outline]], kind: ClassInfo, channels: Sequence[str]
) -> dict[str, Any]:
    polygons = [[_ring(outline) for outline in part] for part in parts]
    single = len(polygons) == 1
    return {
        "type": "Feature",
        "geometry": {
            "type": "Polygon" if single else "MultiPolygon",
            "coordinates": polygons[0] if single else polygons,
        },
        "properties": {
            "objectType": "annotation",
            "name": f"{kind.name} {item.label}",
            "classification": {"name": kind.name, "color": list(bytes.fromhex(kind.color[1:]))},
            "measurements": dict(_measurements(item, channels)),
        },
    }


def _ring(outline: Outline) -> list[list[int]]:
    """Return a closed ring, whose last position is its first."""
    ring: list[list[int]] = np.concatenate([outline, outline[:1]]).tolist()
    return ring


def _measurements(item: Instance, channels: Sequence[str]) -> Iterator[tuple[str, float]]:
    yield "area_px", item.area_px
    if item.area_um2 is not None:
        yield "area_um2", item.area_um2
    for channel, intensity in zip(channels, item.intensities, strict=False):
        yield f"intensity {channel}", intensity
    yield "label", item.label
    yield "probability", item.probability
    yield "u", item.u
    yield "u_epistemic", item.u_epistemic
