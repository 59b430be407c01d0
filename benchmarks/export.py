"""Measure what exporting a five-member ensemble takes: time, memory, and sizes of the files.

Each export runs in a process of its own. The networks are U-Nets with EfficientNet-Lite0 encoders
and random weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from _timing import describe_machine, markdown_table, peak_mib, write_results

from df2serve import predict
from df2serve.artifact import Ensemble, GoldenTensors, load_ensemble, save_ensemble, with_files
from df2serve.export import Card, export_ensemble
from df2serve.export.card import Person
from df2serve.testing import FITTED_SCENE, generate_cells
from df2serve.testing.ensembles import manifest_fields

DESTINATIONS = {"torchscript": "ensemble.pt", "onnx": "ensemble.onnx", "bioimageio": "package.zip"}
TILE, QUICK_TILE = 256, 64
ENCODER = "tu-efficientnet_lite0"


@dataclass(frozen=True)
class Cost:
    """Of one export."""

    destination: str
    seconds: float
    """Wall time, comparisons with the ensemble included."""
    peak_mib: float
    """Largest resident memory of the process, libraries included."""
    file_mb: float
    deviation: float
    """Largest difference from the ensemble."""


def build(folder: Path, *, members: int, tile: int) -> Ensemble:
    """Write an ensemble with golden tensors of generated cells."""
    torch.manual_seed(0)
    networks = [
        smp.Unet(ENCODER, encoder_weights=None, in_channels=1, classes=2).eval()
        for _ in range(members)
    ]
    fields = manifest_fields(channels=1, classes=2, tile=tile)
    ensemble = save_ensemble(folder, fields, networks, files={})
    image = generate_cells(FITTED_SCENE, seed=0).image[:, :tile, :tile]
    found = predict(image, ensemble=ensemble, axes="CYX")
    golden = GoldenTensors(image=image, probs=found.probs, total=found.total)
    return with_files(ensemble, golden.to_files())


def export_and_measure(folder: Path, destination: str, target: Path) -> Cost:
    """Export in this process."""
    ensemble = load_ensemble(folder)
    card = Card(authors=(Person(name="Nobody"),), license="CC0-1.0", description="Random weights.")
    start = time.perf_counter()
    exported = export_ensemble(ensemble, target, destination, card=card)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    return Cost(
        destination=destination,
        seconds=seconds,
        peak_mib=peak_mib(),
        file_mb=exported.bytes / 1e6,
        deviation=max(one.largest for one in exported.deviations.values()),
    )


def measure(*, members: int, tile: int) -> list[Cost]:
    """Export to every destination, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        ensemble = build(Path(folder) / "ensemble", members=members, tile=tile)
        return [
            _in_child(ensemble.source, destination, Path(folder) / name)
            for destination, name in DESTINATIONS.items()
        ]


def report(costs: Sequence[Cost], *, members: int, tile: int, machine: str) -> str:
    """Return the results as Markdown."""
    rows = [
        [
            cost.destination,
            f"{cost.seconds:.0f}",
            f"{cost.peak_mib:.0f}",
            f"{cost.file_mb:.1f}",
            f"{cost.deviation:.1e}",
        ]
        for cost in costs
    ]
    header = ["export", "seconds", "peak MiB", "file MB", "largest deviation"]
    return (
        f"# Exports\n\n{members} U-Nets with {ENCODER} encoders, 4 views, tiles of {tile} pixels. "
        "The package holds all three formats of weights. Comparisons with the ensemble are "
        "included.\n\n"
        f"{markdown_table(header, rows)}\n\n{machine}.\n"
    )


def _in_child(ensemble: Path, destination: str, target: Path) -> Cost:
    command = [sys.executable, __file__, "--child", str(ensemble), destination, str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small member; write nothing")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        ensemble, destination, target = arguments.child
        print(json.dumps(asdict(export_and_measure(Path(ensemble), destination, Path(target)))))
        return
    members, tile = (1, QUICK_TILE) if arguments.quick else (5, TILE)
    costs = measure(members=members, tile=tile)
    machine = describe_machine("onnx", "onnxruntime-gpu", "bioimageio.core")
    text = report(costs, members=members, tile=tile, machine=str(machine))
    print(text)
    if not arguments.quick:
        data = {"machine": asdict(machine), "costs": [asdict(cost) for cost in costs]}
        write_results("export", text, data)


if __name__ == "__main__":
    main()
