"""The verb export."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from df2serve.artifact import Ensemble

Run = Callable[..., object]


def test_onnx(df2serve: Run, ensemble: Ensemble, tmp_path: Path) -> None:
    target = tmp_path / "one.onnx"
    finished = df2serve(
        "export", ensemble.source, "--to", "onnx", "-o", target, "--member", 0, "--json"
    )
    assert finished.code == 0
    told = json.loads(finished.out)
    assert told["bytes"] == target.stat().st_size
    assert told["deviations"]["onnx"]["probs"] <= 1e-5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "keras"), "expected torchscript, onnx or bioimageio"),
        (("--to", "onnx", "--variant", "both"), "invalid export settings: variant"),
        (("--to", "bioimageio"), "names? .*end|ends in .zip"),
        (("--to", "onnx", "--preset", "deepflash2"), "choose the preset 'accurate' or 'fast'"),
        (("--to", "bioimageio", "--formats", "onnx,keras"), "expected some of"),
    ],
)
def test_mistakes_give_one_line(
    df2serve: Run, ensemble: Ensemble, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    import re

    finished = df2serve("export", ensemble.source, *arguments, "-o", tmp_path / "file.x")
    assert finished.code == 2
    assert re.search(words, finished.err)
    assert finished.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_package_asks_for_what_nobody_stated(
    df2serve: Run, ensemble: Ensemble, tmp_path: Path
) -> None:
    target = tmp_path / "package.zip"
    finished = df2serve(
        "export", ensemble.source, "--to", "bioimageio", "-o", target, "--author", "Ada"
    )
    assert finished.code == 2
    assert "license (--license SPDX" in finished.err
    assert "description (--description TEXT" in finished.err
    assert "authors" not in finished.err
