"""Compare ways to divide masks of nuclei into objects: how well, how fast, in how much memory.

Every way is given what is foreground in the truth and nothing else, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _cyto import write_cyto
from _images import DATA
from _timing import Machine, describe_machine, markdown_table, peak_mib, write_results
from numpy.typing import NDArray
from scipy import ndimage

from df2serve.backends.cellpose import Cellpose
from df2serve.config import InstanceConfig
from df2serve.core.instances import Instances, find_instances
from df2serve.core.metrics import label_components, match_instances
from df2serve.io import read_mask
from df2serve.types import AnyLabels

FOREIGN = Path(__file__).parents[1] / ".venv/foreign"
LABELS = DATA / "dsb2018_fluo/labels"
IMAGES, SEED = 12, 0
THRESHOLDS = (0.5, 0.75)
WAYS = COMPONENTS, WATERSHED, CELLPOSE, UNCHECKED = (
    "components",
    "watershed",
    "cellpose",
    "cellpose, any flows",
)
BLUR = 1.5
"""Standard deviation in pixels."""


@dataclass(frozen=True)
class Scored:
    """What became of one image."""

    name: str
    pixels: int
    inside_px: int
    """Pixels of the mask."""
    true: int
    """Objects in the truth."""
    found: int
    """Objects found."""
    removed_px: int
    """Pixels of the mask that belong to none."""
    ap: tuple[float, ...]
    """AP at each of :data:`THRESHOLDS`."""
    cpu_s: float
    """Processor time."""


@dataclass(frozen=True)
class Run:
    """What became of all images in one process."""

    way: str
    images: tuple[Scored, ...]
    before: float
    """Largest resident memory before the first image, without cellpose and its network, in MiB."""
    peak: float
    """Largest resident memory at the end, in MiB."""


def chosen_files(count: int) -> list[Path]:
    """Return the label images that are compared."""
    return sorted(random.Random(SEED).sample(sorted(LABELS.glob("*.tif")), count))


def median_diameter(labels: AnyLabels) -> float:
    """Return the diameter of the disk with the median area of the objects, in pixels."""
    areas = np.bincount(labels.ravel())[1:]
    return 2 * math.sqrt(float(np.median(areas[areas > 0])) / math.pi)


def divide_all(way: str, weights: Path, count: int) -> Run:
    """Divide the images in this process."""
    torch.set_num_threads(1)
    before = peak_mib()
    images = []
    for path in chosen_files(count):
        images.append(_score(path, way, weights))
        print(way, images[-1], file=sys.stderr)
    return Run(way=way, images=tuple(images), before=before, peak=peak_mib())


def _score(path: Path, way: str, weights: Path) -> Scored:
    truth = read_mask(path, kind="instances").labels
    inside = truth > 0
    divide = _divider(way, inside, weights)
    start = time.process_time()
    found = divide(inside.astype(np.uint8))
    seconds = time.process_time() - start
    matches = match_instances(truth, found.labels, thresholds=THRESHOLDS)
    return Scored(
        name=path.stem,
        pixels=truth.size,
        inside_px=int(inside.sum()),
        true=len(np.unique(truth)) - 1,
        found=len(found),
        removed_px=found.removed_px,
        ap=tuple(counts.average_precision or 0.0 for counts in matches),
        cpu_s=seconds,
    )


def _divider(
    way: str, inside: NDArray[np.bool_], weights: Path
) -> Callable[[NDArray[np.uint8]], Instances]:
    """Return what divides a mask, with its network loaded."""
    if way == COMPONENTS:
        return partial(find_instances, config=InstanceConfig(method="components"))
    if way == WATERSHED:
        return partial(find_instances, config=InstanceConfig(method="watershed"))
    network = Cellpose(
        weights,
        diameter=median_diameter(label_components(inside)),
        flow_threshold=0.0 if way == UNCHECKED else 0.4,
        device="cpu",
    )
    probability = ndimage.gaussian_filter(inside.astype(np.float32), BLUR)
    return partial(
        find_instances,
        config=InstanceConfig(method="cellpose", cellpose=network.config),
        divide=lambda _, inside: network.divide(probability, inside),
    )


def measure(ways: Sequence[str], count: int) -> list[Run]:
    """Divide in all ways, each in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "cyto"
        write_cyto(FOREIGN / "cyto/cellpose/models/cyto_0", weights)
        return [_in_child(way, weights, count) for way in ways]


def _in_child(way: str, weights: Path, count: int) -> Run:
    command = [sys.executable, __file__, "--child", way, str(weights), str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    images = tuple(Scored(**image | {"ap": tuple(image["ap"])}) for image in found.pop("images"))
    return Run(images=images, **found)


def report(runs: Sequence[Run], machine: Machine) -> str:
    """Return the table with what it needs to be read."""
    watershed = next(run for run in runs if run.way == WATERSHED)
    images = watershed.images
    megapixels = sum(image.pixels for image in images) / 1e6
    header = (
        "method",
        *(f"AP at {threshold}" for threshold in THRESHOLDS),
        "difference from watershed at 0.5",
        "at 0.75",
        "objects",
        "pixels without object, %",
        "processor s per Mpx",
        "MiB",
    )
    rows = [
        (
            run.way,
            *(f"{_ap(run, index).mean():.3f}" for index in range(len(THRESHOLDS))),
            *(_difference(run, watershed, index) for index in range(len(THRESHOLDS))),
            sum(image.found for image in run.images),
            f"{_share_left_out(run):.2f}",
            f"{sum(image.cpu_s for image in run.images) / megapixels:.2f}",
            f"{run.peak - run.before:.0f}",
        )
        for run in runs
    ]
    true = sum(image.true for image in images)
    return f"""\
# Masks divided into objects

{machine}.

{len(images)} images of nuclei of `dsb2018_fluo`, drawn with seed {SEED}: {megapixels:.1f}
megapixels, {true} objects. Each method is given the mask of all objects alone, which is free of
errors, and keeps objects of any size. AP is TP / (TP + FP + FN), its mean over images; differences
with 95 % bootstrap intervals over images. Watershed: on the Euclidean distance. Cellpose: the
network `cyto` of cellpose 0.0.1.6 in cellpose 3, given the mask blurred by {BLUR} pixels, because
probabilities have no hard edges and objects of hard edges fail its check of flows, and the median
diameter of the image's connected components; with and without this check. One thread. Memory:
largest resident, beyond the {watershed.before:.0f} MiB of Python with torch and df2serve.

{markdown_table(header, rows)}"""


def _ap(run: Run, index: int) -> NDArray[np.float64]:
    return np.array([image.ap[index] for image in run.images])


def _difference(run: Run, watershed: Run, index: int) -> str:
    if run is watershed:
        return ""
    each = _ap(run, index) - _ap(watershed, index)
    draws = np.random.default_rng(SEED).choice(each, (10_000, each.size)).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{each.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def _share_left_out(run: Run) -> float:
    """Return the share of pixels of the masks without an object, in percent."""
    inside = sum(image.inside_px for image in run.images)
    return 100 * sum(image.removed_px for image in run.images) / inside


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two images; write nothing")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not LABELS.is_dir():
        print(f"no {LABELS}: these images are the only ones that this benchmark knows")
        return
    sys.path.insert(0, str(FOREIGN / "cellpose3"))
    if arguments.child:
        way, weights, count = arguments.child
        print(json.dumps(asdict(divide_all(way, Path(weights), int(count)))))
        return
    runs = measure(WAYS, 2 if arguments.quick else IMAGES)
    machine = describe_machine("cellpose", "scikit-image")
    text = report(runs, machine)
    print(text)
    if not arguments.quick:
        data = {"machine": asdict(machine), "runs": [asdict(run) for run in runs]}
        write_results("instances", text, data)


if __name__ == "__main__":
    main()
