"""Measure training steps: how much of them is not the network, and beside the original's pipeline.

Every contender trains the same network on batches of the same size; what differs is where batches
come from, and how the network's memory is laid out.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice

import torch
from _images import micrographs
from _timing import (
    Machine,
    OtherWork,
    Timing,
    describe_machine,
    interleave,
    markdown_table,
    write_results,
)
from _training_peer import original_loader
from torch import Tensor, nn

from df2serve.core.normalize import fit_training_normalization
from df2serve_training.dataset import IntensityRange, LabeledImage
from df2serve_training.fit import MemberFit
from df2serve_training.losses import create_loss
from df2serve_training.network import build_network
from df2serve_training.recipe import NetworkSettings, Recipe

BATCH = 4
OURS, ALONE = "df2serve", "network alone, as df2serve runs it"
AS_LOADED = "network alone, as the original runs it"
ORIGINAL = "original's pipeline, in the training process"
WORKERS = "original's pipeline, two processes beside it"
READING = """\
"Network alone" is forward pass, loss, backward pass and optimizer on one batch again and again.
All steps have the same loss (cross-entropy plus Dice), AdamW and float32; df2serve also averages
weights. The original's pipeline is written after its code (`benchmarks/_training_peer.py`), with
images in memory instead of a Zarr store; the two processes also work between the timed runs.
"Outside the network" is the share of a step that the network alone does not need, within a round.
The last column is measured on the batches, which should be alike: both draw patches by the
original's weights."""

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Workload:
    """What is trained, and for how long."""

    network: NetworkSettings
    side: int
    """Rows and columns of a patch."""
    images: int
    steps: int
    """Per timed run."""


LITE = Workload(
    NetworkSettings(encoder="tu-tf_efficientnet_lite0", weights="random"),
    side=256,
    images=28,
    steps=10,
)
TINY = Workload(
    NetworkSettings(
        encoder="tu-test_resnet",
        weights="random",
        options={"encoder_depth": 4, "decoder_channels": [32, 16, 8, 8]},
    ),
    side=64,
    images=2,
    steps=2,
)


@dataclass
class Contender:
    """Steps of one kind."""

    step: Callable[[], object]
    network_only: str | None = None
    """Name of the contender that does the same without data."""
    foreground: list[float] = field(default_factory=list)
    """Share of each batch."""


@dataclass(frozen=True, eq=False)
class Result:
    """One workload, measured."""

    workload: Workload
    contenders: Mapping[str, Contender]
    timings: Mapping[str, Timing]
    batch_share: float
    """Share of df2serve's steps that goes into batches, timed within them."""

    def to_markdown(self) -> str:
        """Return the table and a sentence."""
        work, ours = self.workload, self.timings[OURS]
        rows = []
        for name, timing in self.timings.items():
            contender = self.contenders[name]
            beneath = contender.network_only and self.timings[contender.network_only]
            shown = contender.foreground
            rows.append(
                (
                    name,
                    f"{work.steps * BATCH / timing.median_s:.2f}",
                    f"{timing.median_s / work.steps * 1000:.0f}",
                    f"{1 - beneath.ratio_to(timing):.1%}" if beneath else "",
                    f"{timing.ratio_to(ours):.2f}",
                    f"{sum(shown) / len(shown):.3f}" if shown else "",
                )
            )
        header = (
            "contender",
            "images per second",
            "ms per step",
            "outside the network",
            "time over df2serve",
            "foreground",
        )
        return (
            f"## U-Net with {work.network.encoder.removeprefix('tu-')} encoder\n\n"
            f"{work.images} images, patches of {work.side} x {work.side} pixels, batches of "
            f"{BATCH}, {work.steps} steps per run.\n\n{markdown_table(header, rows)}\n\n"
            f"Batches take {self.batch_share:.1%} of a step of df2serve, timed within the steps."
        )

    def to_json(self) -> dict[str, object]:
        """Return everything measured."""
        return {
            "encoder": self.workload.network.encoder,
            "side": self.workload.side,
            "images": self.workload.images,
            "steps": self.workload.steps,
            "batch": BATCH,
            "batch_share": self.batch_share,
            "timings": {name: asdict(timing) for name, timing in self.timings.items()},
        }


def measure(workload: Workload, rounds: int) -> Result:
    """Train all contenders in turns."""
    fit = _fit(workload)
    in_batches = [0.0]
    ours = Contender(lambda: ours.foreground.append(_timed_step(fit, in_batches)), ALONE)
    contenders = {
        OURS: ours,
        ALONE: Contender(_steps(workload, itertools.repeat(fit.batch(0)), torch.channels_last)),
        AS_LOADED: Contender(
            _steps(workload, itertools.repeat(fit.batch(0)), torch.contiguous_format)
        ),
    }
    for name, workers in ((ORIGINAL, 0), (WORKERS, 2)):
        loader = original_loader(
            fit.images, fit.normalization, side=workload.side, batch_size=BATCH, workers=workers
        )
        shares: list[float] = []
        batches = _watched(itertools.chain.from_iterable(itertools.repeat(loader)), shares)
        contenders[name] = Contender(
            _steps(workload, batches, torch.contiguous_format), AS_LOADED, shares
        )
    runs = {
        name: lambda step=contender.step: [step() for _ in range(workload.steps)]
        for name, contender in contenders.items()
    }
    for run in runs.values():
        run()
    in_batches[0] = 0.0
    timings = interleave(runs, rounds=rounds)
    share = in_batches[0] / sum(timings[OURS].wall_s)
    return Result(workload, contenders, timings, share)


def _fit(workload: Workload) -> MemberFit:
    """Return a member as df2serve trains it, with the original's sampling and augmentation."""
    samples = list(islice(micrographs(), workload.images))
    recipe = Recipe.model_validate(
        {
            "sampling": {"patch_shape": [workload.side] * 2, "class_weights": "deepflash2"},
            "network": workload.network,
            "training": {
                "batch_size": BATCH,
                "loss": "ce_plus_dice",
                "precision": "fp32",
                "phases": [{"share": 1, "rate": 1e-3}],
            },
        }
    )
    return MemberFit(
        recipe=recipe,
        member=0,
        images=[LabeledImage(sample.image, sample.mask, None) for sample in samples],
        intensities=IntensityRange(low=(0.0,), high=(255.0,)),
        normalization=fit_training_normalization(sample.image for sample in samples),
        device=torch.device("cpu"),
    )


def _timed_step(fit: MemberFit, in_batches: list[float]) -> float:
    """Do a step, note how long its batch took, and return the batch's share of foreground."""
    seen = []

    def batch(step: int) -> tuple[Tensor, Tensor]:
        started = time.perf_counter()
        made = MemberFit.batch(fit, step)
        in_batches[0] += time.perf_counter() - started
        seen.append(made[1])
        return made

    fit.batch = batch  # type: ignore[method-assign]
    fit.train_step()
    return _foreground(seen[0])


def _steps(workload: Workload, batches: Batches, layout: torch.memory_format) -> Callable[[], None]:
    """Return a plain training step."""
    network: nn.Module = build_network(workload.network, channels=1, classes=2, seed=0)[0]
    network.to(memory_format=layout).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-3)
    loss = create_loss("ce_plus_dice", num_classes=2)

    def step() -> None:
        images, targets = next(batches)
        value = loss(network(images.contiguous(memory_format=layout)), targets)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def _watched(batches: Batches, shares: list[float]) -> Batches:
    for images, targets in batches:
        shares.append(_foreground(targets))
        yield images, targets


def _foreground(targets: Tensor) -> float:
    return float((targets == 1).float().mean())


def report(result: Result, *, rounds: int, machine: Machine, other: float) -> str:
    """Return the whole text."""
    conditions = f"""\
{machine}. float32. {rounds} interleaved rounds after one that does not count; medians of wall time,
ratios are medians of the ratios within a round. Other processes used {other:.0%} of the time of all
cores."""
    return "\n\n".join(["# Training steps", conditions, READING, result.to_markdown()])


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny network; write nothing")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per contender")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine, other = describe_machine("albumentations"), OtherWork()
    result = measure(TINY if arguments.quick else LITE, arguments.rounds)
    share = other.share()
    text = report(result, rounds=arguments.rounds, machine=machine, other=share)
    print(text)
    if not arguments.quick:
        data = {
            "machine": asdict(machine),
            "other_work_share": share,
            "rounds": arguments.rounds,
            **result.to_json(),
        }
        write_results("training", text, data)


if __name__ == "__main__":
    main()
