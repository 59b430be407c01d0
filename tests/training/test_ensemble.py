"""From folders of images and masks to an ensemble, by the functions and by the command line."""

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
from PIL import Image as PillowImage
from safetensors.torch import save_file

from df2serve import Predictor, load_ensemble
from df2serve.cli import main
from df2serve.core.metrics import mean_dice
from df2serve.errors import ConfigError, InputError, OutputError
from df2serve.testing import CellScene, generate_cells, simulate_experts
from df2serve_training.ensemble import EnsembleFacts, train_ensemble
from df2serve_training.history import StepReport, read_history
from df2serve_training.preflight import check_training_set
from df2serve_training.recipe import Recipe, load_recipe

SMALL = {
    "folds": {"count": 2},
    "sampling": {"patch_shape": [64, 64]},
    "network": {
        "encoder": "tu-test_resnet",
        "weights": "random",
        "options": {"encoder_depth": 4, "decoder_channels": [32, 16, 8, 8]},
    },
    "training": {
        "steps": 6,
        "batch_size": 2,
        "ema_decay": 0.5,
        "phases": [{"share": 1, "rate": 5e-3}],
    },
}
FACTS = EnsembleFacts(id="small", name="Small")


def write_set(folder: Path, scene: CellScene, *, count: int = 4, labels: bool = False) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for seed in range(count):
        sample = generate_cells(scene, seed)
        axes = {"axes": "CYX"} if scene.channels == 2 else {}
        pixels = sample.image if scene.channels == 2 else np.moveaxis(sample.image, 0, -1).squeeze()
        photometric = "rgb" if scene.channels == 3 else "minisblack"
        tifffile.imwrite(
            folder / f"images/{seed}.tif", pixels, photometric=photometric, metadata=axes
        )
        mask = sample.labels.astype(np.uint16) if labels else sample.mask
        PillowImage.fromarray(mask).save(folder / f"masks/{seed}.png")


def recipe(**data: object) -> Recipe:
    return Recipe.model_validate(SMALL | {"data": data})


def train(folder: Path, chosen: Recipe, target: Path, seen: list[StepReport] | None = None):
    data = check_training_set(
        folder / "images", folder / "masks", settings=chosen.data, folds=chosen.folds
    )
    listener = (lambda report: None) if seen is None else seen.append
    return train_ensemble(data, target, chosen, facts=FACTS, device="cpu", listener=listener)


@pytest.mark.parametrize(
    ("scene", "data", "labels"),
    [
        (CellScene(shape=(96, 96), n_cells=6), {}, False),
        pytest.param(
            CellScene(shape=(96, 96), n_cells=6, channels=2, bit_depth=16),
            {"zoom_out": 1.5},
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            CellScene(shape=(96, 96), n_cells=6, channels=3, classes="shape"),
            {"masks": "classes", "num_classes": 4},
            False,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["binary", "16 bit, 2 channels, instances, coarser", "RGB, 4 classes"],
)
def test_what_a_training_leaves(
    tmp_path: Path, scene: CellScene, data: dict[str, object], labels: bool
) -> None:
    write_set(tmp_path, scene, labels=labels)
    chosen = recipe(**(data | {"masks": "instances"} if labels else data))
    seen: list[StepReport] = []
    ensemble = train(tmp_path, chosen, tmp_path / "ens", seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ens", "images", "masks"]
    assert [(report.member, report.step) for report in seen] == [(0, 6), (1, 6)]
    ensemble.verify()
    manifest = ensemble.manifest
    assert (len(ensemble), manifest.num_channels) == (2, scene.channels)
    assert manifest.num_classes == chosen.data.num_classes
    assert manifest.license is None
    assert manifest.training["recipe"] == chosen.model_dump(mode="json", exclude_none=True)
    (tmp_path / "again.toml").write_bytes(ensemble.read("training.toml"))
    assert load_recipe(tmp_path / "again.toml") == chosen

    rows = list(csv.DictReader(io.StringIO(ensemble.read("out_of_fold.csv").decode())))
    assert sorted(row["name"] for row in rows) == ["0", "1", "2", "3"]
    for member in manifest.members:
        own = [float(row["dice"]) for row in rows if int(row["fold"]) == member.fold]
        assert member.validation["dice"] == pytest.approx(np.mean(own))

    assert read_history(ensemble.read("history.csv")) == seen
    with PillowImage.open(io.BytesIO(ensemble.read("curves.png"))) as picture:
        assert np.asarray(picture.convert("L")).std() > 5

    golden = ensemble.golden()
    assert golden is not None
    assert manifest.zoom_out == data.get("zoom_out", 1)
    config = manifest.inference.updated(zoom_out=1.0)
    with Predictor(ensemble, config=config) as predictor:
        again = predictor.predict(golden.image, axes="CYX")
    np.testing.assert_allclose(again.probs, golden.probs, atol=1e-5)


def test_images_normalized_by_themselves_are_learned_from_alike_at_any_exposure(
    tmp_path: Path,
) -> None:
    """Powers of two scale without rounding, so that weights are the same bit by bit."""
    ensembles = []
    for name, factors in (("plain", (1, 1, 1, 1)), ("exposed", (1, 4, 0.5, 2))):
        folder = tmp_path / name
        write_set(folder, CellScene(shape=(96, 96), n_cells=6))
        for path, factor in zip(sorted((folder / "images").iterdir()), factors, strict=True):
            tifffile.imwrite(path, tifffile.imread(path).astype(np.float32) * factor)
        ensembles.append(train(folder, recipe(normalization="image"), folder / "ens"))
    plain, exposed = ensembles
    assert plain.manifest.normalization.kind == "image"
    for member in plain.manifest.members:
        name = f"{member.folder}/model.safetensors"
        assert plain.read(name) == exposed.read(name)
    image = tifffile.imread(tmp_path / "plain/images/0.tif")
    with Predictor(plain) as predictor:
        found = [predictor.predict(pixels, axes="YX").probs for pixels in (image, image * 3 + 50)]
    assert found[0].std() > 0.01
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


def test_flat_images_cannot_be_normalized_by_themselves(tmp_path: Path) -> None:
    write_set(tmp_path, CellScene(shape=(96, 96), n_cells=6, channels=2))
    for name in ("1", "3"):
        pixels = tifffile.imread(tmp_path / f"images/{name}.tif")
        pixels[1] = 7
        tifffile.imwrite(tmp_path / f"images/{name}.tif", pixels, metadata={"axes": "CYX"})
    with pytest.raises(InputError, match=r"of one constant intensity: 1, 3; leave them out"):
        train(tmp_path, recipe(normalization="image"), tmp_path / "ens")
    assert not (tmp_path / "ens").exists()


def test_folders_of_weights_stay_at_home(tmp_path: Path) -> None:
    """Ensembles are published; of a file of weights they tell name, hash and license."""
    write_set(tmp_path, CellScene(shape=(96, 96), n_cells=6), labels=False)
    encoder = SMALL["network"]["encoder"].removeprefix("tu-")
    file = tmp_path / "secret" / "encoder.safetensors"
    file.parent.mkdir()
    save_file(timm.create_model(encoder, pretrained=False).state_dict(), file)
    network = SMALL["network"] | {"weights": str(file), "weights_license": "MIT"}
    chosen = Recipe.model_validate(SMALL | {"network": network})
    ensemble = train(tmp_path, chosen, tmp_path / "ens")
    assert ensemble.manifest.training["recipe"]["network"]["weights"] == "encoder.safetensors"
    assert ensemble.manifest.encoder_weights.name.startswith("encoder.safetensors (sha256 ")
    for path in (tmp_path / "ens").rglob("*.*"):
        assert b"secret" not in path.read_bytes(), path


def test_out_of_fold_scores_are_those_of_the_member_that_did_not_see_the_image(
    tmp_path: Path,
) -> None:
    scene = CellScene(shape=(96, 96), n_cells=6)
    write_set(tmp_path, scene)
    ensemble = train(tmp_path, recipe(), tmp_path / "ens")
    row = next(csv.DictReader(io.StringIO(ensemble.read("out_of_fold.csv").decode())))
    sample = generate_cells(scene, int(row["name"]))
    network = ensemble.load_member(int(row["fold"]))
    from df2serve.backends.torch import TorchMemberRunner

    runner = TorchMemberRunner(network, device="cpu", precision="fp32")
    with Predictor(ensemble, runners=[runner]) as predictor:
        prediction = predictor.predict(sample.image, axes="CYX")
    expected = mean_dice(sample.mask, prediction.mask, n_classes=2)
    assert float(row["dice"]) == pytest.approx(expected)


def test_going_on_skips_finished_members(tmp_path: Path) -> None:
    """Interrupted in the second member; the first one is neither trained nor changed again."""
    write_set(tmp_path, CellScene(shape=(96, 96), n_cells=6))
    whole = train(tmp_path, recipe(), tmp_path / "whole")

    class Interrupted(Exception):
        pass

    def stop(report: StepReport) -> None:
        if report.member == 1:
            raise Interrupted

    chosen = recipe()
    data = check_training_set(
        tmp_path / "images", tmp_path / "masks", settings=chosen.data, folds=chosen.folds
    )
    with pytest.raises(Interrupted):
        train_ensemble(data, tmp_path / "ens", chosen, facts=FACTS, device="cpu", listener=stop)
    assert not (tmp_path / "ens").exists()
    work = tmp_path / "ens.training"
    assert {path.name for path in work.iterdir()} == {
        "curves.png", "fold-0", "fold-1.csv", "splits.json",
    }  # fmt: skip
    assert len(read_history((work / "fold-1.csv").read_bytes())) == 1
    other = Recipe.model_validate(SMALL | {"training": SMALL["training"] | {"steps": 7}})
    with pytest.raises(InputError, match="was trained by another recipe"):
        train(tmp_path, other, tmp_path / "ens")
    seen: list[StepReport] = []
    resumed = train(tmp_path, chosen, tmp_path / "ens", seen)
    assert [report.member for report in seen] == [1]
    for fold in (0, 1):
        name = f"members/fold-{fold}/model.safetensors"
        assert resumed.read(name) == whole.read(name)


def test_mistakes(tmp_path: Path) -> None:
    write_set(tmp_path, CellScene(shape=(96, 96), n_cells=6))
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="there exists; remove it"):
        train(tmp_path, recipe(), tmp_path / "there")
    data = check_training_set(
        tmp_path / "images", tmp_path / "masks", settings=recipe().data, folds=recipe().folds
    )
    facts = EnsembleFacts(id="small", name="Small", class_names=("a", "b", "c"))
    with pytest.raises(ConfigError, match=r"got 3 class names \(a, b, c\), expected 2"):
        train_ensemble(data, tmp_path / "ens", recipe(), facts=facts, device="cpu")


def test_the_command_line_from_experts_to_an_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = CellScene(shape=(96, 96), n_cells=6)
    write_set(tmp_path, scene)
    for seed in range(4):
        for expert, mask in simulate_experts(generate_cells(scene, seed), seed).items():
            folder = tmp_path / "experts" / expert
            folder.mkdir(parents=True, exist_ok=True)
            PillowImage.fromarray(mask * 255).save(folder / f"{seed}.png")

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["df2serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    assert run("gt", tmp_path / "experts", "-o", tmp_path / "gt") == 0
    assert "4 images:" in capsys.readouterr().out
    [masks] = {path.parent for path in (tmp_path / "gt").rglob("0.png")}
    target = tmp_path / "ens"
    toml = tmp_path / "small.toml"
    toml.write_text(
        '[network]\nencoder = "tu-test_resnet"\nweights = "random"\n'
        "options = { encoder_depth = 4, decoder_channels = [32, 16, 8, 8] }\n"
        "[folds]\ncount = 2\n[sampling]\npatch_shape = [64, 64]\n"
    )
    code = run(
        "train", tmp_path / "images", masks, "-o", target, "--recipe", toml, "--name", "Cells",
        "--set", "training.steps=3", "--set", "training.batch_size=2",
        "--class-names", "background,cell", "--channel-names", "marker", "--license", "CC0-1.0",
    )  # fmt: skip
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "member 1: out-of-fold Dice" in told.out
    manifest = load_ensemble(target).manifest
    assert (manifest.id, manifest.name, manifest.license) == ("ens", "Cells", "CC0-1.0")
    assert [item.name for item in manifest.classes] == ["background", "cell"]

    assert run("train", tmp_path / "images", masks, "-o", tmp_path / "b", "--set", "x") == 2
    assert "expected a name and a value" in capsys.readouterr().err
    assert run("train", tmp_path / "images", tmp_path / "images", "-o", tmp_path / "b") == 2
    assert "put the masks into a folder of their own" in capsys.readouterr().err
