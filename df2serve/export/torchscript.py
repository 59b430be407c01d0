"""A whole ensemble as one TorchScript file: traced members in a scripted loop over tiles.

Members are traced, not scripted: scripting compiles the Python source of today's torch into the
file, with operators that the torch 2.0 in Fiji does not know.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from df2serve.errors import BackendUnavailableError, ExportError
from df2serve.export.parity import Case, Deviation, Run, measure
from df2serve.export.system import ExportSource

__all__ = ["EXTRA_FILE", "module_runner", "torchscript_bytes"]

EXTRA_FILE = "df2serve.json"
"""Extra file inside of the archive: what it is and how far it deviates from the ensemble."""


def torchscript_bytes(
    source: ExportSource, cases: list[Case], facts: dict[str, Any]
) -> tuple[bytes, Deviation]:
    """Return a TorchScript file and how far it deviates from the ensemble.

    Args:
        source: what is exported.
        cases: images with the ensemble's predictions by tiles.
        facts: what the file says about itself.

    Raises:
        ExportError: weights other than float32 are asked for.
        ParityError: the module does not compute what the ensemble computes.
        BackendUnavailableError: this torch has no TorchScript any more.
    """
    if source.settings.precision != "fp32":
        message = f"TorchScript files hold float32, got precision {source.settings.precision!r}"
        raise ExportError(message)
    buffer = io.BytesIO()
    with _torchscript():
        tile = torch.zeros(1, source.ensemble.manifest.num_channels, *source.tile_shape)
        trace: Any = torch.jit.trace
        traced = [trace(network, tile, check_trace=False) for network in source.networks]
        module = torch.jit.script(source.windowed(traced))
        torch.jit.save(module, buffer)
        buffer.seek(0)
        load: Any = torch.jit.load
        loaded = load(buffer, map_location="cpu")
        deviation = measure(module_runner(loaded), cases, source.settings.variant)
        deviation.require(source.settings.tolerance, "the TorchScript file")
        extra = json.dumps(facts | {"deviation": deviation.largest})
        written = io.BytesIO()
        torch.jit.save(module, written, _extra_files={EXTRA_FILE: extra})
    return written.getvalue(), deviation


def module_runner(module: torch.nn.Module) -> Run:
    """Return a module as a function of arrays."""

    def run(images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(images))
        single = isinstance(outputs, torch.Tensor)
        return [output.numpy() for output in ([outputs] if single else outputs)]

    return run


@contextmanager
def _torchscript() -> Iterator[None]:
    """Silence deprecation and tracer notices, and say what to do when TorchScript is gone."""
    if not all(hasattr(torch.jit, name) for name in ("trace", "script", "save", "load")):
        message = f"torch {torch.__version__} has no TorchScript any more; use an older torch"
        raise BackendUnavailableError(message)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
