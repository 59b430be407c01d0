"""From images to a review list."""

import json
from pathlib import Path

import numpy as np
import openpyxl
import pytest
import tifffile

from df2serve.artifact import Calibration, Ensemble, ReviewThreshold, with_files
from df2serve.io import read_image
from df2serve.testing import random_ensemble
from df2serve.writers import read_results


def test_the_whole_way(df2serve, ensemble: Ensemble, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = df2serve("predict", ensemble.source, images, "-o", out)
    assert (finished.code, finished.err) == (0, "")
    assert "2 images: Tiny ensemble, torch" in finished.out
    assert f"df2serve rank {out}" in finished.out
    assert {path.name for path in out.iterdir()} == {
        "masks", "previews", "records", "report.html", "run.json", "scores.csv", "scores.xlsx",
        "uncertainty",
    }  # fmt: skip

    assert f"report: {out / 'report.html'}" in finished.out

    finished = df2serve("rank", out)
    assert finished.code == 0
    assert "no threshold" in finished.err
    _, records = read_results(out)
    by_u = sorted(records, key=lambda record: -(record.scores.u or 0))
    shown = [line.split()[1] for line in finished.out.splitlines()[1:3]]
    assert shown == [record.provenance.source for record in by_u]
    assert openpyxl.load_workbook(out / "ranking.xlsx").active["B2"].value == by_u[0].name
    assert (out / "ranking.png").stat().st_size > 10_000

    threshold = by_u[0].scores.u
    ranked = json.loads(df2serve("rank", out, "--threshold", threshold, "--json").out)
    assert [row["needs_review"] for row in ranked["images"]] == [True, False]


def test_report(df2serve, ensemble: Ensemble, images: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "page.html"
    finished = df2serve("predict", ensemble.source, images, "-o", out, "--no-report")
    assert finished.code == 0
    assert "report:" not in finished.out
    assert not (out / "report.html").exists()
    assert df2serve("report", out, "-o", page).out == f"report: {page}\n"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    finished = df2serve("report", out, "--evaluation", tmp_path)
    assert finished.code == 2
    assert "holds no evaluation; give a folder that 'df2serve evaluate' has written" in finished.err


def test_objects(df2serve, ensemble: Ensemble, images: Path, tmp_path: Path) -> None:
    arguments = ["predict", ensemble.source, images, "-o", tmp_path / "out", "--min-size", "4"]
    finished = df2serve(*arguments)
    assert (finished.code, finished.err) == (
        2, "error: --min-size needs --instances watershed, components or cellpose\n"
    )  # fmt: skip
    assert (
        "give their file with --cellpose-weights"
        in df2serve(*arguments, "--instances", "cellpose").err
    )
    assert "--cellpose-weights" in df2serve(*arguments, "--cellpose-diameter", "30").err
    assert "method: Input should be" in df2serve(*arguments, "--instances", "stardist").err
    finished = df2serve(*arguments, "--instances", "components")
    assert finished.code == 0
    _, records = read_results(tmp_path / "out")
    counts = [record.instances for record in records]
    kept, removed = (sum(getattr(count, key) for count in counts) for key in ("kept", "removed"))
    assert f"{kept} objects, {removed} too small ones left out: " in finished.out
    lines = (tmp_path / "out/instances.csv").read_text().splitlines()
    assert len(lines) == 1 + kept > 1
    told = json.loads(df2serve(*arguments, "--instances", "components", "--resume", "--json").out)
    assert [row["instances"] for row in told["images"]] == [count.kept for count in counts]
    assert len((tmp_path / "out/instances.csv").read_text().splitlines()) == 1 + kept


def test_threshold_of_the_ensemble(df2serve, images: Path, tmp_path: Path) -> None:
    opened = random_ensemble(tmp_path / "ens", members=1, channels=1, classes=2, tile=64)
    threshold = ReviewThreshold(
        score="u",
        value=0.001,
        metric="dice",
        required=0.8,
        failing=4,
        references=20,
        kind="held_out",
        level=0.2,
    )
    calibration = Calibration(thresholds=(threshold,)).model_dump_json().encode()
    with_files(opened, {"calibration.json": calibration})
    out = tmp_path / "out"
    finished = df2serve("predict", opened.source, images, "-o", out)
    assert "2 of 2 need review (U >= 0.001)" in finished.out
    finished = df2serve("rank", out)
    assert "2 of 2 images need review (U >= 0.001)" in finished.out
    assert "4 of 20 reference images, those with dice < 0.8" in finished.out
    assert "with a chance of at most 0.200" in finished.out
    unproven = ReviewThreshold.model_validate(threshold.model_dump() | {"level": None})
    assert unproven.meaning.endswith("dice < 0.8: it guarantees nothing")


def test_json_and_settings(df2serve, ensemble: Ensemble, tmp_path: Path) -> None:
    """A stack with time, channels and depth, of which one plane is taken."""
    stack = np.random.default_rng(0).integers(0, 4095, (2, 3, 2, 70, 60), dtype=np.uint16)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "TZCYX"})
    out = tmp_path / "out"
    finished = df2serve(
        "predict", ensemble.source, path, "-o", out, "--json", "--probabilities",
        "--t", 1, "--z", 2, "--channels", 1, "--pixel-size", 0.3,
        "--preset", "deepflash2", "--views", 1, "--tile", 96, "--backend", "onnx",
    )  # fmt: skip
    assert finished.code == 0
    answer = json.loads(finished.out)
    assert [row["source"] for row in answer["images"]] == ["stack.tif"]
    assert answer["runner"]["backend"].startswith("onnxruntime")
    config = answer["run"]["config"]
    assert (config["views"], config["tile_shape"], config["map_order"]) == (1, [96, 96], "per_tile")
    _, [record] = read_results(out)
    assert record.provenance.selection.z == 2
    assert record.provenance.image_axes == "TZCYX"
    mask = read_image(out / "masks/stack.tif")
    assert mask.pixel_size_um is not None
    assert mask.pixel_size_um.x_um == pytest.approx(0.3)
    assert read_image(out / "probabilities/stack.tif").shape == (2, 70, 60)


def test_untrusted_images_give_the_same(
    df2serve, ensemble: Ensemble, images: Path, tmp_path: Path
) -> None:
    df2serve("predict", ensemble.source, images, "-o", tmp_path / "a")
    finished = df2serve("predict", ensemble.source, images, "-o", tmp_path / "b", "--untrusted")
    assert finished.code == 0
    for name in ("masks/1.tif", "uncertainty/2.tif", "previews/1.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_resume(df2serve, ensemble: Ensemble, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    df2serve("predict", ensemble.source, images / "1.png", "-o", out)
    finished = df2serve("predict", ensemble.source, images, "-o", out)
    assert finished.code == 2
    assert "holds results; resume to go on with them" in finished.err
    finished = df2serve("predict", ensemble.source, images, "-o", out, "--resume")
    assert "2 images, 1 of them found finished" in finished.out


def test_results_below_the_images_are_not_taken_for_images(
    df2serve, ensemble: Ensemble, images: Path
) -> None:
    out = images / "out"
    arguments = ("predict", ensemble.source, images, "-o", out, "--pattern", "**/*", "--resume")
    assert "2 images:" in df2serve(*arguments).out
    assert "2 images, 2 of them found finished:" in df2serve(*arguments).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "{images}"], "no ensemble at nowhere"),
        (["{images}", "{images}"], "holds no ensemble.json"),
        (["{ensemble}", "nothing"], "nothing does not exist; give a file or a folder of images"),
        (["{ensemble}", "{ensemble}"], "holds no images that match"),
        (["{ensemble}", "{images}", "--preset", "best"], "unknown preset 'best'; choose one of"),
        (["{ensemble}", "{images}", "--tile", "50"], "this network needs multiples of"),
        (["{ensemble}", "{images}", "--tile", "8"], "tile_shape.0: Input should be greater"),
        (["{ensemble}", "{images}", "--views", "3"], "views: Input should be 1, 4 or 8"),
        (["{ensemble}", "{images}", "--precision", "int8"], "precision: Input should be 'auto'"),
        (["{ensemble}", "{images}", "--backend", "jax"], "backend: Input should be 'auto'"),
        (["{ensemble}", "{images}", "--device", "tpu"], "device: String should match"),
        (["{ensemble}", "{images}", "--device", "cuda:7"], "device 'cuda:7' is not available"),
        (["{ensemble}", "{images}", "--batch-size", "0"], "batch_size: Input should be greater"),
        (["{ensemble}", "{images}", "--channels", "red"], "got --channels 'red'; expected numbers"),
        (["{ensemble}", "{images}", "--channels", "4"], "channel"),
        (["{ensemble}", "{images}", "--z", "4"], "1.png"),
        (["{ensemble}", "{images}", "--axes", "QQ"], "axes"),
        (["{ensemble}", "{images}", "--pattern", "*.zarr"], "holds no images that match '*.zarr'"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(
    df2serve, ensemble: Ensemble, images: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [part.format(ensemble=ensemble.source, images=images) for part in arguments]
    finished = df2serve("predict", *filled, "-o", tmp_path / "out")
    assert finished.code == 2
    lines = finished.err.splitlines()
    assert lines, "no error"
    assert all(line.startswith("error: ") for line in lines)
    assert message in finished.err
    assert "Traceback" not in finished.err


def test_usage_errors_and_debug(df2serve, tmp_path: Path) -> None:
    assert df2serve("predict").code == 2
    assert df2serve("predict", "--pixel-size", "-1", "a", "b", "-o", "c").code == 2
    with pytest.raises(FileNotFoundError, match="no ensemble"):
        df2serve("--debug", "predict", "nowhere", "image", "-o", tmp_path)


def test_rank_without_results(df2serve, tmp_path: Path) -> None:
    finished = df2serve("rank", tmp_path)
    assert (finished.code, finished.out) == (2, "")
    assert finished.err == (
        f"error: {tmp_path} holds no results; give a folder that 'df2serve predict' has written\n"
    )
