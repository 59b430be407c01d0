"""The benchmarks run, and what they compare is the same computation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_quick(name: str, *options: str) -> str:
    command = [sys.executable, BENCHMARKS / name, "--quick", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_peers_on_the_same_tiles_give_the_same_probabilities():
    pytest.importorskip("monai", reason="the benchmarks' libraries are not installed")
    text = run_quick("inference.py", "--rounds", "1", "--threads", "1")
    largest = dict(re.findall(r"^\| ([^|]+) \|.* ([\d.e+-]+) / [\d.e+-]+ \|$", text, re.MULTILINE))
    assert float(largest["loop in the original's style"]) < 1e-5
    assert float(largest["MONAI sliding_window_inference"]) < 1e-5
    assert float(largest["bioimageio.core blocks"]) < 0.5


@pytest.mark.slow
def test_memory_table_has_a_row_per_height():
    rows = re.findall(
        r"^\| ([\d,]+) \| \d+ \(.*\) \| \d+ \(.*\) \|$", run_quick("memory.py"), re.MULTILINE
    )
    assert rows == ["1,000", "2,000"]


@pytest.mark.slow
def test_training_steps_of_both_pipelines_see_alike_patches():
    pytest.importorskip("albumentations", reason="the benchmarks' libraries are not installed")
    text = run_quick("training.py", "--rounds", "1", "--threads", "1")
    foreground = dict(re.findall(r"^\| ([^|]+) \|.* (0\.\d+) \|$", text, re.MULTILINE))
    assert len(foreground) == 3
    assert all(0.01 < float(share) < 0.9 for share in foreground.values())


@pytest.mark.slow
def test_a_push_moves_what_changed():
    rows = re.findall(
        r"^\| ([^|]+) \| (lfs|xet) \| ([\d.]*) \|", run_quick("publish.py"), re.MULTILINE
    )
    moved = {(step, transfer): float(mb) for step, transfer, mb in rows if mb}
    for transfer in ("lfs", "xet"):
        member = moved["push with one new member", transfer]
        # the first member lies in the folder twice
        assert 1.9 * member < moved["first push", transfer] < 3.1 * member
        assert moved["push of the same", transfer] == 0


@pytest.mark.slow
def test_servers_side_by_side():
    pytest.importorskip("litserve", reason="the benchmarks' libraries are not installed")
    text = run_quick("service.py")
    rows = re.findall(r"^\| ([^|]+) \| \d+ \| [+-]\d+ \| \d+% \|", text, re.MULTILINE)
    assert rows == [
        "df2serve serve",
        "df2serve in BentoML",
        "BentoML, one `@bentoml.api`",
        "LitServe",
    ]
    phases = dict(re.findall(r"^\| (\w+) \| (-?[\d.]+) \|$", text, re.MULTILINE))
    assert set(phases) == {"queue", "decode", "infer", "encode", "rest"}
    assert all(float(milliseconds) >= 0 for milliseconds in phases.values())
