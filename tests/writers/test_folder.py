"""Results on disk: what is written, what is reused, and what never gets lost."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from df2serve import Image, Predictor
from df2serve.config import InferenceConfig, ReviewConfig, preset
from df2serve.errors import ConfigError, DecodeError, InputError, OutputError, SourceNotFoundError
from df2serve.inference import Outcome
from df2serve.io import PixelSize, list_images, open_image, read_image
from df2serve.testing import random_ensemble
from df2serve.writers import (
    ResultFolder,
    Written,
    ranking_rows,
    read_results,
    relative_names,
    review,
)


def run(
    predictor: Predictor,
    images: Path,
    target: Path,
    *,
    resume: bool = False,
    probabilities: bool = False,
) -> list[Outcome[Written]]:
    sources = list_images(images, pattern="**/*")
    names = relative_names(sources)
    results = ResultFolder(
        target,
        predictor.ensemble,
        predictor.config,
        sources=list(names.values()),
        resume=resume,
        probabilities=probabilities,
    )
    return list(
        predictor.predict_many(
            sources,
            consume=results.write,
            opener=lambda path: open_image(path, name=names[Path(path)]),
        )
    )


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ino)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_hold_the_prediction(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    target = tmp_path / "results"
    outcomes = run(predictor, images, target, probabilities=True)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    _, records = read_results(target)
    assert [record.name for record in records] == ["1", "2", "day 2/1"]
    for record, written in zip(records, outcomes, strict=True):
        assert written.result == Written(record, reused=False)
        expected = predictor.predict(images / record.provenance.source)
        mask = read_image(target / f"masks/{record.name}.tif")
        total = read_image(target / f"uncertainty/{record.name}.tif")
        probs = read_image(target / f"probabilities/{record.name}.tif")
        assert (mask.dtype, total.dtype, probs.dtype) == (np.uint8, np.float32, np.float32)
        assert np.array_equal(mask.data[0], expected.mask)
        assert np.array_equal(total.data[0], expected.total)
        assert np.array_equal(probs.data, expected.probs)
        assert {mask.pixel_size_um, total.pixel_size_um} == {PixelSize(y_um=0.25, x_um=0.5)}
        assert record.scores == expected.scores
        assert record.provenance.source_sha256 == expected.summary.provenance.source_sha256
        assert record.provenance.config == predictor.config
        for path in (f"previews/{record.name}.png", f"uncertainty/{record.name}.png"):
            with PillowImage.open(target / path) as picture:
                assert picture.size == (90, 150)


def test_color_means_the_same_uncertainty_in_every_picture(
    predictor: Predictor, images: Path, tmp_path: Path
) -> None:
    run(predictor, images, tmp_path / "results")
    total = read_image(tmp_path / "results/uncertainty/1.tif").data[0]
    with PillowImage.open(tmp_path / "results/uncertainty/1.png") as picture:
        levels = np.asarray(picture)
    assert np.array_equal(levels, np.round(total / (8 / 9) * 255).astype(np.uint8))


def test_resume_reuses_what_is_whole(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    target = tmp_path / "results"
    run(predictor, images, target)
    before = contents(target)
    (target / "masks/2.tif").write_bytes(b"damaged")
    (target / "uncertainty/day 2/1.png").unlink()
    outcomes = run(predictor, images, target, resume=True)
    assert [outcome.result.reused for outcome in outcomes if outcome.result] == [True, False, False]
    after = contents(target)
    assert after.keys() == before.keys()
    for path, (content, inode) in after.items():
        if path.startswith(("masks", "uncertainty", "previews")):
            assert content == before[path][0]
        if path.rsplit("/", 1)[-1].startswith("1.") and "day" not in path:
            assert inode == before[path][1], "a result that is whole was written again"


def test_resume_computes_changed_images_again(
    predictor: Predictor, images: Path, tmp_path: Path
) -> None:
    target = tmp_path / "results"
    run(predictor, images, target)
    (images / "1.tif").write_bytes((images / "2.tif").read_bytes())
    outcomes = run(predictor, images, target, resume=True)
    assert [outcome.result.reused for outcome in outcomes if outcome.result] == [False, True, True]
    one, two = (read_image(target / f"masks/{name}.tif").data for name in "12")
    assert np.array_equal(one, two)


def test_resume_adds_probabilities_and_survives_a_damaged_record(
    predictor: Predictor, images: Path, tmp_path: Path
) -> None:
    target = tmp_path / "results"
    run(predictor, images, target, probabilities=True)
    for path in (target / "probabilities").glob("2.tif"):
        path.unlink()
    (target / "records/1.json").write_text("{")
    outcomes = run(predictor, images, target, probabilities=True, resume=True)
    assert [outcome.result.reused for outcome in outcomes if outcome.result] == [False, False, True]
    read_results(target)


def test_a_later_image_of_the_same_name_gets_a_name_of_its_own(
    predictor: Predictor, images: Path, tmp_path: Path
) -> None:
    target = tmp_path / "results"
    run(predictor, images, target)
    before = contents(target)
    PillowImage.fromarray(read_image(images / "2.tif").data[0]).save(images / "1.png")
    run(predictor, images, target, resume=True)
    after = contents(target)
    assert before.items() <= after.items() | {("run.json", before["run.json"])}
    assert "masks/1.png.tif" in after


def test_foreign_content_and_other_runs_are_not_touched(
    predictor: Predictor, images: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "masks").mkdir()
    with pytest.raises(ConfigError, match="holds no results of df2serve; choose a new folder"):
        ResultFolder(other, predictor.ensemble, predictor.config)
    target = tmp_path / "results"
    run(predictor, images, target)
    with pytest.raises(ConfigError, match="holds results; resume to go on"):
        ResultFolder(target, predictor.ensemble, predictor.config)
    changed = predictor.config.updated(views=1)
    with pytest.raises(ConfigError, match="other settings: views 4 is now 1"):
        ResultFolder(target, predictor.ensemble, changed, resume=True)
    second = random_ensemble(tmp_path / "second", members=1, channels=1, classes=3, tile=64)
    with pytest.raises(ConfigError, match="holds results of ensemble tiny"):
        ResultFolder(target, second, predictor.config, resume=True)
    (target / "run.json").write_text('{"schema_version": 1}')
    with pytest.raises(DecodeError, match=r"run.json: .*ensemble_id"):
        ResultFolder(target, predictor.ensemble, predictor.config, resume=True)


def test_a_file_in_place_of_the_folder(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="choose a new folder"):
        ResultFolder(tmp_path / "file", predictor.ensemble, predictor.config)
    with pytest.raises(OutputError, match=r"cannot write .*Not a directory"):
        ResultFolder(tmp_path / "file/below", predictor.ensemble, predictor.config)


def test_nothing_changes_when_an_image_breaks_down_in_the_middle(
    predictor: Predictor, images: Path, tmp_path: Path
) -> None:
    """Rows that were predicted and written before the damage are not left behind."""
    target = tmp_path / "results"
    run(predictor, images, target)
    before = contents(target)
    pixels = np.zeros((150, 90), np.float32)
    pixels[-1, -1] = np.nan
    np.save(images / "1.npy", pixels)
    (images / "1.tif").unlink()
    outcomes = run(predictor, images, target, resume=True)
    assert isinstance(outcomes[0].error, DecodeError)
    assert "rows from" in str(outcomes[0].error)
    assert contents(target).keys() == before.keys()


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="holds no results"):
        read_results(tmp_path)


def test_names_of_images_in_memory_stay_inside(predictor: Predictor, tmp_path: Path) -> None:
    results = ResultFolder(tmp_path / "results", predictor.ensemble, predictor.config)
    image = Image.from_array(np.zeros((40, 40)), source="../../escape")
    with pytest.raises(InputError, match="path inside of a folder"):
        results.write(predictor.stream(image))


def test_less_is_written_when_less_is_asked_for(predictor: Predictor, tmp_path: Path) -> None:
    image = Image.from_array(np.zeros((40, 40), np.uint8), source="a")
    target = tmp_path / "results"

    def write(*kinds: str) -> None:
        folder = ResultFolder(
            target, predictor.ensemble, predictor.config, kinds=kinds, resume=True
        )
        files = folder.write(predictor.stream(image)).record.files
        assert set(files) == set(kinds)
        assert all((target / file.path).is_file() for file in files.values())
        (row,) = ranking_rows(
            review(read_results(target)[1], folder.run, config=ReviewConfig()), folder.run
        )
        assert row["picture"] == ("previews/a.png" if "overlay" in kinds else None)

    write("mask")
    assert {path.name for path in target.iterdir()} == {"masks", "records", "run.json"}
    write("mask", "uncertainty", "overlay")


def test_record_is_plain_json(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    run(predictor, images, tmp_path / "results")
    record = json.loads((tmp_path / "results/records/1.json").read_text())
    assert record["schema_version"] == 1
    assert record["provenance"]["source"] == "1.tif"
    assert record["provenance"]["runner"]["device"] == "cpu"
    config = InferenceConfig.model_validate(record["provenance"]["config"])
    assert config == preset("accurate").updated(tile_shape=(64, 64), zoom_out=1.0)
