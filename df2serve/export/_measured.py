"""What a TorchScript file costs: time and memory of a fresh process that runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from df2serve.errors import BackendError

__all__ = ["Cost", "measure_cost"]

_PROGRAM = """
import json, sys, time, warnings
import numpy as np, psutil, torch
warnings.simplefilter("ignore")
image = torch.from_numpy(np.load(sys.argv[2]))
torch.jit.set_fusion_strategy([])
module = torch.jit.load(sys.argv[1], map_location="cpu")
with torch.inference_mode():
    module(image)
    start = time.perf_counter()
    module(image)
    seconds = time.perf_counter() - start
memory = psutil.Process().memory_info()
if sys.platform == "win32":
    peak = memory.peak_wset
else:
    import resource
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "threads": torch.get_num_threads()}))
"""


@dataclass(frozen=True)
class Cost:
    """Of one image of one tile, on this machine's processor."""

    seconds: float
    """Wall-clock time of the second run."""
    peak_bytes: int
    """Largest resident memory of the process, PyTorch included."""
    threads: int


def measure_cost(module: Path, image: Path) -> Cost:
    """Run a TorchScript file on an array in a process of its own.

    Args:
        module: the TorchScript file.
        image: NPY file, axes (N, C, Y, X).

    Raises:
        BackendError: the process failed.
    """
    command = [sys.executable, "-c", _PROGRAM, str(module), str(image)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        message = (
            f"the exported file does not run in a process of its own: {finished.stderr[-400:]}"
        )
        raise BackendError(message)
    return Cost(**json.loads(finished.stdout.splitlines()[-1]))
