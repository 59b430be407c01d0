"""Publishing verbs as a person uses them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from df2serve.artifact import load_ensemble
from df2serve.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def df2serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program in this process; exit code, output and errors come out."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["df2serve", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_verbs_take_addresses(df2serve: Run, shared, ensemble, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.zeros((70, 80), np.float32))
    code, out, _ = df2serve("info", "hf://lab/cells", "--json")
    assert (code, json.loads(out)["sha256"]) == (0, ensemble.sha256)
    arguments = ("hf://lab/cells", tmp_path / "image.npy", "--axes", "YX", "-o", tmp_path / "out")
    code, out, _ = df2serve("predict", *arguments, "--views", 1, "--json")
    assert (code, json.loads(out)["run"]["ensemble_sha256"]) == (0, ensemble.sha256)
    code, out, errors = df2serve("info", "hf://lab/nothing")
    assert (code, out) == (2, "")
    assert "error: there is no hf://lab/nothing, or it is private" in errors


def test_pull(df2serve: Run, shared, ensemble, tmp_path: Path) -> None:
    code, out, _ = df2serve("pull", "hf://lab/cells", "-o", tmp_path / "copy")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'copy'}: 8 files, ")
    assert load_ensemble(tmp_path / "copy").sha256 == ensemble.sha256
    code, out, _ = df2serve(
        "pull", "hf://lab/cells", "--content", "exports", "-o", tmp_path / "exports", "--json"
    )
    assert (code, json.loads(out)["files"]) == (0, ["package/rdf.yaml"])
    for arguments, message in [
        (("hf://lab/cells", "--content", "weights"), "expected ensemble, exports or all"),
        (("lab/cells",), "expected hf://org/name"),
    ]:
        code, out, errors = df2serve("pull", *arguments, "-o", tmp_path / "refused")
        assert (code, out) == (2, "")
        assert message in errors
