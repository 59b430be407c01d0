"""Patches of the training images, cut and varied in batches on the device of the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from df2serve_training.augment import Augmenter
from df2serve_training.dataset import LabeledImage
from df2serve_training.sampler import PatchCenter, PatchSampler
from df2serve_training.targets import relative_distance

__all__ = ["PatchSource", "PatchStore"]


class PatchStore:
    """Images and targets on a device."""

    def __init__(
        self,
        images: Sequence[LabeledImage],
        *,
        device: torch.device | str,
        distance: bool = False,
    ) -> None:
        """Copy images to the device, in their own type if it has 8 or 16 bit, else as float32.

        Args:
            images: of any sizes, with the same number of channels.
            device: where patches are to be.
            distance: make the relative distance to the boundary of objects part of the targets.
        """
        self._device = torch.device(device)
        self._pixels = [_compact(image.pixels).to(self._device) for image in images]
        self._targets = [
            torch.from_numpy(_target(image, distance=distance)).to(self._device) for image in images
        ]

    def cut(
        self, center: PatchCenter, matrix: NDArray[np.float64], shape: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a patch and its target.

        Args:
            center: the pixel that the patch is centered on; with an even number of rows or columns
                it is the first behind the middle.
            matrix: takes places in the patch to places in the image, see ``Variation``.
            shape: rows and columns of the patch.

        Returns:
            Raw intensities, float32, axes (C, Y, X), interpolated linearly; and class indices,
            uint8, axes (Y, X), each of the nearest pixel. With distances, these are interpolated
            linearly and stacked behind the classes, float32, axes (2, Y, X). Images are continued
            beyond their edges by reflection with the edge pixel repeated.
        """
        reach = np.abs(matrix) @ (np.array(shape) - 1)
        margins = np.ceil((reach - (np.array(shape) - 1)) / 2).clip(0).astype(int)
        window = (shape[0] + 2 * int(margins[0]), shape[1] + 2 * int(margins[1]))
        pixels, target = self._read(center, window)
        if np.array_equal(np.abs(matrix), np.eye(2)):
            mirrored = [axis for axis in (-2, -1) if matrix[axis, axis] < 0]
            return pixels.flip(mirrored), target.flip(mirrored)
        grid = _grid(matrix, shape, window, self._device)
        turned = _resample(pixels, grid, mode="bilinear")
        if target.ndim == 2:
            return turned, _resample(target[None].float(), grid, mode="nearest")[0].byte()
        classes = _resample(target[:1], grid, mode="nearest")
        return turned, torch.cat([classes, _resample(target[1:], grid, mode="bilinear")])

    def _read(
        self, center: PatchCenter, shape: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the surroundings of a pixel as intensities and target."""
        pixels, target = self._pixels[center.image], self._targets[center.image]
        for axis, middle in ((-2, center.row), (-1, center.column)):
            places = torch.arange(shape[axis], device=self._device) + middle - shape[axis] // 2
            inside = _reflected(places, target.shape[axis])
            pixels, target = pixels.index_select(axis, inside), target.index_select(axis, inside)
        if target.dtype == torch.float16:
            target = target.float()
        if pixels.dtype == torch.int16:
            return (pixels.int() & 0xFFFF).float(), target
        return pixels.float(), target


class PatchSource:
    """The patches that one member is trained on: patch n is always the same."""

    def __init__(
        self,
        store: PatchStore,
        sampler: PatchSampler,
        augmenter: Augmenter,
        *,
        shape: tuple[int, int],
    ) -> None:
        """Combine images, centers and variations.

        Args:
            store: images and targets.
            sampler: centers in the images of the store.
            augmenter: variations.
            shape: rows and columns of the patches.
        """
        self._store = store
        self._sampler = sampler
        self._augmenter = augmenter
        self._shape = shape

    def batch(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return consecutive patches.

        Args:
            first: number of the first patch, counted from 0.
            count: N.

        Returns:
            Raw intensities, float32, axes (N, C, Y, X), and class indices, uint8, axes (N, Y, X),
            ``IGNORED`` where pixels do not count; or, with distances, both stacked as float32, axes
            (N, 2, Y, X). They are on the device of the store.
        """
        pixels, targets = [], []
        for number in range(first, first + count):
            variation = self._augmenter.draw(number)
            patch, target = self._store.cut(
                self._sampler.draw(number), variation.matrix, self._shape
            )
            self._augmenter.vary_intensities(patch, variation)
            pixels.append(patch)
            targets.append(target)
        return torch.stack(pixels), torch.stack(targets)


def _reflected(places: torch.Tensor, length: int) -> torch.Tensor:
    """Return places mirrored into the image with the edge pixel repeated (``dcba|abcd|dcba``).

    Example:
        >>> _reflected(torch.arange(-3, 6), 3).tolist()
        [2, 1, 0, 0, 1, 2, 2, 1, 0]
    """
    folded = places.remainder(2 * length)
    return torch.minimum(folded, 2 * length - 1 - folded)


def _resample(window: torch.Tensor, grid: torch.Tensor, *, mode: str) -> torch.Tensor:
    """Return a window (C, Y, X) at the places of a grid, which lie inside up to rounding."""
    return functional.grid_sample(
        window[None], grid, mode=mode, padding_mode="border", align_corners=False
    )[0]


def _grid(
    matrix: NDArray[np.float64],
    shape: tuple[int, int],
    window: tuple[int, int],
    device: torch.device,
) -> torch.Tensor:
    """Return where the pixels of a patch lie in its window as ``grid_sample`` counts.

    Returns:
        Column and row, float32, axes (1, Y, X, 2), -1...1 from edge to edge of the window.
    """
    y = torch.arange(shape[0], device=device)[:, None] - (shape[0] - 1) / 2
    x = torch.arange(shape[1], device=device) - (shape[1] - 1) / 2
    (row_y, row_x), (column_y, column_x) = (matrix * (2 / np.array(window))[:, None]).tolist()
    return torch.stack([column_y * y + column_x * x, row_y * y + row_x * x], dim=-1)[None]


def _target(image: LabeledImage, *, distance: bool) -> NDArray[Any]:
    """Return class indices, uint8, axes (Y, X), or with distances both as float16, (2, Y, X)."""
    if not distance:
        return image.target
    return np.stack([image.target, relative_distance(image.target, image.labels)], dtype=np.float16)


def _compact(pixels: NDArray[Any]) -> torch.Tensor:
    """Return a copy of intensities as uint8, as int16 with the bits of uint16, or as float32."""
    match pixels.dtype.kind, pixels.dtype.itemsize:
        case "u", 1:
            return torch.from_numpy(pixels.astype(np.uint8))
        case "u", 2:  # devices do not index uint16
            return torch.from_numpy(pixels.astype(np.uint16).view(np.int16))
        case _:
            return torch.from_numpy(pixels.astype(np.float32))
