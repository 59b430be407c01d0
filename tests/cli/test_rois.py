"""``predict --rois``, corrections, and ``rois import``."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from roifile import ROI_TYPE, ImagejRoi, roiread, roiwrite

from df2serve.artifact import Ensemble
from df2serve.io import read_image, read_mask

Run = Callable[..., object]


@pytest.fixture
def results(df2serve: Run, ensemble: Ensemble, images: Path, tmp_path: Path) -> Path:
    target = tmp_path / "results"
    options = ("--instances", "components", "--min-size", 9, "--rois", "--geojson")
    assert df2serve("predict", ensemble.source, images, "-o", target, *options).code == 0
    return target


def test_unedited_regions_are_the_prediction(df2serve: Run, results: Path, tmp_path: Path) -> None:
    mask, labels = tmp_path / "mask.tif", tmp_path / "labels.tif"
    finished = df2serve(
        "rois", "import", results / "rois/1.zip", "--like", results / "masks/1.tif",
        "-o", mask, "--labels", labels, "--before", results / "rois/1.zip",
    )  # fmt: skip
    assert finished.code == 0, finished.err
    assert "0 changed, 0 added, 0 removed" in finished.out
    expected = read_image(results / "labels/1.tif").data[0]
    assert np.array_equal(read_mask(labels, kind="instances").labels, expected)
    # objects that are too small keep their class in the predicted mask, and have no region
    assert np.array_equal(read_mask(mask, kind="classes", num_classes=2).classes, expected > 0)


def test_edited_regions(df2serve: Run, results: Path, images: Path, tmp_path: Path) -> None:
    rois = roiread(results / "rois/1.zip")
    gone, *rest = rois
    rest.append(
        ImagejRoi(roitype=ROI_TYPE.RECT, left=60, top=70, right=75, bottom=75, name="0001-0002")
    )
    roiwrite(tmp_path / "edited.zip", rest)
    arguments = (
        "rois", "import", tmp_path / "edited.zip", "--like", images / "1.png",
        "--before", results / "rois/1.zip", "-o", tmp_path / "mask.tif",
    )  # fmt: skip
    finished = df2serve(*arguments, "--changes", tmp_path / "changes.csv")
    assert finished.code == 0, finished.err
    assert "1 added, 1 removed" in finished.out
    assert "cut off at the border of the image: 0001-0002" in finished.err
    changes = pd.read_csv(tmp_path / "changes.csv").set_index("status")
    assert changes.loc["removed", "label"] == gone.properties["label"]
    assert changes.loc["removed", "removed_px"] == gone.properties["area_px"]
    assert changes.loc["added", "added_px"] == 50
    told = json.loads(df2serve(*arguments, "--json").out)
    assert told["regions"][-1]["label"] == len(rois) + 1
    assert {change["status"] for change in told["changes"]} >= {"added", "removed"}
    mask = read_image(tmp_path / "mask.tif").data[0]
    assert mask[70:75, 60:70].all()


def test_errors_are_told(df2serve: Run, results: Path, images: Path, tmp_path: Path) -> None:
    arguments = ("rois", "import", results / "rois/1.zip", "--like", images / "1.png")
    output = tmp_path / "mask.tif"
    finished = df2serve(*arguments, "-o", output, "--changes", tmp_path / "changes.csv")
    assert (finished.code, finished.err) == (
        2, "error: --changes needs --before, the zip file as it was predicted\n"
    )  # fmt: skip
    finished = df2serve(*arguments, "-o", output, "--classes", "yeast")
    assert finished.code == 2
    assert "has the class 'class 1'; expected yeast: rename it" in finished.err
    finished = df2serve(*arguments, "-o", output, "--classes", "cell,")
    assert "expected different names, such as cell,nucleus" in finished.err
    (tmp_path / "bad.zip").write_bytes((results / "rois/1.zip").read_bytes()[:-30])
    finished = df2serve(
        "rois", "import", tmp_path / "bad.zip", "--like", images / "1.png", "-o", output
    )
    assert finished.code == 2
    assert "bad.zip is no zip file of regions, or a damaged one" in finished.err
    assert not output.exists()


def test_regions_need_objects(
    df2serve: Run, ensemble: Ensemble, images: Path, tmp_path: Path
) -> None:
    finished = df2serve("predict", ensemble.source, images, "-o", tmp_path / "out", "--rois")
    assert finished.code == 2
    assert "rois hold objects, and none are asked for" in finished.err
