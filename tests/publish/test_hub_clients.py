"""What we push is what programs of others pull from the same Hub, and the other way round."""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import segmentation_models_pytorch as smp
import torch
from huggingface_hub import constants

from df2serve.artifact import Ensemble, load_ensemble, with_files
from df2serve.errors import HubError
from df2serve.publish import Pushed, plan_push, pull, push

# how huggingface_hub itself uploads large files
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

ADDRESS = "hf://lab/cells"
FOREIGN = Path(sys.prefix) / "foreign"

# killed while it downloads, as a process that runs out of time
DOWNLOAD = "import sys; from df2serve.publish import pull; pull(sys.argv[1], sys.argv[2])"


@pytest.fixture(params=["lfs", "xet"])
def transfer(
    request: pytest.FixtureRequest, hub, hub_server, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Both ways in which large files travel."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)
    return request.param


def published(ensemble: Ensemble, **settings: object) -> Pushed:
    with plan_push(ensemble, ADDRESS, **settings) as plan:
        return push(plan)


def weights_of(ensemble: Ensemble) -> set[str]:
    return {entry.sha256 for name, entry in ensemble.manifest.files.items() if "model" in name}


def assert_same_members(folder: Path, ensemble: Ensemble) -> None:
    """Load every member with nothing but segmentation-models-pytorch."""
    tile = torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64)
    for index, member in enumerate(ensemble.manifest.members):
        plain = smp.from_pretrained(folder / member.folder).eval()
        with torch.inference_mode():
            assert torch.equal(plain(tile), ensemble.load_member(index)(tile))


def hashes_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


def test_huggingface_hub(hub, transfer: str, ensemble: Ensemble, tmp_path: Path) -> None:
    pushed = published(ensemble, version="1.2.0")
    weights = weights_of(ensemble)
    if transfer == "xet":
        assert hub.uploaded == []
        assert all(hub.store.xet_hash(digest) for digest in weights)
    else:
        assert set(hub.uploaded) == weights
    pulled = pull(f"{ADDRESS}@v1.2.0", tmp_path / "copy")
    assert pulled.commit == pushed.commit
    assert (hub.sent == 0) == (transfer == "xet")
    assert load_ensemble(tmp_path / "copy").sha256 == ensemble.sha256
    assert_same_members(tmp_path / "copy", ensemble)
    changed = with_files(ensemble, {"LICENSE": b"MIT\n"})
    assert published(changed).commit != pushed.commit
    assert load_ensemble(ADDRESS).sha256 == changed.sha256
    assert load_ensemble(f"{ADDRESS}@1.2.0").sha256 == ensemble.sha256


@pytest.mark.slow
def test_git(hub, transfer: str, hub_server, ensemble: Ensemble, tmp_path: Path) -> None:
    lfs = shutil.which("git-lfs", path=f"{FOREIGN}{os.pathsep}{os.environ['PATH']}")
    if lfs is None:
        pytest.skip("git-lfs is not installed; 'make foreign' fetches it")
    published(ensemble, private=True)
    settings = {
        "filter.lfs.smudge": f"{shlex.quote(lfs)} smudge -- %f",
        "filter.lfs.process": f"{shlex.quote(lfs)} filter-process",
        "filter.lfs.required": "true",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    environment = os.environ | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "PATH": f"{Path(lfs).parent}{os.pathsep}{os.environ['PATH']}",  # a hook looks there
    }
    outcomes = []
    for token in (hub_server.READER, hub_server.READ_ONLY):
        address = hub.url.replace("://", f"://user:{token}@") + "/lab/cells"
        done = subprocess.run(
            ["git", *options, "clone", "--quiet", address, tmp_path / "clone"],
            env=environment, capture_output=True, check=False,
        )  # fmt: skip
        outcomes.append(done.returncode == 0)
    assert outcomes == [False, True]
    assert load_ensemble(tmp_path / "clone").sha256 == ensemble.sha256
    assert_same_members(tmp_path / "clone", ensemble)


@pytest.mark.slow
def test_the_javascript_client(hub, transfer: str, hub_server, ensemble: Ensemble) -> None:
    module = FOREIGN / "npm/node_modules/@huggingface/hub/dist/index.mjs"
    if shutil.which("node") is None or not module.is_file():
        pytest.skip("@huggingface/hub is not installed; 'make foreign' fetches it, with node")
    pushed = published(ensemble)
    done = subprocess.run(
        ["node", Path(__file__).with_name("hub_client.mjs"), module.as_uri(), hub.url,
         hub_server.OWNER, "lab/cells"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["sha"], found["exists"], found["missing"]) == (pushed.commit, True, False)
    assert found["hashes"].pop(".gitattributes")
    assert found["hashes"] == hashes_in(ensemble.source)
    theirs = hub.repositories["lab/cells-js"]
    content = theirs.files(theirs.refs["refs/heads/main"])["model.safetensors"]
    assert content == bytes([7]) * 3_000_000
    with (
        pytest.raises(HubError, match="holds another model"),
        plan_push(ensemble, "hf://lab/cells-js"),
    ):
        pass


@contextlib.contextmanager
def olah_before(hub, folder: Path) -> Iterator[str]:
    """Run olah, a mirror of Hubs by other people, before ours; yield its address."""
    program = FOREIGN / "olah/bin/olah-cli"
    if not program.is_file():
        pytest.skip("olah is not installed; 'make foreign' builds it")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    upstream = hub.url.removeprefix("http://")
    everything = 'repo = "*/*"\nallow = true\n'
    (folder / "olah.toml").write_text(
        f"""[basic]
host = "127.0.0.1"
port = {port}
repos-path = "{folder}/repos"
hf-scheme = "http"
hf-netloc = "{upstream}"
hf-lfs-netloc = "{upstream.replace("127.0.0.1", "localhost")}"
mirror-scheme = "http"
mirror-netloc = "127.0.0.1:{port}"
mirror-lfs-netloc = "localhost:{port}"
mirrors-path = ["{folder}/mirrors"]
[accessibility]
offline = false
[[accessibility.proxy]]
{everything}[[accessibility.cache]]
{everything}"""
    )
    with (folder / "olah.log").open("wb") as log:
        server = subprocess.Popen(
            [program, "-c", folder / "olah.toml"], cwd=folder, stdout=log, stderr=log
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(httpx2.HTTPError):
                httpx2.get(f"{address}/api/models/lab/cells")
                break
            time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_a_mirror(
    hub, hub_server, ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)
    published(ensemble)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    template = "/{repo_id}/resolve/{revision}/{filename}"
    with olah_before(hub, tmp_path) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
        pull(ADDRESS, tmp_path / "copy")
    assert load_ensemble(tmp_path / "copy").sha256 == ensemble.sha256
    assert any("/resolve/" in call for call in hub.calls)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_downloads(
    hub, hub_server, ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)
    published(ensemble)
    waiting = hub.hold("members/fold-1/model.safetensors")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
    }
    client = subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, ADDRESS, tmp_path / "copy"], env=environment
    )
    assert waiting.wait(timeout=240)
    client.send_signal(signal.SIGKILL)
    client.wait()
    hub.release()
    assert not (tmp_path / "copy").exists()
    pull(ADDRESS, tmp_path / "copy")
    assert load_ensemble(tmp_path / "copy").sha256 == ensemble.sha256
