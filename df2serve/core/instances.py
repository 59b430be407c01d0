"""From a mask of classes to objects, and what there is to say about each of them.

Neighbors are pixels that share an edge, as in the ground truth of connected components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, assert_never

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from df2serve.config import InstanceConfig, SeedConfig
from df2serve.errors import ConfigError
from df2serve.types import AnyLabels, AnyMask, LabelMap, PixelMap, PixelSource

__all__ = [
    "Box",
    "Divide",
    "Instance",
    "Instances",
    "each_object",
    "find_instances",
    "inner_distance",
    "measure_instances",
]

Box: TypeAlias = tuple[slice, slice]
"""Rows and columns."""

Divide: TypeAlias = Callable[[int, Bool[np.ndarray, "y x"]], AnyLabels]
"""From a class and its pixels, axes (Y, X), to objects, 0 = none; numbers may be missing."""

_CROSS = ndimage.generate_binary_structure(2, 1)
_ROWS = 256


@dataclass(frozen=True, eq=False)
class Instances:
    """Objects of an image."""

    labels: LabelMap
    """Objects, axes (Y, X), numbered from 1, class by class; 0 = background."""
    classes: Int64[np.ndarray, " n"]
    """Class of every object in the order of the labels."""
    removed: int
    """Objects that were too small."""
    removed_px: int
    """Pixels of these, and those that the method gave to no object; they are background in the
    labels and keep their class in the mask."""

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.classes)


@dataclass(frozen=True)
class Instance:
    """One object; rows and columns are counted from 0."""

    label: int
    """Its value in the labels."""
    class_index: int
    """Its class, 1 or more."""
    area_px: int
    """Number of its pixels."""
    area_um2: float | None
    """Area in square micrometers, where the size of a pixel is known."""
    row: float
    """Mean row of its pixels."""
    column: float
    """Mean column of its pixels."""
    top: int
    """First row."""
    left: int
    """First column."""
    bottom: int
    """Row behind the last one."""
    right: int
    """Column behind the last one."""
    intensities: tuple[float, ...]
    """Mean intensity per channel of the image."""
    u: float
    """Mean total uncertainty."""
    u_epistemic: float
    """Mean of its epistemic part."""
    probability: float
    """Mean probability of its class."""


def find_instances(
    mask: AnyMask,
    *,
    config: InstanceConfig,
    distance: PixelMap | None = None,
    divide: Divide | None = None,
) -> Instances:
    """Divide the classes of a mask into objects.

    Every pixel of a class belongs to one object of this class, and every object is connected; only
    objects below the smallest size are left out. Equal input gives equal labels. With the method
    ``cellpose``, pixels of a class may belong to no object, and objects may have several parts.

    Args:
        mask: class indices, axes (Y, X), 0 = background.
        config: method and its settings.
        distance: relative distance to the boundary of the object, axes (Y, X), in [0, 1], 0 outside
            of objects; when absent, the Euclidean distance within connected components.
        divide: divides a class with the method ``cellpose``. What lies outside of the class is
            ignored.

    Raises:
        ConfigError: the method ``cellpose`` without its network.

    Source:
        Watershed from the regional maxima of the h-maxima transform: Soille, "Morphological Image
        Analysis", 2nd ed., 6.3.4 and 9.2. The relative distance is that of micro-SAM (Archit et
        al. 2025) and of other networks that separate instances by a distance.

    Example:
        Two squares that touch at a corner region three pixels wide:

        >>> mask = np.zeros((9, 17), np.uint8)
        >>> mask[:, :8] = mask[:, 9:] = mask[3:6, 8] = 1
        >>> components = find_instances(mask, config=InstanceConfig(method="components"))
        >>> divided = find_instances(mask, config=InstanceConfig())
        >>> len(components), len(divided), divided.labels[4, [0, 7, 9, 16]].tolist()
        (1, 2, [1, 1, 2, 2])
    """
    labels = np.zeros(mask.shape, np.int32)
    counts = [
        _label_class(labels, mask, class_index, config, distance, divide)
        for class_index in range(1, int(mask.max(initial=0)) + 1)
    ]
    classes = np.repeat(np.arange(1, len(counts) + 1), counts)
    areas = np.bincount(labels.ravel(), minlength=len(classes) + 1)[1:]
    kept = areas >= config.min_size
    if not kept.all():
        numbers = np.zeros(len(classes) + 1, np.int32)
        numbers[1:][kept] = np.arange(1, kept.sum() + 1)
        labels = numbers[labels]
    return Instances(
        labels=labels,
        classes=classes[kept],
        removed=int((~kept).sum()),
        removed_px=int(np.count_nonzero(mask) - areas[kept].sum()),
    )


def measure_instances(
    instances: Instances,
    *,
    image: PixelSource,
    probability: PixelMap,
    total: PixelMap,
    epistemic: PixelMap,
    pixel_area_um2: float | None,
) -> tuple[Instance, ...]:
    """Return one record per object, in the order of the labels.

    Args:
        instances: objects.
        image: raw intensities, axes (C, Y, X); read a few rows at a time.
        probability: probability of the predicted class, axes (Y, X).
        total: total uncertainty, axes (Y, X).
        epistemic: its epistemic part, axes (Y, X).
        pixel_area_um2: area of a pixel in square micrometers.

    Example:
        >>> found = find_instances(np.array([[0, 1, 1]]), config=InstanceConfig())
        >>> half = np.full((1, 3), 0.5, np.float32)
        >>> [cell] = measure_instances(
        ...     found,
        ...     image=np.array([[[9, 1, 2]]]),
        ...     probability=half,
        ...     total=half,
        ...     epistemic=half,
        ...     pixel_area_um2=0.25,
        ... )
        >>> cell.area_um2, (cell.row, cell.column), cell.intensities, cell.u
        (0.5, (0.0, 1.5), (1.5,), 0.5)
    """
    labels, channels = instances.labels, image.shape[0]
    sums = np.zeros((channels + 6, len(instances) + 1))
    for rows in _slabs(labels.shape[0]):
        part = labels[rows]
        row, column = np.indices(part.shape, np.int32)
        layers = [
            *image[0:channels, rows, 0 : labels.shape[1]],
            total[rows],
            epistemic[rows],
            probability[rows],
            row + rows.start,
            column,
            np.ones_like(part),
        ]
        for layer, sum_of in zip(layers, sums, strict=True):
            sum_of += np.bincount(part.ravel(), layer.ravel(), minlength=sums.shape[1])
    areas = sums[-1, 1:]
    means = sums[:-1, 1:] / areas
    boxes = ndimage.find_objects(labels)
    return tuple(
        Instance(
            label=index + 1,
            class_index=int(instances.classes[index]),
            area_px=int(areas[index]),
            area_um2=None if pixel_area_um2 is None else float(areas[index] * pixel_area_um2),
            row=float(means[-2, index]),
            column=float(means[-1, index]),
            top=box[0].start,
            left=box[1].start,
            bottom=box[0].stop,
            right=box[1].stop,
            intensities=tuple(means[:channels, index].tolist()),
            u=float(means[channels, index]),
            u_epistemic=float(means[channels + 1, index]),
            probability=float(means[channels + 2, index]),
        )
        for index, box in enumerate(boxes)
    )


def each_object(labels: AnyLabels) -> Iterator[tuple[Box, Bool[np.ndarray, "y x"]]]:
    """Yield the surroundings of every object, in the order of the labels.

    Args:
        labels: objects, axes (Y, X), 0 = background; numbers may be missing.

    Yields:
        Rows and columns of the object with one pixel around it, up to the end of the image; and
        where the object is in there.
    """
    for number, sides in enumerate(ndimage.find_objects(labels), start=1):
        if sides is not None:
            rows, columns = (slice(max(0, side.start - 1), side.stop + 1) for side in sides)
            yield (rows, columns), labels[rows, columns] == number


def inner_distance(inside: Bool[np.ndarray, "y x"]) -> Float64[np.ndarray, "y x"]:
    """Return the Euclidean distance of an object's pixels to the nearest pixel outside of it.

    The end of the image is no boundary; an object that fills the image has the distance 1.

    Args:
        inside: the object, axes (Y, X).

    Example:
        >>> inner_distance(np.array([[False, True, True, True]])).tolist()
        [[0.0, 1.0, 2.0, 3.0]]
    """
    if inside.all():
        return np.ones(inside.shape)
    depth: Float64[np.ndarray, "y x"] = ndimage.distance_transform_edt(inside)
    return depth


def _label_class(
    labels: LabelMap,
    mask: AnyMask,
    class_index: int,
    config: InstanceConfig,
    distance: PixelMap | None,
    divide: Divide | None,
) -> int:
    """Write the objects of one class into the labels, with numbers above all others.

    Returns:
        Their number.
    """
    last = int(labels.max(initial=0))
    of_class = mask == class_index
    if config.method == "cellpose":
        if divide is None:
            message = (
                "the method cellpose divides with the flows of a network, and none was given; open "
                "its weights with df2serve.backends.cellpose.Cellpose (on the command line: "
                "--cellpose-weights FILE), or use watershed or components"
            )
            raise ConfigError(message)
        numbers, places = np.unique(
            np.where(of_class, divide(class_index, of_class), 0), return_inverse=True
        )
        places += numbers[0] != 0
        labels += np.where(places > 0, places + last, 0).astype(np.int32)
        return int(np.count_nonzero(numbers))
    components, count = ndimage.label(of_class, _CROSS)
    match config.method:
        case "components":
            labels += np.where(components > 0, components + last, 0)
            return int(count)
        case "watershed":
            pass
        case _:
            assert_never(config.method)
    added = 0
    for box, inside in each_object(components):
        if distance is None:
            objects = _divide(inside, inner_distance(inside), config.euclidean)
        else:
            objects = _divide(inside, distance[box], config.learned)
        labels[box][inside] = objects[inside] + last + added
        added += int(objects.max())
    return added


def _divide(
    inside: Bool[np.ndarray, "y x"], depth: NDArray[np.floating], seeds: SeedConfig
) -> NDArray[np.int32]:
    """Divide a connected component at the valleys between the maxima of a distance.

    Args:
        inside: the component, axes (Y, X).
        depth: distance, axes (Y, X), 0 or more.
        seeds: which maxima count.

    Returns:
        Objects, axes (Y, X), numbered from 1 by the first pixel of their maxima, 0 = outside.
    """
    outside = -1 - seeds.h
    height: Float64[np.ndarray, "y x"] = np.where(inside, depth, outside)
    lowered = np.where(inside, height - seeds.h, outside)
    flat = reconstruction(lowered, height, footprint=_CROSS)  # type: ignore[no-untyped-call]
    tops = local_maxima(flat, connectivity=1)  # type: ignore[no-untyped-call]
    maxima, count = ndimage.label(tops & inside, _CROSS)
    kept = ndimage.maximum(height, maxima, np.arange(count + 1)) >= seeds.lowest
    kept[0] = False
    if kept.sum() < 2:
        return inside.astype(np.int32)
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    basins: NDArray[np.int32] = watershed(  # type: ignore[no-untyped-call]
        -height, numbers[maxima], mask=inside
    )
    return basins


def _slabs(rows: int) -> Iterator[slice]:
    """Yield the rows of an image in parts."""
    for start in range(0, rows, _ROWS):
        yield slice(start, min(rows, start + _ROWS))
