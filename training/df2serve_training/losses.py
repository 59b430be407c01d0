"""What training minimizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias, assert_never, cast

import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import functional

from df2serve_training.recipe import LossName
from df2serve_training.targets import IGNORED

__all__ = ["Loss", "create_loss", "cross_entropy", "focal", "lovasz", "poly1", "with_distance"]

_FOCUS: Final = 2

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K, Y, X) and class indices (N, Y, X), int64 with ``IGNORED``, to one number."""


def create_loss(name: LossName, *, num_classes: int) -> Loss:
    """Return a loss; pixels that do not count have no part in it.

    Overlap losses (Dice, Jaccard, Tversky) sum over the batch's pixels and average over the
    foreground classes that the batch contains.

    Args:
        name: ``ce_dice`` is the mean of cross-entropy and Dice loss (the paper's text),
            ``ce_plus_dice`` their sum (deepflash2's code).
        num_classes: K, the background included.

    Source:
        Griebel et al. 2023, "Training procedure"; overlap losses and the Lovász loss are smp's.

    Example:
        >>> import torch
        >>> loss = create_loss("cross_entropy", num_classes=2)
        >>> logits = torch.zeros(1, 2, 1, 2)
        >>> round(float(loss(logits, torch.tensor([[[1, 255]]]))), 4)
        0.6931
    """
    overlap = {
        "mode": "multiclass",
        "classes": list(range(1, num_classes)),
        "ignore_index": IGNORED,
    }
    match name:
        case "cross_entropy":
            return cross_entropy
        case "dice":
            return cast("Loss", smp.losses.DiceLoss(**overlap))
        case "ce_dice":
            dice = smp.losses.DiceLoss(**overlap)
            return lambda logits, target: (cross_entropy(logits, target) + dice(logits, target)) / 2
        case "ce_plus_dice":
            dice = smp.losses.DiceLoss(**overlap)
            return lambda logits, target: cross_entropy(logits, target) + dice(logits, target)
        case "jaccard":
            return cast("Loss", smp.losses.JaccardLoss(**overlap))
        case "tversky":
            return cast("Loss", smp.losses.TverskyLoss(**overlap, alpha=0.5, beta=0.5))
        case "focal":
            return focal
        case "lovasz":
            return lovasz
        case "poly1":
            return poly1
        case _:
            assert_never(name)


def with_distance(loss: Loss, *, weight: float) -> Loss:
    """Return a loss of classes and distance.

    The loss of the distance is the cross-entropy of the sigmoid of the last output with the
    relative distance, mean over pixels that count, less its smallest possible value: 0 means that
    all distances are right.

    Args:
        loss: of the classes.
        weight: of the distance's loss in the sum.

    Returns:
        A function of outputs (N, K + 1, Y, X) and of class indices and distances, stacked as
        float32 (N, 2, Y, X).
    """

    def combined(outputs: Tensor, target: Tensor) -> Tensor:
        classes, distance = target[:, 0].long(), target[:, 1]
        surprise = functional.binary_cross_entropy_with_logits(
            outputs[:, -1], distance, reduction="none"
        )
        excess = (
            surprise + torch.xlogy(distance, distance) + torch.xlogy(1 - distance, 1 - distance)
        )
        counts = classes != IGNORED
        return loss(outputs[:, :-1], classes) + weight * _mean(excess * counts, classes)

    return combined


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over pixels that count of ``-log p`` of their class."""
    return _mean(
        functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none"), target
    )


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Return the focal loss, mean over pixels that count of ``-(1 - p)² log p``.

    Source:
        Lin et al. 2017, eq. 4 with an exponent of 2 and no class weights.
    """
    surprise = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
    return _mean((1 - (-surprise).exp()) ** _FOCUS * surprise, target)


def poly1(logits: Tensor, target: Tensor) -> Tensor:
    """Return Poly-1 cross-entropy, mean over pixels that count of ``-log p + (1 - p)``.

    Source:
        Leng et al. 2022, eq. 6 with ε₁ = 1.
    """
    surprise = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
    return _mean(surprise + (1 - (-surprise).exp()), target)


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Lovász-Softmax loss over the classes that the batch contains.

    Source:
        Berman et al. 2018; smp's implementation, which has no value without pixels that count.
    """
    if not (target != IGNORED).any():
        return logits.sum() * 0
    loss = smp.losses.LovaszLoss("multiclass", ignore_index=IGNORED)
    return cast("Tensor", loss(logits.float(), target))


def _mean(values: Tensor, target: Tensor) -> Tensor:
    """Return the mean over pixels that count; 0 where none does."""
    count = (target != IGNORED).sum().clamp_min(1)
    return values.sum() / count
