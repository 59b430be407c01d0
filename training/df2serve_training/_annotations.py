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
    """Objects, axes (Y, X), numbered from 1, 0 = background; an object has one class, or where it
    touches another no class."""

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
        """Take every label for an object of class 1, and number objects from 1.

        Example:
            >>> Annotation.of_instances(np.array([[7, 7, 0, 40000]])).labels
            array([[1, 1, 0, 2]], dtype=int32)
        """
        inside = labels > 0
        numbered = np.zeros(labels.shape, np.int32)
        numbered[inside] = np.unique(labels[inside], return_inverse=True)[1] + 1
        return cls(inside.astype(np.uint8), numbered)
