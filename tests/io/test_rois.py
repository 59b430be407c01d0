"""Corrected regions: which pixels they cover, whose they are, and what is no region."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from df2serve.config import DecodeLimits
from df2serve.errors import DecodeError, LimitExceededError, SourceNotFoundError
from df2serve.io.corrections import class_names, compare_painted, paint_regions
from df2serve.io.rois import read_regions

CLASSES = {"cell": 1, "cell body": 2}


def zipped(*rois: ImagejRoi) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, roi in enumerate(rois):
            archive.writestr(f"{number}-{roi.name}.roi", roi.tobytes())
    return stream.getvalue()


def square(left: int, top: int, side: int, name: str = "cell", props: str = "") -> ImagejRoi:
    return ImagejRoi(
        roitype=ROI_TYPE.RECT,
        left=left,
        top=top,
        right=left + side,
        bottom=top + side,
        name=name,
        props=props,
    )


def test_rectangle_and_oval() -> None:
    oval = ImagejRoi(roitype=ROI_TYPE.OVAL, left=-3, top=2, right=6, bottom=9, name="cell")
    [frame, ellipse] = read_regions(zipped(square(1, 2, 3), oval))
    box, inside = frame.fill((10, 10))
    assert (box, inside.all()) == ((slice(2, 5), slice(1, 4)), True)
    row, column = np.mgrid[:10, :10]
    expected = ((column + 0.5 - 1.5) / 4.5) ** 2 + ((row + 0.5 - 5.5) / 3.5) ** 2 <= 1
    filled = np.zeros((10, 10), bool)
    (rows, columns), inside = ellipse.fill((10, 10))
    filled[rows, columns] = inside
    assert np.array_equal(filled, expected)
    assert ellipse.reaches_out((10, 10))
    assert not frame.reaches_out((10, 10))


def test_later_regions_lie_on_top() -> None:
    painted = paint_regions(
        read_regions(zipped(square(0, 0, 4), square(2, 2, 4, "cell body 7"), square(8, 8, 5))),
        (10, 10),
        classes=CLASSES,
    )
    assert painted.labels[3, 3] == 2
    assert [item.covered_px for item in painted.regions] == [4, 0, 0]
    assert [item.class_index for item in painted.regions] == [1, 2, 1]
    assert [item.clipped for item in painted.regions] == [False, False, True]
    assert np.bincount(painted.mask.ravel()).tolist() == [100 - 32, 16, 16]


def test_a_new_name_is_a_new_class_and_the_label_stays() -> None:
    props = "class: cell\nclass_index: 1\nlabel: 7\n"
    before = read_regions(
        zipped(
            square(0, 0, 4, "0001 cell 7 u=0.5000", props),
            square(5, 5, 3, "0002 cell 9 u=0.4000", props.replace("7", "9")),
        )
    )
    after = read_regions(
        zipped(
            square(0, 0, 4, "cell body", props),
            # drawn anew, without properties
            square(5, 5, 4, "0002 cell 9 u=0.4000"),
            square(5, 0, 2, "0105-0230", props),
        )
    )
    classes = class_names(before) | {"cell body": 2}
    old = paint_regions(before, (10, 10), classes=classes)
    new = paint_regions(after, (10, 10), classes=classes, taken=9)
    assert [item.label for item in new.regions] == [7, 9, 10]
    assert [item.class_index for item in new.regions] == [2, 1, 1]
    moved, grown, copied = compare_painted(old, new)
    assert (moved.status, moved.class_before, moved.class_after) == ("changed", 1, 2)
    assert (moved.added_px, moved.removed_px, moved.reclassified_px) == (0, 0, 16)
    assert (grown.status, grown.added_px, grown.removed_px) == ("changed", 7, 0)
    assert (copied.status, copied.class_before, copied.added_px) == ("added", None, 4)
    [gone, *_] = compare_painted(old, paint_regions(after[1:2], (10, 10), classes=classes))
    assert (gone.status, gone.label, gone.removed_px) == ("removed", 7, 16)
    assert {change.status for change in compare_painted(old, old)} == {"unchanged"}


def test_numbers_that_are_none_are_ignored() -> None:
    for number in ("0", "-1", "x", "99999999999"):
        props = f"class: cell\nclass_index: {number}\nlabel: {number}\n"
        [region] = read_regions(zipped(square(0, 0, 4, props=props)))
        assert (region.label, region.class_index) == (None, None)


def test_a_file_of_one_region(tmp_path: Path) -> None:
    path = tmp_path / "cell.roi"
    path.write_bytes(square(0, 0, 4, "").tobytes())
    [region] = read_regions(path)
    assert region.name == "cell"


LINE = ImagejRoi(roitype=ROI_TYPE.LINE, x2=5, y2=5, name="cell")
SPLINE = ImagejRoi.frompoints([[0, 0], [5, 0], [5, 5]], name="cell")
SPLINE.options |= ROI_OPTIONS.SPLINE_FIT
TEXT = square(0, 0, 4)
TEXT.subtype = ROI_SUBTYPE.TEXT
CURVED = ImagejRoi(roitype=ROI_TYPE.RECT, name="cell", shape_roi_size=8)
CURVED.multi_coordinates = np.array([0, 1, 1, 2, 3, 3, 5, 1], np.float32)
ENDLESS = ImagejRoi.frompoints([[0.5, 0.0], [1.0, 3.0], [2.0, 2.0]], name="cell")
ENDLESS.subpixel_coordinates[1, 0] = np.nan
POINTLESS = ImagejRoi(roitype=ROI_TYPE.POLYGON, name="cell")
POINTLESS.integer_coordinates = np.empty((0, 2), np.int32)


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (LINE, "region '0-cell' is a line, which has no area; delete it"),
        (SPLINE, "a spline; turn it into an outline first"),
        (TEXT, "is a text"),
        (CURVED, "has curved sides"),
        (POINTLESS, "has no corners"),
        (ENDLESS, "has no corners, or some that are no numbers"),
    ],
)
def test_no_known_area(roi: ImagejRoi, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        read_regions(zipped(roi))


def test_damage(tmp_path: Path) -> None:
    """Whatever is cut or changed gives one clear error or regions, and nothing else."""
    composite = ImagejRoi(roitype=ROI_TYPE.RECT, name="cell", shape_roi_size=10)
    composite.multi_coordinates = np.array([0, 1, 1, 1, 5, 1, 1, 5, 5, 4], np.float32)
    traced = ImagejRoi.frompoints([[0, 0], [5, 0], [5, 5]], name="cell")
    rng = np.random.default_rng(0)
    for roi in (composite, traced):
        data = roi.tobytes()
        for _ in range(300):
            broken = bytearray(data)
            for place in rng.integers(4, len(data), rng.integers(1, 4)):
                broken[place] = rng.integers(256)
            try:
                regions = read_regions(bytes(broken[: rng.integers(4, len(data) + 1)]))
                paint_regions(regions, (10, 10), classes=CLASSES)
            except DecodeError:
                pass
    whole = zipped(square(0, 0, 4), square(4, 4, 4))
    for content in (whole[: len(whole) // 2], b"PK\x03\x04", b"", b"nothing"):
        with pytest.raises(DecodeError, match="is no zip file of regions, or a damaged one"):
            read_regions(content)
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    with pytest.raises(DecodeError, match="damaged"):
        read_regions(bytes(flipped))
    with pytest.raises(SourceNotFoundError, match=r"cannot read .*nothing\.zip"):
        read_regions(tmp_path / "nothing.zip")


def test_a_zip_file_of_something_else() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(DecodeError, match=r"holds no regions \(\.roi\)"):
        read_regions(stream.getvalue())


def test_limits() -> None:
    content = zipped(*[square(0, 0, 4)] * 3)
    for limits in (DecodeLimits(max_pages=2), DecodeLimits(max_bytes=200)):
        with pytest.raises(LimitExceededError, match="holds 3 regions"):
            read_regions(content, limits=limits)


def test_regions_that_do_not_fit() -> None:
    outside = read_regions(zipped(square(20, 20, 4, "cell 1")))
    with pytest.raises(DecodeError, match="'cell 1' lies outside of the image of 10 rows and 10"):
        paint_regions(outside, (10, 10), classes=CLASSES)
    nameless = read_regions(zipped(square(0, 0, 4, "0001-0002")))
    with pytest.raises(DecodeError, match="has no class; expected cell, cell body: rename it"):
        paint_regions(nameless, (10, 10), classes=CLASSES)
    assert paint_regions(nameless, (10, 10), classes={"cell": 1}).mask.sum() == 16
    unknown = read_regions(zipped(square(0, 0, 4, "x", "class: yeast\nclass_index: 1\n")))
    with pytest.raises(DecodeError, match="'x' has the class 'yeast'; expected cell"):
        paint_regions(unknown, (10, 10), classes={"cell": 1})
    with pytest.raises(DecodeError, match="the regions carry no classes"):
        class_names(nameless)
    other = read_regions(zipped(square(0, 0, 4, "x", "class: cell\nclass_index: 1\n")))
    with pytest.raises(DecodeError, match="different ensembles: cell = 1, yeast = 1"):
        class_names([*unknown, *other])
    first, second = square(0, 0, 4), square(0, 0, 4)
    first.z_position, second.z_position = 1, 2
    with pytest.raises(DecodeError, match="belong to 2 planes of a stack"):
        paint_regions(read_regions(zipped(first, second)), (10, 10), classes=CLASSES)
