"""Outlines of objects for ImageJ and QuPath cover exactly the pixels of the labels."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import roifile
import shapely
from scipy import ndimage
from shapely.geometry import shape

from df2serve import Image, Predictor
from df2serve.artifact.manifest import ClassInfo
from df2serve.config import InstanceConfig
from df2serve.core.instances import Instance, Instances, measure_instances
from df2serve.errors import ConfigError
from df2serve.io import Selection, read_image
from df2serve.io.corrections import class_names, paint_regions
from df2serve.io.rois import read_regions
from df2serve.writers import ResultFolder, geojson, roi_zip

CLASSES = (
    ClassInfo(name="background", color="#000000"),
    ClassInfo(name="a/b: cell", color="#e69f00"),
    ClassInfo(name="Zelle ü", color="#56b4e9"),
)


def scene(seed: int) -> tuple[np.ndarray, tuple[Instance, ...], np.ndarray]:
    """Labels with holes, for even seeds of several parts; their records; the class per label."""
    rng = np.random.default_rng(seed)
    kept = rng.random((42, 51)) < 0.8
    if seed % 2:
        labels = ndimage.label(kept & (rng.random(kept.shape) < 0.8))[0]
    else:
        coarse = np.kron(rng.integers(0, 12, (14, 17)), np.ones((3, 3), int))
        labels = np.unique(np.where(kept, coarse, 0), return_inverse=True)[1].reshape(kept.shape)
    labels = labels.astype(np.int32)
    classes = rng.integers(1, 3, labels.max())
    total = rng.random(labels.shape).astype(np.float32)
    found = Instances(labels=labels, classes=classes, removed=0, removed_px=0)
    measured = measure_instances(
        found,
        image=total[None],
        probability=total,
        total=total,
        epistemic=total / 2,
        pixel_area_um2=0.25,
    )
    return labels, measured, np.concatenate([[0], classes])


@pytest.mark.parametrize("seed", range(5))
def test_regions_come_back_as_they_were(seed: int) -> None:
    labels, measured, classes = scene(seed)
    regions = read_regions(roi_zip(labels, measured, classes=CLASSES))
    names = class_names(regions)
    assert names == {"a/b: cell": 1, "Zelle ü": 2}
    painted = paint_regions(regions, labels.shape, classes=names)
    assert np.array_equal(painted.labels, labels)
    assert np.array_equal(painted.mask, classes[labels])
    assert not any(item.covered_px or item.clipped for item in painted.regions)


def test_what_a_region_says() -> None:
    labels, measured, _ = scene(0)
    content = roi_zip(labels, measured, classes=CLASSES)
    assert content == roi_zip(labels, measured, classes=CLASSES)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        rois = [roifile.ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()]
    ordered = sorted(measured, key=lambda item: -item.u)
    assert [roi.properties["label"] for roi in rois] == [item.label for item in ordered]
    for rank, (roi, item) in enumerate(zip(rois, ordered, strict=True), start=1):
        kind = CLASSES[item.class_index]
        assert roi.name == f"{rank:04d} {kind.name} {item.label} u={item.u:.4f}"
        assert roi.hexcolor(roi.stroke_color) == kind.color
        assert roi.properties["area_px"] == item.area_px
        assert roi.properties["u"] == pytest.approx(item.u, abs=1e-6)
        corners = np.concatenate(roi.coordinates(multi=True))
        assert corners.min(axis=0).tolist() == [item.left, item.top]
        assert corners.max(axis=0).tolist() == [item.right, item.bottom]


@pytest.mark.parametrize(
    ("axes", "selection", "position"),
    [
        ("YX", Selection(), (0, 0, 0)),
        ("ZYX", Selection(z=4), (5, 0, 0)),
        ("TYX", Selection(t=0), (1, 0, 0)),
        ("ZCYX", Selection(z=4), (0, 5, 0)),
        ("TZCYX", Selection(z=1, t=2), (0, 2, 3)),
    ],
)
def test_plane_of_a_stack(axes: str, selection: Selection, position: tuple[int, int, int]) -> None:
    labels, measured, _ = scene(0)
    content = roi_zip(labels, measured, classes=CLASSES, axes=axes, selection=selection)
    assert {region.plane for region in read_regions(content)} == {position}


def test_far_corners() -> None:
    """Beyond 16 bits, outlines are stored as numbers with a point, and stay exact."""
    labels = np.zeros((3, 70_000), np.int32)
    labels[1, 33_000:33_004] = 1
    labels[:, 65_530:] = 2
    labels[:2, :40_000][labels[:2, :40_000] == 0] = 3
    u = np.zeros(labels.shape, np.float32)
    found = Instances(labels=labels, classes=np.array([1, 1, 1]), removed=0, removed_px=0)
    measured = measure_instances(
        found, image=u[None], probability=u, total=u, epistemic=u, pixel_area_um2=None
    )
    regions = read_regions(roi_zip(labels, measured, classes=CLASSES))
    painted = paint_regions(regions, labels.shape, classes={"a/b: cell": 1})
    assert np.array_equal(painted.labels, labels)


@pytest.mark.parametrize("seed", range(5))
def test_geojson_is_valid_and_exact(seed: int) -> None:
    labels, measured, _ = scene(seed)
    content = geojson(labels, measured, classes=CLASSES, channels=["DAPI"])
    collection = json.loads(content)
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(measured)
    kinds, holes = set(), 0
    for feature, item in zip(collection["features"], measured, strict=True):
        geometry = shape(feature["geometry"])
        kinds.add(geometry.geom_type)
        assert shapely.is_valid_reason(geometry) == "Valid Geometry"
        assert geometry.area == item.area_px
        row, column = np.nonzero(labels == item.label)
        assert shapely.contains_xy(geometry, column + 0.5, row + 0.5).all()
        assert (geometry.centroid.x, geometry.centroid.y) == pytest.approx(
            (item.column + 0.5, item.row + 0.5)
        )
        for polygon in getattr(geometry, "geoms", [geometry]):
            assert polygon.exterior.is_ccw
            assert not any(hole.is_ccw for hole in polygon.interiors)
            holes += len(polygon.interiors)
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["classification"]["name"] == CLASSES[item.class_index].name
        assert (
            bytes(properties["classification"]["color"]).hex()
            == (CLASSES[item.class_index].color[1:])
        )
        assert properties["measurements"]["u"] == item.u
        assert properties["measurements"]["area_um2"] == item.area_um2
        assert properties["measurements"]["intensity DAPI"] == item.intensities[0]
    assert kinds == ({"Polygon"} if seed % 2 else {"MultiPolygon"})
    assert holes > 5


def test_outlines_among_the_results(predictor: Predictor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 90), dtype=np.uint8)
    results = ResultFolder(
        tmp_path / "out",
        predictor.ensemble,
        predictor.config,
        instances=InstanceConfig(),
        shapes=["rois", "geojson"],
    )
    record = results.write(predictor.stream(Image.from_array(pixels, source="a.tif"))).record
    assert {"rois", "geojson"} <= set(record.files)
    labels = read_image(tmp_path / "out/labels/a.tif").data[0]
    mask = read_image(tmp_path / "out/masks/a.tif").data[0]
    regions = read_regions(tmp_path / "out/rois/a.zip")
    painted = paint_regions(regions, labels.shape, classes=class_names(regions))
    assert np.array_equal(painted.labels, labels)
    assert np.array_equal(painted.mask, mask)
    features = json.loads((tmp_path / "out/geojson/a.geojson").read_text())["features"]
    assert len(features) == record.instances.kept


def test_outlines_need_objects(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rois hold objects, and none are asked for"):
        ResultFolder(tmp_path / "out", predictor.ensemble, predictor.config, shapes=["rois"])
