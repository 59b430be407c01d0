"""The bank of features on disk: whole and of these networks, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from df2serve.artifact import FEATURES, Ensemble, FeatureBank, pack_ensemble, with_files
from df2serve.config import PRESETS, OverlapGrid
from df2serve.errors import ArtifactError, IntegrityError, ManifestError
from df2serve.inference import predict
from df2serve.testing import random_ensemble
from df2serve.testing.ensembles import random_bank

CONFIG = PRESETS["accurate"].updated(tile_shape=(64, 64), zoom_out=1.0)


def bank_of(ensemble: Ensemble, *marks: int, channels: int = 192) -> FeatureBank:
    return random_bank(ensemble, images=marks, channels=channels)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = tmp_path_factory.mktemp("bank") / "ensemble"
    return random_ensemble(folder, members=2, channels=1, classes=2, tile=64)


@pytest.fixture
def copied(tmp_path: Path) -> Ensemble:
    return random_ensemble(tmp_path / "copied", members=2, channels=1, classes=2, tile=64)


def test_a_bank_comes_back_from_folder_and_zip(copied: Ensemble, tmp_path: Path) -> None:
    assert copied.features() is None
    bank = bank_of(copied, 1, 2, 3)
    stored = with_files(copied, {FEATURES: bank.to_bytes()})
    stored.verify()
    for opened in (stored, pack_ensemble(stored, tmp_path / "packed.zip")):
        found = opened.features()
        assert found is not None
        assert found.facts == bank.facts
        assert found.to_bytes() == bank.to_bytes()
        for folder, vectors in bank.vectors.items():
            assert np.array_equal(found.vectors[folder], vectors)
    assert stored.manifest.schema_version == copied.manifest.schema_version


@pytest.mark.parametrize("without", [None, f"{2:064x}", f"{9:064x}"])
def test_distances_leave_out_the_image_itself(ensemble: Ensemble, without: str | None) -> None:
    """Image 2 is there twice, under two names; its hash tells."""
    bank = bank_of(ensemble, 1, 2, 2, 3, 4, 5, 6, 7)
    folders = [member.folder for member in ensemble.manifest.members]
    vectors = [bank.vectors[folder][1] for folder in folders]
    expected = []
    for folder, vector in zip(folders, vectors, strict=True):
        distances = [
            float(np.sqrt(((other.astype(float) - vector) ** 2).sum()))
            for other, mark in zip(bank.vectors[folder], (1, 2, 2, 3, 4, 5, 6, 7), strict=True)
            if f"{mark:064x}" != without
        ]
        expected.append(np.mean(sorted(distances)[:5]))
    found = bank.distance(folders, vectors, without=without)
    assert found == pytest.approx(np.mean(expected), abs=1e-6)
    assert 0 <= found <= 2


def test_a_member_may_be_compared_alone(ensemble: Ensemble) -> None:
    bank = bank_of(ensemble, 1, 2, 3)
    folders = [member.folder for member in ensemble.manifest.members]
    vectors = [bank.vectors[folder][0] for folder in folders]
    alone = [bank.distance([f], [v], without=None) for f, v in zip(folders, vectors, strict=True)]
    assert bank.distance(folders, vectors, without=None) == pytest.approx(np.mean(alone))


def test_settings_that_change_vectors_are_named(ensemble: Ensemble) -> None:
    bank = bank_of(ensemble, 1, 2)
    assert bank.changed(CONFIG) == ""
    assert bank.changed(CONFIG.updated(views=8, precision="bf16", empty_score="absent")) == ""
    assert bank.changed(CONFIG.updated(tile_shape=(64, 96))) == "tile shape [64, 64], here [64, 96]"
    assert bank.changed(CONFIG.updated(zoom_out=2.0)) == "zoom out 1.0, here 2.0"
    assert "overlap" in bank.changed(CONFIG.updated(grid=OverlapGrid(overlap=0.25)))


def with_tensors(bank: FeatureBank, **tensors: np.ndarray) -> bytes:
    metadata = {"df2serve": bank.facts.model_dump_json()}
    return safetensors.numpy.save(dict(bank.vectors) | tensors, metadata=metadata)


def with_facts(bank: FeatureBank, change: dict[str, object]) -> bytes:
    facts = bank.facts.model_dump(mode="json") | change
    return safetensors.numpy.save(dict(bank.vectors), metadata={"df2serve": json.dumps(facts)})


def damaged(bank: FeatureBank, kind: str) -> bytes:
    folder, vectors = next(iter(bank.vectors.items()))
    broken = vectors.copy()
    broken[0, 0] = np.nan
    first, *others = bank.facts.model_dump(mode="json")["members"]
    return {
        "no safetensors": b"not at all",
        "empty": b"",
        "cut": bank.to_bytes()[:-5],
        "without metadata": safetensors.numpy.save(dict(bank.vectors)),
        "one image": with_facts(bank, {"members": [first | {"images": first["images"][:1]}]}),
        "same image": with_facts(bank, {"members": [first | {"images": first["images"][:1] * 2}]}),
        "unknown key": with_facts(bank, {"colour": "red"}),
        "newer": with_facts(bank, {"schema_version": 2}),
        "a member twice": with_facts(bank, {"members": [first, first]}),
        "a member less": with_facts(bank, {"members": others}),
        "another network": with_facts(
            bank, {"members": [first | {"weights_sha256": "0" * 64}, *others]}
        ),
        "fewer vectors": with_tensors(bank, **{folder: vectors[:1]}),
        "float64": with_tensors(bank, **{folder: vectors.astype(np.float64)}),
        "flat": with_tensors(bank, **{folder: vectors.ravel()}),
        "not finite": with_tensors(bank, **{folder: broken}),
        "no tensor": with_facts(
            bank, {"members": [first, *others, first | {"folder": "members/other"}]}
        ),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "error", "told"),
    [
        ("no safetensors", IntegrityError, "cannot be read"),
        ("empty", IntegrityError, "cannot be read"),
        ("cut", IntegrityError, "cannot be read"),
        ("without metadata", ManifestError, "metadata"),
        ("one image", ManifestError, "has 1 images, expected 2 or more"),
        ("same image", ManifestError, "has 1 images, expected 2 or more"),
        ("unknown key", ManifestError, "colour"),
        ("newer", ManifestError, "schema_version"),
        ("a member twice", ManifestError, "same folder"),
        ("a member less", IntegrityError, "another network than members/fold-0"),
        ("another network", IntegrityError, "another network than members/fold-0"),
        ("fewer vectors", IntegrityError, "has 1 vectors for members/fold-0, expected 3"),
        ("float64", IntegrityError, "float64 .* expected float32"),
        ("flat", IntegrityError, r"float32 \(576,\)"),
        ("not finite", IntegrityError, "finite numbers"),
        ("no tensor", IntegrityError, "has nothing for members/other"),
    ],
)
def test_damaged_and_foreign_banks_are_refused(
    copied: Ensemble, kind: str, error: type[ArtifactError], told: str
) -> None:
    stored = with_files(copied, {FEATURES: damaged(bank_of(copied, 1, 2, 3), kind)})
    with pytest.raises(error, match=told):
        stored.features()
    with pytest.raises(error, match=told):
        predict(np.zeros((40, 40), np.uint8), ensemble=stored)


def test_vectors_of_another_length_are_refused(copied: Ensemble) -> None:
    stored = with_files(copied, {FEATURES: bank_of(copied, 1, 2, channels=7).to_bytes()})
    with pytest.raises(IntegrityError, match=r"vectors of 7 numbers .* its network gives 192"):
        predict(np.zeros((40, 40), np.uint8), ensemble=stored)


def test_a_changed_file_is_refused(copied: Ensemble) -> None:
    stored = with_files(copied, {FEATURES: bank_of(copied, 1, 2).to_bytes()})
    path = stored.source / FEATURES
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(IntegrityError, match="the file was changed"):
        stored.features()
