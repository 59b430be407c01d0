"""Objects as ImageJ's regions of interest, to look at and correct them in Fiji."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from itertools import chain

import numpy as np
from roifile import ROI_TYPE, ImagejRoi

from df2serve.artifact.manifest import ClassInfo
from df2serve.core.instances import Instance
from df2serve.core.outlines import Outline, trace_outlines
from df2serve.io import Selection
from df2serve.io.rois import FORBIDDEN
from df2serve.types import AnyLabels

__all__ = ["roi_zip"]

_MOVE, _LINE, _CLOSE = 0, 1, 4
"""Steps of a path, as Java counts them."""
_LARGEST_CORNER = 32767
"""Beyond this, outlines are written as paths, which hold floating-point numbers."""


def roi_zip(
    labels: AnyLabels,
    objects: Sequence[Instance],
    *,
    classes: Sequence[ClassInfo],
    axes: str | None = None,
    selection: Selection = Selection(),  # noqa: B008 - frozen
) -> bytes:
    """Return a zip file of regions for ImageJ's ROI manager, the most uncertain object first.

    Outlines run along the sides of pixels, as those of ImageJ's wand do, so that ImageJ measures
    exactly the pixels of an object. Objects with holes, or of several parts, are composite.

    Args:
        labels: objects, axes (Y, X), 0 = background.
        objects: what is known of those that are written.
        classes: names and colors of the classes, background first.
        axes: stored axes of the image, see :class:`df2serve.io.Image`.
        selection: the plane of the image that was segmented.
    """
    outlines = trace_outlines(labels)
    position = _position(axes or "", selection)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        ordered = sorted(objects, key=lambda item: (-item.u, item.label))
        for rank, item in enumerate(ordered, start=1):
            roi = _shape(list(chain.from_iterable(outlines[item.label])))
            kind = classes[item.class_index]
            name = _basic(kind.name)
            roi.name = f"{rank:04d} {name} {item.label} u={item.u:.4f}"
            roi.stroke_color = b"\xff" + bytes.fromhex(kind.color[1:])
            roi.properties = {
                "area_px": item.area_px,
                "class": _escaped(name),
                "class_index": item.class_index,
                "label": item.label,
                "u": round(item.u, 6),
                "u_epistemic": round(item.u_epistemic, 6),
            }
            for key, value in position.items():
                setattr(roi, key, value)
            entry = FORBIDDEN.sub("_", roi.name)
            # the same date always, so that equal regions give equal files
            file.writestr(zipfile.ZipInfo(f"{entry}.roi"), roi.tobytes(), zipfile.ZIP_DEFLATED)
    return archive.getvalue()


def _shape(outlines: Sequence[Outline]) -> ImagejRoi:
    """Return the region inside of outlines: a traced one, or a composite of several."""
    points = np.concatenate(outlines)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    roi = ImagejRoi(left=left, top=top, right=right, bottom=bottom)
    if len(outlines) == 1 and max(right, bottom) <= _LARGEST_CORNER:
        roi.roitype = ROI_TYPE.TRACED
        roi.integer_coordinates = (points - (left, top)).astype(np.int32)
        roi.n_coordinates = len(points)
        return roi
    roi.roitype = ROI_TYPE.RECT
    path = np.concatenate([_path(outline) for outline in outlines])
    roi.multi_coordinates = path
    roi.shape_roi_size = len(path)
    return roi


def _path(outline: Outline) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    steps = np.full((len(outline), 3), _LINE, np.float32)
    steps[0, 0] = _MOVE
    steps[:, 1:] = outline
    return np.append(steps.ravel(), np.float32(_CLOSE))


def _position(axes: str, selection: Selection) -> dict[str, int]:
    """Return the plane of a stack that regions belong to, all of its channels.

    ImageJ counts the planes of stacks with one axis, and along each axis those of hyperstacks.
    """
    chosen = {
        axis: index + 1
        for axis, index in (("z", selection.z), ("t", selection.t))
        if index is not None
    }
    if len(chosen) == 1 and len(set("CZT") & set(axes)) <= 1:
        return {"position": next(iter(chosen.values()))}
    return {f"{axis}_position": index for axis, index in chosen.items()}


def _basic(text: str) -> str:
    """Replace what names of regions cannot hold: line breaks, and marks of more than 16 bits."""
    return "".join(mark if mark.isprintable() and mark <= "\uffff" else "\ufffd" for mark in text)


def _escaped(text: str) -> str:
    """Write marks beyond ASCII as Java's properties do, which ImageJ reads them with."""
    return "".join(
        mark if mark.isascii() and mark != "\\" else f"\\u{ord(mark):04x}" for mark in text
    )
