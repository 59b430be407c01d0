"""Several experts' masks to one, pixel by pixel: STAPLE and majority voting.

Masks are class indices with the background at 0; a pixel for which no class wins is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float64, Integer

from df2serve.errors import InputError
from df2serve.types import MaskArray, PixelMap, ProbMap
from df2serve_training._gt_settings import Undecided

__all__ = ["Fusion", "confusion_matrices", "majority_vote", "staple"]

Stack = Integer[np.ndarray, "r y x"]

_TIE: Final = 1e-6
"""Classes whose probabilities differ by no more are tied; the iterations leave rounding errors."""


@dataclass(frozen=True, slots=True, eq=False)
class Fusion:
    """One mask from several, and how it came about."""

    classes: MaskArray
    """Class indices, axes (Y, X), uint8, 0 = background."""
    votes: ProbMap
    """Share of the experts per class, axes (K, Y, X), in [0, 1], summing to 1 over K."""
    posterior: ProbMap | None
    """Probability of every class, axes (K, Y, X), summing to 1 over K; absent without a model."""
    undecided: Bool[np.ndarray, "y x"]
    """Pixels for which no class won, axes (Y, X)."""
    confusion: Float64[np.ndarray, "r k k"]
    """Share of class k that an expert calls j, axes (expert, k, j); zeros where k is absent."""
    iterations: int
    """Steps of expectation and maximisation; 0 where nothing is iterated."""
    converged: bool
    """Whether the iterations ended by themselves."""

    @property
    def best_rater(self) -> int:
        """Index of the expert with the largest trace of the confusion matrix, the first of them."""
        return int(np.trace(self.confusion, axis1=1, axis2=2).argmax())


def confusion_matrices(
    masks: Sequence[MaskArray], truth: MaskArray, *, n_classes: int, decided: np.ndarray
) -> Float64[np.ndarray, "r k k"]:
    """Return what every expert calls the pixels of each class of the truth.

    Args:
        masks: class indices of each expert, axes (Y, X), in [0, n_classes).
        truth: class indices, axes (Y, X), in [0, n_classes).
        n_classes: number of classes K, background included.
        decided: pixels that count, axes (Y, X), bool.

    Returns:
        Share of class k that the expert calls j, axes (expert, k, j); zeros where k is absent.

    Example:
        >>> truth, mask = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
        >>> confusion_matrices([mask], truth, n_classes=2, decided=np.ones((1, 4), bool))
        array([[[0.5, 0.5],
                [0. , 1. ]]])
    """
    rows = truth[decided].astype(np.intp) * n_classes
    counts = np.stack([np.bincount(rows + m[decided], minlength=n_classes**2) for m in masks])
    counts = counts.reshape(len(masks), n_classes, n_classes)
    shares: np.ndarray = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)
    return shares


def majority_vote(
    masks: Sequence[MaskArray], *, n_classes: int, undecided: Undecided = "background"
) -> Fusion:
    """Give every pixel the class that most experts give it; a tie is undecided.

    Args:
        masks: class indices of each expert, axes (Y, X), in [0, n_classes).
        n_classes: number of classes K, background included.
        undecided: what pixels without a winner become.

    Raises:
        InputError: no masks, masks of several sizes, or values outside [0, n_classes).

    Example:
        >>> masks = [np.array([[1, 1, 0, 2]]), np.array([[1, 0, 0, 1]]), np.array([[1, 1, 0, 0]])]
        >>> fusion = majority_vote(masks, n_classes=3)
        >>> fusion.classes, fusion.undecided
        (array([[1, 1, 0, 0]], dtype=uint8), array([[False, False, False,  True]]))
    """
    stack = _stack(masks, n_classes)
    counts = np.stack([(stack == k).sum(axis=0, dtype=np.uint16) for k in range(n_classes)])
    tied = (counts == counts.max(axis=0)).sum(axis=0) > 1
    classes = counts.argmax(axis=0).astype(np.uint8)
    return _resolved(
        Fusion(
            classes=classes,
            votes=counts / np.float32(len(stack)),
            posterior=None,
            undecided=tied,
            confusion=confusion_matrices(list(stack), classes, n_classes=n_classes, decided=~tied),
            iterations=0,
            converged=True,
        ),
        stack,
        undecided,
    )


def staple(
    masks: Sequence[MaskArray],
    *,
    n_classes: int,
    max_iterations: int,
    undecided: Undecided = "background",
) -> Fusion:
    """Estimate the truth and every expert's reliability together.

    Two classes go through the binary filter of ITK, more through the one for several labels. Masks
    that are all equal are the estimate as they are: the binary filter answers NaN to empty ones.
    Pixels whose likeliest classes are equally likely are undecided, as where one of two experts'
    masks holds the other.

    Args:
        masks: class indices of each expert, axes (Y, X), in [0, n_classes).
        n_classes: number of classes K, background included.
        max_iterations: where the iterations end at the latest; ITK itself knows no end.
        undecided: what pixels without a winner become.

    Raises:
        InputError: no masks, masks of several sizes, or values outside [0, n_classes).

    Source:
        Warfield, Zou and Wells 2004; Rohlfing, Russakoff and Maurer 2003 for several classes.

    Example:
        >>> first, second = np.zeros((2, 6, 6), np.uint8)
        >>> first[1:4, 1:4] = second[1:4, 1:5] = 1
        >>> fusion = staple([first, second, first], n_classes=2, max_iterations=100)
        >>> np.array_equal(fusion.classes, first), fusion.converged
        (True, True)
        >>> fusion.confusion[1].round(3)  # the second expert's false alarms are 3 of 27
        array([[0.889, 0.111],
               [0.   , 1.   ]])
    """
    stack = _stack(masks, n_classes)
    voted = majority_vote(masks, n_classes=n_classes)
    if (stack == stack[0]).all():
        return replace(voted, posterior=voted.votes)
    estimate = _binary_staple if n_classes == 2 else _multi_class_staple
    joint, confusion, iterations = estimate(stack, n_classes, max_iterations)
    total = joint.sum(axis=0)  # 0 where experts contradict each other in a way that has no model
    posterior = np.divide(joint, total, out=voted.votes.astype(np.float64), where=total > 0)
    return _resolved(
        Fusion(
            classes=posterior.argmax(axis=0).astype(np.uint8),
            votes=voted.votes,
            posterior=posterior.astype(np.float32),
            undecided=(posterior >= posterior.max(axis=0) - _TIE).sum(axis=0) > 1,
            confusion=confusion,
            iterations=iterations,
            converged=iterations < max_iterations,
        ),
        stack,
        undecided,
    )


def _binary_staple(
    stack: Stack, _n_classes: int, max_iterations: int
) -> tuple[ProbMap, np.ndarray, int]:
    """Return the joint probability of votes and class, confusion matrices and iterations."""
    em: Any = sitk.STAPLEImageFilter()  # type: ignore[no-untyped-call]
    em.SetForegroundValue(1.0)
    em.SetMaximumIterations(max_iterations)
    inside: PixelMap = sitk.GetArrayFromImage(
        em.Execute([sitk.GetImageFromArray(mask) for mask in stack])
    )
    hits, rejections = np.array(em.GetSensitivity()), np.array(em.GetSpecificity())
    confusion = np.array([[rejections, 1 - rejections], [1 - hits, hits]])
    joint = np.stack([1 - inside, inside])
    return joint, np.moveaxis(confusion, 2, 0), em.GetElapsedIterations()


def _multi_class_staple(
    stack: Stack, n_classes: int, max_iterations: int
) -> tuple[ProbMap, np.ndarray, int]:
    """Return the joint probability of votes and class, confusion matrices and iterations."""
    em: Any = sitk.MultiLabelSTAPLEImageFilter()  # type: ignore[no-untyped-call]
    em.SetMaximumNumberOfIterations(max_iterations)
    iterations: list[None] = []
    em.AddCommand(sitk.sitkIterationEvent, lambda: iterations.append(None))
    em.Execute([sitk.GetImageFromArray(mask) for mask in stack])
    found = int(stack.max()) + 1  # ITK knows no classes above the largest that occurs
    confusion = np.zeros((len(stack), n_classes, n_classes))
    for index in range(len(stack)):
        table = np.reshape(em.GetConfusionMatrix(index), (found + 1, found))
        confusion[index, :found, :found] = table[:found].T
    prior = np.bincount(stack.ravel(), minlength=n_classes) / stack.size
    joint = np.broadcast_to(prior[:, None, None], (n_classes, *stack.shape[1:]))
    for mask, table in zip(stack, confusion, strict=True):
        joint = joint * table[:, mask]
    return joint, confusion, len(iterations)


def _resolved(fusion: Fusion, stack: Stack, undecided: Undecided) -> Fusion:
    """Give undecided pixels a class."""
    best = stack[fusion.best_rater] if undecided == "best_rater" else 0
    classes = np.where(fusion.undecided, best, fusion.classes).astype(np.uint8)
    return replace(fusion, classes=classes)


def _stack(masks: Sequence[MaskArray], n_classes: int) -> Stack:
    """Put the masks into one array, axes (expert, Y, X)."""
    shapes = sorted({mask.shape for mask in masks})
    if len(shapes) != 1:
        found = ", ".join(map(str, shapes)) or "none"
        message = (
            f"got {len(masks)} masks of sizes {found}; expected at least one, all of the same "
            "rows and columns"
        )
        raise InputError(message)
    stack = np.stack(list(masks))
    if stack.dtype.kind not in "bui" or stack.min() < 0 or stack.max() >= n_classes:
        message = (
            f"masks of {stack.dtype} hold values from {stack.min()} to {stack.max()}; expected "
            f"class indices from 0 to {n_classes - 1}"
        )
        raise InputError(message)
    return stack.astype(np.uint8)
