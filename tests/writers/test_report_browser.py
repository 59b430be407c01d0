"""A report of 500 images in a browser: quick, quiet, and it does what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from natsort import natsorted

from df2serve import Predictor
from df2serve.testing import FITTED_SCENE, fitted_ensemble, generate_cells, generate_ood
from df2serve.testing.cells import OOD_KINDS
from df2serve.writers import Record, ResultFolder, read_results, write_report

ROOT = Path(__file__).parents[2]
MODULES = ROOT / ".venv/foreign/npm/node_modules"
IMAGES = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of a fitted ensemble, each repeated under many names and with scores around."""
    root = tmp_path_factory.mktemp("browser")
    ensemble = fitted_ensemble(root / "cells", members=2, images=8, steps=40)
    samples = [generate_cells(FITTED_SCENE, seed=1)]
    samples += [generate_ood(kind, FITTED_SCENE, seed=2) for kind in OOD_KINDS]
    with Predictor(ensemble) as predictor:
        results = ResultFolder(root / "out", ensemble, predictor.config)
        written = []
        for index, sample in enumerate(samples):
            np.save(root / f"{index}.npy", sample.image[0])
            stream = predictor.predict_many([root / f"{index}.npy"], consume=results.write)
            written += [outcome.result.record for outcome in stream]
    rng = np.random.default_rng(0)
    for number in range(IMAGES - len(written)):
        copy(root / "out", written[number % len(written)], number, rng.normal(0, 0.1))
    return root / "out"


def copy(folder: Path, record: Record, number: int, more: float) -> None:
    """Add a result that differs in its name and in its U."""
    name = f"plate {number // 96 + 1}/well {number % 96 + 1}"
    files = {}
    for kind, file in record.files.items():
        path = folder / file.path.replace(record.name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / file.path, path)
        files[kind] = file.model_copy(update={"path": path.relative_to(folder).as_posix()})
    content: dict[str, Any] = json.loads(
        record.model_copy(update={"files": files}).model_dump_json()
    )
    content["name"] = name
    content["scores"]["u"] = float(np.clip(content["scores"]["u"] + more, 0, 1))
    target = folder / "records" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.slow
def test_five_hundred_images(folder: Path) -> None:
    browser, node = shutil.which("chromium"), shutil.which("node")
    if browser is None or node is None or not (MODULES / "playwright-core").is_dir():
        pytest.skip("needs chromium, node and 'make foreign'")
    path = write_report(folder)
    assert path.stat().st_size < 40e6
    command = [node, Path(__file__).with_name("browse_report.mjs"), browser, path]
    answer = subprocess.run(
        command, env=os.environ | {"NODE_PATH": str(MODULES)}, capture_output=True, check=True,
        timeout=300,
    )  # fmt: skip
    seen = json.loads(answer.stdout)
    assert seen["complaints"] == []
    assert seen["firstPaint"] < 2000
    assert {name: time for name, time in seen["times"].items() if time >= 100} == {}

    run, records = read_results(folder)
    listed = sorted(
        records,
        key=lambda item: (-item.scores.u, not item.scores.empty_prediction, item.name),
    )
    names = [record.name for record in listed]
    assert len(names) == IMAGES
    assert seen["all"] == names
    assert seen["byName"] == natsorted(names)
    doubtful = [record.name for record in listed if record.scores.u >= 0.4]
    assert seen["toReview"] == doubtful
    assert seen["reviewed"]["tile"] == str(len(doubtful))
    assert seen["reviewed"]["count"] == f"{len(doubtful)} of {IMAGES} images"
    assert run.threshold is not None
    promised = f"at most {run.threshold.level:.1%}" if run.threshold.value >= 0.4 else "nothing"
    assert promised in seen["reviewed"]["level"]
    assert (seen["none"]["shown"], seen["none"]["told"][:13]) == ([], "No image fits")

    assert seen["second"] == names[1]
    width, height = seen["size"]
    assert width == height > 400
    assert (seen["outlines"], seen["closed"], seen["focus"]) == ("hidden", True, "image-2")
