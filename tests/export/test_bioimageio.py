"""Packages: what they say, what others make of them, and the way back."""

import ast
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tifffile
import yaml
from PIL import Image as PillowImage

from df2serve.artifact import FEATURES, Calibration, Ensemble, load_ensemble, with_files
from df2serve.config import InferenceConfig
from df2serve.errors import ExportError, IntegrityError
from df2serve.export import Card, ExportSettings, export_ensemble
from df2serve.inference import predict
from df2serve.testing import random_ensemble
from df2serve.testing.ensembles import random_bank

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")

FORMATS = ("pytorch_state_dict", "torchscript", "onnx")


@pytest.fixture(scope="session")
def package(
    two_classes: Ensemble, short_card: Card, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The quickest package: weights in one format, one view."""
    target = tmp_path_factory.mktemp("package") / "small.zip"
    export_ensemble(
        two_classes,
        target,
        "bioimageio",
        config=InferenceConfig(views=1),
        card=short_card,
        formats=("pytorch_state_dict",),
    )
    return target


def read(package: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    with zipfile.ZipFile(package) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    return contents, yaml.safe_load(contents["rdf.yaml"])


def described(value: Any) -> list[dict[str, Any]]:
    """Return all mappings of a description that name a file with its hash."""
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value] if isinstance(value, dict) and "sha256" in value and "source" in value else []
    return own + [item for inner in nested for item in described(inner)]


def test_description_lists_every_file_with_its_hash(package: Path) -> None:
    contents, rdf = read(package)
    files = {item["source"]: item["sha256"] for item in described(rdf)}
    assert files == {name: hashlib.sha256(contents[name]).hexdigest() for name in files}
    assert {*files, rdf["documentation"], *rdf["covers"], "rdf.yaml"} == set(contents)


def test_description_is_in_the_dialect_of_fiji(package: Path) -> None:
    contents, rdf = read(package)
    assert rdf["format_version"] == "0.5.10"
    assert all(isinstance(rdf[key], str) for key in ("id", "documentation", "license"))
    assert b"&id" not in contents["rdf.yaml"]
    assert b"null" not in contents["rdf.yaml"]
    (given,), (output,) = rdf["inputs"], rdf["outputs"]
    assert [axis["size"] for axis in given["axes"][2:]] == [{"min": 64, "step": 1}] * 2
    assert [axis["halo"] for axis in output["axes"][2:]] == [16, 16]
    assert output["axes"][1]["channel_names"] == [
        "p_background",
        "p_class_1",
        "uncertainty",
        "mask",
    ]
    assert rdf["weights"]["pytorch_state_dict"]["architecture"]["kwargs"]["classes"] == 2
    assert "dependencies" not in rdf["weights"]["pytorch_state_dict"]


def test_tests_show_one_tile_of_the_golden_image(package: Path, two_classes: Ensemble) -> None:
    contents, _ = read(package)
    image = np.load(io.BytesIO(contents["test_input.npy"]))
    (maps,) = np.load(io.BytesIO(contents["test_prediction.npy"]))
    expected = predict(image[0], ensemble=two_classes, axes="CYX", config=InferenceConfig(views=1))
    np.testing.assert_array_equal(maps[:2], expected.probs)
    np.testing.assert_array_equal(maps[3], expected.mask)
    assert maps[3].any()
    golden = two_classes.golden().image[0].astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(golden, (64, 64))
    assert (windows == image[0, 0]).all(axis=(2, 3)).any()
    sample = tifffile.imread(io.BytesIO(contents["sample_prediction.tif"]))
    np.testing.assert_array_equal(sample, maps)


def test_cover_has_a_shape_that_the_zoo_takes(package: Path) -> None:
    content = read(package)[0]["cover.png"]
    width, height = PillowImage.open(io.BytesIO(content)).size
    assert width == 2 * height
    assert len(content) < 500_000


def test_architecture_needs_torch_alone(package: Path) -> None:
    tree = ast.parse(read(package)[0]["arch.py"])
    nodes = list(ast.walk(tree))
    imported = {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported == {"torch", "typing"}
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if name.startswith("Network")] == ["Network0"]


def test_macros_know_the_number_of_classes(package: Path) -> None:
    contents, _ = read(package)
    macros = [content.decode() for name, content in contents.items() if name.endswith(".ijm")]
    assert len(macros) == 2
    assert all("classes = 2;" in text and "@" not in text for text in macros)


def test_documentation_says_what_was_compared(package: Path) -> None:
    text = read(package)[0]["README.md"].decode()
    for heading in ("Description", "Intended Use", "Validation", "Limits", "Citation"):
        assert f"\n## {heading}\n" in text
    assert "7030 x 7030 pixels" in text
    assert "| pytorch_state_dict | " in text


def test_package_is_an_ensemble(package: Path, two_classes: Ensemble, odd_images: list) -> None:
    again = load_ensemble(package)
    again.verify()
    assert again.manifest.classes == two_classes.manifest.classes
    config = InferenceConfig(views=1)
    found, expected = (
        predict(odd_images[0], ensemble=one, axes="CYX", config=config)
        for one in (again, two_classes)
    )
    np.testing.assert_array_equal(found.probs, expected.probs)


def test_package_keeps_the_bank_of_features(
    short_card: Card, two_classes: Ensemble, tmp_path: Path
) -> None:
    """Also where the ensemble's files of weights are not the bytes that the package gives."""
    saved = with_files(
        random_ensemble(tmp_path / "banked", members=3, channels=1, classes=2, tile=64),
        two_classes.golden().to_files(),
    )
    tensors = safetensors.torch.load(saved.read("members/fold-0/model.safetensors"))
    other = safetensors.torch.save(tensors, metadata={"format": "pt", "by": "another program"})
    changed = with_files(saved, {"members/fold-0/model.safetensors": other})
    bank = random_bank(changed)
    export_ensemble(
        with_files(changed, {FEATURES: bank.to_bytes()}),
        tmp_path / "package.zip",
        "bioimageio",
        card=short_card,
        formats=("pytorch_state_dict",),
    )
    opened = load_ensemble(tmp_path / "package.zip")
    opened.verify()
    found = opened.features()
    assert found is not None
    assert found.facts.members[0].weights_sha256 != bank.facts.members[0].weights_sha256
    assert found.facts.members[1] == bank.facts.members[1]
    assert all(np.array_equal(found.vectors[name], bank.vectors[name]) for name in bank.vectors)
    image = np.full((80, 70), 9, np.uint8)
    assert predict(image, ensemble=opened).scores.feature_distance is not None


def test_package_with_other_weights_is_refused(package: Path, tmp_path: Path) -> None:
    import torch

    contents, _ = read(package)
    state = torch.load(io.BytesIO(contents["weights.pt"]), weights_only=True)
    next(iter(state.values())).add_(1)
    name = next(name for name in state if name.endswith("conv1.0.weight"))
    state[name] += 1
    weights = io.BytesIO()
    torch.save(state, weights)
    target = tmp_path / "changed.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for item, content in (contents | {"weights.pt": weights.getvalue()}).items():
            archive.writestr(item, content)
    with pytest.raises(IntegrityError, match="sha256"):
        load_ensemble(target).verify()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04"])
def test_package_with_damaged_weights_is_refused(
    content: bytes, package: Path, tmp_path: Path
) -> None:
    contents, _ = read(package)
    target = tmp_path / "changed.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for item, old in contents.items():
            archive.writestr(item, content if item == "weights.pt" else old)
    with pytest.raises(IntegrityError, match=r"weights.pt in changed.zip is no state dict"):
        load_ensemble(target).load_member(0)


@pytest.mark.slow
def test_invalid_facts_of_the_card_are_told(two_classes: Ensemble, tmp_path: Path) -> None:
    card = Card.model_validate(
        {"authors": [{"name": "A"}], "license": "MINE", "description": "x", "git_repo": "nowhere"}
    )
    target = tmp_path / "package.zip"
    with pytest.raises(ExportError, match=r"not valid: .*git_repo.*correct the card"):
        export_ensemble(
            two_classes,
            target,
            "bioimageio",
            settings=ExportSettings(member=0),
            config=InferenceConfig(views=1),
            card=card,
            formats=("pytorch_state_dict",),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"precision": "fp16"}, {"opset": "modern"}])
def test_weights_that_fiji_cannot_run_are_refused(
    settings: dict[str, str], two_classes: Ensemble, short_card: Card, tmp_path: Path
) -> None:
    chosen = ExportSettings(member=0, **settings)
    target = tmp_path / "package.zip"
    with pytest.raises(ExportError, match="need float32 and opset 17"):
        export_ensemble(two_classes, target, "bioimageio", settings=chosen, card=short_card)
    assert list(tmp_path.iterdir()) == []


def test_ensemble_without_an_image_asks_for_one(short_card: Card, tmp_path: Path) -> None:
    ensemble = random_ensemble(tmp_path / "made", members=1, channels=1, classes=2, tile=64)
    with pytest.raises(ExportError, match="--image"):
        export_ensemble(ensemble, tmp_path / "package.zip", "bioimageio", card=short_card)


# -- everything, in bioimageio.core --------------------------------------------------------------


def full_card() -> Card:
    """Everything that people can say."""
    person = {"name": "Ada Lovelace", "affiliation": "none", "orcid": "0000-0001-2345-6789"}
    return Card.model_validate(
        {
            "authors": [person],
            "license": "CC-BY-4.0",
            "description": "Cells of a generator.",
            "maintainers": [{"name": "Ada Lovelace", "github_user": "githubuser2"}],
            "packaged_by": [person],
            "uploader": {"email": "ada@example.org", "name": "Ada Lovelace"},
            "cite": [{"text": "A paper", "doi": "10.1000/182"}],
            "tags": ["fluorescence-light-microscopy", "cells"],
            "git_repo": "https://github.com/example/example",
            "links": ["deepimagej/deepimagej"],
            "version": "0.1.0",
            "version_comment": "first",
            "id_emoji": "\U0001f9a6",
            "out_of_scope_use": "Diagnosis.",
            "funded_by": "nobody",
            "modality": "fluorescence microscopy",
            "target_structure": ["cells"],
            "known_biases": "one generator",
            "risks": "overconfidence",
            "limitations": "round cells",
            "recommendations": "look at U",
            "training_data": {"id": "generated-cells"},
            "evaluation_data": {"id": "generated-cells", "source": "https://example.org/cells"},
            "evaluation_role": "test",
            "memory_requirements_training": "1 GB",
            "environmental_impact": {
                "hardware_type": "CPU",
                "hours_used": 0.1,
                "cloud_provider": "none",
                "compute_region": "none",
                "co2_emitted": 0.01,
            },
        }
    )


def trained(ensemble: Ensemble, target: Path) -> Ensemble:
    """Return a copy that records a training and reference images."""
    from df2serve.artifact import save_ensemble

    golden = ensemble.golden().to_files()
    reference = {
        "name": "a",
        "image_sha256": "0" * 64,
        "kind": "held_out",
        "scores": {"u": 0.3},
        "quality": {"dice": 0.8},
    }
    calibration = Calibration.model_validate({"references": [reference]})
    fields = ensemble.manifest.model_dump(exclude={"files", "members"}) | {
        "pixel_size_um": {"y_um": 0.5, "x_um": 0.5},
        "training": {
            "images": 8,
            "recipe": {
                "training": {
                    "steps": 100,
                    "batch_size": 4,
                    "loss": "ce_dice",
                    "ema_decay": 0.99,
                    "phases": [{"share": 1.0, "rate": 1e-3, "start_divisor": 25.0}],
                },
                "optimizer": {"name": "adamw", "weight_decay": 1e-3, "betas": [0.9, 0.99]},
            },
            "members": [{"seconds": 36.0, "device": "cpu"}],
        },
    }
    networks = [ensemble.load_member(index) for index in range(len(ensemble))]
    saved = save_ensemble(target, fields, networks, files=golden)
    return with_files(saved, {"calibration.json": calibration.to_json()})


@pytest.mark.slow
# bioimageio.core leaves the package open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("variant", ["fiji", "full"])
@pytest.mark.parametrize("which", ["two_classes", "four_classes"])
def test_core_reproduces_every_format(
    which: str, variant: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from bioimageio.core import test_description

    ensemble = trained(request.getfixturevalue(which), tmp_path / "trained")
    target = tmp_path / "package.zip"
    exported = export_ensemble(
        ensemble,
        target,
        "bioimageio",
        settings=ExportSettings(variant=variant),
        card=full_card(),
    )
    assert set(exported.deviations) == set(FORMATS)
    for kind in FORMATS:
        summary = test_description(
            target,
            weight_format=kind,
            devices=["CPUExecutionProvider" if kind == "onnx" else "cpu"],
            determinism="full",
        )
        errors = [
            f"{detail.name}: {error.msg}" for detail in summary.details for error in detail.errors
        ]
        assert errors == []
        assert summary.status == "passed"
        assert summary.metadata_completeness >= 0.9
    (evaluation,) = read(target)[1]["config"]["bioimageio"]["evaluations"]
    assert (evaluation["sample_count"], evaluation["results"]) == (1, [[0.8]])
