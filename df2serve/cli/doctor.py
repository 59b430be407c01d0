"""``df2serve doctor``."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from packaging.requirements import Requirement

from df2serve._version import __version__
from df2serve.cli._terminal import AsJson, print_json, print_table

if TYPE_CHECKING:
    from df2serve.artifact import Ensemble
    from df2serve.config import Precision

__all__ = ["doctor"]

_ROUNDS = 5
_ENCODER = "resnet18"
_TILE = 256


def doctor(
    ensemble: Annotated[
        str | None, typer.Argument(help="Ensemble to measure; a small U-Net when absent.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Tell what this machine can do: devices, speed, and what is not installed."""
    from df2serve.artifact import load_ensemble

    with tempfile.TemporaryDirectory() as folder:
        opened = _small_ensemble(Path(folder)) if ensemble is None else load_ensemble(ensemble)
        speeds = list(_speeds(opened))
        subject = opened.manifest.name
    facts = _facts()
    missing = _missing_packages()
    if as_json:
        print_json({"system": facts, "speed": speeds, "network": subject, "missing": missing})
        return
    for key, value in facts.items():
        typer.echo(f"{key:<12}  {value}")
    typer.echo(f"\nspeed of one member of: {subject}")
    print_table([{key: str(value) for key, value in row.items()} for row in speeds])
    typer.echo("")
    for extra, packages in missing.items():
        typer.echo(f"not installed: {', '.join(packages)}; pip install 'df2serve[{extra}]'")
    if not missing:
        typer.echo("every optional package is installed")


def _facts() -> dict[str, Any]:
    import torch

    from df2serve.backends.torch import choose_device, choose_precision

    device = choose_device("auto")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "df2serve": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "gpus": ", ".join(gpus) or "none that torch can use",
        "auto device": str(device),
        "auto type": choose_precision(device, "auto"),
        "onnxruntime": _onnx_providers(),
    }


def _onnx_providers() -> str:
    try:
        import onnxruntime
    except ImportError:
        return "not installed"
    return f"{onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"


def _small_ensemble(folder: Path) -> Ensemble:
    from df2serve.artifact import create_network, save_ensemble
    from df2serve.testing.ensembles import manifest_fields

    fields = manifest_fields(channels=1, classes=2, tile=_TILE)
    network = create_network(
        {
            "_model_class": "Unet",
            "encoder_name": _ENCODER,
            "encoder_weights": None,
            "in_channels": 1,
            "classes": 2,
        }
    )
    name = f"U-Net with {_ENCODER}, random weights"
    return save_ensemble(folder / "ensemble", fields | {"name": name}, [network], files={})


def _speeds(ensemble: Ensemble) -> Iterator[dict[str, Any]]:
    """Yield one row per backend and device that this machine has."""
    import torch

    from df2serve.errors import BackendUnavailableError

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    for backend in ("torch", "onnx"):
        for device in devices:
            try:
                yield _speed(ensemble, backend, device)
            except BackendUnavailableError as error:
                yield {"backend": backend, "device": device, "precision": "", "result": str(error)}


def _speed(ensemble: Ensemble, backend: str, device: str) -> dict[str, Any]:
    """Measure forward passes of one tile."""
    import numpy as np

    from df2serve.backends import open_members
    from df2serve.config import RuntimeConfig

    manifest = ensemble.manifest
    tiles = np.zeros((1, manifest.num_channels, *manifest.tile_shape), np.float32)
    runtime = RuntimeConfig().updated(backend=backend, device=device)
    precision: Precision = "fp32" if backend == "onnx" else "auto"
    with open_members(
        ensemble, runtime=runtime, precision=precision, tile_shape=manifest.tile_shape
    ) as members:
        seconds = []
        for _ in range(_ROUNDS + 1):
            started = time.perf_counter()
            members[0].run(tiles)
            seconds.append(time.perf_counter() - started)
        info = members[0].info
    typical = median(seconds[1:])
    height, width = manifest.tile_shape
    return {
        "backend": info.backend,
        "device": info.device,
        "precision": info.precision,
        "result": f"{typical * 1e3:.0f} ms per {height} x {width} tile, "
        f"{height * width / typical / 1e6:.1f} Mpx/s",
    }


def _missing_packages() -> dict[str, list[str]]:
    """Return the packages of each extra that are not installed here."""
    missing: dict[str, list[str]] = {}
    described = metadata("df2serve")
    needed = [Requirement(text) for text in described.get_all("Requires-Dist", ())]
    for extra in described.get_all("Provides-Extra", ()):
        for requirement in needed:
            marker = requirement.marker
            if extra == "all" or marker is None or not marker.evaluate({"extra": extra}):
                continue
            if _installed(requirement.name) is None:
                missing.setdefault(extra, []).append(requirement.name)
    return missing


def _installed(name: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
