"""Objects in a real ImageJ: it measures their pixels, and what is corrected there comes back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from df2serve.artifact.manifest import ClassInfo
from df2serve.core.instances import Instances, measure_instances
from df2serve.io.corrections import class_names, compare_painted, paint_regions
from df2serve.io.rois import read_regions
from df2serve.writers import roi_zip

pytestmark = pytest.mark.slow

ImageJ = Callable[[str, Path], str]
CLASSES = (
    ClassInfo(name="background", color="#000000"),
    ClassInfo(name="cell", color="#00b300"),
    ClassInfo(name="bud", color="#e69f00"),
)
COUNT, SIDE, COLUMNS = 500, 24, 25
SHAPE = (COUNT // COLUMNS * SIDE, COLUMNS * SIDE)

PAINT = """
    run("Select None");
    newImage("painted", "16-bit black", {columns}, {rows}, 1);
    for (i = 0; i < roiManager("count"); i++) {{
        roiManager("select", i);
        setColor(i + 1);
        fill();
    }}
    run("Select None");
    saveAs("Tiff", "{target}");
"""
"""Later regions over earlier ones."""

EDIT = """
    roiManager("select", 0); roiManager("delete");
    roiManager("select", 0); setKeyDown("shift"); makeRectangle(3, 5, 40, 9); roiManager("update");
    roiManager("select", 1); setKeyDown("alt"); makeOval(0, 0, 600, 100); roiManager("update");
    roiManager("select", 2); makePolygon(100, 300, 171, 310, 140, 387); roiManager("update");
    roiManager("select", 3); makeSelection("freehand", newArray(20, 60.5, 44.25, 21),
        newArray(200, 210.5, 260, 231.75)); roiManager("update");
    roiManager("select", 4); Roi.move(200, 200); roiManager("update");
    roiManager("select", 5); run("Enlarge...", "enlarge=3"); roiManager("update");
    roiManager("select", 6); makePolygon(400, 30, 470, 41, 433, 97);
        run("Interpolate", "interval=3"); roiManager("update");
    roiManager("select", 7); roiManager("rename", "bud");
    makeOval(300, 150, 37, 22); roiManager("add"); named("cell 1");
    makeRectangle(560, 440, 80, 70); roiManager("add"); named("bud");
    makePolygon(10.5, 400.25, 90.75, 420.5, 33.5, 470.125); roiManager("add"); named("cell");
    roiManager("deselect");
    roiManager("save", "{target}");

    function named(name) {{
        roiManager("select", roiManager("count") - 1);
        roiManager("rename", name);
    }}
"""


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Blobs with holes, many of several parts, each in a field of its own."""
    rng = np.random.default_rng(0)
    labels = np.zeros(SHAPE, np.int32)
    for number in range(COUNT):
        row, column = (SIDE * place for place in divmod(number, COLUMNS))
        smooth = ndimage.gaussian_filter(rng.random((SIDE, SIDE)), rng.uniform(0.5, 3))
        field = labels[row : row + SIDE, column : column + SIDE]
        field[smooth > np.median(smooth)] = number + 1
    return labels


@pytest.fixture(scope="module")
def predicted(labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    total = rng.random(labels.shape).astype(np.float32)
    found = Instances(labels=labels, classes=rng.integers(1, 3, COUNT), removed=0, removed_px=0)
    measured = measure_instances(
        found,
        image=total[None],
        probability=total,
        total=total,
        epistemic=total,
        pixel_area_um2=None,
    )
    path = tmp_path_factory.mktemp("rois") / "predicted.zip"
    path.write_bytes(roi_zip(labels, measured, classes=CLASSES))
    return path


def start(regions: Path) -> str:
    return f"""
        newImage("image", "8-bit black", {SHAPE[1]}, {SHAPE[0]}, 1);
        roiManager("open", "{regions}");
    """


def paint(target: Path) -> str:
    return PAINT.format(rows=SHAPE[0], columns=SHAPE[1], target=target)


def test_imagej_measures_the_pixels_of_objects(
    labels: np.ndarray, predicted: Path, imagej: ImageJ, tmp_path: Path
) -> None:
    script = start(predicted) + """
        for (i = 0; i < roiManager("count"); i++) {
            roiManager("select", i);
            getStatistics(area);
            print(Roi.getProperty("label"), area, Roi.getProperty("class"), Roi.getStrokeColor);
        }
    """ + paint(tmp_path / "painted.tif")  # fmt: skip
    lines = [line.split() for line in imagej(script, tmp_path).splitlines()]
    table = pd.DataFrame(lines, columns=["label", "area", "class", "color"])
    assert table["area"].astype(int).tolist() == (
        np.bincount(labels.ravel())[table["label"].astype(int)].tolist()
    )
    assert sorted(table["label"].astype(int)) == list(range(1, COUNT + 1))
    assert set(zip(table["class"], table["color"], strict=True)) == {
        ("cell", "#00b300"), ("bud", "#e69f00")
    }  # fmt: skip
    painted = tifffile.imread(tmp_path / "painted.tif")
    by_place = np.concatenate([[0], table["label"].astype(int)])
    assert np.array_equal(by_place[painted], labels)


def test_what_is_corrected_in_imagej_comes_back(
    labels: np.ndarray, predicted: Path, imagej: ImageJ, tmp_path: Path
) -> None:
    edited = tmp_path / "edited.zip"
    edit = EDIT.format(target=edited).partition("function")
    imagej(
        start(predicted) + edit[0] + paint(tmp_path / "painted.tif") + "".join(edit[1:]), tmp_path
    )
    before = read_regions(predicted)
    regions = read_regions(edited)
    assert len(regions) == COUNT - 1 + 3
    classes = class_names(before)
    old = paint_regions(before, SHAPE, classes=classes)
    new = paint_regions(regions, SHAPE, classes=classes, taken=COUNT)
    theirs = tifffile.imread(tmp_path / "painted.tif")
    by_place = np.array([0, *(item.label for item in new.regions)])
    assert np.array_equal(by_place[theirs], new.labels)
    changes = {change.label: change for change in compare_painted(old, new)}
    first = before[0].label
    assert changes[first].status == "removed"
    assert [item.label for item in new.regions[:8]] == [item.label for item in before[1:9]]
    assert [changes[COUNT + extra].status for extra in (1, 2, 3)] == ["added"] * 3
    assert [item.class_index for item in new.regions[-3:]] == [1, 2, 1]
    assert new.regions[7].class_index == 2
    edited_labels = {item.label for item in new.regions[:8]}
    untouched = set(range(1, COUNT + 1)) - edited_labels - {first}
    covered = {item.label for item in new.regions if item.covered_px}
    assert {changes[label].added_px for label in untouched} == {0}
    assert {changes[label].removed_px for label in untouched - covered} == {0}
    assert np.array_equal(old.labels, labels)
