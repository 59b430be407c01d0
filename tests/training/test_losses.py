"""Losses against naive formulas in float64."""

from typing import get_args

import numpy as np
import pytest
import torch

from df2serve_training.losses import create_loss
from df2serve_training.recipe import LossName
from df2serve_training.targets import IGNORED

NAMES = get_args(LossName)


def case(classes: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 6, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (2, 6, 7), generator=generator)
    target[0, :2] = IGNORED
    return logits, target


def naive(name: str, logits: torch.Tensor, target: torch.Tensor) -> float:
    """One number from a loop over the pixels that count."""
    probs = torch.softmax(logits, 1).numpy()
    rows = [
        (probs[n, :, y, x], int(target[n, y, x]))
        for n, y, x in np.ndindex(*target.shape)
        if target[n, y, x] != IGNORED
    ]
    own = np.array([p[k] for p, k in rows])
    every, truth = np.stack([p for p, _ in rows]), np.array([k for _, k in rows])
    cross_entropy = float(-np.log(own).mean())
    overlaps = []
    for k in range(1, probs.shape[1]):
        inside, total = every[truth == k, k].sum(), every[:, k].sum() + (truth == k).sum()
        score = inside / (total - inside) if name == "jaccard" else 2 * inside / total
        overlaps.append(1 - score if (truth == k).any() else 0)
    dice = float(np.mean(overlaps))
    return {
        "ce_dice": (cross_entropy + dice) / 2,
        "ce_plus_dice": cross_entropy + dice,
        "cross_entropy": cross_entropy,
        "dice": dice,
        "focal": float(((1 - own) ** 2 * -np.log(own)).mean()),
        "jaccard": dice,
        "poly1": float((-np.log(own) + 1 - own).mean()),
        "tversky": dice,
    }[name]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "lovasz"])
def test_value(name: LossName, classes: int) -> None:
    logits, target = case(classes)
    loss = create_loss(name, num_classes=classes)
    assert float(loss(logits, target)) == pytest.approx(naive(name, logits, target), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_every_loss_has_in_common(name: LossName) -> None:
    """Ignored pixels have no part in it, the truth is best, and gradients lead there."""
    logits, target = case(3)
    loss = create_loss(name, num_classes=3)
    changed = logits.clone()
    changed[0, :, :2] += torch.randn(3, 2, 7, dtype=torch.float64) * 9
    torch.testing.assert_close(loss(changed, target), loss(logits, target))

    visible = target.where(target != IGNORED, 0)
    best = 40 * torch.nn.functional.one_hot(visible, 3).movedim(-1, 1).double()
    assert float(loss(best, target)) == pytest.approx(0, abs=1e-6)
    logits.requires_grad_()
    loss(logits, target).backward()
    assert logits.grad is not None
    assert float(logits.grad[0, :, :2].abs().max()) == 0
    with torch.no_grad():
        assert float(loss(logits - 0.1 * logits.grad, target)) < float(loss(logits, target))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_a_pixel_that_counts(name: LossName) -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    value = create_loss(name, num_classes=2)(logits, torch.full((1, 4, 4), IGNORED))
    value.backward()
    assert logits.grad is not None
    assert float(value.detach()) == 0
    assert float(logits.grad.abs().max()) == 0
