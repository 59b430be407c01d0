"""Uploads in parts: the protocol tus 1.0.0 as its clients speak it, and what becomes of them."""

import asyncio
import base64
import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

import df2serve
from df2serve import errors
from df2serve.config import ClientConfig
from df2serve.service import Settings, create_app, uploads
from df2serve.service.auth import hash_key
from df2serve.service.problems import Code, Problem
from df2serve.service.uploads import Uploads

PLACE = "/v1/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
PART = TUS | {"Content-Type": "application/offset+octet-stream"}
LARGEST = 4 << 30
MODULES = Path(__file__).parents[2] / ".venv/foreign/npm/node_modules"


def npy(height, width, factor=7):
    rows, columns = np.mgrid[:height, :width]
    buffer = io.BytesIO()
    np.save(buffer, ((rows * factor + columns * 3) % 251).astype(np.uint8))
    return buffer.getvalue()


def base64_of(content):
    return base64.b64encode(content).decode()


def create(client, length, **headers):
    return client.post(PLACE, headers=TUS | {"Upload-Length": str(length)} | headers)


def created(client, length, **headers):
    answer = create(client, length, **headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def send(client, place, offset, content, **headers):
    headers = PART | {"Upload-Offset": str(offset)} | headers
    return client.patch(place, headers=headers, content=content)


def offset_of(client, place):
    answer = client.head(place, headers=TUS)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


def stored(client, content, name=None):
    """The id of a whole upload."""
    named = {} if name is None else {"Upload-Metadata": f"filename {base64_of(name.encode())}"}
    place = created(client, len(content), **named)
    assert send(client, place, 0, content).status_code == 204
    return place.rpartition("/")[2]


def assert_problem(answer, code):
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (answer.status_code, body["code"]) == (code.status, code.slug), body
    return body


def finished(client, place):
    end = time.monotonic() + 120
    while (job := client.get(place).json())["state"] in ("accepted", "running"):
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job


def form(*fields):
    """Fields of a form in this order: contents are files, texts are ids of uploads."""
    return [
        ("image", (f"{number}.npy", value)) if isinstance(value, bytes) else
        ("upload", (None, value))
        for number, value in enumerate(fields)
    ]  # fmt: skip


@pytest.fixture
def bare(tmp_path):
    """A service without models, and what makes it differ from others."""

    def start(**values):
        settings = Settings(state=tmp_path / "state", warm=False, **values)
        app = create_app(settings)
        # without its life, which would start workers; routes of uploads need the folder alone
        app.state.context.uploads.load()
        return TestClient(
            app,
            base_url="http://127.0.0.1",
            client=("127.0.0.1", 1),
            raise_server_exceptions=False,
        )

    return start


# -- the protocol -------------------------------------------------------------------------------


def test_capabilities(service) -> None:
    answer = service.options(PLACE)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["tus-resumable"] == answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-max-size"] == str(LARGEST)
    assert answer.headers["tus-extension"] == "creation,expiration,termination,checksum"
    assert answer.headers["tus-checksum-algorithm"] == "sha1,sha256"


def test_an_upload_in_three_parts(service) -> None:
    content = os.urandom(1000)
    metadata = f"filename {base64_of('Zellen µ.tif'.encode())},kind"
    started = time.time()
    answer = create(service, len(content), **{"Upload-Metadata": metadata})
    assert answer.status_code == 201
    place, info = answer.headers["location"], answer.json()
    assert place == f"{PLACE}/{info['id']}"
    assert (info["name"], info["length"], info["offset"]) == ("Zellen µ.tif", 1000, 0)
    expires = parsedate_to_datetime(answer.headers["upload-expires"]).timestamp()
    assert 24 * 3600 - 2 <= expires - started <= 24 * 3600 + 60

    for start, end in ((0, 300), (300, 300), (300, 999), (999, 1000)):
        answer = send(service, place, start, content[start:end])
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["upload-offset"] == str(end)
        assert answer.headers["tus-resumable"] == "1.0.0"
        assert "upload-expires" in answer.headers
        answer = service.head(place, headers=TUS)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["upload-offset"] == str(end)
        assert answer.headers["upload-length"] == "1000"
        assert answer.headers["upload-metadata"] == metadata
        assert answer.headers["cache-control"] == "no-store"
    (listed,) = (u for u in service.get(PLACE).json()["uploads"] if u["id"] == info["id"])
    assert listed["offset"] == listed["length"]

    answer = service.delete(place, headers=TUS)
    assert (answer.status_code, answer.content) == (204, b"")
    assert_problem(service.delete(place, headers=TUS), Code.UPLOAD_NOT_FOUND)
    assert service.head(place, headers=TUS).status_code == 404
    assert "upload-offset" not in service.head(place, headers=TUS).headers
    assert_problem(send(service, place, 1000, b""), Code.UPLOAD_NOT_FOUND)


def test_other_versions_change_nothing(service) -> None:
    place = created(service, 3)
    for headers in ({"Tus-Resumable": "0.2.2"}, {"Tus-Resumable": ""}, {}):
        asked = [
            service.post(PLACE, headers={"Upload-Length": "3"} | headers),
            service.patch(
                place, content=b"abc", headers=PART | {"Upload-Offset": "0", "Tus-Resumable": "2"}
            ),
            service.delete(place, headers=headers),
        ]
        for answer in asked:
            assert_problem(answer, Code.VERSION_MISMATCH)
            assert answer.headers["tus-version"] == "1.0.0"
        assert service.head(place, headers=headers).status_code == 412
    assert offset_of(service, place) == 0


def test_parts_that_do_not_fit(service) -> None:
    place = created(service, 10)
    assert send(service, place, 0, b"abcd").status_code == 204
    for offset in (0, 3, 5, 10):
        answer = send(service, place, offset, b"x")
        assert_problem(answer, Code.OFFSET_CONFLICT)
        assert answer.headers["upload-offset"] == "4"
    body = assert_problem(send(service, place, 4, b"1234567"), Code.BODY_TOO_LARGE)
    assert (body["limit"], body["actual"]) == (6, 7)
    # without a length it is noticed when it comes, and nothing of it stays
    answer = send(service, place, 4, iter([b"123", b"456", b"7"]))
    assert assert_problem(answer, Code.BODY_TOO_LARGE)["limit"] == 6
    assert offset_of(service, place) == 4
    for kind in ("application/octet-stream", "image/tiff", "multipart/form-data; boundary=a"):
        answer = send(service, place, 4, b"x", **{"Content-Type": kind})
        assert_problem(answer, Code.UNSUPPORTED_MEDIA_TYPE)
    answer = service.patch(place, headers=PART, content=b"x")
    assert (
        assert_problem(answer, Code.BAD_PARAMETER)["errors"][0]["pointer"]
        == "/header/Upload-Offset"
    )
    assert offset_of(service, place) == 4


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_checksums(service, algorithm) -> None:
    content = os.urandom(500)
    right = f"{algorithm} {base64_of(hashlib.new(algorithm, content[:200]).digest())}"
    place = created(service, len(content))
    answer = send(service, place, 0, content[1:201], **{"Upload-Checksum": right})
    assert_problem(answer, Code.CHECKSUM_MISMATCH)
    assert answer.status_code == 460
    assert offset_of(service, place) == 0
    assert send(service, place, 0, content[:200], **{"Upload-Checksum": right}).status_code == 204
    for wrong in ("md5 AAAA", "sha256", "sha256 é", "sha256 !!!", ""):
        answer = send(service, place, 200, b"x", **{"Upload-Checksum": wrong.encode()})
        code = Code.CHECKSUM_MISMATCH if wrong == "sha256" else Code.MALFORMED_REQUEST
        assert_problem(answer, code)
    assert offset_of(service, place) == 200
    service.delete(place, headers=TUS)


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (None, Code.BAD_PARAMETER),
        ("-1", Code.BAD_PARAMETER),
        ("", Code.BAD_PARAMETER),
        ("1_0", Code.BAD_PARAMETER),
        ("1.0", Code.BAD_PARAMETER),
        ("٣".encode(), Code.BAD_PARAMETER),
        ("0x10", Code.BAD_PARAMETER),
        ("9" * 15, Code.BODY_TOO_LARGE),
        ("9" * 400, Code.BAD_PARAMETER),
        (str(LARGEST + 1), Code.BODY_TOO_LARGE),
    ],
)
def test_lengths_that_are_none(service, length, code) -> None:
    before = service.get(PLACE).json()
    headers = TUS if length is None else TUS | {"Upload-Length": length}
    assert_problem(service.post(PLACE, headers=headers), code)
    assert service.get(PLACE).json() == before


@pytest.mark.parametrize("offset", ["-1", "", "1e3", "9" * 400, "½".encode("latin-1")])
def test_offsets_that_are_none(service, offset) -> None:
    place = created(service, 10)
    answer = service.patch(place, headers=PART | {"Upload-Offset": offset}, content=b"x")
    assert_problem(answer, Code.BAD_PARAMETER)
    assert offset_of(service, place) == 0


@pytest.mark.parametrize(
    "metadata",
    [
        b"filename",  # no name: as good as none
        b"filename ?",
        b"filename YQ",
        b"filename YQ== YQ==",
        b"filename YQ==,filename YQ==",
        b", ,",
        b"\xe9 YQ==",
        b"filename \xe9",
        b"filename /w==",  # a byte that is no UTF-8
        b"a " + b"A" * 5000,
    ],
)
def test_metadata_that_is_none(service, metadata) -> None:
    answer = create(service, 1, **{"Upload-Metadata": metadata})
    if metadata == b"filename":
        assert (answer.status_code, answer.json()["name"]) == (201, "image")
    elif len(metadata) > 4096:
        assert_problem(answer, Code.BAD_PARAMETER)
    else:
        assert_problem(answer, Code.MALFORMED_REQUEST)


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\a\\passwd", "/etc/passwd", "a\0passwd"])
def test_names_are_no_paths(service, name) -> None:
    metadata = f"filename {base64_of(name.encode())}"
    told = create(service, 1, **{"Upload-Metadata": metadata}).json()["name"]
    assert told in ("passwd", "apasswd")


def test_addresses_that_are_no_uploads(service) -> None:
    for id in ("0" * 32, "..%2f..%2flock", "A" * 32, "0" * 31):
        answer = service.delete(f"{PLACE}/{id}", headers=TUS)
        assert (answer.status_code, answer.headers["tus-resumable"]) in (
            (404, "1.0.0"),
            (422, "1.0.0"),
        )
    answer = service.get(f"{PLACE}/{'0' * 32}")
    assert_problem(answer, Code.METHOD_NOT_ALLOWED)
    assert answer.headers["allow"] == "DELETE, HEAD, PATCH"


def test_bytes_do_not_come_with_the_announcement(service) -> None:
    headers = PART | {"Upload-Length": "3"}
    assert_problem(service.post(PLACE, headers=headers, content=b"abc"), Code.MALFORMED_REQUEST)


def test_methods_for_clients_that_can_only_post(service) -> None:
    place = created(service, 3)
    headers = PART | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert service.post(place, headers=headers, content=b"abc").status_code == 204
    headers = TUS | {"X-HTTP-Method-Override": "DELETE"}
    assert service.post(place, headers=headers).status_code == 204
    assert service.head(place, headers=TUS).status_code == 404
    assert_problem(service.post(place, headers=TUS), Code.METHOD_NOT_ALLOWED)


# -- connections that break, and requests that meet ---------------------------------------------


class Connection:
    """A client that writes bytes to a socket, and breaks off as it likes."""

    def __init__(self, address):
        host, _, port = address.removeprefix("http://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.settimeout(60)

    def begin(self, place, offset, length, content=b""):
        """Send the head of a PATCH, and some of its bytes."""
        lines = [f"PATCH {place} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in PART.items()]
        lines += [f"Upload-Offset: {offset}", "", ""]
        self.socket.sendall("\r\n".join(lines).encode() + content)

    def reset(self):
        """Break off without a word of farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def status(self):
        """Wait for the answer; return its status."""
        with self.socket:
            return int(self.socket.recv(65536).split()[1])


@pytest.fixture
def direct(address):
    with httpx2.Client(base_url=address, timeout=60) as client:
        yield client


def wait_for_offset(client, place, offset):
    end = time.monotonic() + 30
    while offset_of(client, place) < offset:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_came_before_a_connection_broke_stays(address, direct) -> None:
    content = npy(300, 400)
    place = created(direct, len(content))
    cut = 70_001
    connection = Connection(address)
    connection.begin(place, 0, len(content), content[:cut])
    wait_for_offset(direct, place, cut)
    connection.reset()
    end = time.monotonic() + 30
    while (answer := send(direct, place, cut, content[cut:])).status_code == 423:
        assert time.monotonic() < end  # until the service has seen the end of the connection
        time.sleep(0.05)
    assert answer.status_code == 204, answer.text
    id = place.rpartition("/")[2]
    job = finished(direct, direct.post("/v1/jobs", files=form(id)).headers["location"])
    result = direct.get(f"{job['links']['results']}/0/result").json()
    assert result["input"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_of_two_requests_at_once_one_writes(address, direct) -> None:
    place = created(direct, 10)
    first = Connection(address)
    first.begin(place, 0, 10, b"abcde")
    wait_for_offset(direct, place, 5)
    for answer in (send(direct, place, 5, b"xxxxx"), direct.delete(place, headers=TUS)):
        assert_problem(answer, Code.UPLOAD_LOCKED)
        assert answer.headers["retry-after"] == "1"
    first.socket.sendall(b"fghij")
    assert first.status() == 204
    assert_problem(send(direct, place, 5, b"xxxxx"), Code.OFFSET_CONFLICT)
    assert offset_of(direct, place) == 10


def test_a_lost_connection_does_not_hold_an_upload(address, direct, pool, monkeypatch) -> None:
    """One that is silent, as when a cable was pulled, makes way for the next request."""
    del pool  # the seconds are those of this process
    monkeypatch.setattr(uploads, "_STALE_SECONDS", 0.3)
    place = created(direct, 10)
    silent = Connection(address)
    silent.begin(place, 0, 10, b"abc")
    wait_for_offset(direct, place, 3)
    time.sleep(0.5)
    assert send(direct, place, 3, b"defghij").status_code == 204
    assert silent.status() == 499
    assert offset_of(direct, place) == 10


def test_a_silent_request_is_ended(address, direct, pool, monkeypatch) -> None:
    del pool
    monkeypatch.setattr(uploads, "_SILENCE_SECONDS", 0.2)
    place = created(direct, 10)
    silent = Connection(address)
    silent.begin(place, 0, 10, b"abc")
    assert silent.status() == 499
    assert offset_of(direct, place) == 3


def test_many_requests_at_once_lose_no_byte(tmp_path) -> None:
    """Whoever writes, the file is what one of them would have written."""
    content = os.urandom(50_000)
    store = Uploads(Settings(state=tmp_path))
    store.load()

    async def part(start):
        for place in range(start, min(len(content), start + 5000), 500):
            await asyncio.sleep(0)
            yield content[place : place + 500]

    async def client(spec, refused):
        while (offset := store.offset(spec)) < len(content):
            try:
                await store.receive(spec, offset, part(offset))
            except Problem as problem:
                refused.append(problem.code)
            await asyncio.sleep(0)

    async def work():
        refused = []
        spec = await store.create("ada", len(content), None)
        await asyncio.gather(*(client(spec, refused) for _ in range(5)))
        return spec, refused

    spec, refused = asyncio.run(work())
    assert Code.UPLOAD_LOCKED in refused
    assert set(refused) <= {Code.UPLOAD_LOCKED, Code.OFFSET_CONFLICT}
    assert (tmp_path / "uploads" / spec.id / "data").read_bytes() == content


@pytest.mark.slow
def test_an_upload_survives_a_kill(running, ensembles, tmp_path) -> None:
    values = {"models": (str(ensembles / "cells"),), "state": tmp_path, "devices": ("cpu",)}
    content = npy(900, 1000)
    half = len(content) // 2
    with running("uvicorn", values) as (client, process):
        place = created(client, len(content))
        checked = created(client, 100)
        assert send(client, place, 0, content[:1000]).status_code == 204
        connection = Connection(str(client.base_url))
        connection.begin(place, 1000, len(content) - 1000, content[1000:half])
        wait_for_offset(client, place, half)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        connection.reset()
    with running("uvicorn", values) as (client, _):
        assert offset_of(client, place) == half
        assert offset_of(client, checked) == 0
        assert send(client, place, half, content[half:]).status_code == 204
        id = place.rpartition("/")[2]
        job = finished(client, client.post("/v1/jobs", files=form(id)).headers["location"])
        result = client.get(f"{job['links']['results']}/0/result").json()
        assert result["input"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_kill_leaves_nothing_that_was_not_verified(tmp_path) -> None:
    """Bytes with a checksum count when they were compared with it, and not before."""
    code = f"""
import asyncio, os, signal
from pathlib import Path
from df2serve.service import Settings
from df2serve.service.uploads import Checksum, Uploads
store = Uploads(Settings(state=Path({str(tmp_path)!r})))
store.load()
async def stream():
    yield b"abc"
    os.kill(os.getpid(), signal.SIGKILL)
async def work():
    spec = await store.create("ada", 10, None)
    await store.receive(spec, 0, stream(), checksum=Checksum("sha256", b""))
asyncio.run(work())
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "uploads").iterdir()
    assert (folder / "chunk").read_bytes() == b"abc"
    store = Uploads(Settings(state=tmp_path))
    store.load()
    (spec,) = store.of("ada")
    assert (store.offset(spec), spec.length) == (0, 10)
    assert not (folder / "chunk").exists()


def test_what_was_under_way_is_removed_at_the_start(tmp_path) -> None:
    folder = tmp_path / "uploads" / ("0" * 32)
    folder.mkdir(parents=True)
    (folder / "data").touch()
    store = Uploads(Settings(state=tmp_path))
    store.load()
    assert list(store.of("ada")) == []
    assert not folder.exists()


# -- whose they are, and how many ---------------------------------------------------------------


def test_others_do_not_see_them(bare) -> None:
    keys = tuple(
        {"name": name, "sha256": hash_key(name * 43), "scopes": scopes}
        for name, scopes in (("a", {"jobs"}), ("b", {"jobs"}), ("c", {"predict"}))
    )
    client = bare(keys=keys)
    ada, bob, eve = ({"X-API-Key": name * 43} for name in "abc")
    place = created(client, 5, **ada)
    assert send(client, place, 0, b"abcde", **ada).status_code == 204
    assert_problem(client.delete(place, headers=TUS | bob), Code.UPLOAD_NOT_FOUND)
    assert client.head(place, headers=TUS | bob).status_code == 404
    assert_problem(send(client, place, 5, b"", **bob), Code.UPLOAD_NOT_FOUND)
    assert client.get(PLACE, headers=bob).json() == {"uploads": []}
    answer = client.post("/v1/jobs", files=form(place.rpartition("/")[2]), headers=bob)
    assert_problem_of_job(answer, Code.UPLOAD_NOT_FOUND)
    for headers, code in ((eve, Code.FORBIDDEN), ({}, Code.UNAUTHORIZED)):
        assert_problem(create(client, 5, **headers), code)
        assert_problem(client.delete(place, headers=TUS | headers), code)
        assert_problem(client.options(PLACE, headers=headers), code)
    assert len(client.get(PLACE, headers=ada).json()["uploads"]) == 1


def assert_problem_of_job(answer, code):
    assert (answer.status_code, answer.json()["code"]) == (code.status, code.slug), answer.text


def test_their_number_and_bytes_are_bounded(bare) -> None:
    keys = tuple({"name": name, "sha256": hash_key(name * 43)} for name in "ab")
    client = bare(keys=keys, max_uploads=2, max_uploads_bytes=100, max_upload_bytes=90)
    ada, bob = ({"X-API-Key": name * 43} for name in "ab")
    assert client.options(PLACE, headers=ada).headers["tus-max-size"] == "90"
    body = assert_problem(create(client, 91, **ada), Code.BODY_TOO_LARGE)
    assert (body["limit"], body["actual"]) == (90, 91)
    first = created(client, 90, **ada)
    answer = create(client, 11, **ada)
    assert_problem(answer, Code.QUOTA_EXCEEDED)
    assert 86_000 < int(answer.headers["retry-after"]) <= 86_400
    created(client, 10, **ada)
    assert_problem(create(client, 0, **ada), Code.QUOTA_EXCEEDED)
    created(client, 90, **bob)
    assert client.delete(first, headers=TUS | ada).status_code == 204
    created(client, 0, **ada)


def test_a_body_may_be_larger_than_those_of_other_requests(bare) -> None:
    client = bare(max_body_bytes=1000, max_upload_bytes=5000)
    place = created(client, 5000)
    assert send(client, place, 0, bytes(5000)).status_code == 204
    assert_problem(send(client, created(client, 10), 0, bytes(5001)), Code.BODY_TOO_LARGE)
    assert_problem_of_job(client.post("/v1/jobs", files=form(bytes(1001))), Code.BODY_TOO_LARGE)


def test_they_expire(bare, tmp_path) -> None:
    client = bare(upload_hours=1)
    store = client.app.state.context.uploads
    old, new = created(client, 4), created(client, 4)
    for place in (old, new):
        assert send(client, place, 0, b"ab").status_code == 204
    id = old.rpartition("/")[2]
    data = tmp_path / "state" / "uploads" / id / "data"
    hour = time.time() - 3601
    os.utime(data, (hour, hour))
    assert_problem(send(client, old, 2, b"cd"), Code.UPLOAD_NOT_FOUND)
    assert len(client.get(PLACE).json()["uploads"]) == 1
    assert_problem_of_job(client.post("/v1/jobs", files=form(id)), Code.UPLOAD_NOT_FOUND)
    asyncio.run(store.sweep())
    assert not data.parent.exists()
    assert offset_of(client, new) == 2
    # and each byte puts it off
    path = tmp_path / "state" / "uploads" / new.rpartition("/")[2] / "data"
    nearly = time.time() - 3500
    os.utime(path, (nearly, nearly))
    answer = send(client, new, 2, b"c")
    left = parsedate_to_datetime(answer.headers["upload-expires"]).timestamp() - time.time()
    assert 3500 < left <= 3601


def test_the_sweeper_of_jobs_removes_them(tmp_path) -> None:
    from df2serve.service.jobs.runner import JobRunner
    from df2serve.service.metrics import Metrics

    async def work():
        settings = Settings(state=tmp_path, upload_hours=1e-6, sweep_seconds=0.01)
        runner = JobRunner(settings, None, Metrics())
        runner.uploads.load()
        spec = await runner.uploads.create("ada", 3, None)
        sweeper = asyncio.create_task(runner._sweep())
        while (tmp_path / "uploads" / spec.id).exists():
            await asyncio.sleep(0.01)
        sweeper.cancel()

    asyncio.run(asyncio.wait_for(work(), 30))


def test_a_disk_that_is_too_small(bare, monkeypatch) -> None:
    client = bare()
    usage = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_problem(create(client, 11), Code.INSUFFICIENT_STORAGE)
    assert create(client, 10).status_code == 201


def test_a_disk_that_becomes_full(tmp_path) -> None:
    """What still found room stays, and the client can go on with it later."""
    code = f"""
import os, resource, signal
from pathlib import Path
from starlette.testclient import TestClient
from df2serve.service import Settings, create_app
app = create_app(Settings(state=Path({str(tmp_path)!r})))
app.state.context.uploads.load()
client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
tus = {{"Tus-Resumable": "1.0.0"}}
place = client.post("/v1/uploads", headers=tus | {{"Upload-Length": "9000"}}).headers["location"]
def send(offset):
    headers = tus | {{"Content-Type": "application/offset+octet-stream"}}
    headers["Upload-Offset"] = str(offset)
    answer = client.patch(place, headers=headers, content=bytes(9000 - offset))
    print(answer.status_code, client.head(place, headers=tus).headers["upload-offset"])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
send(0)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
send(4096)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["507 4096", "204 9000"], done.stderr


# -- what they are for --------------------------------------------------------------------------


def job_of(client, *fields):
    answer = client.post("/v1/jobs", files=form(*fields), params={"outputs": "mask,uncertainty"})
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.headers["location"])
    found = []
    for number in range(job["images"]["total"]):
        result = client.get(f"{job['links']['results']}/{number}/result").json()
        found.append((result["input"], result["quality"], result["files"]))
    return found


def test_a_job_of_uploads_is_that_of_the_files(service) -> None:
    first, second = npy(70, 80), npy(64, 64, 5)
    ids = [stored(service, first, "0.npy"), stored(service, second, "1.npy")]
    direct = job_of(service, first, second)
    assert direct[0] != direct[1]
    assert job_of(service, *ids) == direct
    assert job_of(service, first, ids[1]) == job_of(service, ids[0], second) == direct
    assert job_of(service, ids[1], ids[0]) == direct[::-1]


def test_a_job_keeps_the_bytes_of_an_upload_that_is_removed(service) -> None:
    id = stored(service, npy(400, 400), "a.npy")
    files = form(id, id)
    place = service.post("/v1/jobs", files=files, headers={"Idempotency-Key": "u1"}).headers[
        "location"
    ]
    again = service.post("/v1/jobs", files=files, headers={"Idempotency-Key": "u1"})
    assert again.headers["location"] == place
    assert service.delete(f"{PLACE}/{id}", headers=TUS).status_code == 204
    job = finished(service, place)
    assert (job["state"], job["images"]["successful"]) == ("successful", 2)
    assert_problem_of_job(service.post("/v1/jobs", files=files), Code.UPLOAD_NOT_FOUND)


def test_single_predictions_of_an_upload(service) -> None:
    content = npy(70, 80)
    id = stored(service, content, "image.npy")
    for action in ("predict", "validate"):
        path = f"/v1/models/tiny/{action}"
        direct = service.post(path, files=form(content))
        stood = service.post(path, files=form(id))
        assert (stood.status_code, direct.status_code) == (200, 200), stood.text
        if action == "predict":
            assert stood.content == direct.content
            assert "image.tif" in stood.headers["content-disposition"]
        else:
            assert stood.json()["passes"] == direct.json()["passes"]
    two = service.post("/v1/models/tiny/predict", files=form(content, id))
    assert_problem_of_job(two, Code.BAD_PARAMETER)


def test_uploads_that_cannot_be_used(service) -> None:
    empty = stored(service, b"")
    place = created(service, 10)
    assert send(service, place, 0, b"abc").status_code == 204
    partial = place.rpartition("/")[2]
    for path in ("/v1/jobs", "/v1/models/tiny/predict", "/v1/models/tiny/validate"):
        for id, code in (
            (empty, Code.MALFORMED_REQUEST),
            (partial, Code.UPLOAD_INCOMPLETE),
            ("0" * 32, Code.UPLOAD_NOT_FOUND),
            ("../" + partial, Code.UPLOAD_NOT_FOUND),
            ("http://127.0.0.1/a.tif", Code.UPLOAD_NOT_FOUND),
            ("", Code.UPLOAD_NOT_FOUND),
        ):
            answer = service.post(path, files=form(id))
            assert_problem_of_job(answer, code)
    assert "7 bytes" in service.post("/v1/jobs", files=form(partial)).json()["detail"]


def test_files_that_can_have_one_name_only(tmp_path, monkeypatch) -> None:
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    async def work():
        store = Uploads(Settings(state=tmp_path))
        store.load()
        spec = await store.create("ada", 3, None)

        async def stream():
            yield b"abc"

        await store.receive(spec, 0, stream())
        monkeypatch.setattr(Path, "hardlink_to", refused)
        taken = await store.take(spec.id, tmp_path, owner="ada")
        await store.remove(spec)
        return taken

    taken = asyncio.run(work())
    assert taken.path.read_bytes() == b"abc"
    assert taken.sha256 == hashlib.sha256(b"abc").hexdigest()


# -- clients ------------------------------------------------------------------------------------


class Breaking(httpx2.HTTPTransport):
    """A network that lets few bytes of a request through before it breaks."""

    def __init__(self, address, bytes_each):
        super().__init__()
        self.address, self.bytes_each = address, bytes_each
        self.breaks = 0
        self.methods = []

    def handle_request(self, request):
        self.methods.append(request.method)
        if request.method != "PATCH" or not self.bytes_each:
            return super().handle_request(request)
        some = self.bytes_each.pop(0)
        content = request.read()
        connection = Connection(self.address)
        offset = int(request.headers["upload-offset"])
        connection.begin(request.url.path, offset, len(content), content[:some])
        with httpx2.Client(base_url=self.address) as client:
            wait_for_offset(client, request.url.path, offset + min(some, len(content)))
        connection.reset()
        self.breaks += 1
        message = "the connection broke"
        raise httpx2.WriteError(message)


def test_our_client_goes_on_where_it_broke_off(address, tmp_path) -> None:
    content = npy(300, 400)
    path = tmp_path / "large.npy"
    path.write_bytes(content)
    network = Breaking(address, [1000, 0, 20_001, 5, 7000])
    config = ClientConfig(retries=3, chunk_bytes=50_000)
    with df2serve.Client(address, config=config, transport=network) as client:
        image = client.upload(path)
        assert (image.name, image.size) == ("large.npy", len(content))
        assert network.breaks == 5
        assert network.methods.count("HEAD") >= 5
        result = client.predict(image)
        assert result.info.input.sha256 == hashlib.sha256(content).hexdigest()
        assert result.info.input.name == "large.npy"
        assert np.array_equal(result.mask, client.predict(path).mask)
        job = client.submit([image, path, image])
        client.remove(image)
        assert job.wait().images.successful == 3
        with pytest.raises(errors.ServiceError, match="no such upload"):
            client.remove(image)
        with pytest.raises(errors.ServiceError, match="no such upload"):
            client.predict(image)
        with pytest.raises(errors.SourceNotFoundError):
            client.upload(tmp_path / "nothing.tif")


def test_our_client_gives_up_without_progress(address) -> None:
    network = Breaking(address, [10, *[0] * 20])
    config = ClientConfig(retries=2, longest_pause_s=1)
    with (
        df2serve.Client(address, config=config, transport=network) as client,
        pytest.raises(errors.ServiceBusyError, match="broke"),
    ):
        client.upload(bytes(1000))
    # one with progress, then one and its two repetitions
    assert network.methods.count("PATCH") == 4


def test_our_client_awaits(address) -> None:
    content = npy(100, 100)

    async def work():
        config = ClientConfig(chunk_bytes=3000)
        async with df2serve.AsyncClient(address, config=config) as client:
            image = await client.upload(content)
            result = await client.predict(image)
            job = await client.submit([image])
            await client.remove(image)
            assert (await job.wait()).state == "successful"
            return result

    result = asyncio.run(work())
    assert result.info.input.sha256 == hashlib.sha256(content).hexdigest()


TUS_JS = """
const tus = require(process.argv[2])
const [endpoint, path] = process.argv.slice(3)
const fs = require('fs')
let broken = 0
const upload = new tus.Upload(fs.createReadStream(path), {
  endpoint, chunkSize: 40000, uploadSize: fs.statSync(path).size, retryDelays: [0, 500, 1000, 3000],
  metadata: { filename: 'from-js.npy' },
  onAfterResponse: (request, response) => {
    if (request.getMethod() === 'PATCH' && broken++ === 0) throw new Error('broken on purpose')
  },
  onError: (error) => { console.error(String(error)); process.exit(1) },
  onSuccess: () => console.log(upload.url),
})
upload.start()
"""


@pytest.mark.slow
def test_the_javascript_client(address, direct, tmp_path) -> None:
    module = MODULES / "tus-js-client"
    if shutil.which("node") is None or not module.is_dir():
        pytest.skip("tus-js-client is not installed; 'make foreign' fetches it, with node")
    content = npy(400, 500)
    path, script = tmp_path / "a.npy", tmp_path / "run.cjs"
    path.write_bytes(content)
    script.write_text(TUS_JS)
    command = ["node", script, module, f"{address}{PLACE}", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    place = done.stdout.strip().removeprefix(address)
    id = place.rpartition("/")[2]
    (listed,) = (u for u in direct.get(PLACE).json()["uploads"] if u["id"] == id)
    assert (listed["name"], listed["offset"]) == ("from-js.npy", len(content))
    (found,) = job_of(direct, id)
    assert found[0]["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.slow
def test_the_python_client_of_tus(address, direct, tmp_path) -> None:
    client = pytest.importorskip("tusclient.client", reason="tuspy is not installed")
    content = npy(400, 500)
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    theirs = client.TusClient(f"{address}{PLACE}")
    uploader = theirs.uploader(str(path), chunk_size=40_000, metadata={"filename": "from-py.npy"})
    uploader.upload_chunk()
    again = theirs.uploader(str(path), chunk_size=40_000, url=uploader.url, upload_checksum=True)
    again.upload()
    (found,) = job_of(direct, uploader.url.rpartition("/")[2])
    assert found[0]["sha256"] == hashlib.sha256(content).hexdigest()
