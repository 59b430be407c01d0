"""Corrected objects: regions drawn in Fiji become labels and a mask again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from df2serve.errors import DecodeError
from df2serve.io.rois import FORBIDDEN, Region
from df2serve.types import LabelMap

__all__ = ["Change", "Painted", "PaintedRegion", "class_names", "compare_painted", "paint_regions"]

_RANK = re.compile(r"\d{4,} ")
"""What names of predicted regions begin with."""


@dataclass(frozen=True)
class PaintedRegion:
    """One region in the labels."""

    name: str
    label: int
    class_index: int
    covered_px: int
    """Pixels that regions further down the list took from it."""
    clipped: bool
    """It reached out of the image."""


@dataclass(frozen=True, eq=False)
class Painted:
    """Regions as images."""

    labels: LabelMap
    """Objects, axes (Y, X), 0 = background. Regions that were objects keep their numbers."""
    mask: NDArray[np.unsignedinteger[Any]]
    """Class indices, axes (Y, X), 0 = background."""
    regions: tuple[PaintedRegion, ...]
    """In the order of the list."""


@dataclass(frozen=True)
class Change:
    """What became of one object."""

    label: int
    name: str
    status: Literal["added", "removed", "changed", "unchanged"]
    class_before: int | None
    class_after: int | None
    area_before_px: int
    area_after_px: int
    added_px: int
    """Pixels that it has only now."""
    removed_px: int
    """Pixels that it has no more."""
    reclassified_px: int
    """Pixels that it kept, if its class is another one."""


def class_names(regions: Sequence[Region]) -> dict[str, int]:
    """Return the classes that regions carry, index by name.

    Raises:
        DecodeError: they carry none, or contradict each other.
    """
    pairs = {(item.kind, item.class_index) for item in regions if item.kind and item.class_index}
    names = {kind: index for kind, index in pairs if kind and index}
    if not names:
        message = "the regions carry no classes; give their names, such as --classes cell,nucleus"
        raise DecodeError(message)
    if len(names) < len(pairs) or len(set(names.values())) < len(pairs):
        listed = ", ".join(sorted(f"{kind} = {index}" for kind, index in pairs))
        message = f"the regions come from different ensembles: {listed}; give the names of classes"
        raise DecodeError(message)
    return names


def paint_regions(
    regions: Sequence[Region],
    shape: tuple[int, int],
    *,
    classes: Mapping[str, int],
    taken: int = 0,
) -> Painted:
    """Turn regions into labels and a mask.

    A pixel of several regions belongs to the one furthest down the list, where the ROI manager puts
    what was drawn last. What reaches out of the image is cut off.

    Args:
        regions: in the order of the list.
        shape: rows and columns of the image.
        classes: index of each class by its name, the background left out.
        taken: largest number that new objects do not get.

    Raises:
        DecodeError: a region is of no known class, or has no pixel in the image; or the regions
            belong to several planes.
    """
    _check_planes(regions)
    numbers = _numbers(regions, taken)
    indices = [_class_of(region, classes) for region in regions]
    labels = np.zeros(shape, np.int32)
    areas, clipped = [], []
    for region, number in zip(regions, numbers, strict=True):
        box, inside = region.fill(shape)
        areas.append(int(np.count_nonzero(inside)))
        clipped.append(region.reaches_out(shape))
        if not areas[-1]:
            where = "outside of" if clipped[-1] else "between the pixels of"
            message = (
                f"region {region.name!r} lies {where} the image of {shape[0]} rows and {shape[1]} "
                "columns; delete it, or give the image that it was drawn on"
            )
            raise DecodeError(message)
        labels[box][inside] = number
    size = max(numbers, default=0) + 1
    left = np.bincount(labels.ravel(), minlength=size)
    by_label = np.zeros(size, np.min_scalar_type(max(indices, default=0)))
    by_label[numbers] = indices
    return Painted(
        labels=labels,
        mask=by_label[labels],
        regions=tuple(
            PaintedRegion(region.name, number, index, area - int(left[number]), cut)
            for region, number, index, area, cut in zip(
                regions, numbers, indices, areas, clipped, strict=True
            )
        ),
    )


def compare_painted(before: Painted, after: Painted) -> tuple[Change, ...]:
    """Return what became of every object, in the order of their numbers.

    Args:
        before: the regions as they were predicted.
        after: the same regions, corrected.
    """
    old = {item.label: item for item in before.regions}
    new = {item.label: item for item in after.regions}
    size = max([0, *old, *new]) + 1
    area_before = np.bincount(before.labels.ravel(), minlength=size)
    area_after = np.bincount(after.labels.ravel(), minlength=size)
    kept = np.bincount(before.labels[before.labels == after.labels], minlength=size)
    return tuple(
        _change(
            old.get(label),
            new.get(label),
            areas=(int(area_before[label]), int(area_after[label])),
            kept=int(kept[label]),
        )
        for label in sorted(old | new)
    )


def _change(
    old: PaintedRegion | None, new: PaintedRegion | None, *, areas: tuple[int, int], kept: int
) -> Change:
    item = new or old
    if item is None:
        message = "an object is neither old nor new"
        raise ValueError(message)
    moved = old is not None and new is not None and old.class_index != new.class_index
    added, removed = areas[1] - kept, areas[0] - kept
    status: Literal["added", "removed", "changed", "unchanged"] = "unchanged"
    if old is None:
        status = "added"
    elif new is None:
        status = "removed"
    elif moved or added or removed:
        status = "changed"
    return Change(
        label=item.label,
        name=item.name,
        status=status,
        class_before=None if old is None else old.class_index,
        class_after=None if new is None else new.class_index,
        area_before_px=areas[0],
        area_after_px=areas[1],
        added_px=added,
        removed_px=removed,
        reclassified_px=kept if moved else 0,
    )


def _check_planes(regions: Sequence[Region]) -> None:
    planes = {region.plane for region in regions if any(region.plane)}
    if len(planes) > 1:
        message = (
            f"the regions belong to {len(planes)} planes of a stack; save those of one plane in a "
            "file of their own"
        )
        raise DecodeError(message)


def _numbers(regions: Sequence[Region], taken: int) -> list[int]:
    """Return a label per region; of copies, the first keeps that of the object."""
    known = Counter(region.label for region in regions if region.label)
    following = max([taken, *known])
    numbers, used = [], set()
    for region in regions:
        if region.label and region.label not in used:
            used.add(region.label)
            numbers.append(region.label)
        else:
            following += 1
            numbers.append(following)
    return numbers


def _class_of(region: Region, classes: Mapping[str, int]) -> int:
    """Return the class that a region's name begins with, else the one it carries, else the only."""
    name = _RANK.sub("", region.name)
    named = [kind for kind in classes if _begins_with(name, FORBIDDEN.sub("_", kind))]
    if named:
        return classes[max(named, key=len)]
    if region.kind is not None and region.kind in classes:
        return classes[region.kind]
    if region.kind is None and len(classes) == 1:
        return next(iter(classes.values()))
    what = "no class" if region.kind is None else f"the class {region.kind!r}"
    message = (
        f"region {region.name!r} has {what}; expected {', '.join(classes)}: rename it in the ROI "
        "manager so that its name begins with one of them"
    )
    raise DecodeError(message)


def _begins_with(name: str, kind: str) -> bool:
    name = FORBIDDEN.sub("_", name)
    return name.startswith(kind) and not name[len(kind) : len(kind) + 1].isalnum()
