"""Networks of deepflash2 and of plain smp, taken over with their settings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import df2serve
from df2serve.artifact import Ensemble, activate, create_network, load_ensemble
from df2serve.config import NoNormalization, TrainingNormalization
from df2serve.errors import (
    ConfigError,
    IntegrityError,
    OutputError,
    ParityError,
    SourceNotFoundError,
    UnsupportedFormatError,
)
from df2serve.importing import ImportSettings, import_ensemble
from df2serve.importing._recognition import recognize_encoder

Run = Callable[..., tuple[int, str, str]]
NORMALIZATION = TrainingNormalization(means=(60.0,), stds=(40.0,))
STATED = ImportSettings(
    classes=("background", "cell"), normalization=NORMALIZATION, tile_shape=(64, 64)
)


def same_networks(ensemble: Ensemble, networks: list[nn.Module]) -> bool:
    """Whether the members compute what the networks compute, bit by bit."""
    tiles = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return len(ensemble) == len(networks) and all(
            torch.equal(ensemble.load_member(index)(tiles), network(tiles))
            for index, network in enumerate(networks)
        )


# -- deepflash2 ---------------------------------------------------------------------------------


def test_ensembles(original, tmp_path: Path) -> None:
    imported = import_ensemble([original.script], tmp_path / "My ensemble")
    assert same_networks(imported.ensemble, original.networks)
    manifest = load_ensemble(tmp_path / "My ensemble").manifest
    assert (manifest.id, manifest.name) == ("my-ensemble", "My ensemble")
    assert manifest.normalization == NORMALIZATION
    assert (manifest.tile_shape, manifest.zoom_out) == ((64, 64), 1.0)
    assert manifest.inference == df2serve.preset("deepflash2").updated(
        grid={"kind": "centre", "border_padding_factor": 0.25, "max_tile_shift": 0.75},
        window_sigma=0.25,
        views=1,
    )
    (file,) = manifest.training["files"]
    assert file["name"] == original.script.name
    imported.ensemble.verify()


def test_members(original, tmp_path: Path) -> None:
    imported = import_ensemble(original.members, tmp_path / "ensemble")
    assert same_networks(imported.ensemble, original.networks)
    manifest = imported.ensemble.manifest
    assert [member.fold for member in manifest.members] == [0, 1]
    assert manifest.normalization == NORMALIZATION
    assert manifest.inference == df2serve.preset("deepflash2")
    assert manifest.tile_shape == (512, 512)
    assert "512 x 512 px is assumed" in " ".join(imported.notes)
    assert manifest.encoder_weights.name == "tu-convnext_zepto_rms, imagenet"


def test_both_generations_stay_apart(original, tmp_path: Path) -> None:
    """What is written is plain smp's, and says which generation it is."""
    ensemble = import_ensemble([original.script], tmp_path / "ensemble").ensemble
    config = json.loads(ensemble.read("config.json"))
    assert config["_df2serve_network"] in ("deepflash2", "truncated")
    tiles = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = smp.from_pretrained(ensemble.source).eval()
    with torch.inference_mode():
        difference = (plain(tiles) - original.networks[0](tiles)).abs()[..., 2:-2, 2:-2]
    assert difference.max() < 1e-5
    del config["_df2serve_network"]
    if config["encoder_depth"] == 4:
        with pytest.raises(ConfigError, match="drops the last stage"):
            create_network(config)


def test_settings_win(original, tmp_path: Path) -> None:
    settings = ImportSettings(
        name="Cells",
        classes=("background", "cell"),
        channels=("marker",),
        normalization=NoNormalization(),
        tile_shape=(96, 128),
        pixel_size_um=0.5,
        license="CC-BY-4.0",
        encoder="tu-convnext_zepto_rms",
    )
    imported = import_ensemble([original.script], tmp_path / "ensemble", settings=settings)
    manifest = imported.ensemble.manifest
    assert [found.name for found in manifest.classes] == ["background", "cell"]
    assert (manifest.name, manifest.channels[0].name) == ("Cells", "marker")
    assert manifest.normalization == NoNormalization()
    assert (manifest.tile_shape, manifest.pixel_size_um.y_um) == ((96, 128), 0.5)
    assert manifest.license == "CC-BY-4.0"
    assert not any("names" in note for note in imported.notes)
    with pytest.raises(ConfigError, match=r"got 3 names of classes \(a, b, c\); .* has 2"):
        import_ensemble(
            [original.script], tmp_path / "x", settings=settings.updated(classes=("a", "b", "c"))
        )


def test_recorded_results_are_reproduced(original, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 150, (40, 36, 1)).astype(np.float32)
    first = import_ensemble([original.script], tmp_path / "first").ensemble
    prediction = df2serve.predict(np.moveaxis(image, -1, 0), ensemble=first, axes="CYX")
    np.savez(tmp_path / "recorded.npz", image=image, softmax=prediction.probs)
    second = import_ensemble(
        [original.script], tmp_path / "second", recorded=tmp_path / "recorded.npz"
    )
    assert second.deviation == 0
    golden = second.ensemble.golden()
    assert np.array_equal(golden.probs, prediction.probs)
    assert np.array_equal(golden.image, np.moveaxis(image, -1, 0))
    np.savez(tmp_path / "recorded.npz", image=image, softmax=1 - prediction.probs)
    with pytest.raises(ParityError, match="nothing was written"):
        import_ensemble([original.script], tmp_path / "x", recorded=tmp_path / "recorded.npz")
    assert not (tmp_path / "x").exists()


def test_encoders_are_recognized_without_a_hint() -> None:
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=2, classes=3)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    arguments = {"in_channels": 2, "classes": 3}
    classes = {"__torch__.segmentation_models_pytorch.encoders.resnet.___torch_mangle_1.VGGEncoder"}
    with pytest.raises(ConfigError, match="name it with --encoder"):
        recognize_encoder("Unet", arguments, shapes, classes=set(), hint="")
    classes = {name.replace("VGG", "ResNet") for name in classes}
    assert recognize_encoder("Unet", arguments, shapes, classes=classes, hint="") == "resnet18"


def test_what_does_not_belong_together(original, tmp_path: Path) -> None:
    from_file = torch.load(original.members[1], weights_only=False)
    from_file["stats"]["channel_means"] += 1
    torch.save(from_file, tmp_path / "other.pth")
    from_file["stats"] = None
    torch.save(from_file, tmp_path / "silent.pth")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pth")
    torch.save(from_file | {"classes": 3}, tmp_path / "contradiction.pth")
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "empty.pt").touch()
    first = original.members[0]
    for files, error, message in [
        ([first, tmp_path / "other.pth"], ConfigError, "has other normalization than Unet"),
        ([original.script, first], ConfigError, "is a whole ensemble; import it alone"),
        ([tmp_path / "silent.pth"], ConfigError, "state it with --means and --stds"),
        ([tmp_path / "foreign.pth"], UnsupportedFormatError, "no member of deepflash2"),
        ([tmp_path / "contradiction.pth"], IntegrityError, "do not fit its config.json"),
        ([tmp_path / "text.pth"], UnsupportedFormatError, "no file that PyTorch saved"),
        ([tmp_path / "empty.pt"], IntegrityError, "is empty"),
        ([tmp_path / "none.pt"], SourceNotFoundError, "no file at"),
        ([tmp_path, first], ConfigError, "give it alone"),
        ([], ConfigError, "got no file"),
    ]:
        with pytest.raises(error, match=message):
            import_ensemble(files, tmp_path / "ensemble")
    assert not (tmp_path / "ensemble").exists()
    (tmp_path / "ensemble").mkdir()
    with pytest.raises(OutputError, match="exists"):
        import_ensemble([first], tmp_path / "ensemble")


# -- plain smp ----------------------------------------------------------------------------------


def save_plain(folder: Path, **changes: object) -> nn.Module:
    """A model as smp saves it, and a pickle beside it that nobody may open."""
    torch.manual_seed(0)
    arguments = {
        "encoder_name": "tu-test_resnet", "encoder_depth": 4, "decoder_channels": (32, 16, 8, 8),
        "encoder_weights": None, "in_channels": 1, "classes": 1,
    }  # fmt: skip
    network = smp.Unet(**(arguments | changes)).eval()
    network.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    return network


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_output_gets_a_background(tmp_path: Path, activation: str | None) -> None:
    plain = save_plain(tmp_path / "plain", activation=activation)
    imported = import_ensemble([tmp_path / "plain"], tmp_path / "ensemble", settings=STATED)
    tiles = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 20
    with torch.inference_mode():
        expected = plain(tiles) if activation else torch.sigmoid(plain(tiles))
        found = activate(imported.ensemble.load_member(0)(tiles), distance=False)
    torch.testing.assert_close(found[:, 1:], expected, rtol=0, atol=1e-6)
    assert "the background got the logit 0" in imported.notes[0]
    manifest = imported.ensemble.manifest
    assert manifest.inference == df2serve.preset("accurate")
    assert {file["name"] for file in manifest.training["files"]} == {
        "config.json", "model.safetensors"
    }  # fmt: skip


def test_several_outputs_are_classes(tmp_path: Path) -> None:
    plain = save_plain(tmp_path / "plain", classes=3)
    settings = STATED.updated(classes=("background", "a", "b"))
    ensemble = import_ensemble([tmp_path / "plain"], tmp_path / "e", settings=settings).ensemble
    assert same_networks(ensemble, [plain])
    image = np.random.default_rng(0).uniform(0, 150, (1, 70, 80)).astype(np.float32)
    assert df2serve.predict(image, ensemble=ensemble, axes="CYX").probs.shape == (3, 70, 80)


def test_plain_models_that_are_refused(tmp_path: Path) -> None:
    for name, changes, message in [
        ("overlap", {"classes": 3, "activation": "sigmoid"}, "Classes that overlap are not read"),
        ("two", {"aux_params": {"classes": 4}}, "has a second output"),
    ]:
        save_plain(tmp_path / name, **changes)
        with pytest.raises(ConfigError, match=message):
            import_ensemble([tmp_path / name], tmp_path / "e", settings=STATED)
    save_plain(tmp_path / "plain")
    with pytest.raises(ConfigError, match="do not say how intensities become network input"):
        import_ensemble([tmp_path / "plain"], tmp_path / "e")
    ensemble = import_ensemble([tmp_path / "plain"], tmp_path / "e", settings=STATED).ensemble
    with pytest.raises(ConfigError, match="is an ensemble already"):
        import_ensemble([ensemble.source], tmp_path / "f", settings=STATED)
    (tmp_path / "plain/model.safetensors").unlink()
    with pytest.raises(SourceNotFoundError, match=r"pickles \(.bin\) are not opened"):
        import_ensemble([tmp_path / "plain"], tmp_path / "f", settings=STATED)


# -- the verb -----------------------------------------------------------------------------------


def test_the_verb(df2serve: Run, tmp_path: Path) -> None:
    save_plain(tmp_path / "plain", in_channels=2)
    command = ("import", tmp_path / "plain", "-o", tmp_path / "ensemble")
    code, _, errors = df2serve(*command)
    assert code == 2
    assert "error: the files do not say how intensities" in errors
    options = ("--classes", "background, cell", "--channels", "marker,nuclei", "--tile", 128)
    code, _, errors = df2serve(*command, *options, "--means", "60,50")
    assert (code, "give --means and --stds together" in errors) == (2, True)
    numbers = ("--means", "60,50.5", "--stds", "40,30", "--pixel-size", 0.5)
    code, out, errors = df2serve(*command, *options, *numbers)
    assert (code, out) == (0, f"{tmp_path / 'ensemble'}: 1 members\n")
    assert "note: the model has one output" in errors
    manifest = load_ensemble(tmp_path / "ensemble").manifest
    assert manifest.normalization == TrainingNormalization(means=(60.0, 50.5), stds=(40.0, 30.0))
    assert [found.name for found in manifest.classes] == ["background", "cell"]
    assert manifest.tile_shape == (128, 128)
    shutil.rmtree(tmp_path / "ensemble")
    code, out, _ = df2serve(*command, "--normalization", "percentile", "--json")
    assert (code, json.loads(out)["members"]) == (0, 1)
    code, _, errors = df2serve(*command[:3], tmp_path / "x", "--normalization", "most")
    assert (code, "invalid import settings: normalization" in errors) == (2, True)
