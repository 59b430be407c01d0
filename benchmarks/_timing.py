"""What the benchmarks share: rounds, memory, the machine in words, results as files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

__all__ = [
    "Machine",
    "OtherWork",
    "Timing",
    "describe_machine",
    "interleave",
    "markdown_table",
    "peak_mib",
    "write_results",
]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """One contender's rounds, in seconds; the first element of every contender is one round."""

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    """Processor time of all threads: what other work on the machine disturbs least."""

    @property
    def median_s(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall_s)

    def ratio_to(self, other: Timing) -> float:
        """Return the median over rounds of the ratio of wall times within the round."""
        return _median_ratio(self.wall_s, other.wall_s)

    def cpu_ratio_to(self, other: Timing) -> float:
        """Return the median over rounds of the ratio of processor times within the round."""
        return _median_ratio(self.cpu_s, other.cpu_s)


@dataclass(frozen=True)
class Machine:
    """Where and with what a benchmark ran."""

    processor: str
    instructions: str
    """Widest vector instructions that torch uses."""
    cores: int
    torch_threads: int
    memory_gib: float
    system: str
    versions: Mapping[str, str]

    def __str__(self) -> str:
        """Return one sentence."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.processor}, {self.cores} cores ({self.instructions}), {self.torch_threads} "
            f"torch threads, {self.memory_gib:.0f} GiB, {self.system}; {versions}"
        )


def describe_machine(*packages: str) -> Machine:
    """Return the machine and the versions of packages beside Python, torch and numpy."""
    versions = {name: version(name) for name in ("torch", "numpy", *packages)}
    return Machine(
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count() or 1,
        torch_threads=torch.get_num_threads(),
        memory_gib=psutil.virtual_memory().total / 2**30,
        system=platform.system(),
        versions={"Python": platform.python_version(), **versions},
    )


class OtherWork:
    """How busy other processes keep the machine, from the making of this object on."""

    def __init__(self) -> None:
        """Start to count."""
        self._started = self._counters()

    def share(self) -> float:
        """Return the share of all cores' time that other processes have used, in [0, 1]."""
        busy, own, total = (
            now - then for now, then in zip(self._counters(), self._started, strict=True)
        )
        return max(0.0, busy - own) / total

    @staticmethod
    def _counters() -> tuple[float, float, float]:
        """Return the time of all cores that was busy, our own share of it, and all of it."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        own = psutil.Process().cpu_times()
        # guest time is part of user time
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - idle, own.user + own.system, total


def interleave(contenders: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, Timing]:
    """Run contenders in turns, A B C A B C ...; each should have run once before.

    A drift of the machine then meets all contenders alike, and ratios are taken within a round.

    Args:
        contenders: what to run, by name.
        rounds: how often each one is timed.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Timing(wall_s=tuple(w for w, _ in pairs), cpu_s=tuple(c for _, c in pairs))
        for name, pairs in seconds.items()
    }


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_results(name: str, text: str, data: Mapping[str, object]) -> None:
    """Write ``results/<name>.md`` and ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def peak_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _median_ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
