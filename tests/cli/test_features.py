"""The distance of features from the command line: reference images in, odd images on top."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tifffile

from df2serve.artifact import FEATURES, load_ensemble
from df2serve.testing import CellScene, disturb, generate_cells, generate_ood, random_ensemble
from df2serve.writers import read_results

SCENE = CellScene(shape=(128, 128), n_cells=9)
REFERENCES = 12


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled images, images to predict, and an ensemble with random weights.

    Such networks see strong changes alone: blur is not among them.
    """
    root = tmp_path_factory.mktemp("features")
    random_ensemble(root / "ensemble", members=2, channels=1, classes=2, tile=64)
    images = {f"references/{i:02}": generate_cells(SCENE, i).image[0] for i in range(REFERENCES)}
    images |= {
        f"masks/{i:02}": 255 * generate_cells(SCENE, i).mask.astype("u1") for i in range(REFERENCES)
    }
    ordinary = [generate_cells(SCENE, 50 + i).image for i in range(4)]
    images |= {f"new/ordinary-{i}": image[0] for i, image in enumerate(ordinary)}
    images |= {
        f"new/odd-{kind}": generate_ood(kind, SCENE, 60).image[0]
        for kind in ("empty", "noisy", "saturated", "vessels")
    }
    images["new/odd-fold"] = disturb(ordinary[0], "fold", seed=3)[0]
    for name, pixels in images.items():
        (root / name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(root / f"{name}.tif", pixels, metadata={"axes": "YX"})
    return root


def test_odd_images_are_farther_than_ordinary_ones(
    df2serve: Callable[..., Any], walked: Path
) -> None:
    ensemble, evaluation, out = (walked / name for name in ("ensemble", "evaluation", "out"))
    told = df2serve(
        "evaluate", ensemble, walked / "references", walked / "masks", "-o", evaluation,
        "--calibrate", "--features",
    )  # fmt: skip
    assert told.code == 0, told.err
    opened = load_ensemble(ensemble)
    bank = opened.features()
    assert bank is not None
    assert bank.to_bytes() == (evaluation / FEATURES).read_bytes()
    assert [len(member.images) for member in bank.facts.members] == [REFERENCES] * 2
    references = [one.scores["feature_distance"] for one in opened.calibration.references]
    assert len(references) == REFERENCES
    assert "feature_distance" in {one.score for one in opened.calibration.percentiles}
    run, records = read_results(evaluation / "results")
    assert run.ensemble_sha256 == opened.sha256
    assert {one.provenance.source_sha256: one.scores.feature_distance for one in records} == {
        one.image_sha256: one.scores["feature_distance"] for one in opened.calibration.references
    }

    told = df2serve("predict", ensemble, walked / "new", "-o", out)
    assert told.code == 0, told.err
    scores = pd.read_csv(out / "scores.csv").set_index("name")["feature_distance"]
    odd = scores[scores.index.str.startswith("odd")]
    ordinary = scores[scores.index.str.startswith("ordinary")]
    assert (len(odd), len(ordinary)) == (5, 4)
    assert odd.min() > ordinary.max()
    assert odd.min() > max(references)
    ranked = df2serve("rank", out, "--by", "ood", "--json")
    assert ranked.code == 0, ranked.err
    page = (out / "report.html").read_text()
    assert "feature distance" in page
    assert "farther from the reference images" in page

    # what is in the bank is never compared with itself
    told = df2serve("predict", ensemble, walked / "references", "-o", walked / "again")
    assert told.code == 0, told.err
    again = pd.read_csv(walked / "again" / "scores.csv")["feature_distance"]
    assert sorted(again) == pytest.approx(sorted(references), abs=1e-6)
    info = json.loads(df2serve("info", ensemble, "--json").out)
    assert FEATURES in info["files"]


def test_a_bank_needs_a_calibration(df2serve: Callable[..., Any], walked: Path) -> None:
    told = df2serve(
        "evaluate", walked / "ensemble", walked / "references", walked / "masks", "-o",
        walked / "none", "--features",
    )  # fmt: skip
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "--calibrate" in told.err
    assert not (walked / "none").exists()


def test_tables_of_ensembles_without_a_bank_have_no_such_column(
    df2serve: Callable[..., Any], images: Path, tmp_path: Path
) -> None:
    random_ensemble(tmp_path / "bare", members=2, channels=1, classes=2, tile=64)
    assert df2serve("predict", tmp_path / "bare", images, "-o", tmp_path / "out").code == 0
    assert "feature_distance" not in pd.read_csv(tmp_path / "out" / "scores.csv").columns
    assert "feature distance" not in (tmp_path / "out" / "report.html").read_text()
