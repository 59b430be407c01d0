"""Jobs: what they promise, with real workers and a real database."""

import asyncio
import base64
import csv
import hashlib
import io
import json
import time

import numpy as np
import pytest
import tifffile
from PIL import Image

from df2serve.service.jobs.runner import JobRunner
from df2serve.service.problems import Code

PREDICT = "/v1/models/tiny/predict"


def pattern(height, width, factor=7):
    rows, columns = np.mgrid[:height, :width]
    return ((rows * factor + columns * 3) % 251).astype(np.uint8)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def form(*arrays):
    return [("image", (f"{n}.npy", npy(array))) for n, array in enumerate(arrays)]


def finished(service, place, seconds=120):
    end = time.monotonic() + seconds
    while True:
        job = service.get(place).json()
        if job["state"] not in ("accepted", "running"):
            return job
        assert time.monotonic() < end, job
        time.sleep(0.05)


@pytest.fixture(scope="module")
def job(service):
    """A job of two images and one that is none, done."""
    files = [*form(pattern(70, 80), pattern(64, 64, 5)), ("image", ("broken.npy", b"broken"))]
    answer = service.post("/v1/jobs", params={"outputs": "mask,overlay"}, files=files)
    assert answer.status_code == 202, answer.text
    place = answer.headers["location"]
    assert place == answer.json()["links"]["self"]
    return finished(service, place)


def test_a_job_ends_with_what_can_be_done(service, job) -> None:
    assert job["state"] == "successful"
    assert job["images"] == {"total": 3, "successful": 2, "failed": 1}
    assert job["progress"]["done"] == job["progress"]["total"] > 0
    assert job["problem"]["code"] == "unsupported_format"
    assert job["started"] <= job["ended"]
    assert job["queue_position"] is None


def test_results_are_those_of_single_requests(service, job) -> None:
    manifest = service.get(job["links"]["results"]).json()
    first, second, third = manifest["items"]
    assert [item["state"] for item in manifest["items"]] == ["successful", "successful", "failed"]
    assert third["problem"]["code"] == "unsupported_format"
    direct = service.post(PREDICT, content=npy(pattern(64, 64, 5)))
    (mask,) = (a for a in second["artifacts"] if a["name"] == "mask")
    answer = service.get(mask["href"])
    assert answer.content == direct.content
    assert answer.headers["content-type"] == mask["media_type"] == "image/tiff"
    assert len(answer.content) == mask["size"]
    digest = hashlib.sha256(answer.content).digest()
    assert answer.headers["etag"] == f'"{digest.hex()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    part = service.get(mask["href"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, answer.content[10:20])
    same = service.get(mask["href"], headers={"If-None-Match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    result = service.get(first["artifacts"][0]["href"].replace("answer", "result")).json()
    assert result["quality"] == first["quality"]
    assert service.get(f"{job['links']['results']}/0/labels").json()["code"] == "not_found"
    assert service.get(f"{job['links']['results']}/7/mask").json()["code"] == "not_found"


def test_jobs_are_counted(service, job) -> None:
    listed = service.get("/v1/jobs", params={"state": "successful", "limit": 100}).json()["jobs"]
    lines = service.get("/metrics").text.splitlines()
    (line,) = (line for line in lines if line.startswith('df2_jobs{state="successful"}'))
    assert float(line.split()[1]) == len(listed) > 0


def test_the_ranking(service, job) -> None:
    place = job["links"]["ranking"]
    ranking = service.get(place).json()
    scores = [row["u"] for row in ranking["images"]]
    assert ranking["threshold"] == 0.9
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    answer = service.get(place, headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["source"] for row in rows] == [row["source"] for row in ranking["images"]]
    page = service.get(place, headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.count("<tr>") == 3


def test_events_until_the_end(service, job) -> None:
    answer = service.get(job["links"]["events"])
    assert answer.headers["content-type"].startswith("text/event-stream")
    fields = dict(line.split(": ", 1) for line in answer.text.splitlines() if ": " in line)
    assert fields["event"] == "end"
    assert json.loads(fields["data"])["id"] == job["id"]


def test_the_end_is_told_to_those_who_were_busy_when_it_came() -> None:
    class Changing:
        changed, end = asyncio.Event(), None

    async def work():
        job, ends = Changing(), []
        async for told in JobRunner.watch(None, job):
            ends.append(told.end)
            job.end = "ended"  # while the event is being sent
            job.changed.set()
        return ends

    assert asyncio.run(work()) == [None, "ended"]


def test_idempotency(service) -> None:
    def post(*arrays, key="k1", **params):
        headers = {"Idempotency-Key": key}
        return service.post("/v1/jobs", files=form(*arrays), headers=headers, params=params)

    first = post(pattern(40, 40))
    again = post(pattern(40, 40))
    assert first.status_code == again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    other = post(pattern(40, 41))
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert post(pattern(40, 40), tta="none").status_code == 409
    assert post(pattern(40, 40), key="k2").json()["id"] != first.json()["id"]


def test_jobs_are_listed_in_pages(service, job) -> None:
    ids = []
    after = {}
    while True:
        page = service.get("/v1/jobs", params={"limit": 2, **after}).json()
        ids += [item["id"] for item in page["jobs"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert job["id"] in ids
    assert len(set(ids)) == len(ids)
    created = [service.get(f"/v1/jobs/{id}").json()["created"] for id in ids]
    assert created == sorted(created, reverse=True)


def test_preferences_make_jobs(service) -> None:
    image = pattern(64, 64, 5)
    headers = {"Prefer": "respond-async", "Accept": "image/tiff"}
    answer = service.post(PREDICT, content=npy(image), headers=headers)
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    done = finished(service, answer.headers["location"])
    direct = service.post(PREDICT, content=npy(image))
    assert service.get(f"{done['links']['results']}/0/answer").content == direct.content


def test_a_request_that_takes_too_long_becomes_a_job(service) -> None:
    """What was computed meanwhile is not lost: the image is given to a worker once."""
    image = pattern(300, 300)
    answer = service.post(PREDICT, content=npy(image), headers={"Prefer": "wait=0"})
    assert answer.status_code == 202, answer.text
    done = finished(service, answer.headers["location"], 300)
    assert (done["state"], done["attempts"]) == ("successful", 1)
    content = service.get(f"{done['links']['results']}/0/answer").content
    assert tifffile.imread(io.BytesIO(content)).shape == (300, 300)


def test_a_running_job_is_stopped_within_a_batch(service, pool) -> None:
    answer = service.post("/v1/jobs", files=form(pattern(2500, 2500)))
    place = answer.headers["location"]
    while not service.get(place).json()["progress"]["done"]:
        time.sleep(0.05)
    assert service.delete(place).status_code == 204
    started = time.monotonic()
    assert service.get(place).json()["state"] == "dismissed"
    while pool.tickets:
        assert time.monotonic() - started < 5
        time.sleep(0.02)
    # a second time removes it
    assert service.delete(place).status_code == 204
    assert service.get(place).json()["code"] == Code.JOB_NOT_FOUND.slug
    assert service.delete(place).status_code == 404


def test_a_small_image_is_not_stuck_behind_a_huge_one(service) -> None:
    small = {"params": {"format": "json"}, "content": npy(pattern(64, 64))}
    alone = min(timed(lambda: service.post(PREDICT, **small)) for _ in range(3))
    place = service.post("/v1/jobs", files=form(pattern(2500, 2500))).headers["location"]
    while not service.get(place).json()["progress"]["done"]:
        time.sleep(0.05)
    beside = min(timed(lambda: service.post(PREDICT, **small)) for _ in range(3))
    job = service.get(place).json()
    assert job["state"] == "running"
    assert job["eta_seconds"] > 0
    service.delete(place)
    assert beside < 5 * alone + 0.5


def timed(work):
    started = time.monotonic()
    assert work().status_code == 200
    return time.monotonic() - started


def test_a_lost_worker_is_replaced_and_its_image_predicted(service, pool) -> None:
    (worker,) = pool.workers
    place = service.post("/v1/jobs", files=form(pattern(400, 400))).headers["location"]
    while not service.get(place).json()["progress"]["done"]:
        time.sleep(0.02)
    process = worker.process.pid
    worker.process.kill()
    done = finished(service, place, 300)
    assert worker.process.pid != process
    assert (done["state"], done["attempts"]) == ("successful", 2)


def test_thumbnails(service, job) -> None:
    answer = service.get(f"{job['links']['results']}/0/thumbnail")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, max-age=3600"
    with Image.open(io.BytesIO(answer.content)) as small:
        assert (small.format, small.size) == ("JPEG", (80, 70))
    failed = service.get(f"{job['links']['results']}/2/thumbnail")
    assert failed.json()["code"] == "not_found"
