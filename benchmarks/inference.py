"""Time the prediction of one image by df2serve, by other libraries and by the networks alone.

All contenders have the same weights, tiles and views. The rounds are interleaved.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

os.environ["TQDM_DISABLE"] = "1"  # bioimageio.core would draw a bar for every view

import numpy as np
import segmentation_models_pytorch as smp
import torch
from _images import micrographs
from _peers import FLIPS, Case, CoreBlocks, monai_windows, naive_loop, network_alone
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
from torch import nn

from df2serve import Predictor, RuntimeConfig
from df2serve.artifact import save_ensemble
from df2serve.config import OverlapGrid, preset
from df2serve.core.tiling import plan_tiles
from df2serve.io import Image
from df2serve.testing import tiny_network
from df2serve.testing.ensembles import manifest_fields

MEMBERS = 2
MEAN, STD = 60.0, 40.0  # of manifest_fields
OURS, FAST = "df2serve, preset accurate", "df2serve, preset fast"
ALONE = "networks alone, as df2serve runs them"
AS_LOADED = "networks alone, as loaded"
PEERS = ("loop in the original's style", "MONAI sliding_window_inference", "bioimageio.core blocks")
READING = """\
All contenders use the same weights and views. The loop and MONAI have the tiles and the blending
weights of preset accurate; bioimageio.core has equally many blocks of the same size, keeps the
inner part of each and does not blend. df2serve and the loop give mask and uncertainty as well; the
other two are given them by two lines of torch. The last column compares probabilities with those of
preset accurate."""

Run = Callable[[], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Workload:
    """Which networks see which image."""

    title: str
    build: Callable[[], nn.Module]
    """Makes a member with random weights, one channel and two classes."""
    side: int
    """Rows and columns of a tile."""
    size: int
    """Rows and columns of the image."""


def _lite() -> nn.Module:
    network = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, in_channels=1, classes=2)
    return cast("nn.Module", network.eval())


def _tiny() -> nn.Module:
    return tiny_network(int(torch.randint(1 << 31, ())), channels=1, classes=2)


TINY = "Tiny U-Net, 0.2 million parameters"
LITE = "U-Net with EfficientNet-Lite0 encoder, 5.2 million parameters"
WORKLOADS = (
    Workload(TINY, _tiny, side=256, size=768),
    Workload(LITE, _lite, side=512, size=768),
)
QUICK = (Workload(TINY, _tiny, side=128, size=256),)


@dataclass(frozen=True, eq=False)
class Result:
    """One workload, measured."""

    workload: Workload
    source: str
    """What the image is."""
    forwards: Mapping[str, int]
    """Network inputs per contender: tiles times views times members."""
    deviations: Mapping[str, tuple[float, float]]
    """Largest and mean difference of probabilities from df2serve's per contender."""
    timings: Mapping[str, Timing]

    def to_markdown(self) -> str:
        """Return a heading, a sentence and the table."""
        work, ours, alone = self.workload, self.timings[OURS], self.timings[ALONE]
        rows = [
            (
                name,
                self.forwards[name],
                f"{timing.median_s:.2f}",
                f"{min(timing.wall_s):.2f} to {max(timing.wall_s):.2f}",
                f"{timing.ratio_to(alone):.2f}",
                f"{timing.cpu_ratio_to(alone):.2f}",
                f"{timing.ratio_to(ours):.2f}",
                "{:.1e} / {:.1e}".format(*self.deviations[name]) if name in self.deviations else "",
            )
            for name, timing in self.timings.items()
        ]
        header = (
            "contender",
            "network inputs",
            "median s",
            "range s",
            "over networks alone",
            "the same, processor time",
            "over df2serve",
            "max / mean abs difference",
        )
        return (
            f"## {work.title}\n\n"
            f"{MEMBERS} members, {len(FLIPS)} flips, image of {work.size} x {work.size} pixels "
            f"({self.source}), tiles of {work.side} x {work.side} with half overlap.\n\n"
            f"{markdown_table(header, rows)}"
        )

    def to_json(self) -> dict[str, object]:
        """Return everything measured."""
        return {
            "workload": self.workload.title,
            "image": self.source,
            "size": self.workload.size,
            "side": self.workload.side,
            "members": MEMBERS,
            "forwards": dict(self.forwards),
            "deviations": dict(self.deviations),
            "timings": {name: asdict(timing) for name, timing in self.timings.items()},
        }


def measure(workload: Workload, rounds: int) -> Result:
    """Run all contenders on one workload."""
    torch.manual_seed(0)
    networks = [workload.build() for _ in range(MEMBERS)]
    micrograph = next(micrographs())
    image = micrograph.image[:, : workload.size, : workload.size]
    with _contenders(workload, networks, image) as (runs, forwards):
        outputs = {name: run() for name, run in runs.items()}
        timings = interleave(runs, rounds=rounds)
    ours = outputs[OURS]
    assert ours is not None
    differences = {
        name: np.abs(probs - ours)
        for name, probs in outputs.items()
        if probs is not None and name != OURS
    }
    return Result(
        workload=workload,
        source=micrograph.name,
        forwards=forwards,
        deviations={name: (float(d.max()), float(d.mean())) for name, d in differences.items()},
        timings=timings,
    )


@contextmanager
def _contenders(
    workload: Workload, networks: list[nn.Module], image: NDArray[np.generic]
) -> Iterator[tuple[dict[str, Run], dict[str, int]]]:
    """Open all contenders; yield what runs them and how many network inputs each one needs."""
    side, size = workload.side, workload.size
    configs = {OURS: preset("accurate"), FAST: preset("fast")}
    plans = {
        name: plan_tiles((size, size), (side, side), config.grid)
        for name, config in configs.items()
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "ensemble"
        fields = manifest_fields(channels=1, classes=2, tile=side)
        ensemble = save_ensemble(folder, fields, networks, files={})
        ours = {
            name: stack.enter_context(
                Predictor(ensemble, config=config, runtime=RuntimeConfig(device="cpu"))
            )
            for name, config in configs.items()
        }
        grid = configs[OURS].grid
        assert isinstance(grid, OverlapGrid)
        case = Case(
            networks=networks,
            image=image,
            mean=MEAN,
            std=STD,
            plan=plans[OURS],
            overlap=grid.overlap,
            sigma=configs[OURS].window_sigma,
            batch=ours[OURS].engine.batch_size,
        )
        channels_last = [
            copy.deepcopy(each).to(memory_format=torch.channels_last) for each in networks
        ]
        opened = Image.from_array(image, axes="CYX")
        runs: dict[str, Run] = {
            ALONE: lambda: network_alone(case, channels_last, torch.channels_last),
            AS_LOADED: lambda: network_alone(case, networks, torch.contiguous_format),
            OURS: lambda: ours[OURS].predict(opened).probs,
            FAST: lambda: ours[FAST].predict(opened).probs,
        }
        core = stack.enter_context(CoreBlocks.opened(case))
        peers: tuple[Run, ...] = (lambda: naive_loop(case), lambda: monai_windows(case), core)
        runs |= dict(zip(PEERS, peers, strict=True))
        passes = len(FLIPS) * len(networks)
        forwards = {name: passes * len(plans[FAST if name == FAST else OURS]) for name in runs}
        yield runs, forwards


def report(results: Sequence[Result], *, rounds: int, machine: Machine, other: float) -> str:
    """Return the whole text."""
    conditions = f"""\
{machine}. float32. {rounds} interleaved rounds after one that does not count; medians of wall time,
ratios are medians of the ratios within a round. Other processes used {other:.0%} of the time of all
cores."""
    return "\n\n".join(
        ["# Predicting one image", conditions, READING, *(each.to_markdown() for each in results)]
    )


def main() -> None:
    """Measure all workloads, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small case; write nothing")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per contender")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores when absent")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    machine, other = describe_machine("monai", "bioimageio.core"), OtherWork()
    workloads = QUICK if arguments.quick else WORKLOADS
    results = [measure(workload, arguments.rounds) for workload in workloads]
    share = other.share()
    text = report(results, rounds=arguments.rounds, machine=machine, other=share)
    print(text)
    if not arguments.quick:
        data = {
            "machine": asdict(machine),
            "other_work_share": share,
            "rounds": arguments.rounds,
            "results": [result.to_json() for result in results],
        }
        write_results("inference", text, data)


if __name__ == "__main__":
    main()
