"""Whatever process is killed, and whenever: every accepted job reaches its end, once."""

import io
import os
import signal
import time

import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.slow


def pattern(height, width, factor):
    rows, columns = np.mgrid[:height, :width]
    return ((rows * factor + columns * 3) % 251).astype(np.uint8)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def values(ensembles, tmp_path):
    return {"models": (str(ensembles / "cells"),), "state": tmp_path, "devices": ("cpu",)}


def finished(client, place, seconds=300):
    end = time.monotonic() + seconds
    while (job := client.get(place).json())["state"] in ("accepted", "running"):
        assert time.monotonic() < end, job
        time.sleep(0.1)
    return job


@pytest.mark.parametrize("victim", ["service", "worker", "both"])
def test_kill_9(running, values, victim) -> None:
    files = [("image", (f"{n}.npy", npy(pattern(200, 200, n + 2)))) for n in range(6)]
    with running("uvicorn", values) as (client, process):
        place = client.post("/v1/jobs", files=files).headers["location"]
        while client.get(place).json()["images"]["successful"] < 2:
            time.sleep(0.02)
        before = client.get(f"{place}/results").json()["items"]
        children = psutil.Process(process.pid).children()
        if victim in ("worker", "both"):
            for child in children:
                child.kill()
        if victim in ("service", "both"):
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            psutil.wait_procs(children, timeout=30)
            assert not any(child.is_running() for child in children)
        else:
            job = finished(client, place)
            assert job["images"] == {"total": 6, "successful": 6, "failed": 0}
            return
    with running("uvicorn", values) as (client, _):
        job = finished(client, place)
        assert (job["state"], job["images"]["successful"]) == ("successful", 6)
        after = client.get(f"{place}/results").json()["items"]
        for old, new in zip(before, after, strict=True):
            if old["state"] == "successful":
                assert old == new


def test_a_service_that_is_asked_to_end_answers_first(running, values) -> None:
    with running("uvicorn", values) as (client, process):
        place = client.post(
            "/v1/jobs", files=[("image", ("a.npy", npy(pattern(1500, 1500, 5))))]
        ).headers["location"]
        while not client.get(place).json()["progress"]["done"]:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(90) == 0
    with running("uvicorn", values) as (client, _):
        assert client.get(place).json()["state"] in ("accepted", "running", "successful")
        assert client.delete(place).status_code == 204
