"""The Python client: arrays are those of a local prediction, errors those of the package."""

import asyncio
import io
import json
import logging
import pickle
import subprocess
import sys
import time
from typing import get_type_hints

import httpx2
import numpy as np
import pytest
import tifffile

import df2serve
from df2serve import errors
from df2serve.client import Parameters
from df2serve.client.problems import error_of
from df2serve.config import ClientConfig
from df2serve.inference import predict
from df2serve.service.params import PredictParams
from df2serve.service.problems import Code

QUICK = ClientConfig(retries=2, longest_pause_s=1)


def pattern(height, width, factor=7):
    rows, columns = np.mgrid[:height, :width]
    return ((rows * factor + columns * 3) % 251).astype(np.uint8)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def client(address):
    with df2serve.Client(address) as client:
        yield client


def assert_same(result, local):
    for ours, theirs in (
        (result.mask, local.mask),
        (result.uncertainty, local.total),
        (result.probs, local.probs),
    ):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    assert result.scores.uncertainty_score == local.scores.u
    assert result.scores.one_minus_expected_dice == local.scores.one_minus_expected_dice
    assert result.needs_review is (local.scores.u >= 0.9)


# -- without a service --------------------------------------------------------------------------


def test_importing_it_loads_no_pixels() -> None:
    code = "import sys, df2serve; df2serve.Client, df2serve.AsyncClient; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "df2serve.client" in loaded
    assert {"fastapi", "numpy", "tifffile", "torch", "onnxruntime"}.isdisjoint(loaded)


def test_it_knows_every_parameter() -> None:
    assert set(get_type_hints(Parameters)) == set(PredictParams.model_fields)


def test_every_code_becomes_the_error_that_the_service_had() -> None:
    def kind(code):
        return type(error_of(code.status, {"code": code.slug, "detail": "text"}))

    assert kind(Code.AXES_MISMATCH) is errors.AxesError
    assert kind(Code.CHANNEL_MISMATCH) is errors.ImageMismatchError
    assert kind(Code.UNAUTHORIZED) is errors.ServiceAccessError
    for code in Code:
        assert issubclass(kind(code), errors.Df2ServeError)
        if 400 <= code.status < 500 and kind(code) is errors.ServiceError:
            assert code in (
                Code.NOT_FOUND,
                Code.JOB_NOT_FOUND,
                Code.UPLOAD_NOT_FOUND,
                Code.UPLOAD_INCOMPLETE,
                Code.VERSION_MISMATCH,
                Code.CHECKSUM_MISMATCH,
                Code.METHOD_NOT_ALLOWED,
                Code.NOT_ACCEPTABLE,
                Code.IDEMPOTENCY_CONFLICT,
                Code.JOB_NOT_READY,
                Code.RESULT_EXPIRED,
                Code.RANGE_NOT_SATISFIABLE,
            )
    error = error_of(422, {"code": "axes_mismatch", "detail": "text", "request_id": "r1"})
    assert (str(error), error.__notes__) == ("text", ["code axes_mismatch, request r1"])
    assert str(pickle.loads(pickle.dumps(error))) == "text"


class Scripted:
    """A service that gives prepared answers, and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options):
        transport = httpx2.MockTransport(self)
        return df2serve.Client("http://service.test", config=QUICK, transport=transport, **options)


def busy(seconds, code="overloaded", status=503):
    body = {"code": code, "detail": "the queue is full"}
    return httpx2.Response(status, headers={"Retry-After": str(seconds)}, json=body)


LISTED = {"models": [], "default": "tiny", "news": "of a newer service"}


def test_a_busy_service_is_asked_again_when_it_says_so() -> None:
    service = Scripted(busy(1), httpx2.ConnectError("refused"), httpx2.Response(200, json=LISTED))
    started = time.monotonic()
    assert service.client().models().default == "tiny"
    assert 1 <= time.monotonic() - started < 5
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    ("answers", "count"),
    [
        ([busy(0), busy(0), busy(0)], 3),
        ([busy(3000, "rate_limited", 429)], 1),
        ([busy(0), httpx2.ReadError("reset"), httpx2.Response(502, text="nginx")], 3),
    ],
)
def test_attempts_are_bounded(answers, count) -> None:
    service = Scripted(*answers)
    with pytest.raises(errors.ServiceBusyError):
        service.client().models()
    assert len(service.requests) == count


def test_what_ended_workers_is_not_sent_again() -> None:
    service = Scripted(busy(0, "worker_lost"))
    with pytest.raises(errors.ServiceError, match="queue"):
        service.client().models()
    assert len(service.requests) == 1


def test_other_services_are_no_df2serve() -> None:
    for answer in (httpx2.Response(200, text="hello"), httpx2.Response(301), busy(0, "", 404)):
        with pytest.raises(errors.ServiceError):
            Scripted(answer).client().models()
    for url in ("service.test", "ftp://service.test", "http://user:word@service.test"):
        with pytest.raises(errors.ConfigError):
            df2serve.Client(url)


def test_the_key_is_sent_and_nowhere_to_be_seen(monkeypatch, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "k" * 43
    service = Scripted(*(httpx2.Response(200, json=LISTED) for _ in range(2)))
    with service.client(api_key=secret) as client:
        client.models()
    monkeypatch.setenv("DF2SERVE_API_KEY", secret)
    with service.client() as client:
        client.models()
    assert [request.headers["x-api-key"] for request in service.requests] == [secret] * 2
    assert secret not in caplog.text + repr(client)
    with pytest.raises(errors.ConfigError) as caught:
        df2serve.Client("http://service.test", api_key=f"{secret}\n")
    assert secret not in str(caught.value)
    service = Scripted(httpx2.Response(401, json={"code": "unauthorized", "detail": "a key"}))
    with pytest.raises(PermissionError, match="a key"):
        service.client(api_key="wrong").models()


def test_lost_events_are_gone_on_with() -> None:
    job = {
        "id": "1" * 32, "state": "running", "model": "tiny", "created": "", "started": None,
        "ended": None, "images": {"total": 1, "successful": 0, "failed": 0},
        "progress": {"done": 0, "total": 4}, "queue_position": None, "eta_seconds": None,
        "attempts": 1, "problem": None, "links": {},
    }  # fmt: skip

    def events(*states):
        text = "".join(
            f"event: {'end' if state == 'successful' else 'progress'}\nid: e{number}\n"
            f"data: {json.dumps(job | {'state': state})}\n\n"
            for number, state in enumerate(states)
        )
        return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, text=text)

    service = Scripted(
        httpx2.Response(200, json=job), events("running"), busy(0), events("running", "successful")
    )
    told = []
    handed_in = service.client().job(job["id"])
    assert handed_in.wait(lambda info: told.append(info.state)).state == "successful"
    assert told == ["running", "running", "successful"]
    assert "last-event-id" not in service.requests[1].headers
    assert service.requests[2].headers["last-event-id"] == "e0"


# -- with one -----------------------------------------------------------------------------------


def test_models(client, cells) -> None:
    assert client.models().default == "tiny"
    assert client.model().sha256 == client.model("tiny").sha256 == cells.sha256
    with pytest.raises(errors.ArtifactNotFoundError, match="tiny, pairs"):
        client.model("other")


def test_paths_bytes_and_arrays_are_predicted_as_here(client, cells, tmp_path) -> None:
    image = pattern(100, 80).astype(np.uint16) * 200
    path = tmp_path / "cells.tif"
    tifffile.imwrite(path, image)
    local = predict(path, ensemble=cells)
    for source in (path, str(path), path.read_bytes(), image):
        result = client.predict(source, probs=True)
        assert_same(result, local)
    assert result.labels is None
    assert client.predict(path).info.input.name == "cells.tif"
    assert client.predict(path).probs is None
    labels = client.predict(path, instances="watershed").labels
    assert (labels.dtype, labels.shape) == (np.int32, image.shape)


def test_parameters_and_models(client, ensembles) -> None:
    image = np.stack([pattern(50, 60), pattern(50, 60) // 2, pattern(60, 50).T])
    result = client.predict(image, model="pairs", axes="CYX", channels=(2, 0), probs=True)
    local = predict(image[[2, 0]], ensemble=ensembles / "pairs", axes="CYX")
    assert np.array_equal(result.probs, local.probs)
    assert result.needs_review is None
    assert client.validate(image[0], tta="none").passes == 2


def test_errors_are_those_of_the_package(client, tmp_path) -> None:
    def refused(kind, image, **parameters):
        with pytest.raises(kind):
            client.predict(image, **parameters)

    refused(errors.AxesError, np.zeros((3, 4, 5), np.uint8))
    refused(errors.ImageMismatchError, pattern(40, 40), model="pairs")
    refused(errors.ConfigError, pattern(40, 40), tile=33)
    refused(errors.UnsupportedFormatError, b"GIF89a" + bytes(100))
    refused(errors.DecodeError, npy(pattern(40, 40))[:-10])
    refused(errors.LimitExceededError, bytes((8 << 20) + 1))
    refused(errors.SourceNotFoundError, tmp_path / "nothing.tif")
    with pytest.raises(errors.ImageMismatchError):
        client.validate(pattern(40, 40), model="pairs")


def test_a_long_prediction_becomes_a_job_without_our_noticing(client, cells, monkeypatch) -> None:
    from df2serve.client import operations

    class Impatient(operations.Call):
        def __init__(self, method, path, query=None, headers=None, uploads=(), repeatable=True):
            prefer = {"Prefer": "respond-async"} if path.endswith("/predict") else {}
            super().__init__(method, path, query or {}, prefer, uploads, repeatable)

    monkeypatch.setattr(operations, "Call", Impatient)
    image = pattern(64, 90)
    assert_same(client.predict(image, probs=True), predict(image, ensemble=cells))
    with pytest.raises(errors.ImageMismatchError):
        client.predict(image, model="pairs")


def test_a_job(client, cells, tmp_path) -> None:
    images = [pattern(70, 80), pattern(64, 64, 5), b"broken"]
    told = []
    job = client.submit(images, probs=True, key="client-1")
    done = job.wait(told.append)
    assert (done.state, done.images.failed) == ("successful", 1)
    assert told[-1] == done == job.refresh()
    assert client.submit(images, probs=True, key="client-1").id == job.id
    first, second, third = client.job(job.id).results()
    assert_same(first.result, predict(images[0], ensemble=cells))
    assert_same(second.result, predict(images[1], ensemble=cells))
    assert (first.source, third.source) == ("image-0.npy", "image-2")
    assert isinstance(third.error, errors.UnsupportedFormatError)
    ranking = job.ranking()
    scores = [row.u for row in ranking.images]
    assert ranking.threshold == 0.9
    assert sorted(scores, reverse=True) == scores
    assert set(scores) == {r.result.scores.uncertainty_score for r in (first, second)}
    assert job.cancel() == done  # it has ended, and stays


def test_a_running_job_is_cancelled(client) -> None:
    job = client.submit([pattern(2000, 2000)])
    states = []

    def stop(info):
        states.append(info.state)
        if info.progress.done and info.ended is None:
            job.cancel()

    assert job.wait(stop).state == "dismissed"
    assert states[-1] == "dismissed"
    with pytest.raises(errors.ServiceError, match="no image"):
        job.ranking()


def test_awaited(address, cells, tmp_path) -> None:
    image = pattern(90, 64)
    path = tmp_path / "a.npy"
    np.save(path, image)

    async def work():
        async with df2serve.AsyncClient(address) as client:
            two = await asyncio.gather(
                client.predict(image, probs=True), client.predict(path, probs=True)
            )
            with pytest.raises(errors.ConfigError):
                await client.predict(path, tile=33)
            assert (await client.validate(path)).valid
            assert (await client.models()).default == (await client.model()).name
            job = await client.submit([path, b"broken"])
            told = []
            done = await job.wait(told.append)
            assert told[-1] == done == await job.refresh() == await job.cancel()
            outcomes = [outcome async for outcome in (await client.job(job.id)).results()]
            assert len((await job.ranking()).images) == 1
            return two, outcomes

    two, (good, bad) = asyncio.run(work())
    local = predict(image, ensemble=cells)
    for result in two:
        assert_same(result, local)
    assert np.array_equal(good.result.mask, local.mask)
    assert isinstance(bad.error, errors.UnsupportedFormatError)
