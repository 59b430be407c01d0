"""Uploads to the real server of the BioImage Model Zoo, on loopback."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import yaml
from pydantic import SecretStr

from df2serve.config import ZooSettings
from df2serve.errors import ArtifactNotFoundError, ConfigError, HubAccessError, HubError
from df2serve.export import Card, export_ensemble
from df2serve.export.card import Person
from df2serve.publish import Sent, UploadPlan, Zoo, plan_upload
from df2serve.testing import random_ensemble

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]

COLLECTION = "bioimage-io/bioimage.io"

# bioimageio.spec itself waits five seconds for an answer
SPEC_UPLOAD = """
import functools, httpx, sys
from bioimageio.spec import load_model_description, upload
httpx.post, httpx.put = (functools.partial(f, timeout=120) for f in (httpx.post, httpx.put))
upload(load_model_description(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    spec = importlib.util.spec_from_file_location(
        "zoo_server", Path(__file__).with_name("zoo_server.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not module.PYTHON.exists():
        pytest.skip("the server of the Zoo is not installed; 'make foreign' builds it")
    with module.ZooServer(tmp_path_factory.mktemp("zoo")).running() as running:
        yield running


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    ensemble = random_ensemble(folder / "ensemble", members=1, channels=1, classes=2, tile=64)
    image = np.random.default_rng(0).uniform(0, 150, (1, 64, 64)).astype(np.float32)
    author = Person(name="Ada Lovelace")
    card = Card(authors=(author,), license="MIT", description="Nothing.", version="0.1.0")
    target = folder / "package.zip"
    export_ensemble(
        ensemble, target, "bioimageio", card=card, image=image, formats=("torchscript",)
    )
    return target


@pytest.fixture(scope="module")
def plan(package: Path) -> Iterator[UploadPlan]:
    with plan_upload(package) as made:
        yield made


@pytest.fixture
def zoo(server) -> Iterator[Zoo]:
    with connect(server, "ada") as connection:
        yield connection


def connect(server, account: str) -> Zoo:
    return Zoo(SecretStr(server.tokens[account]), settings=ZooSettings(server=server.url))


def public(server) -> set[str]:
    return {found["id"] for found in server.call("list", parent_id=COLLECTION)}


def stored(server, name: str, file: str, **version: object) -> bytes:
    url = server.call("get_file", artifact_id=f"bioimage-io/{name}", file_path=file, **version)
    return httpx2.get(url).content


def test_from_draft_to_second_version(server, zoo: Zoo, plan: UploadPlan, package: Path) -> None:
    before = public(server)
    events = []
    done = zoo.upload(plan, listener=events.append)
    artifact = f"bioimage-io/{done.name}"
    assert (done.status, done.is_staged, done.versions) == ("in-review", True, ())
    assert events[0].status == "draft"
    assert {event.file for event in events[1:]} == {*plan.files, "rdf.yaml", "bioimageio.yaml"}
    assert not any(event.was_there for event in events[1:])

    with zipfile.ZipFile(package) as archive:
        for file in plan.files:
            assert stored(server, done.name, file, stage=True) == archive.read(file)
        original = yaml.safe_load(archive.read("rdf.yaml"))
    rdf = stored(server, done.name, "rdf.yaml", stage=True)
    assert stored(server, done.name, "bioimageio.yaml", stage=True) == rdf
    assert yaml.safe_load(rdf) == original | {"id": done.name}
    assert public(server) == before
    assert not httpx2.get(
        f"{server.url}/bioimage-io/artifacts/{done.name}/files/rdf.yaml"
    ).is_success
    granted = server.call("read", artifact_id=artifact, stage=True)["config"]["permissions"]
    assert granted["reviewer-1"] == "rw+"
    assert granted.keys() & {"visitor-2", "*", "@"} == set()

    server.call("commit", account="admin", artifact_id=artifact, comment="accepted")
    assert zoo.find(done.name).status == "published"
    assert artifact in public(server)
    with pytest.raises(ConfigError, match=r"has a version 0\.1\.0 already"):
        zoo.upload(plan, name=done.name)
    with pytest.raises(HubError, match="has no draft; what is published stays"):
        zoo.delete(done.name)

    readme = package.with_name("README.md")
    readme.write_text("# Second\n")
    files = {**plan.files, "README.md": readme}
    second = dataclasses.replace(plan, rdf={**plan.rdf, "version": "0.2.0"}, files=files)
    with connect(server, "admin") as curator:
        # only accounts with rights on the model may; the author of v0 has them
        again = zoo.upload(second, name=done.name)
        assert (again.status, again.versions) == ("in-review", ("v0",))
        assert stored(server, done.name, "README.md", stage=True) == b"# Second\n"
        assert stored(server, done.name, "README.md") == plan.files["README.md"].read_bytes()
        curator.delete(done.name)
        assert zoo.find(done.name).is_staged is False
        zoo.upload(second, name=done.name)
    server.call("commit", account="admin", artifact_id=artifact, comment="accepted")
    assert zoo.find(done.name).versions == ("v0", "v1")
    assert stored(server, done.name, "README.md") == b"# Second\n"
    first = stored(server, done.name, "README.md", version="v0")
    assert first == plan.files["README.md"].read_bytes()


def test_with_the_reviewers_nothing_changes(server, zoo: Zoo, plan: UploadPlan, tmp_path) -> None:
    name = zoo.upload(plan).name
    assert zoo.upload(plan, name=name).status == "in-review"  # the same once more does no harm
    changed = tmp_path / "README.md"
    changed.write_text("# Changed\n")
    other = dataclasses.replace(plan, files={**plan.files, "README.md": changed})
    with pytest.raises(HubError, match="is in-review, so that its files must not change"):
        zoo.upload(other, name=name)
    assert stored(server, name, "README.md", stage=True) == plan.files["README.md"].read_bytes()
    manifest = {**plan.rdf, "id": name, "status": "in-revision"}
    server.call(
        "edit", account="admin", artifact_id=f"bioimage-io/{name}", manifest=manifest, stage=True
    )
    assert zoo.upload(other, name=name).status == "in-review"
    assert stored(server, name, "README.md", stage=True) == b"# Changed\n"


def test_rights(server, plan: UploadPlan) -> None:
    before = server.call("list", account="admin", parent_id=COLLECTION, stage="all")
    settings = ZooSettings(server=server.url)
    for token, message in [
        (None, "does not have permission to create a draft"),
        (SecretStr("no.such.token"), "Error decoding token headers"),
    ]:
        with Zoo(token, settings=settings) as zoo:
            with pytest.raises(HubAccessError, match=message) as caught:
                zoo.upload(plan)
            assert "no.such.token" not in str(caught.value)
    assert server.call("list", account="admin", parent_id=COLLECTION, stage="all") == before
    with Zoo(None, settings=settings) as zoo, pytest.raises(ArtifactNotFoundError):
        zoo.find("no-such-model")


def test_drafts_are_removed(server, zoo: Zoo, plan: UploadPlan) -> None:
    draft = zoo.upload(plan, review=False)
    assert draft.status == "draft"
    with pytest.raises(HubAccessError, match="does not have permission to detach"):
        zoo.delete(draft.name)
    assert zoo.find(draft.name) == draft
    with connect(server, "admin") as curator:
        assert curator.delete(draft.name) == draft
    with pytest.raises(ArtifactNotFoundError):
        zoo.find(draft.name)
    assert f"bioimage-io/{draft.name}" not in public(server)


class Stopped(Exception):
    """Raised in the middle of an upload."""


def test_an_interrupted_upload_goes_on(server, zoo: Zoo, plan: UploadPlan) -> None:
    seen = []

    def stop(event: object) -> None:
        seen.append(event)
        if len(seen) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        zoo.upload(plan, listener=stop)
    name = seen[0].name
    assert zoo.find(name).status == "draft"
    events = []
    assert zoo.upload(plan, name=name, listener=events.append).status == "in-review"
    there = [event.file for event in events[1:] if event.was_there]
    assert there == [event.file for event in seen[1:]]


def test_a_server_that_dies(server, zoo: Zoo, plan: UploadPlan) -> None:
    seen = []

    def kill(event: object) -> None:
        seen.append(event)
        if len(seen) == 4:
            server.kill()

    with pytest.raises(HubError, match="does not answer") as caught:
        zoo.upload(plan, listener=kill)
    name = seen[0].name
    assert caught.value.__notes__ == [
        f"what has arrived stays in the draft; go on with --id {name}"
    ]
    with pytest.raises(HubError, match="does not answer"):
        zoo.upload(plan, name=name)
    server.start()
    events = []
    assert zoo.upload(plan, name=name, listener=events.append).status == "in-review"
    there = {event.file for event in events[1:] if event.was_there}
    assert there == {event.file for event in seen if isinstance(event, Sent)}


def test_what_arrived_otherwise_is_noticed(
    server, zoo: Zoo, plan: UploadPlan, tmp_path: Path
) -> None:
    changing = tmp_path / "README.md"
    changing.write_text("# Before\n")
    other = dataclasses.replace(plan, files={"README.md": changing})
    put = zoo._service.put_file

    def put_another(*arguments: object, **options: object) -> None:
        changing.write_text("# After!\n")
        put(*arguments, **options)

    zoo._service.put_file = put_another
    with pytest.raises(HubError, match=r"README\.md is not what was sent of it"):
        zoo.upload(other)


def test_the_program(server, df2serve, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOIMAGEIO_HYPHA_UPLOAD_TOKEN", server.tokens["ada"])
    code, out, errors = df2serve("upload", package, "--server", server.url, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["status"] == "in-review"
    assert "README.md: 0.0 MB sent and compared" in errors
    assert server.tokens["ada"] not in out + errors
    code, out, _ = df2serve("uploaded", found["id"], "--server", server.url)
    assert (code, out) == (0, f"{found['id']}: in-review; public versions: none\n")


def test_a_dry_run_talks_to_nobody(df2serve, plan: UploadPlan, package: Path) -> None:
    nobody = ("--server", "http://127.0.0.1:9")
    code, out, _ = df2serve("upload", package, "--dry-run", *nobody)
    assert code == 0
    assert "send  weights_torchscript.pt  " in out
    assert out.endswith(" MB to send; the check passed\n")


def test_how_the_upload_of_bioimageio_spec_differs(
    server, zoo: Zoo, plan: UploadPlan, package: Path, tmp_path: Path
) -> None:
    """What it stores are envelopes around the files, and it publishes without a review."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path)
    rdf = yaml.safe_load((tmp_path / "rdf.yaml").read_text())
    del rdf["id"]  # with which it refuses the package
    (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(rdf, sort_keys=False))
    before = public(server)
    environment = {
        **os.environ,
        "BIOIMAGEIO_HYPHA_UPLOAD": f"{server.url}/public/services/artifact-manager/create",
        "BIOIMAGEIO_HYPHA_UPLOAD_TOKEN": server.tokens["admin"],
    }
    done = subprocess.run(
        [sys.executable, "-c", SPEC_UPLOAD, tmp_path / "rdf.yaml"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert public(server) > before, done.stderr
    (theirs,) = public(server) - before  # published
    content = stored(server, theirs.rpartition("/")[2], "README.md")
    assert content != plan.files["README.md"].read_bytes()
    assert b"Content-Disposition: form-data" in content
    ours = zoo.upload(plan)
    assert ours.name not in {name.rpartition("/")[2] for name in public(server)}
    digest = hashlib.sha256(stored(server, ours.name, "README.md", stage=True)).hexdigest()
    assert digest == hashlib.sha256(plan.files["README.md"].read_bytes()).hexdigest()
