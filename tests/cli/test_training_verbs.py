"""The verbs of the training package, and the demo that walks through all of them."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile

from df2serve.artifact import load_ensemble
from df2serve.testing import CellScene, generate_cells, simulate_experts
from df2serve.writers import read_results

RECIPE = """
folds = { count = 2 }
sampling = { patch_shape = [32, 32] }
augment = { rotation = { probability = 0, low = 0, high = 0 } }

[network]
encoder = "tu-test_resnet"
weights = "random"
options = { encoder_depth = 4, decoder_channels = [16, 8, 8, 8] }

[training]
steps = 3
batch_size = 2
"""


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """Four images, masks of three experts, and a recipe."""
    scene = CellScene(shape=(96, 96), n_cells=6)
    for seed in range(4):
        sample = generate_cells(scene, seed)
        experts = simulate_experts(sample, seed)
        masks: dict[str, Any] = {
            f"experts/{name}": 255 * experts[name] for name in list(experts)[:3]
        }
        for place, pixels in {"images": sample.image[0], **masks}.items():
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(tmp_path / place / f"{seed}.tif", pixels, metadata={"axes": "YX"})
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path


def test_experts_to_a_calibrated_ensemble(df2serve: Callable[..., Any], labeled: Path) -> None:
    images, gt, ensemble = labeled / "images", labeled / "gt", labeled / "ensemble"
    estimated = df2serve("gt", labeled / "experts", "-o", gt)
    assert estimated.code == 0
    assert "4 images" in estimated.out
    trained = df2serve(
        "train", images, gt / "masks", "-o", ensemble, "--recipe", labeled / "tiny.toml",
        "--class-names", "background,cell", "--set", "training.seed=5",
        "--description", "Cells, drawn by a program.",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert len(load_ensemble(ensemble)) == 2
    assert load_ensemble(ensemble).manifest.description == "Cells, drawn by a program."
    recipe = tomllib.loads(load_ensemble(ensemble).read("training.toml").decode())
    assert recipe["training"]["seed"] == 5
    evaluated = df2serve(
        "evaluate", ensemble, images, gt / "masks", "--experts", labeled / "experts",
        "-o", labeled / "evaluation", "--calibrate",
    )  # fmt: skip
    assert evaluated.code == 0, evaluated.err
    assert "dice: " in evaluated.out
    record = json.loads((labeled / "evaluation" / "evaluation.json").read_text())
    assert [row["kind"] for row in record["images"]] == ["out_of_fold"] * 4
    calibrated = load_ensemble(ensemble)
    calibration = calibrated.calibration
    assert calibration is not None
    run, records = read_results(labeled / "evaluation" / "results")
    assert run.calibration == calibration
    assert run.ensemble_sha256 == calibrated.sha256
    rows = {row["image_sha256"]: row for row in record["images"]}
    assert {one.provenance.source_sha256: one.scores.u for one in records} == {
        sha256: row["u"] for sha256, row in rows.items()
    }
    page = (labeled / "evaluation" / "report.html").read_text()
    assert "Beside the experts" in page
    assert all(row["file"] in page for row in record["images"])
    assert {reference.kind for reference in calibration.references} == {"out_of_fold"}
    compared = df2serve("compare", labeled / "evaluation", labeled / "evaluation")
    assert "difference +0.000 (+0.000 to +0.000), no image differs, 4 images" in compared.out
    assert "masks of 2 runs agree with each other: Dice 1.000" in compared.out
    told = json.loads(df2serve("compare", *[labeled / "evaluation"] * 2, "--json").out)
    assert told["reproducibility"]["mean"]["dice"] == 1
    missing = df2serve("compare", labeled / "evaluation", labeled / "none")
    assert (missing.code, missing.err.count("\n")) == (2, 1)


def test_warnings_of_a_kind_are_summed_up(df2serve: Callable[..., Any], tmp_path: Path) -> None:
    blank = generate_cells(CellScene(shape=(64, 64), n_cells=0), 0).mask
    for expert in ("a", "b", "c"):
        (tmp_path / expert).mkdir()
        for number in range(4):
            tifffile.imwrite(tmp_path / expert / f"{number}.tif", blank, metadata={"axes": "YX"})
    told = df2serve("gt", tmp_path, "-o", tmp_path.with_name("gt")).err.splitlines()
    assert told[0] == "empty_mask: 0 of a: the mask is empty; make sure that nothing is to be seen"
    assert "empty_mask: … and 7 more in report.json" in told
    assert sum(line.startswith("empty_estimate: ") for line in told) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set", "training.steps"], "expected a name and a value"),
        (["--set", "training.step=5"], "training.step: Extra inputs"),
        (["--class-names", "cell"], "got 1 class names"),
        (["--recipe", "none"], "no recipe 'none'"),
        (["--set", "folds.count=5"], "4 images"),
    ],
)
def test_mistakes_are_one_line(
    df2serve: Callable[..., Any], labeled: Path, change: list[str], message: str
) -> None:
    masks = next((labeled / "experts").iterdir())
    recipe = [] if "--recipe" in change else ["--recipe", labeled / "tiny.toml"]
    finished = df2serve("train", labeled / "images", masks, "-o", labeled / "e", *recipe, *change)
    assert finished.code == 2
    assert message in finished.err
    assert finished.err.startswith("error: ")
    assert not (labeled / "e").exists()


@pytest.mark.slow
def test_demo_ends_with_odd_images_first(df2serve: Callable[..., Any], tmp_path: Path) -> None:
    finished = df2serve("demo", "-o", tmp_path / "demo")
    assert finished.code == 0, finished.err
    table = (tmp_path / "demo/results/ranking.csv").read_text().splitlines()
    first = {line.split(",")[1].rsplit("-", 1)[0] for line in table[1:7]}
    assert first == {"blurred", "empty", "larger", "noisy", "saturated", "vessels"}
    again = df2serve("demo", "-o", tmp_path / "demo")
    assert again.out.count("there already") == 4
