"""Training sets: pairing, targets, and every defect told at once."""

import hashlib
import unicodedata
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import tifffile
from pydantic import ValidationError

from df2serve.core.resolution import zoom_out
from df2serve.errors import InputError, SourceNotFoundError
from df2serve.io import ClassMask, InstanceMask
from df2serve_training.folds import make_splits
from df2serve_training.pairing import natural_order, pair_files
from df2serve_training.preflight import check_training_set
from df2serve_training.settings import DataSettings, FoldSettings
from df2serve_training.targets import (
    IGNORED,
    separate_instances,
    training_target,
    zoom_out_mask,
)

TWO = FoldSettings(count=2)
SHAPE = (40, 50)


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        PIL.Image.fromarray(array).save(path)
    else:
        tifffile.imwrite(path, array, **options)
    return path


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def pixels(seed=0, dtype="uint8", shape=SHAPE):
    values = np.random.default_rng(seed).integers(0, 200, shape)
    return values.astype(dtype)


def disk(value=255, center=(20, 20), radius=8, dtype="uint8"):
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    inside = (y - center[0]) ** 2 + (x - center[1]) ** 2 <= radius**2
    return (inside * value).astype(dtype)


@pytest.fixture
def folders(tmp_path):
    """Three good images with one mask each."""
    for index in range(3):
        write(tmp_path / f"images/img_{index}.png", pixels(index))
        write(tmp_path / f"masks/img_{index}.png", disk(radius=5 + index))
    return tmp_path


def check(folder, *, folds=TWO, ignore=None, table=None, **settings):
    return check_training_set(
        folder / "images",
        folder / "masks",
        settings=DataSettings(**settings),
        folds=folds,
        ignore=ignore,
        table=table,
    )


# -- pairing ------------------------------------------------------------------------------------


def paired(pairing):
    return {pair.name: pair.mask.name for pair in pairing.pairs}


def test_suffix_that_is_the_start_of_another_name(tmp_path):
    images = touch(tmp_path / "images", "img_1.png", "img_10.png", "img_2.tif")
    masks = touch(tmp_path / "masks", "img_10_mask.png", "img_1_mask.tif", "img_2_mask.png")
    pairing = pair_files(images, masks)
    assert pairing.problems == ()
    assert list(paired(pairing).items()) == [
        ("img_1", "img_1_mask.tif"),
        ("img_2", "img_2_mask.png"),
        ("img_10", "img_10_mask.png"),
    ]


def test_declared_suffix(tmp_path):
    images = touch(tmp_path / "images", "a.png", "b.png")
    masks = touch(tmp_path / "masks", "a-1.png", "a-2.png", "b-1.png", "b-2.png")
    pairing = pair_files(images, masks, mask_suffix="-2")
    assert paired(pairing) == {"a": "a-2.png", "b": "b-2.png"}
    assert pairing.problems == (
        "no image for 2 masks, expected the image's stem followed by '-2': a-1.png, b-1.png",
    )


def test_files_without_partner(tmp_path):
    images = touch(tmp_path / "images", "i1.png", "i2.png", "i3.png", "i10.png")
    masks = touch(tmp_path / "masks", "i1.png", "i2.png", "x10.png", "x9.png")
    pairing = pair_files(images, masks)
    assert paired(pairing) == {"i1": "i1.png", "i2": "i2.png"}
    assert pairing.problems == (
        "no image for 2 masks, expected the stem of an image: x9.png, x10.png",
        "no mask for 2 images, expected the stem of an image: i3, i10",
    )


def test_names_that_occur_twice(tmp_path):
    images = touch(tmp_path / "images", "a.png", "a.tif", "b.png", "B.tif", "c.png")
    masks = touch(tmp_path / "masks", "a.png", "b.png", "B.tif", "c.png", "c.ome.tif")
    problems = pair_files(images, masks).problems
    assert len(problems) == 2
    assert "B.tif and b.png; a.png and a.tif" in problems[0]
    assert "B.tif and b.png; c.ome.tif and c.png" in problems[1]


def test_names_of_any_unicode_form(tmp_path):
    composed, taken_apart = (unicodedata.normalize(form, "Zäpfchen_é") for form in ("NFC", "NFD"))
    assert composed != taken_apart
    images = touch(tmp_path / "images", f"{taken_apart}.png")
    masks = touch(tmp_path / "masks", f"{composed}.png")
    assert list(paired(pair_files(images, masks))) == [composed]


def test_ignore_masks_are_optional_for_each_image(tmp_path):
    images = touch(tmp_path / "images", "img_1.png", "img_10.png")
    masks = touch(tmp_path / "masks", "img_1.png", "img_10.png")
    ignore = touch(tmp_path / "ignore", "img_10_ignore.tif")
    pairing = pair_files(images, masks, ignore=ignore)
    assert [pair.ignore for pair in pairing.pairs] == [None, ignore / "img_10_ignore.tif"]
    touch(ignore, "other.png")
    assert pair_files(images, masks, ignore=ignore).problems == (
        "no image for 1 ignore mask, expected the image's stem followed by '_ignore': other.png",
    )


def test_folders_that_do_not_do(tmp_path):
    images = touch(tmp_path / "images", "a.png")
    with pytest.raises(InputError, match="folder of their own"):
        pair_files(images, tmp_path / "images" / ".." / "images")
    with pytest.raises(SourceNotFoundError, match="does not exist"):
        pair_files(images, tmp_path / "none")
    with pytest.raises(SourceNotFoundError, match="holds no images"):
        pair_files(images, touch(tmp_path / "empty"))


def test_natural_order_does_not_depend_on_the_order_of_the_folder():
    names = ["b1", "a10", "a9", "a09", "a9b", "10", "9", "A9"]
    expected = natural_order(names)
    assert [name for name in expected if name in {"9", "10", "a9", "a10", "b1"}] == [
        "9", "10", "a9", "a10", "b1",
    ]  # fmt: skip
    for seed in range(20):
        assert natural_order(np.random.default_rng(seed).permutation(names).tolist()) == expected


# -- targets ------------------------------------------------------------------------------------


def separate_naively(labels):
    result = np.zeros(labels.shape, bool)
    for (y, x), own in np.ndenumerate(labels):
        near = labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        result[y, x] = own > 0 and not ((near > 0) & (near < own)).any()
    return result


@pytest.mark.parametrize("largest", [9, 40_000, 2**31 - 1])
def test_ridges_between_instances(largest):
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(largest, 9, replace=False)) + 1
    blocks = rng.integers(0, 10, (9, 12)).repeat(3, axis=0).repeat(3, axis=1)
    labels = np.r_[0, ids][blocks].astype(np.int32)
    foreground = separate_instances(labels)
    assert np.array_equal(foreground, separate_naively(labels))
    assert 0 < foreground.sum() < (labels > 0).sum()


def test_ridge_is_on_the_side_of_the_higher_label():
    labels = np.zeros((5, 8), np.int32)
    labels[:, :4], labels[:, 4:] = 70_000, 3
    assert np.array_equal(np.flatnonzero(separate_instances(labels)[2]), [0, 1, 2, 4, 5, 6, 7])


def test_pixels_that_do_not_count_are_marked():
    valid = disk() == 0
    classes = disk(value=3, center=(20, 30))
    target = training_target(ClassMask(classes, valid, "m", None))
    assert np.array_equal(target, np.where(valid, classes, IGNORED))
    labels = disk(value=9, dtype="int32")
    target = training_target(InstanceMask(labels, None, "m", None))
    assert np.array_equal(target, labels > 0)
    assert target.dtype == np.uint8


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@pytest.mark.parametrize("factor", [2.0, 3.0, 4.0])
def test_coarser_pixels_are_means_of_those_covered(dtype, factor):
    side = int(factor)
    values = np.random.default_rng(0).integers(0, 60_000, (2, 12 * side, 7 * side))
    fine = (values % 256 if dtype == "uint8" else values).astype(dtype)
    means = fine.reshape(2, 12, side, 7, side).mean(axis=(2, 4))
    coarse = zoom_out(fine, factor)
    assert coarse.dtype == dtype
    assert np.allclose(coarse, means, atol=0.5 + 1e-3 if dtype != "float32" else 0.01)


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0, 2.5, 100.0])
def test_zoomed_masks_fit_images_and_keep_their_labels(factor):
    mask = np.random.default_rng(0).choice([0, 3, 200_000], (47, 33)).astype(np.int32)
    coarse = zoom_out_mask(mask, factor)
    assert zoom_out(mask[None], factor).shape[1:] == coarse.shape
    assert coarse.shape == tuple(max(1, int(side / factor)) for side in mask.shape)
    assert coarse.dtype == mask.dtype
    assert set(np.unique(coarse)) <= {0, 3, 200_000}


def test_coarse_masks_lie_where_coarse_images_do():
    # a disk drawn in the image and in the mask must stay in the same place
    mask = disk(value=1, radius=15)
    for factor in (1.7, 2.0, 3.0):
        bright = zoom_out(mask[None] * np.float32(1), factor)[0] > 0.5
        assert (bright != zoom_out_mask(mask, factor)).mean() < 0.05


# -- training sets ------------------------------------------------------------------------------


def test_facts_and_pixels(folders):
    training_set = check(folders)
    assert len(training_set) == 3
    assert training_set.remarks == ()
    assert training_set.num_channels == 1
    first = training_set.images[0]
    content = (folders / "images/img_0.png").read_bytes()
    assert first.name == "img_0"
    assert first.image_sha256 == hashlib.sha256(content).hexdigest()
    content = (folders / "masks/img_0.png").read_bytes()
    assert first.mask_sha256 == hashlib.sha256(content).hexdigest()
    assert (first.shape, first.dtype) == ((1, *SHAPE), "uint8")
    inside = int((disk(radius=5) > 0).sum())
    assert first.class_pixels == (2000 - inside, inside)
    assert np.isclose(first.foreground_share, inside / 2000)
    labeled = training_set.load(first)
    assert np.array_equal(labeled.pixels[0], pixels(0))
    assert np.array_equal(labeled.target, disk(radius=5) > 0)
    assert labeled.labels is None
    taken = training_set.take(["img_2", "img_0"])
    assert [image.name for image in taken.images] == ["img_2", "img_0"]
    assert taken.load(taken.images[1]) is labeled


def test_intensity_range_leaves_out_hot_pixels(folders):
    hot = pixels(1, "uint16")
    hot[3, 4] = 65_535
    write(folders / "images/img_1.png", hot)
    bounds = check(folders).intensity_range()
    stack = np.stack([pixels(seed) for seed in range(3)])
    assert bounds.low == (0,)
    assert 195 <= bounds.high[0] <= 200
    low, high = np.percentile(stack.reshape(3, -1), [0.1, 99.9], axis=1)
    assert np.isclose(bounds.high[0], high.max(), atol=1)
    assert low.min() == 0


def test_sparse_images_have_a_range(folders):
    sparse = np.zeros(SHAPE, np.uint8)
    sparse[0, 0] = 9
    write(folders / "images/img_0.png", sparse)
    assert check(folders).images[0].intensities.high == (9.0,)


def test_images_of_one_bit(folders):
    write(folders / "images/img_0.png", pixels(0) > 100)
    image = check(folders).images[0]
    assert (image.dtype, image.intensities.high) == ("bool", (1.0,))


def test_files_may_be_read_when_needed(folders):
    settings = {"zoom_out": 2, "masks": "instances"}
    kept, read = check(folders, **settings), check(folders, cache=False, **settings)
    assert len(read.cached) == 0
    assert read.images == kept.images
    for image in read.images:
        ours, theirs = read.load(image), kept.load(image)
        assert ours.pixels.shape == image.shape == (1, 20, 25)
        for field in ("pixels", "target", "labels"):
            assert np.array_equal(getattr(ours, field), getattr(theirs, field))
    write(folders / "masks/img_1.png", disk(radius=2))
    with pytest.raises(InputError, match="img_1 changed"):
        read.load(read.images[1])


def test_several_classes_channels_and_16_bit(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2):
        values = rng.integers(0, 60_000, (3, *SHAPE)).astype(np.uint16)
        write(tmp_path / f"images/{index}.tif", values, metadata={"axes": "CYX"}, imagej=True)
        write(tmp_path / f"masks/{index}.png", rng.integers(0, 4, SHAPE).astype(np.uint8))
    training_set = check(tmp_path, masks="classes", num_classes=4, channels=(2, 0))
    image = training_set.images[1]
    assert image.shape == (2, *SHAPE)
    assert np.array_equal(training_set.load(image).pixels, values[[2, 0]])
    assert len(image.class_pixels) == 4
    assert image.present_classes == (1, 2, 3)
    assert sum(image.class_pixels) == 2000


def test_instances_keep_their_labels(folders):
    labels = disk(value=40_000, dtype="uint16")
    labels[:, 20:][labels[:, 20:] > 0] = 7
    write(folders / "masks/img_0.png", labels)
    training_set = check(folders, masks="instances")
    labeled = training_set.load(training_set.images[0])
    assert np.array_equal(labeled.labels, labels)
    assert np.array_equal(labeled.target, separate_naively(labels.astype(int)))


def test_ignored_pixels_are_not_counted(folders):
    write(folders / "ignore/img_0.png", disk(radius=9, center=(20, 40)))
    mask = disk(radius=6)
    mask[:5] = 77
    write(folders / "masks/img_0.png", mask)
    training_set = check(folders, ignore=folders / "ignore", ignore_value=77)
    ignored = (disk(radius=9, center=(20, 40)) > 0) | (mask == 77)
    image = training_set.images[0]
    assert np.array_equal(training_set.load(image).target == IGNORED, ignored)
    assert np.isclose(image.ignored_share, ignored.mean())
    assert training_set.images[1].ignored_share == 0


def test_groups_come_from_a_table(folders):
    table = folders / "table.csv"
    table.write_text("file,animal\nimg_0.png,b\nimg_1.png,a\nimg_2.png,b\n")
    grouped = FoldSettings(count=2, method="grouped", column="animal")
    training_set = check(folders, folds=grouped, table=table)
    assert [image.group for image in training_set.images] == ["b", "a", "b"]
    splits = make_splits(training_set.images, grouped)
    assert {splits.validation_names(fold) for fold in range(2)} == {("img_1",), ("img_0", "img_2")}


# -- defects ------------------------------------------------------------------------------------


def other_size(folder):
    write(folder / "masks/img_1.png", disk()[:, :30])
    return r"masks of another size than their image: img_1 \(40 x 50, mask 40 x 30\)"


def missing_mask(folder):
    (folder / "masks/img_2.png").unlink()
    return "no mask for 1 image, expected the stem of an image: img_2"


def duplicate_name(folder):
    write(folder / "images/img_1.tif", pixels())
    return "the same but for the file type: img_1.png and img_1.tif"


def unreadable_image(folder):
    (folder / "images/img_1.png").write_bytes(b"no image")
    return r"image of img_1: img_1\.png"


def cut_mask(folder):
    path = folder / "masks/img_0.png"
    path.write_bytes(path.read_bytes()[:80])
    return r"mask of img_0: img_0\.png"


def labels_out_of_range(folder):
    mask = disk()
    mask[0, :3] = (7, 8, 9)
    write(folder / "masks/img_2.png", mask)
    return r"mask of img_2: img_2\.png holds 4 values besides 0"


def no_foreground(folder):
    for index in range(3):
        write(folder / f"masks/img_{index}.png", np.zeros(SHAPE, np.uint8))
    return "every mask is empty"


def constant_image(folder):
    write(folder / "images/img_0.png", np.full(SHAPE, 9, np.uint8))
    return "images of one constant intensity, to be left out: img_0"


def other_channels(folder):
    write(folder / "images/img_1.png", pixels(shape=(*SHAPE, 3)))
    return "differ in their number of channels: 1 channels in 2 images, 3 channels in img_1"


DEFECTS = [
    other_size,
    missing_mask,
    duplicate_name,
    unreadable_image,
    cut_mask,
    labels_out_of_range,
    no_foreground,
    constant_image,
    other_channels,
]


@pytest.mark.parametrize("defect", DEFECTS)
def test_one_defect(folders, defect):
    expected = defect(folders)
    with pytest.raises(InputError, match=expected) as caught:
        check(folders)
    assert str(caught.value).count("\n- ") == 1


def test_defects_are_told_all_at_once(tmp_path):
    for index in range(12):
        write(tmp_path / f"images/img_{index}.png", pixels(index))
        write(tmp_path / f"masks/img_{index}.png", disk())
    other_size(tmp_path)
    missing_mask(tmp_path)
    (tmp_path / "images/img_3.png").write_bytes(b"no image")
    (tmp_path / "masks/img_3.png").write_bytes(b"no mask")
    write(tmp_path / "images/img_4.png", np.full(SHAPE, 9, np.uint8))
    write(tmp_path / "images/img_10.png", np.full(SHAPE, 9, np.uint8))
    write(tmp_path / "images/img_5.png", pixels(shape=(*SHAPE, 3)))
    write(tmp_path / "images/img_6.tif", pixels())
    write(tmp_path / "masks/more.png", disk())
    write(tmp_path / "ignore/img_7.png", np.ones(SHAPE, np.uint8))
    write(tmp_path / "ignore/img_8.png", np.ones((3, 3), np.uint8))
    table = tmp_path / "table.csv"
    table.write_text("file,animal\nimg_0,a\n")
    grouped = FoldSettings(count=20, method="grouped", column="animal", file_column="file")
    with pytest.raises(InputError) as caught:
        check(tmp_path, folds=grouped, table=table, ignore=tmp_path / "ignore")
    message = str(caught.value)
    for part in (
        "img_1 (40 x 50, mask 40 x 30)",
        "no mask for 1 image, expected the stem of an image: img_2",
        "one constant intensity, to be left out: img_4; img_10",
        "3 channels in img_5",
        "img_6.png and img_6.tif",
        "no image for 1 mask, expected the stem of an image: more.png",
        "without a pixel that counts, to be left out: img_7",
        "- image of img_3: img_3.png starts with b'no image'",
        "- mask of img_3: img_3.png starts with b'no mask'",
        "- mask of img_8: img_8.png has (3, 3) rows and columns",
        "no value for img_1, img_3",
    ):
        assert part in message


def test_single_image_and_too_few(folders):
    with pytest.raises(InputError, match="3 images are fewer than 5 folds"):
        check(folders, folds=FoldSettings())
    for index in (1, 2):
        (folders / f"images/img_{index}.png").unlink()
        (folders / f"masks/img_{index}.png").unlink()
    with pytest.raises(InputError, match="a single image"):
        check(folders)
    assert len(check(folders, folds=FoldSettings(allow_train_as_validation=True))) == 1


def test_channel_that_is_constant_everywhere(folders):
    for index in range(3):
        rgb = np.stack([pixels(index), pixels(index), np.full(SHAPE, index)], axis=-1)
        write(folders / f"images/img_{index}.png", rgb.astype(np.uint8))
    with pytest.raises(InputError, match="channel 2 is constant in every image"):
        check(folders)
    assert check(folders, channels=(0, 1)).num_channels == 2


@pytest.mark.parametrize(
    ("folds", "has_table"),
    [(TWO, True), (FoldSettings(count=2, method="stratified", column="area"), False)],
)
def test_table_and_column_go_together(folders, folds, has_table):
    table = folders / "table.csv" if has_table else None
    with pytest.raises(InputError, match="a table needs the title of a column"):
        check(folders, folds=folds, table=table)


def test_two_classes_unless_masks_hold_classes():
    with pytest.raises(ValidationError, match="use masks = 'classes'"):
        DataSettings(masks="instances", num_classes=3)


def test_remarks(folders):
    one, other = {"resolution": (1e4, 1e4)}, {"resolution": (2e4, 2e4)}
    for name, values, options in (
        ("a", pixels(7, "uint16"), one),
        ("b", pixels(8), one),
        ("c", pixels(9), other),
    ):
        path = folders / f"images/{name}.tif"
        write(path, values, resolutionunit="CENTIMETER", **options)
        write(folders / f"masks/{name}.png", disk(value=1))
    write(folders / "masks/c.png", np.zeros(SHAPE, np.uint8))
    write(folders / "images/copy.png", pixels(0))
    write(folders / "masks/copy.png", disk(value=1))
    for index in range(3):
        write(folders / f"masks/img_{index}.png", disk(value=1))
    mostly = np.ones(SHAPE, np.uint8)
    mostly[:, :15] = 0
    write(folders / "ignore/img_2.png", mostly)
    remarks = check(folders, masks="classes", num_classes=4, ignore=folders / "ignore").remarks
    assert set(remarks) == {
        "empty masks: c",
        "images of which most pixels are ignored: img_2 (70%)",
        "the same image twice, which may lie in different folds: copy and img_0",
        "intensities differ in type: uint8 in 6 images, uint16 in a",
        "pixel sizes differ: 1 x 1 um in 2 images, 0.5 x 0.5 um in c",
        "no mask has a pixel of class 2, 3",
    }


def test_channel_that_is_constant_in_one_image(folders):
    for index in range(3):
        rgb = np.stack([pixels(index)] * 3, axis=-1)
        rgb[..., 1] *= index > 0
        write(folders / f"images/img_{index}.png", rgb)
    assert check(folders).remarks == ("constant channels: 1 of img_0",)


# -- real data ----------------------------------------------------------------------------------


def test_real_ignore_masks(shared_data):
    lab = shared_data / "other_labs/lab-wue2"
    training_set = check_training_set(
        lab / "images",
        lab / "masks_STAPLE",
        settings=DataSettings(),
        folds=FoldSettings(),
        ignore=lab / "ignored_regions",
    )
    assert [image.name for image in training_set.images] == [str(n) for n in range(1669, 1674)]
    assert all(0 < image.ignored_share < 1 for image in training_set.images)
    assert training_set.remarks == (
        "empty masks: 1669",
        "images of which most pixels are ignored: 1669 (96%)",
    )


def test_real_instances(shared_data):
    nuclei = shared_data / "dsb2018_he"
    training_set = check_training_set(
        nuclei / "images",
        nuclei / "labels",
        settings=DataSettings(masks="instances"),
        folds=FoldSettings(method="stratified"),
    )
    assert training_set.num_channels == 3
    for image in training_set.images:
        labeled = training_set.load(image)
        assert 0 < labeled.target.sum() <= (labeled.labels > 0).sum()
    splits = make_splits(training_set.images, FoldSettings(method="stratified"))
    splits.require_same(training_set.images)
    changed = replace(training_set.images[0], image_sha256="0")
    with pytest.raises(InputError, match=f"changed: {changed.name}"):
        splits.require_same([changed, *training_set.images[1:]])
