"""What an upload to the Zoo asks for and refuses; the server is a stand-in, see `zoo_double.py`."""

import dataclasses
import datetime
import importlib.util
import json
import logging
import os
import pty
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import SecretStr
from starlette.responses import JSONResponse, Response

from df2serve.config import ZooSettings
from df2serve.errors import (
    ArtifactNotFoundError,
    ConfigError,
    ExportError,
    HubAccessError,
    HubError,
)
from df2serve.export.checks import CheckReport
from df2serve.publish import UploadPlan, Zoo, plan_upload
from df2serve.publish.zoo import _plain

RDF = {"type": "model", "name": "Cells", "format_version": "0.5.10", "version": "0.1.0", "id": "x"}

ASK = """
from df2serve.cli._zoo import read_token
token = read_token()
print(repr(token), len(token.get_secret_value()))
"""


@pytest.fixture(scope="module")
def zoo_double() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "zoo_double", Path(__file__).with_name("zoo_double.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(zoo_double: ModuleType) -> Iterator[object]:
    with zoo_double.ZooDouble().serving() as server:
        yield server


@pytest.fixture
def zoo(server, zoo_double: ModuleType) -> Iterator[Zoo]:
    settings = ZooSettings(server=server.url, timeout_s=5)
    with Zoo(SecretStr(zoo_double.TOKEN), settings=settings) as zoo:
        yield zoo


@pytest.fixture
def plan(tmp_path: Path) -> UploadPlan:
    contents = {"README.md": b"# Cells\n", "weights.pt": b"\0\xff" * 9, "tests/in.npy": b"123"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    report = CheckReport("cells.zip", None, "Cells", "0.5.10", findings=(), runs=(), zoo=None)
    return UploadPlan(RDF, {name: tmp_path / name for name in contents}, report)


def changed(plan: UploadPlan, tmp_path: Path) -> UploadPlan:
    path = tmp_path / "another.md"
    path.write_bytes(b"# Other\n")
    return dataclasses.replace(plan, files={**plan.files, "README.md": path})


def test_what_is_asked_for(server, zoo: Zoo, plan: UploadPlan) -> None:
    done = zoo.upload(plan)
    assert (done.name, done.status, done.is_staged) == ("kind-otter", "in-review", True)
    content = {name: path.read_bytes() for name, path in plan.files.items()}
    assert {name: server.stored[name] for name in content} == content
    assert yaml.safe_load(server.stored["rdf.yaml"]) == RDF | {"id": "kind-otter"}
    assert server.stored["bioimageio.yaml"] == server.stored["rdf.yaml"]

    called = [arguments for method, arguments in server.calls if method in {"create", "edit"}]
    assert all(arguments["stage"] is True for arguments in called)
    assert called[0]["config"] == {"permissions": {"reviewer-1": "rw+"}}
    assert called[0]["manifest"] == RDF | {"status": "draft"}
    assert called[1]["version"] == "new"
    assert called[1]["manifest"] == RDF | {"id": "kind-otter", "status": "in-review"}
    assert "commit" not in {method for method, _ in server.calls}
    weights = [
        a["file_path"] for m, a in server.calls if m == "put_file" and "download_weight" in a
    ]
    assert weights == ["weights.pt"]
    for name, headers in server.puts:
        assert headers["content-type"] == ""
        assert headers["content-length"] == str(len(server.stored[name]))
        assert "authorization" not in headers


def test_nothing_is_sent_twice(server, zoo: Zoo, plan: UploadPlan, tmp_path: Path) -> None:
    zoo.upload(plan, review=False)
    server.stored["left.over"] = b"of an earlier package"
    server.puts.clear()
    events = []
    done = zoo.upload(changed(plan, tmp_path), name="kind-otter", listener=events.append)
    assert done.status == "in-review"
    assert [name for name, _ in server.puts] == ["README.md"]
    assert {event.file: event.was_there for event in events[1:]} == {
        "README.md": False, "weights.pt": True, "tests/in.npy": True,
        "rdf.yaml": True, "bioimageio.yaml": True,
    }  # fmt: skip
    assert "left.over" not in server.stored
    server.puts.clear()
    calls = len(server.calls)
    assert zoo.upload(changed(plan, tmp_path), name="kind-otter").status == "in-review"
    assert server.puts == []
    assert "edit" not in {method for method, _ in server.calls[calls:]}


def test_reviewers_are_not_disturbed(server, zoo: Zoo, plan: UploadPlan, tmp_path: Path) -> None:
    zoo.upload(plan)
    server.puts.clear()
    with pytest.raises(HubError, match="is in-review, so that its files must not change"):
        zoo.upload(changed(plan, tmp_path), name="kind-otter")
    assert server.puts == []
    server.model["manifest"]["status"] = "in-revision"
    assert zoo.upload(changed(plan, tmp_path), name="kind-otter").status == "in-review"


def test_published_versions_stay(server, zoo: Zoo, plan: UploadPlan, tmp_path: Path) -> None:
    zoo.upload(plan)
    server.publish()
    server.calls.clear()
    with pytest.raises(ConfigError, match=r"has a version 0\.1\.0 already"):
        zoo.upload(plan, name="kind-otter")
    with pytest.raises(HubError, match="has no draft; what is published stays"):
        zoo.delete("kind-otter")
    assert {method for method, _ in server.calls} == {"read"}
    second = dataclasses.replace(changed(plan, tmp_path), rdf=RDF | {"version": "0.2.0"})
    assert zoo.upload(second, name="kind-otter").versions == ("v0",)
    edits = [arguments for method, arguments in server.calls if method == "edit"]
    assert all(a["stage"] is True and a["version"] == "new" for a in edits)
    assert zoo.delete("kind-otter").versions == ("v0",)
    assert server.calls[-1] == ("discard", {"artifact_id": "bioimage-io/kind-otter"})
    server.model["staging"] = [{"_intent": "edit_version"}]
    with pytest.raises(HubError, match="has changes of its published version"):
        zoo.upload(second, name="kind-otter")


def test_a_draft_is_deleted_not_discarded(server, zoo: Zoo, plan: UploadPlan) -> None:
    zoo.upload(plan, review=False)
    assert zoo.delete("kind-otter").status == "draft"
    arguments = {"artifact_id": "bioimage-io/kind-otter", "delete_files": True}
    assert server.calls[-1] == ("delete", arguments)
    zoo.upload(plan)
    server.discard()  # as others may, which leaves neither draft nor version
    assert zoo.delete("kind-otter").status == "empty"
    assert server.calls[-1] == ("delete", arguments)


def test_other_artifacts_are_left_alone(server, zoo: Zoo, plan: UploadPlan) -> None:
    zoo.upload(plan)
    server.model["parent_id"] = "bioimage-io/another"
    for call in (zoo.find, zoo.delete, lambda name: zoo.upload(plan, name=name)):
        with pytest.raises(HubError, match="is no model of bioimage-io/bioimage"):
            call("kind-otter")
        with pytest.raises(ConfigError, match="expected the name of a model in the Zoo"):
            call("../bioimage.io")


def test_a_surprising_end_is_told(server, zoo: Zoo, plan: UploadPlan) -> None:
    zoo.upload(plan, review=False)
    server.answers["edit"] = JSONResponse({})
    with pytest.raises(HubError, match="kind-otter is draft now, expected in-review") as caught:
        zoo.upload(plan, name="kind-otter")
    assert caught.value.__notes__ == [
        "what has arrived stays in the draft; go on with --id kind-otter"
    ]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            JSONResponse({"detail": "Token an.account.token is bad"}, 401),
            HubAccessError,
            "… is bad",
        ),
        (
            JSONResponse({"detail": "RemoteException: PermissionError: no\x1b[2J"}, 403),
            HubAccessError,
            r"refuses put_file: PermissionError: no \[2J; make a token",
        ),
        (JSONResponse({"detail": "KeyError"}, 404), ArtifactNotFoundError, "put_file: KeyError"),
        (Response("<html>", 502), HubError, "refuses put_file: HTTP 502"),
        (JSONResponse(["odd"], 500), HubError, "refuses put_file: HTTP 500"),
    ],
)
def test_refusals(server, zoo: Zoo, plan: UploadPlan, answer, error, message) -> None:
    server.answers["put_file"] = answer
    with pytest.raises(error, match=message) as caught:
        zoo.upload(plan)
    assert "an.account.token" not in str(caught.value)


def test_the_storage_refuses(server, zoo: Zoo, plan: UploadPlan) -> None:
    server.answers["PUT"] = Response(status_code=503)
    with pytest.raises(HubError, match=r"storage does not take README\.md: HTTP 503"):
        zoo.upload(plan)
    assert server.model["manifest"]["status"] == "draft"


def test_what_arrives_otherwise_is_not_handed_over(server, zoo: Zoo, plan: UploadPlan) -> None:
    server.answers["PUT"] = Response()  # accepted, and lost
    server.stored["README.md"] = b"another"
    with pytest.raises(HubError, match=r"README\.md is not what was sent of it"):
        zoo.upload(plan)
    assert server.model["manifest"]["status"] == "draft"


def test_secrets_stay_secret(
    server, zoo: Zoo, zoo_double, plan: UploadPlan, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        zoo.upload(plan)
    assert zoo_double.TOKEN not in caplog.text
    assert zoo_double.TOKEN not in repr(vars(zoo._service))


def test_nobody_there(plan: UploadPlan) -> None:
    settings = ZooSettings(server="http://127.0.0.1:9")
    told = r"127\.0\.0\.1:9 does not answer \(read: ConnectError"
    with Zoo(SecretStr("token"), settings=settings) as zoo, pytest.raises(HubError, match=told):
        zoo.upload(plan)


def test_tokens_travel_encrypted() -> None:
    for server in ("http://hypha.aicell.io", "http://127.0.0.1.example.org"):
        with pytest.raises(ConfigError, match="expected https, so that nobody reads the token"):
            Zoo(SecretStr("token"), settings=ZooSettings(server=server))
    for server in ("http://localhost:1", "http://[::1]:1", "https://hypha.aicell.io"):
        with Zoo(SecretStr("token"), settings=ZooSettings(server=server)):
            pass


def test_packages_that_fail_their_check(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("README.md", "# Nothing\n")
    with (
        pytest.raises(ExportError, match=r"fails its check \(PKG006\)"),
        plan_upload(tmp_path / "empty.zip"),
    ):
        pass
    (tmp_path / "rdf.yaml").write_text("type: model\n")
    with pytest.raises(ConfigError, match="expected a package"), plan_upload(tmp_path / "rdf.yaml"):
        pass


def test_dates_become_text() -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    assert _plain({"a": [when, when.date()], 1: None}) == {
        "a": ["2026-01-02T03:04:00+00:00", "2026-01-02"], "1": None,
    }  # fmt: skip


# -- the program --------------------------------------------------------------------------------


def test_how_a_model_stands(server, zoo: Zoo, zoo_double, plan, df2serve, monkeypatch) -> None:
    zoo.upload(plan)
    monkeypatch.setenv("BIOIMAGEIO_HYPHA_UPLOAD_TOKEN", zoo_double.TOKEN)
    options = ("uploaded", "kind-otter", "--server", f"{server.url}/")
    assert df2serve(*options).out == "kind-otter: in-review; public versions: none\n"
    code, out, _ = df2serve(*options, "--json", "--delete")
    facts = {"id": "kind-otter", "deleted": True, "status": "in-review", "staged": True}
    assert (code, json.loads(out)) == (0, facts | {"versions": []})
    assert server.model is None


def test_no_token(server, zoo: Zoo, plan: UploadPlan, df2serve, monkeypatch) -> None:
    zoo.upload(plan)
    monkeypatch.delenv("BIOIMAGEIO_HYPHA_UPLOAD_TOKEN", raising=False)
    code, out, errors = df2serve("uploaded", "kind-otter", "--delete", "--server", server.url)
    assert (code, out) == (2, "")
    assert "set BIOIMAGEIO_HYPHA_UPLOAD_TOKEN to it" in errors
    code, out, errors = df2serve("uploaded", "kind-otter", "--server", "ftp://zoo")
    assert (code, out) == (2, "")
    assert "invalid settings of the Zoo: server" in errors


def test_a_package_that_is_not_there_needs_no_token(df2serve, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("BIOIMAGEIO_HYPHA_UPLOAD_TOKEN", raising=False)
    code, out, errors = df2serve("upload", tmp_path / "package.zip")
    assert (code, out) == (2, "")
    assert "package.zip does not exist" in errors


def test_a_token_is_asked_for_and_not_shown() -> None:
    main, terminal = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "BIOIMAGEIO_HYPHA_UPLOAD_TOKEN"}
    asking = subprocess.Popen(
        [sys.executable, "-c", ASK],
        env=environment, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while b": " not in shown:
        shown += os.read(main, 1000)
    os.write(main, b"hunter2-token\n")
    while b"13" not in shown:
        shown += os.read(main, 1000)
    assert asking.wait() == 0
    os.close(main)
    assert b"Token from https://bioimage.io/#/api: " in shown
    assert b"SecretStr('**********') 13" in shown
    assert b"hunter2" not in shown
