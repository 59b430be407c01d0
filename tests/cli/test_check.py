"""``df2serve check`` at the terminal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

DESCRIPTION = """
type: model
format_version: 0.5.10
id: brave-otter
name: a sketch
inputs: []
outputs: []
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "rdf.yaml").write_text(DESCRIPTION)
    return tmp_path / "rdf.yaml"


def test_findings_and_exit_code(df2serve: Run, package: Path) -> None:
    result = df2serve("check", package, "--only", "fiji")
    assert result.code == 1
    _, second, *_, last = result.out.splitlines()
    assert second.split() == ["rdf.yaml", "a", "sketch", "0.5.10"]
    assert last == "2 errors, 3 warnings, 0 notes"
    assert "inputs: got 0, expected 1" in result.out
    assert result.err == ""


def test_json(df2serve: Run, package: Path) -> None:
    result = df2serve("check", package, "--only", "fiji", "--json")
    assert result.code == 1
    content = json.loads(result.out)
    assert content["ok"] is False
    codes = [finding["code"] for finding in content["findings"]]
    assert codes == ["FIJI010", "FIJI050", "FIJI011", "FIJI060", "FIJI062"]


def test_a_package_that_is_not_opened(df2serve: Run, tmp_path: Path) -> None:
    (tmp_path / "package.zip").write_bytes(b"no zip file")
    result = df2serve("check", tmp_path / "package.zip")
    assert result.code == 1
    assert "PKG001" in result.out


def test_names_do_not_command_the_terminal(df2serve: Run, package: Path) -> None:
    text = DESCRIPTION.replace("a sketch", '"[/b] \\e[2J"').replace("[]", "7", 1)
    package.write_text(text)
    result = df2serve("check", package, "--only", "fiji")
    assert result.code == 1
    assert "[/b] \ufffd[2J" in result.out
    assert "\x1b" not in result.out


def test_bad_calls(df2serve: Run, package: Path, tmp_path: Path) -> None:
    missing = df2serve("check", tmp_path / "nothing.zip")
    assert (missing.code, missing.out) == (2, "")
    assert missing.err.startswith("error: ")
    assert df2serve("check", package, "--only", "napari").code == 2
