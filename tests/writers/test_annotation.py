"""Doubtful images go to people who draw, and their masks come back without doing harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage

from df2serve import Predictor
from df2serve.errors import ConfigError, DecodeError, InputError, OutputError, SourceNotFoundError
from df2serve.io import list_images, open_image, read_image
from df2serve.writers import ResultFolder, read_results, relative_names
from df2serve.writers.annotation import (
    AnnotationManifest,
    accept_annotations,
    export_for_annotation,
)
from df2serve.writers.annotation._export import _flat_names, _write_image, most_uncertain_window
from df2serve_training.preflight import check_training_set
from df2serve_training.settings import DataSettings, FoldSettings


@pytest.fixture(scope="module")
def predicted(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images with a pixel size, one of them in a subfolder, and their results."""
    root, rng = tmp_path_factory.mktemp("annotation"), np.random.default_rng(0)
    (root / "images/day 2").mkdir(parents=True)
    for name in ("1.tif", "2.tif", "day 2/1.tif"):
        pixels = rng.integers(0, 255, (150, 90), dtype=np.uint8)
        tifffile.imwrite(
            root / "images" / name, pixels, imagej=True, resolution=(2, 4), metadata={"unit": "um"}
        )
    paths = list_images(root / "images", pattern="**/*")
    names = relative_names(paths)
    folder = ResultFolder(root / "results", predictor.ensemble, predictor.config)
    stream = predictor.predict_many(
        paths, consume=folder.write, opener=lambda path: open_image(path, name=names[Path(path)])
    )
    assert [outcome.error for outcome in stream] == [None] * 3
    return root


@pytest.fixture
def results(predicted: Path) -> Path:
    return predicted / "results"


@pytest.fixture
def images(predicted: Path, tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(predicted / "images", tmp_path / "images"))


@pytest.fixture
def handed(results: Path, images: Path, tmp_path: Path) -> Path:
    export_for_annotation(results, tmp_path / "handed", images=images, count=3)
    return tmp_path / "handed"


def manifest_of(folder: Path) -> AnnotationManifest:
    return AnnotationManifest.model_validate_json((folder / "manifest.json").read_bytes())


def mask_of(path: Path) -> np.ndarray:
    return np.asarray(read_image(path).data)[0]


def correct(path: Path) -> np.ndarray:
    """Draw an object of class 2, as a person does in some program."""
    mask = mask_of(path).copy()
    mask[10:20, 30:45] = 2
    tifffile.imwrite(path, mask)
    return mask


# -- out ----------------------------------------------------------------------------------------


def test_the_most_doubtful_images_come_first(results: Path, images: Path, tmp_path: Path) -> None:
    manifest = export_for_annotation(results, tmp_path / "two", images=images, count=2)
    _, records = read_results(results)
    records.sort(key=lambda record: -record.scores.u)
    assert [item.name for item in manifest.items] == [record.name for record in records[:2]]
    assert [item.u for item in manifest.items] == [record.scores.u for record in records[:2]]
    assert manifest == manifest_of(tmp_path / "two")
    for item, record in zip(manifest.items, records, strict=False):
        image = read_image(tmp_path / "two/images" / item.file)
        original = read_image(images / record.provenance.source)
        assert np.array_equal(image.data, original.data)
        assert image.pixel_size_um == original.pixel_size_um
        predicted = mask_of(results / record.files["mask"].path)
        assert np.array_equal(mask_of(tmp_path / "two/masks" / item.file), predicted)
        assert (item.top, item.left, item.height, item.width) == (0, 0, 150, 90)
    readme = (tmp_path / "two/README.md").read_text()
    assert "- 2: class 2\n" in readme


def test_crops_are_cut_where_uncertainty_is_largest(
    results: Path, images: Path, tmp_path: Path
) -> None:
    manifest = export_for_annotation(results, tmp_path / "crops", images=images, count=3, crop=32)
    _, records = read_results(results)
    by_name = {record.name: record for record in records}
    for item in manifest.items:
        record = by_name[item.name]
        total = mask_of(results / record.files["uncertainty"].path)
        means = np.lib.stride_tricks.sliding_window_view(total, (32, 32)).mean(axis=(2, 3))
        assert means[item.top, item.left] == pytest.approx(means.max(), abs=1e-6)
        part = np.s_[item.top : item.top + 32, item.left : item.left + 32]
        original = mask_of(images / item.source)
        assert np.array_equal(mask_of(tmp_path / "crops/images" / item.file), original[part])
        predicted = mask_of(results / record.files["mask"].path)
        assert np.array_equal(mask_of(tmp_path / "crops/masks" / item.file), predicted[part])
        assert item.file.endswith(f"_{item.top}_{item.left}.tif")


@pytest.mark.parametrize("shape", [(7, 11), (3, 3), (5, 2)])
def test_windows_are_those_of_a_plain_search(shape: tuple[int, int]) -> None:
    total = np.random.default_rng(1).random(shape).astype(np.float32)
    window = most_uncertain_window(total, side=4)
    assert (window.height, window.width) == (min(4, shape[0]), min(4, shape[1]))
    sums = np.lib.stride_tricks.sliding_window_view(total, (window.height, window.width))
    means = sums.mean(axis=(2, 3), dtype=float)
    assert (window.top, window.left) == np.unravel_index(means.argmax(), means.shape)
    flat = most_uncertain_window(np.full((40, 40), 0.3, np.float32), side=8)
    assert (flat.top, flat.left) == (0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int16, np.uint32, np.bool_])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_intensities_stay_as_they_are(tmp_path: Path, dtype: type, channels: int) -> None:
    pixels = (np.random.default_rng(0).random((channels, 20, 30)) * 200).astype(dtype)
    _write_image(tmp_path / "image.tif", pixels, None)
    assert np.array_equal(read_image(tmp_path / "image.tif").data, pixels)


def test_names_that_every_system_takes(results: Path) -> None:
    _, records = read_results(results)
    hostile = ['a/b:"c"', "a_b_c_", "..", "A/B:c:", "x" * 300, "trailing. "]
    named = [records[0].model_copy(update={"name": name}) for name in hostile]
    assert _flat_names(named) == ["a_b_c_", "a_b_c_~2", "image", "A_B_c_~3", "x" * 120, "trailing"]


def test_another_image_is_refused(results: Path, images: Path, tmp_path: Path) -> None:
    path = images / "1.tif"
    tifffile.imwrite(path, read_image(path).data[0] // 2)
    with pytest.raises(InputError, match=r"1\.tif is not the image that was predicted \(sha256"):
        export_for_annotation(results, tmp_path / "out", images=images, count=3)
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"1\.tif cannot be opened"):
        export_for_annotation(results, tmp_path / "out", images=images, count=3)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="got count = 0; expected 1 or more"):
        export_for_annotation(results, tmp_path / "out", images=images, count=0)


def test_a_folder_is_not_overwritten(handed: Path, results: Path, images: Path) -> None:
    with pytest.raises(OutputError, match="exists; remove it or choose another folder"):
        export_for_annotation(results, handed, images=images, count=1)


# -- and back -----------------------------------------------------------------------------------


def test_corrected_masks_become_training_data(handed: Path, tmp_path: Path) -> None:
    first, second, third = (item.file for item in manifest_of(handed).items)
    before = mask_of(handed / "predicted" / first)
    drawn = correct(handed / "masks" / first)
    correct(handed / "masks" / second)
    training = tmp_path / "training"
    classes, masks = accept_annotations(handed, training)
    assert classes == ("background", "class 1", "class 2")
    assert [mask.accepted for mask in masks] == [True, True, False]
    assert masks[0].changed_px == np.count_nonzero(before != drawn) > 0
    assert masks[0].before_px == tuple(np.count_nonzero(before == k) for k in range(3))
    assert masks[0].after_px == tuple(np.count_nonzero(drawn == k) for k in range(3))
    assert masks[2].changed_px == 0
    for place in ("images", "masks"):
        assert {path.name for path in (training / place).iterdir()} == {first, second}
    assert np.array_equal(mask_of(training / "masks" / first), drawn)
    assert (training / "images" / first).read_bytes() == (handed / "images" / first).read_bytes()

    _, masks = accept_annotations(handed, training, confirmed=True)
    assert [mask.accepted for mask in masks] == [True] * 3
    assert (training / "masks" / third).is_file()
    checked = check_training_set(
        training / "images",
        training / "masks",
        settings=DataSettings(masks="classes", num_classes=3),
        folds=FoldSettings(count=3),
    )
    assert len(checked) == 3


def test_nothing_is_overwritten(handed: Path, tmp_path: Path) -> None:
    first, second, _ = (item.file for item in manifest_of(handed).items)
    correct(handed / "masks" / first)
    correct(handed / "masks" / second)
    training = tmp_path / "training"
    (training / "images").mkdir(parents=True)
    (training / "masks").mkdir()
    stem = Path(second).stem.upper()
    (training / "images" / f"{stem}.png").write_bytes(b"an older image")
    (training / "masks" / first).write_bytes(b"an older mask")
    with pytest.raises(InputError, match="nothing was accepted, since 2 things are wrong") as error:
        accept_annotations(handed, training)
    assert f"{stem}.png is there already and differs" in str(error.value)
    assert (training / "masks" / first).read_bytes() == b"an older mask"
    assert len(list(training.rglob("*.*"))) == 2


def test_what_cannot_be_right_is_refused(handed: Path, tmp_path: Path) -> None:
    first, second, third = (item.file for item in manifest_of(handed).items)
    mask = mask_of(handed / "masks" / first).copy()
    mask[0, 0] = 3
    tifffile.imwrite(handed / "masks" / first, mask)
    tifffile.imwrite(handed / "masks" / second, mask[1:101])
    tifffile.imwrite(handed / "images" / third, mask)
    with pytest.raises(InputError, match="since 3 things are wrong") as error:
        accept_annotations(handed, tmp_path / "training")
    text = str(error.value)
    assert f"masks/{first} does not hold the classes 0 to 2: " in text
    assert "holds the values 3, expected classes 0 to 2" in text
    assert f"masks/{second} has 100 x 90 pixels, its image 150 x 90" in text
    assert f"images/{third} was changed; restore it" in text
    assert not list((tmp_path / "training").rglob("*.*"))
    (handed / "masks" / first).unlink()
    with pytest.raises(InputError, match=f"masks/{first} cannot be opened"):
        accept_annotations(handed, tmp_path / "training")


def test_a_manifest_cannot_lead_out_of_the_folder(handed: Path, tmp_path: Path) -> None:
    content = json.loads((handed / "manifest.json").read_text())
    content["items"][0]["file"] = "../../secret.tif"
    (handed / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DecodeError, match="must be a plain relative path"):
        accept_annotations(handed, tmp_path / "training")
    with pytest.raises(SourceNotFoundError, match="holds nothing to accept"):
        accept_annotations(tmp_path, tmp_path / "training")


# -- on the command line ------------------------------------------------------------------------


def test_verb(df2serve, results: Path, images: Path, tmp_path: Path) -> None:
    out, training = tmp_path / "out", tmp_path / "training"
    assert "give either --export" in df2serve("review", results).err
    assert "needs --images" in df2serve("review", results, "--export", out).err
    finished = df2serve("review", results, "--export", out, "--images", images, "--count", 2)
    assert finished.code == 0
    assert f"2 images to annotate: {out}\n" in finished.out
    path = next((out / "masks").iterdir())
    PillowImage.fromarray(correct(path)).save(path)
    finished = df2serve("review", "--accept", out, training)
    assert finished.code == 0
    assert f"1 of 2 images are in {training}\n" in finished.out
    told = json.loads(df2serve("review", "--accept", out, training, "--confirmed", "--json").out)
    assert [mask["accepted"] for mask in told["masks"]] == [True, True]
    shutil.rmtree(training)
    path.unlink()
    finished = df2serve("review", "--accept", out, training)
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.startswith("error: nothing was accepted, since 1 things are wrong:")
