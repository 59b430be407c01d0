"""How well a network does on images that it is not trained on, while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from df2serve.core.metrics import mean_dice
from df2serve_training.dataset import LabeledImage
from df2serve_training.patches import PatchStore
from df2serve_training.sampler import PatchCenter
from df2serve_training.targets import IGNORED

__all__ = ["Validation"]


class Validation:
    """Images in patches side by side, without overlap: quicker than a prediction, and rougher."""

    def __init__(
        self,
        images: Sequence[LabeledImage],
        *,
        patch_shape: tuple[int, int],
        num_classes: int,
        device: torch.device,
    ) -> None:
        """Copy images to the device.

        Args:
            images: of the fold that the member is validated on.
            patch_shape: rows and columns of a patch.
            num_classes: K, the background included.
            device: of the training.
        """
        self._store = PatchStore(images, device=device)
        self._targets = [image.target for image in images]
        self._shape = patch_shape
        self._num_classes = num_classes

    def dice(self, classify: Callable[[Tensor], Tensor], *, batch_size: int) -> float | None:
        """Return the mean over images of the Dice score, as ``mean_dice`` has it for each.

        Args:
            classify: takes raw intensities (N, C, Y, X) to class indices (N, Y, X).
            batch_size: patches at a time.

        Returns:
            A number in [0, 1]; None where no image has foreground in either mask.
        """
        scores = [self._dice(image, classify, batch_size) for image in range(len(self._targets))]
        known = [score for score in scores if score is not None]
        return fmean(known) if known else None

    def _dice(
        self, image: int, classify: Callable[[Tensor], Tensor], batch_size: int
    ) -> float | None:
        target = self._targets[image]
        mask: NDArray[np.uint8] = np.zeros(target.shape, np.uint8)
        height, width = self._shape
        corners = [
            (row, column)
            for row in range(0, target.shape[0], height)
            for column in range(0, target.shape[1], width)
        ]
        for first in range(0, len(corners), batch_size):
            part = corners[first : first + batch_size]
            centers = [PatchCenter(image, y + height // 2, x + width // 2) for y, x in part]
            patches = [self._store.cut(center, np.eye(2), self._shape)[0] for center in centers]
            classes = classify(torch.stack(patches)).byte().cpu().numpy()
            for (row, column), patch in zip(part, classes, strict=True):
                place = mask[row : row + height, column : column + width]
                place[:] = patch[: place.shape[0], : place.shape[1]]
        valid = target != IGNORED
        truth = np.where(valid, target, 0)
        return mean_dice(truth, mask, n_classes=self._num_classes, valid=valid)
