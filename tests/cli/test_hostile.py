"""Harmful and damaged inputs, and a full disk: one error each, and earlier results stay intact."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from df2serve.artifact import Ensemble


def test_every_hostile_kind_beside_a_good_image(
    df2serve, hostile, ensemble: Ensemble, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    kinds = hostile.hostile_inputs(folder)
    out = tmp_path / "out"
    df2serve("predict", ensemble.source, images / "1.png", "-o", out)
    before = {path: path.read_bytes() for path in (out / "masks").iterdir()}
    paths = [kind.path for kind in kinds if kind.path.is_file()]
    assert len(paths) >= 80
    finished = df2serve(
        "predict", ensemble.source, *paths, *images.iterdir(), "-o", out, "--resume"
    )
    assert finished.code == 2
    assert "2 images:" in finished.out
    lines = finished.err.splitlines()
    for path in paths:
        told = [line for line in lines if re.search(rf"hostile/{re.escape(path.name)}(?!\w)", line)]
        assert len(told) == 1, path.name
        assert told[0].startswith("error: ")
    assert len(lines) == len(paths)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert {path.name for path in (out / "masks").rglob("*.tif")} == {"1.tif", "2.tif"}


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes on this system")
def test_a_full_disk(df2serve, ensemble: Ensemble, images: Path, tmp_path: Path) -> None:
    """The system refuses to let a file grow, as it does when there is no space left."""
    out = tmp_path / "out"
    df2serve("predict", ensemble.source, images / "1.png", "-o", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    noise = np.random.default_rng(0).integers(0, 255, (600, 600), dtype=np.uint8)
    tifffile.imwrite(images / "large.tif", noise)
    command = [
        sys.executable, "-c", "from df2serve.cli import main; main()",
        "predict", ensemble.source, images, "-o", out, "--resume",
    ]  # fmt: skip
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert finished.returncode == 2, finished.stderr
    assert "error: large.tif: cannot write" in finished.stderr
    assert "results written before are untouched" in finished.stderr
    assert "Traceback" not in finished.stderr
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for path, content in before.items():
        if path.name not in ("scores.csv", "scores.xlsx", "report.html"):
            assert after[path] == content
    assert not [path for path in after if "large" in path.name or path.name.endswith(".part")]
    assert df2serve("predict", ensemble.source, images, "-o", out, "--resume").code == 0
