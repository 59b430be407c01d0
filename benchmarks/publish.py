"""Measure what it takes to push an ensemble to a Hub and to pull it: bytes, time, memory.

The Hub is the tests' own one on loopback, so that times are those of reading, hashing, packing and
writing, not of a network.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import segmentation_models_pytorch as smp
import torch
from _timing import Machine, describe_machine, markdown_table, peak_mib, write_results
from torch import nn

from df2serve.artifact import load_ensemble, save_ensemble
from df2serve.testing.ensembles import manifest_fields, tiny_network

HUB = Path(__file__).parents[1] / "tests" / "publish" / "hub_server.py"
ADDRESS = "hf://lab/cells"
ENCODER = "tu-tf_efficientnet_lite0"
MEMBERS, QUICK_MEMBERS = 5, 2
TRANSFERS = ("lfs", "xet")
STEPS = ("first push", "push of the same", "push with one new member", "pull", "second pull")


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    transfer: str
    """How large files travel."""
    step: str
    moved_mb: float | None
    """Large files that reached or left the Hub, as it counts them; None where it cannot."""
    wall_s: float
    cpu_s: float
    """Processor time, which other work on the machine disturbs least."""
    beyond_mib: float
    """Largest resident memory beyond what the process had before."""


def serve_steps(folder: Path, place: Path) -> None:
    """Push and pull in this process, a step for every line that comes in."""
    from df2serve.publish import plan_push, pull, push

    ensembles = {name: load_ensemble(folder / name) for name in ("first", "second")}
    for step, _ in zip(STEPS, sys.stdin, strict=False):
        opened = ensembles["second" if step in STEPS[2:] else "first"]
        before = _reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        if "push" in step:
            with plan_push(opened, ADDRESS) as plan:
                push(plan)
        else:
            pull(ADDRESS, place / step)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found = {"wall_s": wall, "cpu_s": cpu, "beyond_mib": peak_mib() - before}
        print(json.dumps(found), flush=True)


def _reset_peak() -> float:
    """Forget the largest memory so far, where the system can, and return what is left, in MiB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def measure(*, members: int, quick: bool) -> tuple[list[Cost], float]:
    """Return the costs of all steps, and the size of the ensemble's weights in MB."""
    hub_server = _load(HUB)
    costs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        networks = [_network(seed, quick=quick) for seed in range(members + 1)]
        fields = manifest_fields(channels=1, classes=2, tile=64 if quick else 256)
        save_ensemble(folder / "first", fields, networks[:-1], files={})
        changed = [*networks[: members - 1], networks[-1]]
        second = save_ensemble(folder / "second", fields, changed, files={})
        for transfer in TRANSFERS:
            place = folder / transfer
            with hub_server.Hub(place).serving() as hub:
                costs += _steps(transfer, hub, hub_server.OWNER, folder, place)
        sizes = [
            second.manifest.files[f"{m.folder}/model.safetensors"] for m in second.manifest.members
        ]
        return costs, sum(entry.bytes for entry in sizes) / 1e6


def _steps(transfer: str, hub: Any, token: str, folder: Path, place: Path) -> list[Cost]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HOME": str(place / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": str(int(transfer == "lfs")),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, __file__, "--child", folder, place]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        costs = []
        for step in STEPS:
            before = _moved(transfer, hub)
            child.stdin.write("\n")
            child.stdin.flush()
            found = json.loads(child.stdout.readline())
            known = transfer == "lfs" or "push" in step
            moved = (_moved(transfer, hub) - before) / 1e6 if known else None
            costs.append(Cost(transfer=transfer, step=step, moved_mb=moved, **found))
    return costs


def _moved(transfer: str, hub: Any) -> int:
    """Return the bytes of large files that the Hub has seen; of chunks, those that it stores."""
    if transfer == "lfs":
        return int(hub.received + hub.sent)
    chunks = hub.store.cas.glob("xet/xorbs/xorbs/*")
    return sum(path.stat().st_size for path in chunks if path.suffix != ".tagset")


def report(costs: Sequence[Cost], machine: Machine, *, members: int, size_mb: float) -> str:
    """Return the table with what it needs to be read."""
    rows = [_row(cost) for step in STEPS for cost in costs if cost.step == step]
    header = ("step", "transfer", "moved, MB", "seconds", "processor, seconds", "memory, MiB")
    return f"""\
# Pushing and pulling an ensemble

{machine}.

{members} members with random weights, {size_mb:.0f} MB, to a Hub on the same machine
(`tests/publish/hub_server.py`): no network, but hashing, comparing and writing. The folder holds
the first member's weights twice, which over LFS travel twice at first, because the client sends
files side by side. Moved: large files that the Hub received or sent; of xet, by how much its store
of chunks grew, which only pushes show. Memory: largest resident memory beyond that before the step.
The machine did other work meanwhile, which lengthens seconds but hardly processor seconds.

{markdown_table(header, rows)}"""


def _row(cost: Cost) -> tuple[str, ...]:
    moved = "" if cost.moved_mb is None else f"{cost.moved_mb:.1f}"
    seconds = (f"{cost.wall_s:.1f}", f"{cost.cpu_s:.1f}")
    return (cost.step, cost.transfer, moved, *seconds, f"{cost.beyond_mib:.0f}")


def _network(seed: int, *, quick: bool) -> nn.Module:
    if quick:
        return tiny_network(seed, channels=1, classes=2)
    torch.manual_seed(seed)
    return smp.Unet(
        "tu-tf_efficientnet_lite0", encoder_weights=None, in_channels=1, classes=2
    ).eval()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two tiny members; write nothing")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        serve_steps(*map(Path, arguments.child))
        return
    members = QUICK_MEMBERS if arguments.quick else MEMBERS
    costs, size_mb = measure(members=members, quick=arguments.quick)
    machine = describe_machine("huggingface_hub", "hf-xet")
    text = report(costs, machine, members=members, size_mb=size_mb)
    print(text)
    if not arguments.quick:
        data = {"machine": asdict(machine), "costs": [asdict(cost) for cost in costs]}
        write_results("publish", text, data)


if __name__ == "__main__":
    main()
