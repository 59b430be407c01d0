"""Verbs that tell things."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from df2serve.artifact import Ensemble, pack_ensemble


def test_version(df2serve) -> None:
    assert df2serve("--version").out == f"df2serve {version('df2serve')}\n"


def test_info_of_an_ensemble(df2serve, ensemble: Ensemble, tmp_path: Path) -> None:
    packed = pack_ensemble(ensemble, tmp_path / "ensemble.zip")
    for source in (ensemble.source, packed.source):
        told = df2serve("info", source).out
        assert "members        2\n" in told
        assert ensemble.sha256 in told
        content = json.loads(df2serve("info", source, "--json").out)
        assert content["sha256"] == ensemble.sha256
        assert [item["name"] for item in content["classes"]] == ["background", "class 1"]
        assert content["calibration"]["thresholds"] == []


def test_info_of_an_image(df2serve, images: Path, tmp_path: Path) -> None:
    told = json.loads(df2serve("info", images / "1.png", "--json").out)
    assert (told["format"], told["height"], told["width"]) == ("PNG", 80, 70)
    assert "dtype           uint8" in df2serve("info", images / "1.png").out
    (tmp_path / "text.tif").write_text("hello")
    for path, message in [
        (tmp_path / "text.tif", "text.tif starts with b'hello'"),
        (tmp_path / "nowhere", "does not exist; give an ensemble or an image"),
        (tmp_path, "is a folder but no OME-Zarr"),
    ]:
        finished = df2serve("info", path)
        assert (finished.code, finished.out) == (2, "")
        assert message in finished.err


def test_doctor(df2serve, ensemble: Ensemble) -> None:
    told = json.loads(df2serve("doctor", ensemble.source, "--json").out)
    assert told["system"]["torch"] == torch.__version__
    assert told["network"] == "Tiny ensemble"
    measured = {(row["backend"].split()[0], row["device"]) for row in told["speed"]}
    assert {("torch", "cpu"), ("onnxruntime", "cpu")} <= measured
    assert all("64 x 64 tile" in row["result"] for row in told["speed"] if row["precision"])
    finished = df2serve("doctor", ensemble.source)
    assert "every optional package is installed" in finished.out


PLUGIN = """\
import typer

def register(app):
    @app.command()
    def greet(name: str) -> None:
        typer.echo(f"hello {name}")
"""


def test_verbs_come_from_other_packages(
    df2serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greeting.py").write_text(PLUGIN)
    described = tmp_path / "greeting-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[df2serve.commands]\ngreet = greeting:register\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert df2serve("greet", "Ada").out == "hello Ada\n"
    sys.modules.pop("greeting")
