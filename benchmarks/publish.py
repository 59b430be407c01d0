"""Measure what it takes to push an ensemble to a Hub and to pull it: bytes, time, memory.

The Hub is the tests' own one on loopback, so that times are those of reading, hashing, packing and
writing, not of a network. Each step runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
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
REPEATS = 3
TRANSFERS = ("lfs", "xet")
STEPS = ("first push", "push of the same", "push with one new member", "pull", "pull of the same")


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    transfer: str
    """How large files travel."""
    step: str
    moved_mb: float | None
    """Large files that reached or left the Hub, as it counts them; None where it cannot."""
    seconds: float
    beyond_mib: float
    """Largest resident memory beyond what libraries and the opened ensemble took."""


def run_step(step: str, ensemble: Path, target: Path) -> dict[str, float]:
    """Push or pull in this process."""
    from df2serve.publish import plan_push, pull, push

    opened = load_ensemble(ensemble)
    before, start = peak_mib(), time.perf_counter()
    if step.startswith("push") or step.startswith("first"):
        with plan_push(opened, ADDRESS) as plan:
            push(plan)
    else:
        pull(ADDRESS, target)
    return {"seconds": time.perf_counter() - start, "beyond_mib": peak_mib() - before}


def measure(*, members: int, repeats: int, quick: bool) -> tuple[list[Cost], float]:
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
        for repeat in range(repeats):
            for transfer in TRANSFERS:
                place = folder / f"{transfer}-{repeat}"
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
    costs = []
    for index, step in enumerate(STEPS):
        ensemble = folder / ("first" if index < 2 else "second")
        moved = _moved(transfer, hub)
        command = [sys.executable, __file__, "--child", step, ensemble, place / f"copy-{index}"]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        known = transfer == "lfs" or "push" in step
        costs.append(
            Cost(
                transfer=transfer,
                step=step,
                moved_mb=(_moved(transfer, hub) - moved) / 1e6 if known else None,
                **json.loads(done.stdout),
            )
        )
    return costs


def _moved(transfer: str, hub: Any) -> int:
    """Return the bytes of large files that the Hub has seen; of chunks, those that it stores."""
    if transfer == "lfs":
        return int(hub.received + hub.sent)
    chunks = hub.store.cas.glob("xet/xorbs/xorbs/*")
    return sum(path.stat().st_size for path in chunks if path.suffix != ".tagset")


def report(costs: Sequence[Cost], machine: Machine, *, members: int, size_mb: float) -> str:
    """Return the table with what it needs to be read."""
    rows = [
        (step, transfer, *_summary([c for c in costs if (c.step, c.transfer) == (step, transfer)]))
        for step in STEPS
        for transfer in TRANSFERS
    ]
    header = ("step", "transfer", "moved, MB", "seconds", "memory, MiB")
    return f"""\
# Pushing and pulling an ensemble

{machine}.

{members} members with random weights, {size_mb:.0f} MB of weights, to a Hub on the same machine
(`tests/publish/hub_server.py`): no network, but hashing, comparing and writing. The folder holds
the first member's weights twice, which travel once. Each step is a process of its own. Moved:
large files that the Hub received or sent; of xet, what its store of chunks grew by, which only
pushes show. Memory: largest resident memory beyond that of the libraries. Medians of repeated runs.

{markdown_table(header, rows)}"""


def _summary(costs: Sequence[Cost]) -> tuple[str, str, str]:
    moved = [cost.moved_mb for cost in costs if cost.moved_mb is not None]
    return (
        f"{statistics.median(moved):.1f}" if moved else "",
        f"{statistics.median(cost.seconds for cost in costs):.2f}",
        f"{statistics.median(cost.beyond_mib for cost in costs):.0f}",
    )


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
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        step, ensemble, target = arguments.child
        print(json.dumps(run_step(step, Path(ensemble), Path(target))))
        return
    members, repeats = (QUICK_MEMBERS, 1) if arguments.quick else (MEMBERS, REPEATS)
    costs, size_mb = measure(members=members, repeats=repeats, quick=arguments.quick)
    machine = describe_machine("huggingface_hub", "hf-xet")
    text = report(costs, machine, members=members, size_mb=size_mb)
    print(text)
    if not arguments.quick:
        data = {"machine": asdict(machine), "costs": [asdict(cost) for cost in costs]}
        write_results("publish", text, data)


if __name__ == "__main__":
    main()
