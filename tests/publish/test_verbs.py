"""Publishing verbs as a person uses them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from df2serve.artifact import load_ensemble

# how huggingface_hub itself uploads large files
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

Run = Callable[..., tuple[int, str, str]]


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


def test_push(df2serve: Run, hub, hub_server, ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)
    command = ("push", ensemble.source, "hf://lab/cells", "--version", "1.0.0")
    code, out, errors = df2serve(*command, "--dry-run")
    assert (code, hub.repositories) == (0, {})
    assert "add      members/fold-1/model.safetensors  0.8 MB\n" in out
    assert "hf://lab/cells: 0 files stay, 2.5 MB to send\n" in out
    assert "states no license" in errors
    code, out, _ = df2serve(*command)
    assert code == 0
    assert out.endswith(", tags 1.0.0 and v1.0.0\n")
    assert load_ensemble("hf://lab/cells@v1.0.0").sha256 == ensemble.sha256
    code, out, _ = df2serve("push", ensemble.source, "hf://lab/cells", "--json")
    assert code == 0
    assert json.loads(out)["changes"] == []
