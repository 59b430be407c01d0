"""The description of results names exactly what is written."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from df2serve import Image, Predictor
from df2serve.artifact import FEATURES, with_files
from df2serve.config import InstanceConfig, ReviewConfig
from df2serve.testing import random_ensemble
from df2serve.testing.ensembles import random_bank
from df2serve.writers import (
    ResultFolder,
    ranking_rows,
    review,
    score_row,
    write_instance_table,
    write_table,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    bare = random_ensemble(folder / "ens", members=1, channels=1, classes=2, tile=64)
    ensemble = with_files(bare, {FEATURES: random_bank(bare).to_bytes()})
    with Predictor(ensemble) as predictor:
        target = ResultFolder(
            folder / "out",
            ensemble,
            predictor.config,
            probabilities=True,
            instances=InstanceConfig(),
            shapes=["rois", "geojson"],
        )
        image = Image.from_array(np.zeros((40, 40)), source="NAME.tif")
        record = target.write(predictor.stream(image)).record
    write_instance_table(folder / "out", [record])
    write_table([score_row(record, target.run)], folder / "out/scores")
    found = review([record], target.run, config=ReviewConfig())
    write_table(ranking_rows(found, target.run), folder / "out/ranking")
    return folder / "out"


def test_columns(results: Path) -> None:
    rows = re.findall(r"^\| (`.*?) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    described = [name for row in rows for name in re.findall(r"`(.*?)`", row)]
    scores = [name.replace("class 1", "CLASS") for name in pd.read_csv(results / "scores.csv")]
    ranking = [name.replace("class 1", "CLASS") for name in pd.read_csv(results / "ranking.csv")]
    places = ["rank", *ranking[ranking.index("score") : ranking.index("u")], "picture"]
    assert scores == [name for name in described if name not in places]
    assert ranking == [name for name in described if name != "error"]


def test_columns_of_objects(results: Path) -> None:
    text = DOCUMENT.read_text(encoding="utf-8").partition("\n## Objects\n")[2]
    rows = re.findall(r"^    (\S.*?)  ", text.partition("\nWrite results")[0], re.MULTILINE)
    described = [name for row in rows for name in row.split(", ")]
    written = [
        name.replace("channel 0", "CHANNEL") for name in pd.read_csv(results / "instances.csv")
    ]
    assert written == described


def test_files(results: Path) -> None:
    described = set(re.findall(r"[\w/]+\.(?:json|tif|jpg|png|csv|xlsx|zip|geojson|html)", tree()))
    written = {path.relative_to(results).as_posix() for path in results.rglob("*.*")}
    assert written | {"ranking.png", "report.html"} == described


def tree() -> str:
    return "\n".join(re.findall(r"^    .*", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
