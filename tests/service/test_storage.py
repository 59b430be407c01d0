"""A disk that is full, or must not be written to: clear errors, and a service that goes on."""

import io
import resource
import subprocess
import time

import numpy as np
import psutil
import pytest
from starlette.testclient import TestClient

from df2serve.errors import OutputError
from df2serve.service import Settings, create_app

PREDICT = "/v1/models/tiny/predict"
SMALL = 4096


def npy(side):
    rows, columns = np.mgrid[:side, :side]
    buffer = io.BytesIO()
    np.save(buffer, ((rows * 7 + columns * 3) % 251).astype(np.uint8))
    return buffer.getvalue()


def limit(processes, size):
    """Let no file of some processes grow beyond a size, as on a disk that is full."""
    for process in processes:
        _, hard = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (size, hard))


def assert_full(answer):
    body = answer.json()
    assert (answer.status_code, body["code"]) == (507, "insufficient_storage"), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert "/" not in body["detail"]


@pytest.fixture
def read_only(tmp_path):
    """A folder that even the administrator cannot write to."""
    folder = tmp_path / "state"
    folder.mkdir()
    for options in (["--bind"], ["-o", "remount,ro,bind"]):
        done = subprocess.run(["mount", *options, folder, folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("folders cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_folder_that_cannot_be_written_to_is_told_at_the_start(read_only) -> None:
    app = create_app(Settings(state=read_only))
    with pytest.raises(OutputError, match="cannot be written to: Read-only file system"):
        TestClient(app).__enter__()


@pytest.mark.slow
def test_a_full_disk(running, ensembles, tmp_path) -> None:
    values = {"models": (str(ensembles / "cells"),), "state": tmp_path, "devices": ("cpu",)}
    with running("uvicorn", values) as (client, process):
        before = client.post(PREDICT, content=npy(200))
        assert before.status_code == 200
        service = psutil.Process(process.pid)
        workers = service.children()

        limit([service], SMALL)  # no upload can be stored
        assert_full(client.post(PREDICT, content=npy(200)))
        assert_full(client.post("/v1/jobs", files={"image": ("a.npy", npy(200))}))
        limit([service], 400)  # the upload can be stored, but not what the job is
        job = {"files": {"image": ("a.npy", npy(10))}, "headers": {"Idempotency-Key": "1"}}
        assert_full(client.post("/v1/jobs", **job))
        limit([service], resource.RLIM_INFINITY)
        place = client.post("/v1/jobs", **job).headers["location"]
        assert "event: end" in client.get(f"{place}/events").text
        assert client.delete(place).status_code == 204

        limit(workers, 512)  # no result can be stored
        assert_full(client.post(PREDICT, content=npy(200)))
        limit(workers, resource.RLIM_INFINITY)

        after = client.post(PREDICT, content=npy(200))
        assert after.content == before.content
        end = time.monotonic() + 10
        while any((tmp_path / "jobs").iterdir()):  # the last answer's folder goes after it was sent
            assert time.monotonic() < end
            time.sleep(0.05)
