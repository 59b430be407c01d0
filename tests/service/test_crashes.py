"""Whatever process is killed, and whenever: every accepted job reaches its end, once."""

import io
import itertools
import random
import signal
import time
from contextlib import ExitStack

import httpx2
import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.slow

JOBS = 200
KILLS = 50
SECONDS = 3600
"""Time for everything; a service takes long to start on a busy machine."""


def npy(number):
    """A small image, another one for every number."""
    rows, columns = np.mgrid[:48, :48]
    buffer = io.BytesIO()
    np.save(buffer, ((rows * (number + 2) + columns * 3) % 251).astype(np.uint8))
    return buffer.getvalue()


@pytest.fixture
def values(ensembles, tmp_path):
    return {
        "models": (str(ensembles / "cells"),),
        "state": tmp_path,
        "devices": ("cpu",),
        "rate": "1000000/minute",
        "sweep_seconds": 2.0,
    }


class Survivor:
    """A service that is started again whenever it was killed."""

    def __init__(self, running, values):
        self._running, self._values = running, values
        self._stack = ExitStack()
        self.start()

    def start(self):
        self.client, self.process = self._stack.enter_context(
            self._running("uvicorn", self._values)
        )

    def ask(self, method, path, **request):
        """Ask until there is an answer that is no sign of a crash."""
        end = time.monotonic() + SECONDS
        while True:
            assert time.monotonic() < end, "no answer in time"
            if self.process.poll() is not None:
                self._stack.close()
                self.start()
            try:
                answer = self.client.request(method, path, **request)
            except httpx2.TransportError:
                continue
            if answer.status_code < 500:
                return answer
            time.sleep(0.2)

    def victims(self, kind):
        """The processes of a kind that live at present."""
        try:
            service = psutil.Process(self.process.pid)
            workers = service.children()
            if kind == "service":
                return [service]
            if kind == "worker":
                return workers
            return [child for worker in workers for child in worker.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def close(self):
        self._stack.close()


def submit(service, number):
    """Accept a job, the same one however often it is asked for."""
    answer = service.ask(
        "POST",
        "/v1/jobs",
        params={"format": "json"},
        files={"image": (f"{number}.npy", npy(number))},
        headers={"Idempotency-Key": f"job {number}"},
    )
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def results(service, ids):
    """Hashes of all files of jobs, once they have ended."""
    found = {}
    for number, id in ids.items():
        while (job := service.ask("GET", f"/v1/jobs/{id}").json())["state"] in (
            "accepted",
            "running",
        ):
            time.sleep(0.05)
        assert (job["state"], job["images"]["successful"]) == ("successful", 1), job
        result = service.ask("GET", f"/v1/jobs/{id}/results/0/result").json()
        found[number] = (result["quality"], result["files"])
    return found


def test_many_kills(running, values, tmp_path) -> None:
    """Jobs come all the time, and so do kills of all kinds, which are spread over them."""
    chance = random.Random(1)
    kinds = list(
        itertools.islice(
            itertools.cycle(["decoder", "worker", "decoder", "service", "worker"]), KILLS
        )
    )
    moments = dict(zip(sorted(chance.sample(range(JOBS), KILLS)), kinds, strict=True))
    service = Survivor(running, values | {"state": tmp_path / "disturbed"})
    ids, killed = {}, []
    try:
        for number in range(JOBS):
            ids[number] = submit(service, number)
            if number in moments:
                time.sleep(chance.uniform(0, 0.3))
                while not (victims := service.victims(moments[number])):
                    service.ask("GET", "/v1/health/live")
                    time.sleep(0.02)
                for victim in victims:
                    victim.send_signal(signal.SIGKILL)
                killed.append(moments[number])
        disturbed = results(service, ids)
        listed, after = [], {}
        while after is not None:
            page = service.ask("GET", "/v1/jobs", params={"limit": 100, **after}).json()
            listed += [job["id"] for job in page["jobs"]]
            after = {"after": page["next"]} if page["next"] else None
    finally:
        service.close()
    assert len(killed) == KILLS
    assert sorted(listed) == sorted(ids.values())
    assert len(set(listed)) == JOBS

    quiet = Survivor(running, values | {"state": tmp_path / "quiet"})
    try:
        undisturbed = results(quiet, {n: submit(quiet, n) for n in range(JOBS)})
    finally:
        quiet.close()
    assert disturbed == undisturbed


def test_a_service_that_is_asked_to_end_answers_first(running, values) -> None:
    rows, columns = np.mgrid[:1000, :1000]
    buffer = io.BytesIO()
    np.save(buffer, ((rows * 5 + columns * 3) % 251).astype(np.uint8))
    with running("uvicorn", values) as (client, process):
        files = {"image": ("a.npy", buffer.getvalue())}
        place = client.post("/v1/jobs", files=files).headers["location"]
        while not client.get(place).json()["progress"]["done"]:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(300) == 0
    with running("uvicorn", values) as (client, _):
        assert client.get(place).json()["state"] in ("accepted", "running", "successful")
        assert client.delete(place).status_code == 204
