"""What an expert, or an estimate, says about an image: classes and objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from df2serve.core.metrics import label_components
from df2serve.types import AnyLabels, LabelMap, MaskArray

__all__ = ["Annotation"]


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """The class of every pixel, and the object that it belongs to."""

    classes: MaskArray
    """Class indices, axes (Y, X), uint8, 0 = background."""
    labels: LabelMap
    """Objects, axes (Y, X), 0 = background; all pixels of an object have one class."""

    @classmethod
    def of_classes(cls, classes: MaskArray) -> Annotation:
        """Take the 4-connected components of every class for objects.

        Example:
            >>> Annotation.of_classes(np.array([[1, 1, 2, 0, 1]], np.uint8)).labels
            array([[1, 1, 3, 0, 2]], dtype=int32)
        """
        labels = np.zeros(classes.shape, np.int32)
        for index in range(1, int(classes.max(initial=0)) + 1):
            components = label_components(classes == index)
            labels += np.where(components > 0, components + labels.max(initial=0), 0)
        return cls(classes.astype(np.uint8, copy=False), labels)

    @classmethod
    def of_instances(cls, labels: AnyLabels) -> Annotation:
        """Take every label for an object of class 1."""
        return cls((labels > 0).astype(np.uint8), labels.astype(np.int32, copy=False))
