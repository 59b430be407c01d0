"""Which instances of two label maps share pixels; what all instance scores start from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy import sparse

from df2serve.errors import InputError
from df2serve.types import AnyLabels, ValidMap

__all__ = ["Overlaps", "counted", "find_overlaps", "require_same_shape"]


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """Instances, numbered from 0 in order of their labels, and the pairs that share pixels."""

    truth_areas: Int64[np.ndarray, " t"]
    """Pixels of every instance of the truth."""
    predicted_areas: Int64[np.ndarray, " p"]
    """Pixels of every predicted instance."""
    rows: Int64[np.ndarray, " n"]
    """Number of the truth's instance of every pair, increasing."""
    columns: Int64[np.ndarray, " n"]
    """Number of the predicted instance of every pair, increasing within a row."""
    shared: Int64[np.ndarray, " n"]
    """Pixels in both."""

    @property
    def united(self) -> Int64[np.ndarray, " n"]:
        """Pixels in either, per pair."""
        union: Int64[np.ndarray, " n"] = (
            self.truth_areas[self.rows] + self.predicted_areas[self.columns] - self.shared
        )
        return union

    @property
    def iou(self) -> Float64[np.ndarray, " n"]:
        """Intersection over union per pair, in (0, 1]."""
        ratio: Float64[np.ndarray, " n"] = self.shared / self.united
        return ratio


def find_overlaps(
    truth: AnyLabels, prediction: AnyLabels, *, min_size: int, valid: ValidMap | None
) -> Overlaps:
    """Find the pairs of instances that share pixels.

    Args:
        truth: reference instances, axes (Y, X), 0 = background; ids need not be consecutive.
        prediction: instances to score, same axes.
        min_size: instances of fewer pixels are dropped from both label maps, as background.
        valid: pixels that count, axes (Y, X); all when absent.

    Raises:
        InputError: the shapes differ, or a label is negative or not an integer.
    """
    require_same_shape(truth, prediction, valid)
    t, t_areas = _number("truth", counted(truth, valid), min_size)
    p, p_areas = _number("prediction", counted(prediction, valid), min_size)
    both = (t >= 0) & (p >= 0)
    pixels = np.ones(np.count_nonzero(both), dtype=np.int64)
    table = sparse.coo_array((pixels, (t[both], p[both])), shape=(len(t_areas), len(p_areas)))
    table.sum_duplicates()
    order = np.lexsort((table.col, table.row))
    return Overlaps(
        truth_areas=t_areas,
        predicted_areas=p_areas,
        rows=table.row[order].astype(np.int64),
        columns=table.col[order].astype(np.int64),
        shared=table.data[order],
    )


def counted(raster: np.ndarray, valid: ValidMap | None) -> np.ndarray:
    """Return the pixels that count, flattened."""
    return raster.ravel() if valid is None else raster[valid]


def require_same_shape(truth: np.ndarray, prediction: np.ndarray, valid: ValidMap | None) -> None:
    """Refuse masks that do not lie on the same pixels.

    Raises:
        InputError: says which shapes there are.
    """
    if truth.shape != prediction.shape:
        message = (
            f"truth has shape {truth.shape} and prediction {prediction.shape}; "
            "expected the same pixels: crop or resize one of them first"
        )
        raise InputError(message)
    if valid is None:
        return
    if valid.shape != truth.shape or valid.dtype != np.bool_:
        message = (
            f"valid has shape {valid.shape} and dtype {valid.dtype}; "
            f"expected {truth.shape} and bool: pass a mask that is True where a pixel counts"
        )
        raise InputError(message)


def _number(
    name: str, labels: np.ndarray, min_size: int
) -> tuple[np.ndarray, Int64[np.ndarray, " n"]]:
    """Number instances from 0 in order of their ids, -1 = none or too small; return their areas."""
    if labels.dtype.kind not in "ui":
        message = (
            f"{name} has dtype {labels.dtype}; expected instance labels of an integer type: "
            "number the components of a mask with label_components first"
        )
        raise InputError(message)
    if labels.size and labels.min() < 0:
        message = (
            f"{name} holds the label {labels.min()}; expected 0 = background and positive labels: "
            "set such pixels to 0, or leave them out through `valid`"
        )
        raise InputError(message)
    if labels.size and labels.max() > labels.size:  # too large to index a table
        labels = np.unique(np.append(labels, labels.dtype.type(0)), return_inverse=True)[1][:-1]
    labels = labels.astype(np.intp, copy=False)
    areas = np.bincount(labels)
    kept = areas >= max(min_size, 1)
    kept[:1] = False
    numbers = np.where(kept, np.cumsum(kept) - 1, -1)
    return numbers[labels], areas[kept]
