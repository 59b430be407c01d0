"""What a push changes on the Hub, and what it refuses."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from starlette.responses import Response

from df2serve.artifact import Ensemble, load_ensemble, pack_ensemble, with_files
from df2serve.errors import ConfigError, ExportError, HubAccessError, HubError, IntegrityError
from df2serve.export import Card, export_ensemble
from df2serve.export.card import Person
from df2serve.publish import Pushed, plan_push, pull, push
from df2serve.testing import random_ensemble

# how huggingface_hub itself uploads large files
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

ADDRESS = "hf://lab/cells"
MAIN = "refs/heads/main"
LOAD = """
import sys
from bioimageio.spec import load_description
for name in sys.argv[1:]:
    print(type(load_description(name)).__name__)
"""


@pytest.fixture(autouse=True)
def logged_in(hub, hub_server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)


def published(ensemble: Ensemble, **settings: object) -> Pushed:
    with plan_push(ensemble, ADDRESS, **settings) as plan:
        return push(plan)


def test_round_trip(hub, ensemble: Ensemble, tmp_path: Path) -> None:
    (ensemble.source / "README.md").write_text("# Cells\n")
    (ensemble.source / "secret.txt").write_text("not to be published")
    pushed = published(ensemble, version="1.2.0", private=True)
    repository = hub.repositories["lab/cells"]
    assert repository.private
    assert len(repository.history()) == 2  # the Hub's own first one, and ours
    assert set(repository.files(pushed.commit)) == {
        ".gitattributes", "README.md", "ensemble.json", *ensemble.manifest.files
    }  # fmt: skip
    for tag in ("1.2.0", "v1.2.0"):
        assert load_ensemble(f"{ADDRESS}@{tag}").sha256 == ensemble.sha256
    pull(ADDRESS, tmp_path / "copy")
    for index, folder in enumerate(("", "members/fold-1")):
        plain = smp.from_pretrained(tmp_path / "copy" / folder).eval()
        tile = torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64)
        with torch.inference_mode():
            assert torch.equal(plain(tile), ensemble.load_member(index)(tile))


def test_only_changes_are_sent(hub, ensemble: Ensemble, tmp_path: Path) -> None:
    published(ensemble)
    weights = {entry.sha256 for name, entry in ensemble.manifest.files.items() if "model" in name}
    assert set(hub.uploaded) == weights
    hub.uploaded.clear()
    with plan_push(ensemble, ADDRESS) as plan:
        assert (plan.changes, plan.unchanged, plan.size) == ((), 7, 0)
        before = hub.repositories["lab/cells"].refs
        assert push(plan).commit == before[MAIN]
    assert hub.repositories["lab/cells"].refs == before
    other = random_ensemble(tmp_path / "other", members=3, channels=1, classes=2, tile=64)
    with plan_push(other, ADDRESS) as plan:
        found = [(change.kind, change.path) for change in plan.changes]
        push(plan)
    assert found == [
        ("replace", "ensemble.json"),
        ("add", "members/fold-2/config.json"),
        ("add", "members/fold-2/model.safetensors"),
    ]
    assert hub.uploaded == [other.manifest.files["members/fold-2/model.safetensors"].sha256]


def test_what_an_ensemble_lost_is_deleted(hub, hub_server, ensemble: Ensemble, tmp_path) -> None:
    larger = random_ensemble(tmp_path / "larger", members=3, channels=1, classes=2, tile=64)
    published(larger)
    repository = hub.repositories["lab/cells"]
    files = repository.files(repository.refs[MAIN])
    extra = dict.fromkeys(("package/rdf.yaml", "notes.txt"), b"x")
    repository.commit(MAIN, files | extra)
    with plan_push(ensemble, ADDRESS) as plan:
        gone = {change.path for change in plan.changes if change.kind == "delete"}
        push(plan)
    fold = "members/fold-2"
    assert gone == {f"{fold}/config.json", f"{fold}/model.safetensors", "package/rdf.yaml"}
    assert "notes.txt" in repository.files(repository.refs[MAIN])
    assert load_ensemble(ADDRESS).sha256 == ensemble.sha256


def test_planning_writes_nothing(hub, ensemble: Ensemble) -> None:
    with plan_push(ensemble, ADDRESS, version="1.0.0", readme="# Card\n") as plan:
        assert plan.parent is None
        assert {change.kind for change in plan.changes} == {"add"}
        assert plan.tags == ("1.0.0", "v1.0.0")
        assert plan.size == 7 + sum(
            path.stat().st_size for path in ensemble.source.rglob("*") if path.is_file()
        )
    assert hub.repositories == {}
    assert not any(call.startswith(("POST", "PUT")) for call in hub.calls)


def test_pull_requests(hub, hub_server, ensemble: Ensemble, monkeypatch) -> None:
    published(ensemble)
    repository = hub.repositories["lab/cells"]
    before = repository.refs[MAIN]
    changed = with_files(ensemble, {"LICENSE": b"MIT\n"})
    monkeypatch.setenv("HF_TOKEN", hub_server.READER)
    assert published(changed, review=True).url == f"{hub.url}/lab/cells/discussions/1"
    assert repository.refs[MAIN] == before
    assert load_ensemble(f"{ADDRESS}@refs/pr/1").sha256 == changed.sha256


def test_a_change_in_between_is_noticed(hub, hub_server, ensemble: Ensemble) -> None:
    published(ensemble)
    repository = hub.repositories["lab/cells"]
    changed = with_files(ensemble, {"LICENSE": b"MIT\n"})
    with plan_push(changed, ADDRESS, version="2.0.0") as plan:
        files = repository.files(repository.refs[MAIN])
        theirs = repository.commit(MAIN, files | {"notes.txt": b"x"})
        with pytest.raises(HubError, match="changed by someone else meanwhile"):
            push(plan)
    assert repository.refs == {MAIN: theirs}


def test_an_upload_that_breaks_off(hub, ensemble: Ensemble, monkeypatch) -> None:
    async def broken(request):
        hub.calls.append("broken")
        return Response("storage is full", 507)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "put_large", broken)
        with pytest.raises(HubError, match=r"nothing was published at hf://lab/cells.*push again"):
            published(ensemble)
    assert "broken" in hub.calls
    assert len(hub.repositories["lab/cells"].history()) == 1
    published(ensemble)
    assert load_ensemble(ADDRESS).sha256 == ensemble.sha256


@pytest.mark.slow
def test_a_package_goes_along(hub, ensemble: Ensemble, tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(0, 150, (1, 96, 96)).astype(np.float32)
    card = Card(authors=(Person(name="Ada Lovelace"),), license="MIT", description="Nothing.")
    package = tmp_path / "package.zip"
    formats = ("pytorch_state_dict",)
    export_ensemble(ensemble, package, "bioimageio", card=card, image=image, formats=formats)
    pushed = published(ensemble, package=package, version="1.2.0")
    files = hub.repositories["lab/cells"].files(pushed.commit)
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            path = "package/" + name.replace("rdf.yaml", "bioimageio.yaml")
            assert files[path] == archive.read(name)
    pages = f"{hub.url}/{{repo_id}}/resolve/{{branch}}/package/bioimageio.yaml"
    environment = {**os.environ, "BIOIMAGEIO_HUGGINGFACE_HTTP_PATTERN": pages}
    names = ("huggingface/lab/cells", "huggingface/lab/cells/1.2.0")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *names], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ModelDescr\nModelDescr\n"
    other = random_ensemble(tmp_path / "other", members=1, channels=1, classes=2, tile=64)
    with pytest.raises(ExportError, match="was not exported of"):
        published(other, package=package)


def test_versions_stay(hub, ensemble: Ensemble) -> None:
    first = published(ensemble, version="1.0.0")
    changed = with_files(ensemble, {"LICENSE": b"MIT\n"})
    with pytest.raises(HubError, match=r"has a version 1\.0\.0 already"):
        published(changed, version="1.0.0")
    repository = hub.repositories["lab/cells"]
    assert set(repository.refs.values()) == {first.commit}
    second = published(changed, version="1.1.0")
    assert repository.refs["refs/tags/v1.1.0"] == second.commit != first.commit


def test_rights(hub, hub_server, ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_server.READER)
    with pytest.raises(HubAccessError, match="denies this for hf://lab/cells"):
        published(ensemble)
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)
    published(ensemble)
    monkeypatch.setenv("HF_TOKEN", hub_server.READER)
    changed = with_files(ensemble, {"LICENSE": b"MIT\n"})
    with pytest.raises(HubAccessError, match="you may not write here"):
        published(changed)
    monkeypatch.setenv("HF_TOKEN", hub_server.READ_ONLY)  # of the owner, for reading alone
    with pytest.raises(HubAccessError, match="you may not write here"):
        published(changed)
    assert load_ensemble(ADDRESS).sha256 == ensemble.sha256


def test_refused_settings(hub, hub_server, ensemble: Ensemble, tmp_path: Path) -> None:
    packed = pack_ensemble(ensemble, tmp_path / "ensemble.zip")
    for source, address, settings, message in [
        (packed, ADDRESS, {}, "is a zip file; unpack it"),
        (ensemble, f"{ADDRESS}@main", {}, "push to the repository itself"),
        (ensemble, ADDRESS, {"version": "v1"}, "expected three numbers"),
        (ensemble, ADDRESS, {"version": "1.0.0", "review": True}, "leave one of both out"),
    ]:
        with pytest.raises(ConfigError, match=message), plan_push(source, address, **settings):
            pass
    with pytest.raises(HubError, match="to open a pull request for"):
        published(ensemble, review=True)
    repository = hub.create_repository("lab/cells")
    repository.commit(MAIN, {"config.json": b"{}"})
    with pytest.raises(HubError, match="is public; make it private"):
        published(ensemble, private=True)
    with pytest.raises(HubError, match=r"holds another model \(config.json\)"):
        published(ensemble)
    (ensemble.source / "members/fold-1/config.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError):
        published(ensemble)
    assert len(repository.history()) == 1
