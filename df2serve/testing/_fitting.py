"""A short training of small networks on images that are held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import segmentation_models_pytorch as smp
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

__all__ = ["CROP", "RECIPE", "fit_folds", "single_threads"]

CROP = 64
"""Rows and columns of what a network sees at once, in pixels."""
_BATCH_SIZE = 16
_LEARNING_RATE = 1e-2
# Largest stretch of intensities, as a power of e, and largest shift, in standard deviations. Cells
# have to be told by their outline then; bright things of another shape are doubted, not taken for
# cells.
_STRETCH, _SHIFT = 1.6, 3.0

RECIPE = {
    "crop_px": CROP,
    "batch_size": _BATCH_SIZE,
    "optimizer": "AdamW",
    "schedule": "one cycle",
    "learning_rate": _LEARNING_RATE,
    "loss": "mean of cross-entropy and Dice",
    "augmentation": "crops, flips",
}
"""How networks are fitted, for the manifest."""


@contextmanager
def single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads each of which computes alone.

    What they compute does not depend on the number of cores, and they do not wait for each other
    where cores are busy.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that start from now on take this over
    try:
        with ThreadPoolExecutor(max_workers=count) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def fit_folds(
    networks: Sequence[nn.Module],
    images: Float32[np.ndarray, "n y x c"],
    masks: Int64[np.ndarray, "n y x"],
    *,
    steps: int,
    seed: int,
    vary: bool,
) -> None:
    """Fit each network to all images but those of its own fold.

    Args:
        networks: changed in place; network f leaves out the images f, f + n, ... of n networks.
        images: network input, channels last.
        masks: classes, 0 = background.
        steps: optimizer steps.
        seed: of crops and augmentation.
        vary: whether intensities are stretched and shifted at random.
    """
    fold_of = np.arange(len(images)) % len(networks)

    def fit(fold: int) -> None:
        used = fold_of != fold
        rng = np.random.default_rng([seed, fold])
        crops = _crops(images[used], masks[used], rng, vary=vary)
        _fit(networks[fold], crops, steps=steps)

    with single_threads(len(networks)) as pool:
        list(pool.map(fit, range(len(networks))))


def _fit(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], *, steps: int) -> None:
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    cross_entropy, dice = nn.CrossEntropyLoss(), smp.losses.DiceLoss("multiclass")
    for _ in range(steps):
        crops, masks = next(batches)
        logits = network(crops)
        loss = (cross_entropy(logits, masks) + dice(logits, masks)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def _crops(
    images: Float32[np.ndarray, "n y x c"],
    masks: Int64[np.ndarray, "n y x"],
    rng: np.random.Generator,
    *,
    vary: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of flipped crops with changed intensities, axes (N, C, Y, X) and (N, Y, X)."""
    column = (_BATCH_SIZE, 1, 1)
    while True:
        rows, columns = (_spans(length, rng) for length in masks.shape[1:])
        numbers = rng.integers(len(images), size=column)
        crops = numbers, rows[:, :, None], columns[:, None, :]
        values = images[crops]
        if vary:  # all channels alike, so that colors stay what they are
            stretch, shift = rng.uniform(-1, 1, (2, *column, 1)).astype(np.float32)
            values = values * np.exp(_STRETCH * stretch) + _SHIFT * shift
        yield torch.from_numpy(values).permute(0, 3, 1, 2), torch.from_numpy(masks[crops])


def _spans(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return the pixels of crops along one axis, forward or backward, axes (N, crop)."""
    start = rng.integers(length - CROP + 1, size=(_BATCH_SIZE, 1))
    backward = rng.random((_BATCH_SIZE, 1)) < 0.5
    steps = np.arange(CROP)
    return start + np.where(backward, steps[::-1], steps)
