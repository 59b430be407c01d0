"""Compare presets and numbers of views: what they cost and how far they are from the dense limit.

A small ensemble is fitted to micrographs, and predicts some others. The reference has tiles that
overlap by three quarters, eight views and the real surroundings of the image.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from _images import SIDE, Micrograph, micrographs
from _timing import (
    Machine,
    OtherWork,
    Timing,
    describe_machine,
    interleave,
    markdown_table,
    write_results,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from df2serve import InferenceConfig, Predictor, RuntimeConfig
from df2serve.artifact import Ensemble, save_ensemble
from df2serve.config import PRESETS, OverlapGrid
from df2serve.core.metrics import mean_dice
from df2serve.core.normalize import affine_of, fit_training_normalization
from df2serve.core.tiling import plan_tiles
from df2serve.inference import Prediction
from df2serve.testing import tiny_network
from df2serve.testing.ensembles import manifest_fields

MEMBERS, TILE, BATCH = 2, 128, 8
BASE = "accurate"
ACCURATE = PRESETS["accurate"]
DENSE = ACCURATE.updated(grid=OverlapGrid(overlap=0.75), views=8)
VARIANTS: dict[str, InferenceConfig] = {
    BASE: ACCURATE,
    "accurate, 1 view": ACCURATE.updated(views=1),
    "accurate, 8 views": ACCURATE.updated(views=8),
    "deepflash2": PRESETS["deepflash2"],
    "fast": PRESETS["fast"],
    "fast, bf16": PRESETS["fast"].updated(precision="bf16"),
}
WIDTH = 384
"""Rows and columns of the predicted middle of each micrograph."""
MARGIN = TILE // 2
"""Pixels of real surroundings that the reference sees."""


@dataclass(frozen=True)
class Effort:
    """How much is computed."""

    tested: int
    """Micrographs to predict."""
    fitted: int
    """Micrographs to fit the ensemble to."""
    steps: int
    """Optimizer steps per member."""


FULL, QUICK = Effort(tested=4, fitted=32, steps=200), Effort(tested=1, fitted=4, steps=20)


@dataclass(frozen=True, eq=False)
class Maps:
    """What is compared of a prediction, axes (Y, X) each."""

    foreground: NDArray[np.float32]
    """Probability."""
    total: NDArray[np.float32]
    """Total uncertainty."""
    mask: NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, prediction: Prediction, *, margin: int = 0) -> Maps:
        """Take the maps of a prediction without its margin."""
        inner = (slice(margin, len(prediction.mask) - margin),) * 2
        return cls(prediction.probs[1][inner], prediction.total[inner], prediction.mask[inner])

    @property
    def u(self) -> float | None:
        """The score U (eq. 5): mean uncertainty of the foreground, absent without any."""
        return float(self.total[self.mask > 0].mean()) if self.mask.any() else None


@dataclass(frozen=True)
class Deviation:
    """How far a prediction is from the reference."""

    probs: float
    """Mean absolute difference of the foreground's probability."""
    probs_rim: float
    """The same, within half a tile of the image's rim."""
    probs_max: float
    """Largest absolute difference of the foreground's probability."""
    total: float
    """Mean absolute difference of the total uncertainty."""
    u: float | None
    """Absolute difference of U."""
    dice_to_reference: float | None
    """Dice score of the mask and the reference's."""
    dice: float | None
    """Dice score of the mask and the ground truth."""

    @classmethod
    def between(cls, ours: Maps, reference: Maps, truth: NDArray[np.uint8]) -> Deviation:
        """Compare a prediction with the reference, and with the true classes, axes (Y, X)."""
        difference = np.abs(ours.foreground - reference.foreground)
        rim = np.ones(difference.shape, dtype=bool)
        rim[MARGIN:-MARGIN, MARGIN:-MARGIN] = False
        scores = (ours.u, reference.u)
        return cls(
            probs=float(difference.mean()),
            probs_rim=float(difference[rim].mean()),
            probs_max=float(difference.max()),
            total=float(np.abs(ours.total - reference.total).mean()),
            u=None if scores[0] is None or scores[1] is None else abs(scores[0] - scores[1]),
            dice_to_reference=mean_dice(reference.mask, ours.mask, n_classes=2),
            dice=mean_dice(truth, ours.mask, n_classes=2),
        )


@dataclass(frozen=True)
class Row:
    """One variant, measured."""

    name: str
    precision: str
    """What the networks really ran in."""
    forwards: int
    """Network inputs per image: tiles times views times members."""
    timing: Timing
    deviations: tuple[Deviation, ...]
    """One per image."""

    def cells(self, base: Row) -> tuple[object, ...]:
        """Return the row of the table; costs are relative to another one's."""
        return (
            self.name,
            self.precision,
            self.forwards,
            f"{self.timing.cpu_ratio_to(base.timing):.2f}",
            f"{self._mean('probs'):.1e}",
            f"{self._mean('probs_rim'):.1e}",
            f"{max(one.probs_max for one in self.deviations):.2f}",
            f"{self._mean('total'):.1e}",
            f"{self._mean('u'):.1e}",
            f"{self._mean('dice_to_reference'):.4f}",
            f"{self._mean('dice'):.3f}",
        )

    def _mean(self, name: str) -> float:
        """Return the mean of a deviation over the images that have it."""
        values = [getattr(one, name) for one in self.deviations]
        return float(np.mean([value for value in values if value is not None]))


HEADER = (
    "variant",
    "ran in",
    "network inputs",
    "cost over accurate",
    "probability, mean",
    "within half a tile of the rim",
    "probability, max",
    "uncertainty, mean",
    "U",
    "Dice with reference",
    "Dice with truth",
)


def fit(folder: Path, samples: Sequence[Micrograph], steps: int) -> Ensemble:
    """Fit tiny networks to micrographs, each to all but its own fold, and write the ensemble."""
    normalization = fit_training_normalization(sample.image for sample in samples)
    affine = affine_of(normalization, samples[0].image)
    images = torch.from_numpy(np.stack([affine(sample.image) for sample in samples]))
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples]).astype(np.int64))
    networks = [tiny_network(seed, channels=1, classes=2) for seed in range(MEMBERS)]
    for fold, network in enumerate(networks):
        used = torch.arange(len(samples)) % MEMBERS != fold
        _fit_member(network, images[used], masks[used], steps=steps, seed=fold)
    fields = manifest_fields(channels=1, classes=2, tile=TILE) | {"normalization": normalization}
    return save_ensemble(folder, fields, networks, files={})


def _fit_member(
    network: nn.Module, images: Tensor, masks: Tensor, *, steps: int, seed: int
) -> None:
    """Fit a network to flipped crops, every second of which has a cell in its middle."""
    rng = np.random.default_rng(seed)
    cells = masks.nonzero().numpy()
    rate = 5e-3
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    cross_entropy, dice = nn.CrossEntropyLoss(), smp.losses.DiceLoss("multiclass")
    network.train()
    for _ in range(steps):
        places = np.concatenate(
            [
                cells[rng.integers(len(cells), size=BATCH // 2)],
                rng.integers((len(images), SIDE, SIDE), size=(BATCH // 2, 3)),
            ]
        )
        corners = np.clip(places[:, 1:] - TILE // 2, 0, SIDE - TILE)
        boxes = [
            (index, ..., slice(y, y + TILE), slice(x, x + TILE))
            for index, (y, x) in zip(places[:, 0], corners, strict=True)
        ]
        flip = [axis for axis in (-2, -1) if rng.random() < 0.5]
        crops = torch.stack([images[box] for box in boxes]).flip(flip)
        truth = torch.stack([masks[box] for box in boxes]).flip(flip)
        logits = network(crops)
        loss = cross_entropy(logits, truth) + dice(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def measure(ensemble: Ensemble, tested: Sequence[Micrograph], rounds: int) -> list[Row]:
    """Predict the middles of micrographs with all variants."""
    images = [_middle(each.image, WIDTH) for each in tested]
    truths = [_middle(each.mask, WIDTH) for each in tested]
    with _opened(ensemble, DENSE) as dense:
        wide = [_middle(each.image, WIDTH + 2 * MARGIN) for each in tested]
        references = [Maps.of(_predict(dense, image), margin=MARGIN) for image in wide]
    with ExitStack() as stack:
        predictors = {
            name: stack.enter_context(_opened(ensemble, config))
            for name, config in VARIANTS.items()
        }
        deviations = {
            name: tuple(
                Deviation.between(Maps.of(_predict(predictor, image)), reference, truth)
                for image, reference, truth in zip(images, references, truths, strict=True)
            )
            for name, predictor in predictors.items()
        }
        runs = {name: partial(_predict, each, images[0]) for name, each in predictors.items()}
        timings = interleave(runs, rounds=rounds)
        return [
            Row(
                name=name,
                precision=predictor.engine.runners[0].info.precision,
                forwards=_forwards(predictor.config),
                timing=timings[name],
                deviations=deviations[name],
            )
            for name, predictor in predictors.items()
        ]


def report(
    rows: Sequence[Row],
    *,
    tested: Sequence[Micrograph],
    effort: Effort,
    rounds: int,
    machine: Machine,
    other: float,
) -> str:
    """Return the whole text."""
    base = next(row for row in rows if row.name == BASE)
    return f"""\
# Presets and views

{machine}. Cost: processor time, median over {rounds} interleaved rounds of the ratio within a
round. Other processes used {other:.0%} of the time of all cores.

{MEMBERS} tiny networks, each fitted in {effort.steps} steps to half of {effort.fitted} micrographs,
predict the middle {WIDTH} x {WIDTH} pixels of {", ".join(each.name for each in tested)}, with tiles
of {TILE} x {TILE}. Differences are absolute, from a reference with tiles that overlap by three
quarters, 8 views, float32 and {MARGIN} pixels of real surroundings on each side; means over pixels,
then over images; the largest of all. Preset deepflash2 blends the uncertainties of tiles, which are
smaller than the uncertainty of the blended probabilities.

{markdown_table(HEADER, [row.cells(base) for row in rows])}"""


def _opened(ensemble: Ensemble, config: InferenceConfig) -> Predictor:
    return Predictor(ensemble, config=config, runtime=RuntimeConfig(device="cpu"))


def _predict(predictor: Predictor, image: NDArray[np.uint8]) -> Prediction:
    return predictor.predict(image, axes="CYX")


def _middle(array: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return the middle rows and columns of an array, axes (..., Y, X)."""
    start = (SIDE - width) // 2
    return array[..., start : start + width, start : start + width]


def _forwards(config: InferenceConfig) -> int:
    plan = plan_tiles((WIDTH, WIDTH), (TILE, TILE), config.grid)
    return len(plan) * config.views * MEMBERS


def main() -> None:
    """Fit, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="hardly fitted; write nothing")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per variant")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores when absent")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    effort = QUICK if arguments.quick else FULL
    samples = list(islice(micrographs(), effort.tested + effort.fitted))
    tested, fitted = samples[: effort.tested], samples[effort.tested :]
    with tempfile.TemporaryDirectory() as folder:
        ensemble = fit(Path(folder) / "ensemble", fitted, effort.steps)
        other = OtherWork()
        rows = measure(ensemble, tested, arguments.rounds)
    machine, share = describe_machine(), other.share()
    text = report(
        rows, tested=tested, effort=effort, rounds=arguments.rounds, machine=machine, other=share
    )
    print(text)
    if not arguments.quick:
        data = {
            "machine": asdict(machine),
            "other_work_share": share,
            "rounds": arguments.rounds,
            "effort": asdict(effort),
            "images": [each.name for each in tested],
            "rows": [asdict(row) for row in rows],
        }
        write_results("presets", text, data)


if __name__ == "__main__":
    main()
