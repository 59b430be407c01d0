"""The original's way from images to batches, written after deepflash2 0.3.0.

The package itself cannot share an environment with ours. Facts that cost time are kept: patches are
drawn one by one in Python by a cumulative distribution over pixels of a class-weighted map, moved
by ``cv2.remap`` through a field of coordinates, and passed through albumentations; torch's loader
stacks them. Images lie in memory, where the original reads them from a compressed Zarr store: this
favors the peer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from df2serve.config import TrainingNormalization
from df2serve_training.dataset import LabeledImage

__all__ = ["original_loader"]

_CDF_ROWS = 512
_SHORTEST_EPOCH = 400


def original_loader(
    images: Sequence[LabeledImage],
    normalization: TrainingNormalization,
    *,
    side: int,
    batch_size: int,
    workers: int,
) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Return endless epochs of batches: normalized images (N, C, Y, X) and classes (N, Y, X)."""
    return DataLoader(
        _RandomTiles(images, normalization, side),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )


class _RandomTiles(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """``RandomTileDataset`` with its defaults: flips, half of the tiles turned, gamma on half."""

    def __init__(
        self, images: Sequence[LabeledImage], normalization: TrainingNormalization, side: int
    ) -> None:
        self._images = [np.ascontiguousarray(image.pixels.transpose(1, 2, 0)) for image in images]
        self._masks = [image.target for image in images]
        self._cdfs = [_cdf(mask) for mask in self._masks]
        self._side = side
        self._transform = A.Compose(
            [
                A.RandomGamma(gamma_limit=(80, 120), p=0.5),
                A.Normalize(mean=normalization.means, std=normalization.stds, max_pixel_value=1.0),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self._images) * max(1, _SHORTEST_EPOCH // len(self._images))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        place = index % len(self._images)
        mask = self._masks[place]
        field = _field(self._side)
        center = _center(self._cdfs[place], mask.shape)
        image = _apply(field, self._images[place], center)
        varied = self._transform(image=image, mask=_apply(field, mask, center))
        return varied["image"], varied["mask"].type(torch.int64)


def _cdf(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    classes, counts = np.unique(mask, return_counts=True)
    weights = np.zeros(mask.shape, np.float32)
    for index, count in zip(classes, counts, strict=True):
        weights[mask == index] = 1 - count / mask.size
    columns = int(mask.shape[1] / mask.shape[0] * _CDF_ROWS)
    resized = cv2.resize(weights, dsize=(columns, _CDF_ROWS))
    return np.cumsum(resized / resized.sum())


def _center(cdf: NDArray[np.float32], shape: tuple[int, ...]) -> tuple[int, int]:
    columns = int(shape[1] / shape[0] * _CDF_ROWS)
    drawn = np.argmax(cdf > random.random())
    row, column = np.unravel_index(drawn, (_CDF_ROWS, columns))
    return int(row * shape[0] / _CDF_ROWS), int(column * shape[1] / columns)


def _field(side: int) -> list[NDArray[np.float64]]:
    """Return rows and columns relative to a center, mirrored and turned by chance."""
    axis = np.linspace(-side / 2, side / 2 - 1, side)
    field = list(np.meshgrid(axis, axis))[::-1]
    for dimension, mirrored in enumerate(np.random.choice((True, False), 2)):  # noqa: NPY002
        if mirrored:
            field[dimension] = -field[dimension]
    if random.random() < 0.5:
        angle = 2 * np.pi * random.random()
        sine, cosine = np.sin(angle), np.cos(angle)
        field = [field[0] * cosine + field[1] * sine, -field[0] * sine + field[1] * cosine]
    return field


def _apply(
    field: Sequence[NDArray[np.float64]], data: NDArray[np.generic], center: tuple[int, int]
) -> NDArray[np.generic]:
    """Return the pixels at a field around a center, out of the part of the data that it covers."""
    coordinates = [
        (offsets + middle).astype(np.float32) for offsets, middle in zip(field, center, strict=True)
    ]
    window = []
    for axis, places in enumerate(coordinates):
        low, high, length = int(places.min()), int(places.max()), data.shape[axis]
        if low < 0:
            low, high = 0, max(-low, high)
        elif high > length:
            low, high = min(low, 2 * length - high), length
        if low:
            coordinates[axis] = places - low
        window.append(slice(low, high))
    return cv2.remap(
        data[tuple(window)],
        map1=coordinates[1],
        map2=coordinates[0],
        interpolation=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
