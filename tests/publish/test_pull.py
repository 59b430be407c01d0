"""Ensembles of a Hub: fetched, verified, cached, and refused where they have to be."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

import df2serve
from df2serve.artifact import Ensemble, load_ensemble, with_files
from df2serve.config import HubLimits, NoNormalization
from df2serve.errors import (
    ArtifactNotFoundError,
    ConfigError,
    Df2ServeError,
    HubAccessError,
    HubError,
    IntegrityError,
    LimitExceededError,
    ManifestError,
    OutputError,
)
from df2serve.importing import ImportSettings, import_ensemble
from df2serve.publish import HubAddress, fetch_model, open_ensemble, pull

ADDRESS = "hf://lab/cells"


def change(repository, path: str, blob) -> None:
    """Commit one file to `main`; None removes it."""
    files = repository.files(repository.refs["refs/heads/main"])
    if blob is None:
        del files[path]
    else:
        files[path] = blob
    repository.commit("refs/heads/main", files)


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("hf://lab/cells", "lab/cells", None),
        ("hf://lab/cells@v1.2", "lab/cells", "v1.2"),
        ("hf://a/b_c.d-e@refs/pr/1", "a/b_c.d-e", "refs/pr/1"),
    ],
)
def test_addresses(text: str, repo: str, revision: str | None) -> None:
    assert HubAddress.parse(text) == HubAddress(repo, revision)
    assert str(HubAddress.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf://cells", "hf://lab/cells/more", "hf://lab/cells@", "hf://../cells", "hf://lab/a--b",
        "hf://lab/cells@../x", "hf://lab/cells@-x", "hf://lab/cells@a//b", "hf://lab/cells@a/",
        "hf:lab/cells", "HF://lab/cells", "hf://lab/cells\n", "hf://läb/cells", "hf:///cells",
    ],
)  # fmt: skip
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected hf://org/name"):
        HubAddress.parse(text)


def test_an_address_is_an_ensemble_everywhere(shared, ensemble: Ensemble) -> None:
    opened = load_ensemble(ADDRESS)
    assert opened.sha256 == ensemble.sha256
    for index in range(2):
        ours, theirs = ensemble.load_member(index), opened.load_member(index)
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(tensor, ours.state_dict()[name])
    image = np.random.default_rng(0).uniform(0, 150, (1, 70, 80)).astype(np.float32)
    expected = df2serve.predict(image, ensemble=ensemble, axes="CYX")
    assert np.array_equal(
        df2serve.predict(image, ensemble=ADDRESS, axes="CYX").probs, expected.probs
    )
    with df2serve.Predictor(f"{ADDRESS}@main") as predictor:
        assert predictor.ensemble.sha256 == ensemble.sha256


def test_only_what_is_needed_is_fetched(hub, shared) -> None:
    opened = load_ensemble(ADDRESS)
    found = {
        path.relative_to(opened.source).as_posix()
        for path in opened.source.rglob("*")
        if not path.is_dir()
    }
    assert found == {"ensemble.json", "README.md", *opened.manifest.files}
    assert not any("trap.pkl" in call or "package" in call for call in hub.calls)


def test_offline_the_second_time(hub, shared, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = shared.refs["refs/heads/main"]
    shared.set_ref("refs/tags/v1.2", commit)
    first = load_ensemble(f"{ADDRESS}@v1.2")
    hub.calls.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in ("v1.2", commit):
        again = load_ensemble(f"{ADDRESS}@{revision}")
        assert (again.sha256, again.source) == (first.sha256, first.source)
        again.verify()
    with pytest.raises(HubError, match="not in the cache"):
        load_ensemble(f"{ADDRESS}@other")
    assert hub.calls == []


def test_a_commit_in_the_cache_needs_no_hub(hub, shared) -> None:
    commit = shared.refs["refs/heads/main"]
    load_ensemble(f"{ADDRESS}@{commit}")
    hub.calls.clear()
    load_ensemble(f"{ADDRESS}@{commit}").verify()
    assert hub.calls == []


def test_an_unreachable_hub_is_told(
    shared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = load_ensemble(ADDRESS)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        assert load_ensemble(ADDRESS).source == first.source
    assert "hf://lab/cells is taken from the cache" in caplog.text
    with pytest.raises(HubError, match="cannot be reached"):
        load_ensemble("hf://lab/never")


def test_half_a_download_is_no_ensemble(shared, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = load_ensemble(ADDRESS)
    (opened.source / "members/fold-1/model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="not in the cache"):
        load_ensemble(ADDRESS)


def test_a_branch_is_followed(shared, hub_server, ensemble: Ensemble) -> None:
    first = load_ensemble(ADDRESS)
    changed = with_files(ensemble, {"LICENSE": b"MIT\n"})
    for name in ("ensemble.json", "LICENSE"):
        change(shared, name, (changed.source / name).read_bytes())
    second = load_ensemble(ADDRESS)
    assert (first.sha256, second.sha256) == (ensemble.sha256, changed.sha256)
    assert second.read("LICENSE") == b"MIT\n"


# -- what is refused ----------------------------------------------------------------------------


def test_private_repositories_need_the_account(
    shared, hub_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.private = True
    for token in (None, hub_server.READER):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ArtifactNotFoundError, match="there is no hf://lab/cells, or it is pri"):
            load_ensemble(ADDRESS)
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)
    load_ensemble(ADDRESS).verify()


def test_gated_repositories_need_consent(
    shared, hub_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.gated = True
    for token in (None, hub_server.READER):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubAccessError, match=r"accept its conditions at http.*/lab/cells, and"):
            load_ensemble(ADDRESS)
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)
    load_ensemble(ADDRESS).verify()


def test_a_wrong_token_is_told(shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    with pytest.raises(HubAccessError, match="denies this for hf://lab/cells: Invalid credentials"):
        load_ensemble(ADDRESS)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://lab/nothing", "there is no hf://lab/nothing"),
        ("hf://lab/cells@v9", "lab/cells has no revision 'v9'"),
        ("ftp://lab/cells", "expected a folder, a zip file, or an address of hf://"),
    ],
)
def test_missing_ensembles(shared, address: str, message: str) -> None:
    with pytest.raises(ArtifactNotFoundError, match=message):
        load_ensemble(address)


def test_hf_is_known_where_the_package_is_not_installed(shared, monkeypatch) -> None:
    monkeypatch.setattr("df2serve.artifact._schemes.entry_points", lambda *, group: ())
    load_ensemble(ADDRESS).verify()


def test_other_repositories_are_no_ensembles(shared) -> None:
    change(shared, "ensemble.json", None)
    with pytest.raises(ArtifactNotFoundError, match=r"holds no ensemble\.json"):
        load_ensemble(ADDRESS)


def edited(ensemble: Ensemble, edit) -> bytes:
    content = json.loads((ensemble.source / "ensemble.json").read_bytes())
    edit(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../../escape", ManifestError),
        ("/etc/passwd", ManifestError),
        ("C:\\windows", ManifestError),
        ("members/[a-z]*", ManifestError),
        ("not/there", IntegrityError),
    ],
)
def test_unsafe_and_missing_names(
    shared, hub, hub_server, ensemble: Ensemble, path: str, error: type[Df2ServeError]
) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    content = edited(ensemble, lambda fields: fields["files"].update({path: entry}))
    change(shared, "ensemble.json", content)
    with pytest.raises(error):
        load_ensemble(ADDRESS)
    assert not any("safetensors" in call for call in hub.calls)


def test_names_are_no_patterns(shared, hub_server, ensemble: Ensemble) -> None:
    changed = with_files(ensemble, {"notes[1].txt": b"one"})
    change(shared, "notes[1].txt", b"one")
    change(shared, "notes1.txt", b"another")
    manifest = (changed.source / "ensemble.json").read_bytes()
    change(shared, "ensemble.json", manifest)
    opened = load_ensemble(ADDRESS)
    assert opened.read("notes[1].txt") == b"one"
    assert not (opened.source / "notes1.txt").exists()


def test_limits(shared, hub, ensemble: Ensemble) -> None:
    total = sum(entry.bytes for entry in ensemble.manifest.files.values())
    for limits in (HubLimits(max_bytes=total - 1), HubLimits(max_files=4)):
        with pytest.raises(LimitExceededError, match=r"asks for 8 files with .* raise the limits"):
            open_ensemble(ADDRESS, limits=limits)
    assert not any("safetensors" in call for call in hub.calls)


def test_a_repository_that_contradicts_its_manifest(shared, hub, hub_server) -> None:
    weights = "members/fold-1/model.safetensors"
    good = shared.files(shared.refs["refs/heads/main"])[weights]
    for content in (good + b"\0", good[:-1] + b"\x01"):
        change(shared, weights, content)
        with pytest.raises(IntegrityError, match="is not the file that its ensemble"):
            load_ensemble(ADDRESS)
    assert not any("safetensors" in call for call in hub.calls)


def test_a_tampered_download_is_caught(shared, hub, tmp_path: Path) -> None:
    weights = "members/fold-1/model.safetensors"
    good = shared.files(shared.refs["refs/heads/main"])[weights]
    hub.tampered[weights] = good[:-1] + bytes([good[-1] ^ 1])
    opened = load_ensemble(ADDRESS)
    opened.load_member(0)
    with pytest.raises(IntegrityError, match="was changed"):
        opened.load_member(1)
    with pytest.raises(IntegrityError, match="was changed") as caught:
        pull(ADDRESS, tmp_path / "out")
    assert caught.value.__notes__ == ["to fetch it again, first run: hf cache rm model/lab/cells"]
    assert not (tmp_path / "out").exists()


def test_a_connection_that_breaks_off(shared, hub, ensemble: Ensemble) -> None:
    weights = "members/fold-1/model.safetensors"
    hub.cut[weights] = 100_000
    opened = load_ensemble(ADDRESS)  # huggingface_hub asks for the rest
    assert hub.cut == {}
    opened.verify()
    assert opened.sha256 == ensemble.sha256


def test_links_are_followed_in_the_cache_alone(shared, tmp_path: Path) -> None:
    opened = load_ensemble(ADDRESS)
    weights = opened.source / "members/fold-0/model.safetensors"
    content = weights.read_bytes()
    if not weights.is_symlink():
        pytest.skip("this file system has no links")
    with pytest.raises(ArtifactNotFoundError):
        load_ensemble(opened.source)  # as an ordinary folder, links lead out of it
    outside = tmp_path / "outside"
    outside.write_bytes(content)
    weights.unlink()
    weights.symlink_to(outside)
    with pytest.raises(IntegrityError, match="lacks members/fold-0/model"):
        opened.load_member(0)


def test_the_cache_is_not_changed(shared) -> None:
    opened = load_ensemble(ADDRESS)
    with pytest.raises(OutputError, match="pull it into a folder to change the ensemble"):
        with_files(opened, {"LICENSE": b"mine"})


# -- copies -------------------------------------------------------------------------------------


def test_pull_into_a_folder(shared, ensemble: Ensemble, tmp_path: Path) -> None:
    pulled = pull(ADDRESS, tmp_path / "copy")
    copy = load_ensemble(tmp_path / "copy")
    copy.verify()
    assert copy.sha256 == ensemble.sha256
    written = {p.relative_to(pulled.target).as_posix() for p in copy.source.rglob("*.*")}
    assert written == set(pulled.files) == {"ensemble.json", "README.md", *copy.manifest.files}
    assert not any(path.is_symlink() for path in copy.source.rglob("*"))
    assert pulled.commit == shared.refs["refs/heads/main"]
    assert pulled.bytes == sum((copy.source / name).stat().st_size for name in pulled.files)
    with_files(copy, {"LICENSE": b"mine"})
    with pytest.raises(OutputError, match="exists"):
        pull(ADDRESS, tmp_path / "copy")


def test_pull_exports(shared, hub, hub_server, tmp_path: Path) -> None:
    assert pull(ADDRESS, tmp_path / "exports", content="exports").files == ("package/rdf.yaml",)
    assert (tmp_path / "exports/package/rdf.yaml").read_text() == "type: model\n"
    everything = pull(ADDRESS, tmp_path / "all", content="all").files
    assert {"package/rdf.yaml", "ensemble.json", "model.safetensors"} <= set(everything)
    change(shared, "package/../escape", b"x")
    with pytest.raises(IntegrityError, match="expected plain relative paths"):
        pull(ADDRESS, tmp_path / "unsafe", content="exports")
    change(shared, "package/../escape", None)
    change(shared, "onnx/model.onnx", b"graph")
    hub.tampered["onnx/model.onnx"] = b"grapH"
    with pytest.raises(IntegrityError, match="is not the listed one"):
        pull(ADDRESS, tmp_path / "tampered", content="exports")
    for name in ("package/rdf.yaml", "onnx/model.onnx"):
        change(shared, name, None)
    with pytest.raises(ArtifactNotFoundError, match="has no exports"):
        pull(ADDRESS, tmp_path / "none", content="exports")


# -- plain models -------------------------------------------------------------------------------


def test_plain_models_are_fetched_without_their_pickles(
    shared, hub, ensemble: Ensemble, tmp_path: Path
) -> None:
    for name in ("ensemble.json", "members/fold-0/config.json", "package/rdf.yaml"):
        change(shared, name, None)
    change(shared, "pytorch_model.bin", b"\x80\x04cos\nsystem\n.")
    folder = fetch_model(ADDRESS)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert not any("pytorch_model" in call for call in hub.calls)
    settings = ImportSettings(normalization=NoNormalization(), tile_shape=(64, 64))
    imported = import_ensemble([folder], tmp_path / "imported", settings=settings).ensemble
    assert len(imported) == 1
    tile = torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(imported.load_member(0)(tile), ensemble.load_member(0)(tile))
    with pytest.raises(LimitExceededError, match="asks for 2 files"):
        fetch_model(ADDRESS, limits=HubLimits(max_bytes=1000))
    change(shared, "model.safetensors", None)
    with pytest.raises(ArtifactNotFoundError, match=r"no model.safetensors; .*are not opened"):
        fetch_model(ADDRESS)
