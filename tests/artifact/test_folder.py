import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from df2serve.artifact import (
    Ensemble,
    GoldenTensors,
    activate,
    load_ensemble,
    pack_ensemble,
    save_ensemble,
    with_files,
)
from df2serve.errors import (
    ArtifactNotFoundError,
    IntegrityError,
    ManifestError,
    OutputError,
)
from df2serve.testing.ensembles import manifest_fields, random_ensemble, tiny_network

FIELDS = manifest_fields(channels=1, classes=2, tile=64)
TILES = torch.rand(2, 1, 64, 64)


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return network(TILES)


def network(seed: int, classes: int = 2) -> torch.nn.Module:
    return tiny_network(seed, channels=1, classes=classes)


def edit_manifest(ensemble: Ensemble, **changes: object) -> None:
    path = ensemble.source / "ensemble.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_members_come_back_exactly(tiny: Ensemble) -> None:
    assert len(tiny) == 2
    for index in range(2):
        assert torch.equal(logits(tiny.load_member(index)), logits(network(index)))


def test_plain_smp_loads_the_folder_and_every_member(tiny: Ensemble) -> None:
    for folder, index in [("", 0), ("members/fold-0", 0), ("members/fold-1", 1)]:
        plain = smp.from_pretrained(tiny.source / folder).eval()
        assert torch.equal(logits(plain), logits(tiny.load_member(index)))


def test_a_distance_channel_is_one_output_more(tmp_path: Path) -> None:
    ensemble = random_ensemble(
        tmp_path / "with", members=1, channels=1, classes=2, tile=64, distance=True
    )
    manifest = ensemble.manifest
    assert (manifest.has_distance, manifest.num_classes, manifest.num_outputs) == (True, 2, 3)
    outputs = logits(smp.from_pretrained(tmp_path / "with").eval())
    assert torch.equal(logits(ensemble.load_member(0)), outputs)
    maps = activate(outputs, distance=True)
    assert torch.equal(maps[:, :2], torch.softmax(outputs[:, :2], dim=1))
    assert torch.equal(maps[:, 2], torch.sigmoid(outputs[:, 2]))
    edit_manifest(ensemble, distance_channel=None)
    with pytest.raises(ManifestError, match=r"classes=3, ensemble\.json needs 2"):
        load_ensemble(tmp_path / "with").load_member(0)
    edit_manifest(ensemble, distance_channel="squared")
    with pytest.raises(ManifestError, match="distance_channel: Input should be 'relative'"):
        load_ensemble(tmp_path / "with")


def test_a_manifest_without_later_fields_stays_the_same_ensemble(
    tiny: Ensemble, tmp_path: Path
) -> None:
    path = tiny.source / "ensemble.json"
    content = json.loads(path.read_text())
    del content["distance_channel"]
    path.write_text(json.dumps(content))
    older = load_ensemble(tiny.source)
    assert not older.manifest.has_distance
    assert logits(older.load_member(0)).shape == (2, 2, 64, 64)
    assert pack_ensemble(older, tmp_path / "older.zip").sha256 == older.sha256
    with pytest.raises(IntegrityError, match="changed since it was opened"):
        pack_ensemble(tiny, tmp_path / "tiny.zip")


def test_zip_is_the_same_ensemble(tiny: Ensemble, tmp_path: Path) -> None:
    packed = pack_ensemble(tiny, tmp_path / "tiny.zip")
    assert packed.sha256 == tiny.sha256
    packed.verify()
    assert torch.equal(logits(packed.load_member(1)), logits(tiny.load_member(1)))
    with pytest.raises(OutputError, match="zip file"):
        with_files(packed, {"x": b""})
    with pytest.raises(OutputError, match="exists"):
        pack_ensemble(tiny, tmp_path / "tiny.zip")


def test_zip_of_the_folder_made_by_hand_opens(tiny: Ensemble, tmp_path: Path) -> None:
    archive = shutil.make_archive(tmp_path / "by_hand", "zip", tiny.source.parent, "tiny")
    load_ensemble(archive).verify()


def test_saving_is_reproducible(tiny: Ensemble, tmp_path: Path) -> None:
    networks = [network(0), network(1)]
    again = save_ensemble(tmp_path / "again", FIELDS, networks, files={})
    assert again.sha256 == tiny.sha256


def test_golden_tensors_round_trip(tiny: Ensemble) -> None:
    assert tiny.golden() is None
    golden = GoldenTensors(
        image=np.arange(12, dtype=np.uint16).reshape(1, 3, 4),
        probs=np.full((2, 3, 4), 0.5, dtype=np.float32),
        total=np.ones((3, 4), dtype=np.float32),
        distance=np.full((3, 4), 0.25, dtype=np.float32),
    )
    read = with_files(tiny, golden.to_files()).golden()
    assert read is not None
    assert all(np.array_equal(getattr(read, k), v) for k, v in vars(golden).items())


def test_calibration_is_read(tiny: Ensemble) -> None:
    content = {
        "schema_version": 1,
        "thresholds": [
            {
                "score": "u",
                "value": 0.3,
                "metric": "dice",
                "required": 0.8,
                "failing": 3,
                "references": 8,
                "kind": "held_out",
            }
        ],
    }
    changed = with_files(tiny, {"calibration.json": json.dumps(content).encode()})
    threshold = changed.calibration.threshold("u")
    assert threshold is not None
    assert threshold.value == 0.3
    assert changed.calibration.threshold("other") is None
    with pytest.raises(ManifestError, match=r"calibration\.json: thresholds"):
        with_files(tiny, {"calibration.json": b'{"thresholds": 1}'})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, ensemble.json says"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"?"), "sha256 .* was changed"),
        (lambda p: p.unlink(), "lacks members/fold-1/model.safetensors"),
    ],
)
def test_damaged_weights_are_refused(tiny: Ensemble, damage, message: str) -> None:
    damage(tiny.source / "members/fold-1/model.safetensors")
    with pytest.raises(IntegrityError, match=message):
        tiny.load_member(1)
    with pytest.raises(IntegrityError):
        tiny.verify()
    tiny.load_member(0)


def test_link_out_of_the_folder_is_refused(tiny: Ensemble, tmp_path: Path) -> None:
    path = tiny.source / "members/fold-1/model.safetensors"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="lacks"):
        tiny.load_member(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"schema_version": 2}, "schema version 2, this df2serve reads up to 1"),
        ({"classes": FIELDS["classes"][:1]}, "classes: Tuple should have at least 2 items"),
        ({"normalization": {"kind": "training", "means": [1], "stds": [0]}}, "greater than 0"),
        ({"normalization": {"kind": "training", "means": [1, 2], "stds": [1, 2]}}, "per channel"),
        ({"members": [{"folder": "../other"}]}, "plain relative path"),
        ({"members": [{"folder": "nowhere"}]}, "does not list nowhere/config.json"),
        ({"members": [{"folder": "members/fold-0"}] * 2}, "share a folder"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "plain relative path"),
        ({"tile_shape": [16, 64]}, "tile_shape.0"),
        ({"normalization": {"kind": "training", "means": [math.nan], "stds": [1]}}, "finite"),
        ({"normalization": {"kind": "percentile", "low": 50, "high": 50}}, "low is 50.0, expected"),
        ({"files": {"ensemble.json": {"sha256": "0" * 64, "bytes": 1}}}, "its own hash"),
    ],
)
def test_wrong_manifests_name_the_field(tiny: Ensemble, changes: dict, message: str) -> None:
    edit_manifest(tiny, **changes)
    with pytest.raises(ManifestError, match=message):
        load_ensemble(tiny.source)


def test_network_that_contradicts_the_manifest_is_refused(tmp_path: Path) -> None:
    wrong = save_ensemble(tmp_path / "wrong", FIELDS, [network(0, classes=3)], files={})
    with pytest.raises(ManifestError, match=r"classes=3, ensemble\.json needs 2"):
        wrong.load_member(0)


def test_what_is_no_ensemble_says_so(tmp_path: Path, tiny: Ensemble) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no ensemble at"):
        load_ensemble(tmp_path / "nothing")
    with pytest.raises(ArtifactNotFoundError, match=r"holds no ensemble\.json"):
        load_ensemble(tmp_path)
    text = tmp_path / "text.zip"
    text.write_text("not a zip")
    with pytest.raises(ArtifactNotFoundError, match="neither a folder nor a zip file"):
        load_ensemble(text)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ArtifactNotFoundError, match=r"holds no ensemble\.json"):
        load_ensemble(tmp_path / "empty.zip")
    (tiny.source / "ensemble.json").write_text("[1, 2]")
    with pytest.raises(ManifestError, match="holds a list; expected an object"):
        load_ensemble(tiny.source)
    (tiny.source / "ensemble.json").write_text("{")
    with pytest.raises(ManifestError, match="not JSON"):
        load_ensemble(tiny.source)


def test_failed_save_leaves_nothing_and_existing_target_stays(
    tmp_path: Path, tiny: Ensemble
) -> None:
    with pytest.raises(ManifestError, match="id"):
        save_ensemble(tmp_path / "bad", FIELDS | {"id": "Not OK"}, [network(0)], files={})
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    with pytest.raises(OutputError, match="exists"):
        save_ensemble(tiny.source, FIELDS, [network(5)], files={})
    tiny.verify()
