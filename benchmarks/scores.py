"""Time what all scores of an image add to its prediction.

Without them the engine runs alone: no member masks, no statistics of the image, no sums over maps.
Both see the same tiles with the same networks; the rounds are interleaved.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import segmentation_models_pytorch as smp
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
from numpy.typing import NDArray
from torch import nn

from df2serve import Image, Predictor
from df2serve.artifact import save_ensemble
from df2serve.core.normalize import affine_of
from df2serve.core.tiling import plan_tiles
from df2serve.inference import engine as engine_module
from df2serve.testing import tiny_network
from df2serve.testing.ensembles import manifest_fields

SCORED, ALONE = "with all scores", "without scores"


@dataclass(frozen=True)
class Workload:
    """Which networks see which image."""

    title: str
    build: Callable[[int], nn.Module]
    """Makes a member of a seed, with one channel and two classes."""
    members: int
    side: int
    """Rows and columns of a tile."""
    size: int
    """Rows and columns of the image."""


def _lite(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, in_channels=1, classes=2)
    return network.eval()


def _tiny(seed: int) -> nn.Module:
    return tiny_network(seed, channels=1, classes=2)


WORKLOADS = (
    Workload("U-Net, EfficientNet-Lite0, 5 members", _lite, 5, 512, 1024),
    Workload("tiny U-Net, 5 members", _tiny, 5, 512, 1024),
)
QUICK = (Workload("tiny U-Net, 2 members", _tiny, 2, 128, 256),)


class _Nothing:
    """Takes what scores would take."""

    rows = 0

    def update(self, _part: NDArray[np.generic]) -> None:
        """Leave it."""


def _no_classes(*_: object) -> NDArray[np.uint8]:
    return np.zeros(0, dtype=np.uint8)


def predict_alone(predictor: Predictor, image: Image) -> None:
    """Take all bands of a prediction without any score."""
    plan = plan_tiles(image.shape[1:], predictor.tile_shape, predictor.config.grid)
    with patch.object(engine_module, "_classes_in", _no_classes):
        bands = predictor.engine.bands(
            image.data,
            shape=image.shape[1:],
            plan=plan,
            affine=affine_of(predictor.ensemble.manifest.normalization, image.data),
            tile_done=lambda _: None,
            gathered=engine_module.Gathered(_Nothing(), _Nothing()),
        )
        for _ in bands:
            pass


def predict_scored(predictor: Predictor, image: Image) -> None:
    """Take all bands of a prediction, and its scores."""
    stream = predictor.stream(image)
    for _ in stream:
        pass
    assert stream.summary.scores.one_minus_pairwise_dice is not None


def measure(workload: Workload, rounds: int) -> dict[str, Timing]:
    """Time both."""
    pixels = next(micrographs()).image[:, : workload.size, : workload.size]
    image = Image.from_array(pixels, axes="CYX")
    networks = [workload.build(seed) for seed in range(workload.members)]
    fields = manifest_fields(channels=1, classes=2, tile=workload.side)
    with tempfile.TemporaryDirectory() as folder:
        ensemble = save_ensemble(Path(folder) / "ensemble", fields, networks, files={})
        with Predictor(ensemble) as predictor:
            contenders = {
                ALONE: lambda: predict_alone(predictor, image),
                SCORED: lambda: predict_scored(predictor, image),
            }
            for run in contenders.values():
                run()
            return interleave(contenders, rounds=rounds)


def report(
    found: Sequence[tuple[Workload, dict[str, Timing]]],
    *,
    rounds: int,
    machine: Machine,
    other: float,
) -> str:
    """Return the whole text."""
    rows = []
    for workload, timings in found:
        scored, alone = timings[SCORED], timings[ALONE]
        rows.append(
            (
                workload.title,
                f"{workload.size} x {workload.size}",
                f"{alone.median_s:.2f} s",
                f"{scored.median_s:.2f} s",
                f"{scored.ratio_to(alone) - 1:+.1%}",
                f"{scored.cpu_ratio_to(alone) - 1:+.1%}",
            )
        )
    table = markdown_table(
        ("networks", "image", ALONE, SCORED, "more wall time", "more processor time"), rows
    )
    conditions = f"""\
{machine}. float32, preset accurate. {rounds} interleaved rounds after one that does not count;
medians of wall time, ratios are medians of the ratios within a round. Other processes used
{other:.0%} of the time of all cores."""
    return "\n\n".join(["# What all scores cost", conditions, table])


def main() -> None:
    """Measure all workloads, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small case; write nothing")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per contender")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores when absent")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    machine, other = describe_machine(), OtherWork()
    workloads = QUICK if arguments.quick else WORKLOADS
    found = [(workload, measure(workload, arguments.rounds)) for workload in workloads]
    share = other.share()
    text = report(found, rounds=arguments.rounds, machine=machine, other=share)
    print(text)
    if not arguments.quick:
        data = {
            "machine": asdict(machine),
            "other_work_share": share,
            "rounds": arguments.rounds,
            "results": [
                {
                    "networks": workload.title,
                    "size": workload.size,
                    "timings": {name: asdict(timing) for name, timing in timings.items()},
                }
                for workload, timings in found
            ],
        }
        write_results("scores", text, data)


if __name__ == "__main__":
    main()
