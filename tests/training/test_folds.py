"""Folds: complete, balanced, the same everywhere; tables; splits.json."""

import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from df2serve.errors import InputError, SourceNotFoundError
from df2serve_training.dataset import IntensityRange, TrainingImage
from df2serve_training.folds import load_splits, make_splits
from df2serve_training.settings import FoldSettings
from df2serve_training.table import read_column


def training_image(name, *, class_pixels=(90, 10), group=None):
    return TrainingImage(
        name=name,
        image_path=Path(name),
        mask_path=Path(name),
        ignore_path=None,
        image_sha256=f"image of {name}",
        mask_sha256=f"mask of {name}",
        shape=(1, 10, 10),
        dtype="uint8",
        pixel_size_um=None,
        class_pixels=class_pixels,
        intensities=IntensityRange((0.0,), (255.0,)),
        group=group,
    )


def plain_images(count):
    return [training_image(f"img_{index}") for index in range(count)]


def folds_of(splits):
    return [splits.validation_names(fold) for fold in range(splits.folds.count)]


def settings(method, **values):
    return FoldSettings(method=method, **values)


# -- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "count"), [(5, 5), (13, 5), (36, 5), (7, 2)])
@pytest.mark.parametrize("method", ["plain", "stratified"])
def test_folds_are_a_partition_of_equal_parts(method, images, count):
    splits = make_splits(plain_images(images), settings(method, count=count))
    folds = folds_of(splits)
    assert sorted(name for fold in folds for name in fold) == sorted(splits.images)
    assert {len(fold) for fold in folds} <= {images // count, -(-images // count)}
    for fold, names in enumerate(folds):
        assert set(splits.training_names(fold)) == set(splits.images) - set(names)


def test_folds_depend_on_names_and_seed_alone():
    images = plain_images(12)
    splits = make_splits(images, FoldSettings(count=3))
    assert splits == make_splits(images[::-1], FoldSettings(count=3))
    assert splits != make_splits(images, FoldSettings(count=3, seed=1))
    # pinned: must never change, on any platform and with any version
    assert folds_of(splits) == [
        ("img_0", "img_2", "img_7", "img_11"),
        ("img_1", "img_5", "img_6", "img_10"),
        ("img_3", "img_4", "img_8", "img_9"),
    ]


def test_names_are_in_natural_order():
    names = list(make_splits(plain_images(12)[::-1], FoldSettings()).images)
    assert names == [f"img_{index}" for index in range(12)]


def test_strata_of_a_column_are_spread():
    images = [
        training_image(f"{stratum}{index}", group=stratum)
        for stratum, size in {"a": 10, "b": 4, "c": 7, "d": 1}.items()
        for index in range(size)
    ]
    splits = make_splits(images, settings("stratified", column="area", count=4))
    for stratum, size in {"a": 10, "b": 4, "c": 7, "d": 1}.items():
        counts = [sum(name.startswith(stratum) for name in fold) for fold in folds_of(splits)]
        assert set(counts) <= {size // 4, -(-size // 4)}


def test_shares_of_foreground_are_spread():
    shares = np.random.default_rng(0).permutation(30)
    images = [
        training_image(f"i{index}", class_pixels=(1000 - share, share))
        for index, share in enumerate(shares.tolist())
    ]
    means = {
        method: [
            np.mean([shares[int(name[1:])] for name in fold])
            for fold in folds_of(make_splits(images, settings(method)))
        ]
        for method in ("plain", "stratified")
    }
    assert np.ptp(means["stratified"]) < 5 < np.ptp(means["plain"])


def test_rare_classes_are_spread():
    pixels = {"common": (90, 5, 5, 0), "rare": (90, 5, 4, 1), "no2": (90, 10, 0, 0)}
    images = [
        training_image(f"{kind}{index}", class_pixels=pixels[kind])
        for kind, size in {"common": 12, "rare": 5, "no2": 8}.items()
        for index in range(size)
    ]
    folds = folds_of(make_splits(images, settings("stratified")))
    assert [sum("rare" in name for name in fold) for fold in folds] == [1] * 5


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_balance(seed):
    sizes = {"a": 7, "b": 6, "c": 6, "d": 6, "e": 5, "f": 6}
    images = [
        training_image(f"{group}{index}", group=group)
        for group, size in sizes.items()
        for index in range(size)
    ]
    splits = make_splits(images, settings("grouped", column="animal", seed=seed))
    homes = {(name[0], image.fold) for name, image in splits.images.items()}
    assert len(homes) == len(sizes)
    best = min(
        max(Counter(np.repeat(placed, list(sizes.values())).tolist()).values())
        for placed in product(range(5), repeat=6)
        if len(set(placed)) == 5
    )
    assert max(len(fold) for fold in folds_of(splits)) == best


def test_a_single_image():
    with pytest.raises(InputError, match=r"a single image.*allow_train_as_validation"):
        make_splits(plain_images(1), FoldSettings())
    splits = make_splits(plain_images(1), FoldSettings(allow_train_as_validation=True))
    for fold in range(5):
        assert splits.training_names(fold) == splits.validation_names(fold) == ("img_0",)


@pytest.mark.parametrize(
    ("images", "chosen", "message"),
    [
        (plain_images(3), FoldSettings(), "3 images are fewer than 5 folds"),
        (
            [training_image(f"i{index}", group="ab"[index % 2]) for index in range(8)],
            FoldSettings(method="grouped", column="animal", count=3),
            r"2 groups in animal \(a, b\) are too few for 3 folds",
        ),
        (
            [*plain_images(2), *(training_image(f"i{k}", group=f"{k}") for k in range(8))],
            FoldSettings(method="stratified", column="area"),
            "no area is known of img_0, img_1",
        ),
    ],
)
def test_impossible_folds(images, chosen, message):
    with pytest.raises(InputError, match=message):
        make_splits(images, chosen)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "grouped"}, "needs column"),
        ({"column": "animal"}, "needs method"),
        ({"count": 1}, "count"),
    ],
)
def test_contradicting_settings(values, message):
    with pytest.raises(ValidationError, match=message):
        FoldSettings(**values)


# -- splits.json --------------------------------------------------------------------------------


def test_splits_are_stored_whole(tmp_path):
    images = [training_image(f"zwölf {k}", group=f"g{k}") for k in range(6)]
    splits = make_splits(images, settings("grouped", column="animal", seed=7))
    path = tmp_path / "splits.json"
    splits.save(path)
    assert load_splits(path) == splits
    assert list(load_splits(path).images) == list(splits.images)
    assert [entry.name for entry in tmp_path.iterdir()] == ["splits.json"]
    stored = json.loads(path.read_bytes())
    assert stored["schema_version"] == 1
    assert stored["folds"]["method"] == "grouped"
    assert stored["folds"]["seed"] == 7
    assert stored["images"]["zwölf 3"]["image_sha256"] == "image of zwölf 3"
    assert stored["images"]["zwölf 3"]["group"] == "g3"


def test_wrong_splits_are_refused(tmp_path):
    path = tmp_path / "splits.json"
    with pytest.raises(SourceNotFoundError, match="cannot be read"):
        load_splits(path)
    make_splits(plain_images(5), FoldSettings()).save(path)
    content = json.loads(path.read_bytes())
    for change, message in (
        ({"more": 1}, "more"),
        ({"schema_version": 2}, "schema_version"),
        ({"folds": content["folds"] | {"count": 3}}, "fold out of range, there are 3"),
        ({"images": {}}, "images"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(InputError, match=message):
            load_splits(path)
    path.write_text("[")
    with pytest.raises(InputError, match="JSON"):
        load_splits(path)


def test_changed_training_sets_are_refused():
    splits = make_splits(plain_images(6), FoldSettings())
    splits.require_same(plain_images(6)[::-1])
    images = [*plain_images(8)[1:7], training_image("img_12")]
    object.__setattr__(images[2], "mask_sha256", "other")
    with pytest.raises(
        InputError, match=r"\(new: img_6, img_12; gone: img_0; changed: img_3\); restore"
    ):
        splits.require_same(images)


# -- tables -------------------------------------------------------------------------------------


def write_table(folder, columns, *, suffix=".csv", **options):
    path = folder / f"table{suffix}"
    frame = pd.DataFrame(columns)
    if suffix == ".xlsx":
        frame.to_excel(path, index=False)
    else:
        frame.to_csv(path, index=False, **options)
    return path


@pytest.mark.parametrize(
    "options",
    [{}, {"sep": ";", "encoding": "utf-8-sig"}, {"sep": "\t"}, {"suffix": ".xlsx"}],
)
@pytest.mark.parametrize("form", ["{}", "{}.png", "slides/{}.ome.tif", "slides\\{}.czi"])
def test_tables_of_every_kind(tmp_path, options, form):
    names = ["0001", "0002", "a.1"]
    columns = {
        "n": [1, 2, 3, 4],
        "file": [form.format(name) for name in ["a.1", "0002", "0001", "more"]],
        "animal": ["x", "y ", "7", ""],
    }
    path = write_table(tmp_path, columns, **options)
    expected = {"0001": "7", "0002": "y", "a.1": "x"}
    assert read_column(path, "animal", names=names, file_column=None) == expected
    assert read_column(path, "animal", names=names, file_column="file") == expected


def test_several_rows_of_an_image_may_agree(tmp_path):
    path = write_table(tmp_path, {"file": ["a", "a", "b"], "animal": ["x", "x", "y"]})
    found = read_column(path, "animal", names=["a", "b"], file_column=None)
    assert found == {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"file": ["a"], "x": ["1"]}, {}, "no column 'animal'; it has file, x"),
        ({"file": ["a"], "animal": ["1"]}, {"file_column": "id"}, "no column 'id'"),
        ({"file": ["a", "c"], "animal": ["1", "2"]}, {}, "no column of .* names every image"),
        (
            {"file": ["a", "b", "b"], "animal": [" ", "2", "3"]},
            {},
            "no value for a; several values for b",
        ),
    ],
)
def test_tables_that_do_not_fit(tmp_path, columns, arguments, message):
    path = write_table(tmp_path, columns)
    options = {"names": ["a", "b"], "file_column": None} | arguments
    with pytest.raises(InputError, match=message):
        read_column(path, "animal", **options)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(SourceNotFoundError, match="cannot be read"):
        read_column(tmp_path / "none.csv", "animal", names=["a"], file_column=None)
    for name in ("table.xlsx", "table.csv"):
        path = tmp_path / name
        path.write_bytes(b"\x00\xff\xfe")
        with pytest.raises(InputError, match="is no table"):
            read_column(path, "animal", names=["a"], file_column=None)
