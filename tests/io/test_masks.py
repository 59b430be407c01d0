"""Masks in every coding that experts and programs write."""

import io

import numpy as np
import PIL.Image
import pytest
import tifffile

from df2serve.errors import ConfigError, DecodeError, InputError
from df2serve.io import ClassMask, InstanceMask, read_mask

FOREGROUND = np.random.default_rng(0).random((20, 30)) > 0.6


def png(array):
    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def tiff(array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, metadata=None, **options)
    return stream.getvalue()


@pytest.mark.parametrize("value", [1, 7, 255])
@pytest.mark.parametrize("kind", ["binary", "classes"])
def test_two_values(value, kind):
    num_classes = 2 if kind == "classes" else None
    mask = read_mask(png((FOREGROUND * value).astype("u1")), kind=kind, num_classes=num_classes)
    assert isinstance(mask, ClassMask)
    assert mask.classes.dtype == np.uint8
    assert np.array_equal(mask.classes, FOREGROUND)
    assert mask.valid is None
    assert len(mask.sha256) == 64


@pytest.mark.parametrize(
    "array",
    [
        FOREGROUND,
        FOREGROUND.astype("f4") * 255,
        FOREGROUND.astype("u2") * 65_535,
        FOREGROUND.astype("i4") * -1,
    ],
    ids=lambda array: str(array.dtype),
)
def test_binary_of_other_types(array):
    assert np.array_equal(read_mask(tiff(array), kind="binary").classes, FOREGROUND)


@pytest.mark.parametrize("constant", [0, 255])
def test_constant(constant):
    mask = read_mask(png(np.full((5, 6), constant, "u1")), kind="binary")
    assert (mask.classes == (constant > 0)).all()


def test_gray_stored_as_color():
    color = np.repeat((FOREGROUND * 255).astype("u1")[..., None], 3, axis=2)
    assert np.array_equal(read_mask(png(color), kind="binary").classes, FOREGROUND)
    color[3, 4, 1] = 9
    with pytest.raises(DecodeError, match=r"3 channels that differ.*colors="):
        read_mask(png(color), kind="binary")


def test_jpeg_noise_is_no_mask():
    values = (FOREGROUND * 255).astype("u1")
    values[0, :3] = (254, 3, 1)
    with pytest.raises(DecodeError, match=r"holds 4 values besides 0 \(1, 3, 254, 255\)"):
        read_mask(png(values), kind="binary")


def test_classes():
    classes = np.arange(12, dtype="u1").reshape(3, 4) % 4
    assert np.array_equal(read_mask(png(classes), kind="classes", num_classes=4).classes, classes)
    with pytest.raises(DecodeError, match=r"holds the values 3, expected classes 0 to 2"):
        read_mask(png(classes), kind="classes", num_classes=3)
    with pytest.raises(DecodeError, match=r"holds the values -3, -2, -1, expected"):
        read_mask(tiff(classes.astype("i2") * -1), kind="classes", num_classes=4)


def test_zero_and_255_are_not_three_classes():
    with pytest.raises(DecodeError, match=r"holds the values 255, expected classes 0 to 2"):
        read_mask(png((FOREGROUND * 255).astype("u1")), kind="classes", num_classes=3)


def test_colors():
    picture = np.zeros((4, 6, 3), "u1")
    picture[0], picture[1], picture[2, :3] = (255, 0, 0), (0, 0, 255), (0, 0, 250)
    colors = {(0, 0, 0): 0, (255, 0, 0): 1, (0, 0, 255): 2, (0, 0, 250): 2}
    expected = np.zeros((4, 6))
    expected[0], expected[1], expected[2, :3] = 1, 2, 2
    mask = read_mask(png(picture), kind="classes", num_classes=3, colors=colors)
    assert np.array_equal(mask.classes, expected)
    del colors[0, 0, 250]
    with pytest.raises(DecodeError, match=r"3 pixels of 1 colors .*: \(0, 0, 250\) x 3; add"):
        read_mask(png(picture), kind="classes", num_classes=3, colors=colors)
    with pytest.raises(DecodeError, match=r"the values 2, expected classes 0 to 1"):
        read_mask(png(picture[:2]), kind="classes", num_classes=2, colors=colors)
    with pytest.raises(DecodeError, match=r"has 1 channels; colors= is for masks in RGB"):
        read_mask(png(picture[..., 0]), kind="classes", num_classes=3, colors=colors)


def test_unknown_colors_are_counted():
    picture = np.zeros((6, 7, 3), "u1")
    for value in range(7):
        picture[value - 7 :, value] = value
    with pytest.raises(DecodeError) as caught:
        read_mask(png(picture), kind="classes", num_classes=2, colors={(0, 0, 0): 0})
    words = [f"({v}, {v}, {v}) x {7 - v if v > 1 else 6}" for v in range(1, 6)]
    assert f"pixels of 6 colors without a class: {', '.join(words)}, ...;" in str(caught.value)


def test_palette_is_color():
    image = PIL.Image.fromarray(FOREGROUND.astype("u1"), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    image.putdata(FOREGROUND.astype(int).ravel().tolist())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    colors = {(10, 20, 30): 0, (200, 100, 50): 1}
    mask = read_mask(stream.getvalue(), kind="classes", num_classes=2, colors=colors)
    assert np.array_equal(mask.classes, FOREGROUND)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i4", "i8", "f4"])
def test_instances(dtype):
    labels = np.arange(120).reshape(10, 12).astype(dtype)
    mask = read_mask(tiff(labels), kind="instances")
    assert isinstance(mask, InstanceMask)
    assert mask.labels.dtype == np.int32
    assert np.array_equal(mask.labels, labels)


def test_labels_out_of_range():
    for value, dtype in ((-1, "i4"), (2**31, "u4"), (2**63 + 1, "u8")):
        labels = np.zeros((4, 4), dtype)
        labels[1, 1] = value
        with pytest.raises(DecodeError, match=f"holds labels from .*{abs(value)}"):
            read_mask(tiff(labels), kind="instances")


def test_fractions():
    for kind in ("binary", "instances"):
        with pytest.raises(DecodeError, match=r"holds fractions such as 0.5"):
            read_mask(tiff(np.full((4, 4), 0.5, "f4")), kind=kind)


def test_ignore():
    ignored = np.zeros((20, 30), "u1")
    ignored[5:9] = 255
    source = png((FOREGROUND * 255).astype("u1"))
    mask = read_mask(source, kind="binary", ignore=png(ignored))
    assert mask.valid.dtype == np.bool_
    assert np.array_equal(mask.valid, ignored == 0)
    with pytest.raises(
        DecodeError, match=r"has \(19, 30\) rows and columns, the mask .*\(20, 30\)"
    ):
        read_mask(source, kind="binary", ignore=png(ignored[1:]))


@pytest.mark.parametrize(("kind", "num_classes"), [("binary", None), ("classes", 3)])
def test_ignored_value(kind, num_classes):
    values = FOREGROUND.astype("u1")
    values[2:4] = 255
    ignored = np.zeros((20, 30), "u1")
    ignored[3:5] = 1
    mask = read_mask(
        png(values), kind=kind, num_classes=num_classes, ignore_value=255, ignore=png(ignored)
    )
    rows = np.arange(20)
    assert np.array_equal(mask.valid, np.tile(((rows < 2) | (rows > 4))[:, None], 30))
    assert np.array_equal(mask.classes[mask.valid], FOREGROUND[mask.valid])
    assert not mask.classes[2:4].any()
    assert read_mask(png(ignored), kind="binary", ignore_value=255).valid.all()


def test_ignored_label():
    labels = np.arange(12, dtype="i4").reshape(3, 4) - 1
    mask = read_mask(tiff(labels), kind="instances", ignore_value=-1)
    assert np.array_equal(mask.valid, labels >= 0)
    assert np.array_equal(mask.labels, labels.clip(0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "semantic"}, "expected 'binary', 'classes' or 'instances'"),
        ({"kind": "classes"}, "needs num_classes"),
        ({"kind": "binary", "num_classes": 2}, "takes neither"),
        ({"kind": "instances", "colors": {(0, 0, 0): 0}}, "takes neither"),
        ({"kind": "classes", "num_classes": 1}, "expected 2 to 256"),
        ({"kind": "classes", "num_classes": 257}, "expected 2 to 256"),
        ({"kind": "binary", "ignore_value": 0}, "which is the background"),
        (
            {"kind": "classes", "num_classes": 2, "colors": {}, "ignore_value": 9},
            "do not go together",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    with pytest.raises(ConfigError, match=words):
        read_mask(png(FOREGROUND.astype("u1")), **arguments)


def test_stack_is_no_mask():
    with pytest.raises(InputError):
        read_mask(tiff(np.zeros((3, 8, 8), "u1"), photometric="minisblack"), kind="binary")


def test_masks_of_experts(shared_data):
    paths = sorted((shared_data / "cfos_hc/masks_experts").rglob("*.png"))[::9]
    assert len(paths) == 20
    for path in paths:
        mask = read_mask(path, kind="binary")
        stored = np.asarray(PIL.Image.open(path).convert("L"))
        assert np.array_equal(mask.classes, stored > 0)
        assert mask.source == path.name


def test_labels_and_regions_to_ignore(shared_data):
    path = min((shared_data / "dsb2018_fluo/labels").glob("*.tif"))
    assert np.array_equal(read_mask(path, kind="instances").labels, tifffile.imread(path))
    lab = shared_data / "other_labs/lab-wue2"
    for ignore in sorted(lab.rglob("ignored_regions/*.png")):
        mask = read_mask(
            next(lab.rglob(f"masks_STAPLE/{ignore.name}")), kind="binary", ignore=ignore
        )
        assert np.array_equal(mask.valid, np.asarray(PIL.Image.open(ignore)) == 0)
