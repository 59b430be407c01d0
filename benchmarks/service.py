"""Put servers of the same ensemble under load: df2serve, BentoML's and LitServe's first steps.

All of them run side by side, each idle while another one is asked, and the rounds are interleaved.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import tifffile
import torch
from _images import micrographs
from _load import at_once, open_loop, quantile
from _servers import CONTENDERS, OURS, Server, started
from _timing import OtherWork, describe_machine, markdown_table, write_results

from df2serve import Predictor
from df2serve.artifact import Ensemble, save_ensemble
from df2serve.config import preset
from df2serve.core.normalize import affine_of, fit_training_normalization
from df2serve.io import open_image
from df2serve.testing import tiny_network
from df2serve.testing._fitting import fit_folds
from df2serve.testing.ensembles import manifest_fields
from df2serve.writers import ResultFolder

SEED = 7
OFFLINE = "offline, `Predictor` and `ResultFolder`"
READING = """\
Every server has one and the same ensemble and predicts with df2serve's own `Predictor`, so that
what differs is the serving. Images are uncompressed TIFF; df2serve answers with the mask as TIFF,
the others as PNG. Of two workers each has half of the cores. All of them, and the offline run, ask
for huge pages, as our workers do. bioimageio.core's Gradio server cannot be installed beside them.
Latencies count from the moment at which a request was to be sent."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    members: int
    tile: int
    rounds: int
    """Interleaved rounds of throughput and of single requests."""
    single: tuple[int, ...]
    """Sides of images that are asked for one by one."""
    small: int
    """Side of images that arrive in time."""
    mix: Mapping[tuple[int, int], int]
    """Shapes of mixed images, and how many there are of each."""
    arrivals: int
    """Requests that arrive in time."""
    huge: int
    """Side of the image beside which small ones are asked for."""
    beside: int
    """Small ones beside it."""
    many: int
    """Requests over which the memory is watched."""
    starts: int
    """Cold starts."""
    steps: int
    """Steps for which networks are fitted."""
    encoder: str | None
    """Encoder of the five members of cold starts; tiny networks when absent."""


FULL = Plan(
    members=1,
    tile=512,
    rounds=5,
    single=(1024, 1448),
    small=512,
    mix={(512, 512): 28, (1024, 1280): 10, (2048, 2048): 2},
    arrivals=300,
    huge=6144,
    beside=40,
    many=1000,
    starts=3,
    steps=100,
    encoder="tu-tf_efficientnet_lite0",
)
QUICK = Plan(
    members=1,
    tile=64,
    rounds=1,
    single=(128,),
    small=64,
    mix={(64, 64): 4, (128, 160): 1},
    arrivals=5,
    huge=512,
    beside=3,
    many=20,
    starts=1,
    steps=3,
    encoder=None,
)


@dataclass
class Result:
    """What was measured of one server, in seconds unless said otherwise."""

    single: dict[int, list[float]] = field(default_factory=dict)
    """Requests one by one, by the side of the image."""
    overhead: dict[int, list[float]] = field(default_factory=dict)
    """The same without what the server says it computed."""
    phases: dict[str, list[float]] = field(default_factory=dict)
    """Of the smallest of them, as the server says."""
    mixed: list[float] = field(default_factory=list)
    """All mixed images, four at a time."""
    even: list[float] = field(default_factory=list)
    """Equal images at even distances, at 70 % of the offline throughput."""
    random: list[float] = field(default_factory=list)
    """The same at random distances."""
    alone: list[float] = field(default_factory=list)
    """Small images, one by one."""
    beside: list[float] = field(default_factory=list)
    """Small images beside a huge one."""
    memory_mib: list[float] = field(default_factory=list)
    """Before, and after every tenth of many requests."""


def image_of(height: int, width: int) -> bytes:
    """Return a TIFF made of micrographs."""
    pixels = next(micrographs()).image[0]
    repeats = (-(-height // pixels.shape[0]), -(-width // pixels.shape[1]))
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.tile(pixels, repeats)[:height, :width])
    return stream.getvalue()


def ensemble_of(folder: Path, plan: Plan, *, cold: bool = False) -> Ensemble:
    """Write the ensemble of all servers, which has one view, or the one of cold starts."""
    torch.manual_seed(0)
    fields = manifest_fields(channels=1, classes=2, tile=plan.tile)
    if cold and plan.encoder:
        networks = [
            smp.Unet(plan.encoder, encoder_weights=None, in_channels=1, classes=2).eval()
            for _ in range(5)
        ]
        return save_ensemble(folder, fields, networks, files={})
    fields["inference"] = preset("accurate").updated(views=1).model_dump(mode="json")
    samples = list(islice(micrographs(), 4))
    networks = [tiny_network(seed, channels=1, classes=2) for seed in range(max(2, plan.members))]
    normalization = fit_training_normalization(sample.image for sample in samples)
    affine = affine_of(normalization, samples[0].image)
    # noise, which untrained networks give, takes several times as long to compress as masks do
    fit_folds(
        networks,
        np.stack([np.moveaxis(affine(sample.image), 0, -1) for sample in samples]),
        np.stack([sample.mask for sample in samples]).astype(np.int64),
        steps=plan.steps,
        seed=SEED,
        vary=False,
    )
    fields["normalization"] = normalization.model_dump(mode="json")
    return save_ensemble(folder, fields, networks[: plan.members], files={})


class Offline:
    """The same predictions without a server: files in, masks out."""

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        """Take a predictor that is open."""
        self.predictor = predictor
        self._folder = folder
        self._runs = 0

    def seconds(self, images: Sequence[bytes]) -> float:
        """Return how long images take."""
        self._runs += 1
        place = self._folder / str(self._runs)
        place.mkdir(parents=True)
        paths = [place / f"{number}.tif" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            path.write_bytes(image)
        results = ResultFolder(
            place / "results", self.predictor.ensemble, self.predictor.config, kinds={"mask"}
        )
        began = time.perf_counter()
        for outcome in self.predictor.predict_many(paths, consume=results.write, opener=open_image):
            if outcome.error is not None:
                raise outcome.error
        return time.perf_counter() - began


def measure(
    servers: Sequence[Server], offline: Offline, plan: Plan
) -> tuple[dict[str, Result], dict[str, list[float]]]:
    """Return what the servers do, and the seconds of offline predictions."""
    results = {server.contender.name: Result() for server in servers}
    small = image_of(plan.small, plan.small)
    mix = [image_of(*shape) for shape, count in plan.mix.items() for _ in range(count)]
    random.Random(SEED).shuffle(mix)
    for server in servers:
        server.ask(small)
    offline.seconds([small])

    took: dict[str, list[float]] = {"mixed": [], **{str(side): [] for side in plan.single}}
    for _ in range(plan.rounds):
        took["mixed"].append(offline.seconds(mix))
        for server in servers:
            began = time.perf_counter()
            at_once(server, mix, count=4)
            results[server.contender.name].mixed.append(time.perf_counter() - began)
        for side in plan.single:
            image = image_of(side, side)
            took[str(side)].append(offline.seconds([image]))
            for server in servers:
                _ask_one(server, image, side, results[server.contender.name])

    per_image = offline.seconds([small] * 20) / 20
    for server in servers:
        result = results[server.contender.name]
        _arrive(server, small, per_image / 0.7, plan, result)
        _beside(server, small, plan, result)
    for server in servers[:1]:
        _watch_memory(server, small, plan, results[server.contender.name])
    return results, took


def _ask_one(server: Server, image: bytes, side: int, result: Result) -> None:
    """Ask for an image that nobody waits beside."""
    seconds, headers = server.ask_plainly(image)
    result.single.setdefault(side, []).append(seconds)
    if "server-timing" in headers:
        parts = (part.split(";dur=") for part in headers["server-timing"].split(", "))
        phases = {name: float(milliseconds) / 1e3 for name, milliseconds in parts}
        result.overhead.setdefault(side, []).append(seconds - phases["infer"])
        if side == min(result.single):
            phases["rest"] = seconds - sum(phases.values())
            for name, value in phases.items():
                result.phases.setdefault(name, []).append(value)


def _arrive(server: Server, image: bytes, gap: float, plan: Plan, result: Result) -> None:
    """Let equal images arrive at even and at random distances of the same mean."""
    images = [image] * plan.arrivals
    even = [gap] * plan.arrivals
    generator = random.Random(SEED)
    uneven = [generator.expovariate(1 / gap) for _ in images]
    result.even = [request.seconds for request in open_loop(server, images, even)]
    result.random = [request.seconds for request in open_loop(server, images, uneven)]


def _beside(server: Server, image: bytes, plan: Plan, result: Result) -> None:
    """Ask for small images while a huge one is computed."""
    for _ in range(plan.beside):
        began = time.perf_counter()
        server.ask(image)
        result.alone.append(time.perf_counter() - began)
    ended: list[float] = []

    def predict_huge() -> None:
        server.ask(image_of(plan.huge, plan.huge))
        ended.append(time.perf_counter())

    thread = threading.Thread(target=predict_huge)
    thread.start()
    time.sleep(5 * statistics.median(result.alone))
    began = time.perf_counter()
    gaps = [4 * statistics.median(result.alone)] * plan.beside
    requests = open_loop(server, [image] * plan.beside, gaps)
    thread.join()
    # those that came when it was done already tell nothing
    result.beside = [each.seconds for each in requests if began + each.due < ended[0]]


def _watch_memory(server: Server, image: bytes, plan: Plan, result: Result) -> None:
    """Send many requests; the first tenth only warms up."""
    part = plan.many // 10
    for _ in range(11):
        at_once(server, [image] * part, count=2)
        result.memory_mib.append(server.memory_mib())


def cold_starts(ensemble: Path, plan: Plan) -> list[float]:
    """Return the seconds from the start of our server until it is ready."""
    seconds = []
    for _ in range(plan.starts):
        with started(OURS, ensemble) as server:
            seconds.append(server.seconds_to_ready)
    return seconds


def report(
    results: Mapping[str, Result],
    offline: Mapping[str, Sequence[float]],
    starts: Sequence[float],
    plan: Plan,
) -> str:
    """Return all tables."""
    one = min(plan.single)
    names = [f"{one} x {one}, median ms", "over offline, ms"]
    header = (
        "server",
        *names,
        "mixed sizes, share of the offline throughput",
        "p99 / p50, even arrivals",
        "p99 / p50, random arrivals",
        "small beside huge, p99 / alone",
    )
    rows = [
        (
            name,
            f"{1e3 * statistics.median(each.single[one]):.0f}",
            f"{1e3 * _median_difference(each.single[one], offline[str(one)]):+.0f}",
            f"{_median_ratio(offline['mixed'], each.mixed):.0%}",
            f"{quantile(each.even, 0.99) / quantile(each.even, 0.5):.2f}",
            f"{quantile(each.random, 0.99) / quantile(each.random, 0.5):.2f}",
            f"{quantile(each.beside, 0.99) / statistics.median(each.alone):.1f}"
            if each.beside
            else "",
        )
        for name, each in results.items()
    ]
    ours = results[OURS.name]
    overheads = [
        (f"{side} x {side}", f"{1e3 * statistics.median(seconds):.1f}")
        for side, seconds in ours.overhead.items()
    ]
    phases = [
        (name, f"{1e3 * statistics.median(seconds):.1f}") for name, seconds in ours.phases.items()
    ]
    before, after = ours.memory_mib[0], ours.memory_mib[-1]
    return "\n\n".join(
        (
            "## Servers side by side",
            f"{OFFLINE}: {1e3 * statistics.median(offline[str(one)]):.0f} ms for the single image.",
            markdown_table(header, rows),
            "## A request to df2serve beside its computation",
            markdown_table(("image", "median ms"), overheads),
            f"Of the {one} x {one} pixels:",
            markdown_table(("phase", "median ms"), phases),
            "## Memory and start",
            f"Over {plan.many} requests, memory of all processes went from {before:.0f} to "
            f"{after:.0f} MiB ({after / before - 1:+.1%}). From the start of the process to ready "
            f"with five members: {', '.join(f'{each:.1f}' for each in starts)} s.",
        )
    )


def _median_ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def _median_difference(mine: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a - b for a, b in zip(mine, theirs, strict=True))


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few small images; write nothing")
    arguments = parser.parse_args()
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    plan = QUICK if arguments.quick else FULL
    machine, other = describe_machine("bentoml", "litserve", "uvicorn"), OtherWork()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        ensemble = ensemble_of(root / "ensemble", plan)
        ensemble_of(root / "cold", plan, cold=True)
        starts = cold_starts(root / "cold", plan)
        servers = [
            stack.enter_context(started(contender, root / "ensemble")) for contender in CONTENDERS
        ]
        predictor = stack.enter_context(Predictor(ensemble))
        results, offline = measure(servers, Offline(predictor, root / "offline"), plan)
    text = "\n\n".join(
        ("# Serving", f"{machine}.", READING, report(results, offline, starts, plan))
    )
    print(text)
    if not arguments.quick:
        data = {
            "machine": asdict(machine),
            "other_work_share": other.share(),
            "plan": asdict(plan) | {"mix": {f"{h} x {w}": n for (h, w), n in plan.mix.items()}},
            "offline": offline,
            "cold_starts": starts,
            "results": {name: asdict(result) for name, result in results.items()},
        }
        write_results("service", text, data)


if __name__ == "__main__":
    main()
