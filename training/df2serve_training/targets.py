"""What a network is to learn of a mask, at the resolution that it is trained at."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from df2serve.core.instances import each_object, inner_distance
from df2serve.core.resolution import coarse_shape
from df2serve.io import ClassMask, InstanceMask

__all__ = [
    "IGNORED",
    "relative_distance",
    "separate_instances",
    "training_target",
    "zoom_out_mask",
]

IGNORED: Final = 255
"""Value of target pixels that do not count."""


def training_target(mask: ClassMask | InstanceMask) -> NDArray[np.uint8]:
    """Return class indices, axes (Y, X), with ``IGNORED`` where pixels do not count.

    Touching instances are separated by background, see :func:`separate_instances`.
    """
    classes = mask.classes if isinstance(mask, ClassMask) else separate_instances(mask.labels)
    target = classes.astype(np.uint8)
    if mask.valid is not None:
        target[~mask.valid] = IGNORED
    return target


def separate_instances(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the foreground of instances with a ridge of background where they touch.

    Args:
        labels: instances, axes (Y, X), 0 = background.

    Returns:
        True inside of instances, except for pixels of instance j that have an instance i < j among
        their eight neighbors: the instance with the higher label yields.

    Source:
        Falk et al. 2019, U-Net for cell counting; deepflash2 ``preprocess_mask``, without its
        overflow above label 32767.

    Example:
        >>> separate_instances(np.array([[1, 1, 2, 2, 0, 3]], np.int32)).astype(int).tolist()
        [[1, 1, 0, 1, 0, 1]]
    """
    unlabeled = np.iinfo(labels.dtype).max
    lowest = ndimage.minimum_filter(np.where(labels == 0, unlabeled, labels), 3, mode="nearest")
    foreground: NDArray[np.bool_] = (labels > 0) & (lowest == labels)
    return foreground


def relative_distance(
    target: NDArray[np.uint8], labels: NDArray[np.int32] | None
) -> NDArray[np.float32]:
    """Return how deep in its object every pixel is.

    Args:
        target: class indices, axes (Y, X), with ``IGNORED`` where pixels do not count.
        labels: instances, axes (Y, X), 0 = background; when absent, the objects are the connected
            components of every class.

    Returns:
        Euclidean distance to the nearest pixel outside of the object, divided by the largest one of
        the object, axes (Y, X), in [0, 1]; 0 outside of objects. The end of the image is no
        boundary. It is the same at every magnification.

    Example:
        >>> relative_distance(np.array([[0, 1, 1, 1, 1, 2, 0]], np.uint8), None).tolist()
        [[0.0, 0.5, 1.0, 1.0, 0.5, 1.0, 0.0]]
    """
    distance = np.zeros(target.shape, np.float32)
    if labels is not None:
        groups = [labels]
    else:
        classes = np.setdiff1d(target, [0, IGNORED])
        groups = [ndimage.label(target == class_index)[0] for class_index in classes]
    for group in groups:
        for box, inside in each_object(group):
            depth = inner_distance(inside)
            distance[box][inside] = depth[inside] / depth.max()
    return distance


def zoom_out_mask(plane: NDArray[Any], factor: float) -> NDArray[Any]:
    """Return a mask (Y, X) at a coarser resolution, each pixel the one at its center.

    Example:
        >>> zoom_out_mask(np.arange(16).reshape(4, 4), 2.0).tolist()
        [[5, 7], [13, 15]]
    """
    if factor == 1:
        return plane
    rows, columns = _centers(plane.shape, factor)
    return plane[np.ix_(rows, columns)]


def _centers(shape: tuple[int, int], factor: float) -> list[NDArray[np.intp]]:
    """Return which rows and which columns lie at the centers of coarser pixels."""
    return [
        ((np.arange(count) + 0.5) * (length / count)).astype(np.intp)
        for length, count in zip(shape, coarse_shape(shape, factor), strict=True)
    ]
