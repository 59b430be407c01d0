"""What the service promises beside the pixels: models, errors, headers, limits, keys."""

import io
import subprocess
import sys

import numpy as np
import pytest
from starlette.testclient import TestClient

from df2serve.errors import ConfigError
from df2serve.service import Settings, create_app
from df2serve.service.auth import Gate, hash_key
from df2serve.service.problems import Code, Problem

PREDICT = "/v1/models/tiny/predict"
NPY = {"Content-Type": "application/x-npy"}


def npy(shape=(40, 50)):
    buffer = io.BytesIO()
    np.save(buffer, np.arange(np.prod(shape), dtype=np.uint32).reshape(shape).astype(np.uint8))
    return buffer.getvalue()


def assert_problem(answer, code):
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["code"], body["status"]) == (code.slug, code.status)
    assert answer.status_code == code.status
    assert body["type"] == f"urn:df2serve:problem:{code.slug}"
    text = answer.text
    for internal in ("Traceback", "/site-packages/", "/state", ".py"):
        assert internal not in text
    return body


# -- imports and settings -----------------------------------------------------------------------


def test_the_http_process_imports_no_engine() -> None:
    code = "import sys, df2serve.service.app; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "fastapi" in loaded
    assert {"torch", "onnxruntime", "bentoml", "timm", "pandas"}.isdisjoint(loaded)


def test_no_public_address_without_keys(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 can be reached from a network"):
        create_app(Settings(host="0.0.0.0", state=tmp_path))
    key = {"name": "ada", "sha256": hash_key("secret")}
    create_app(Settings(host="0.0.0.0", state=tmp_path, keys=(key,)))
    create_app(Settings(host="0.0.0.0", state=tmp_path, insecure=True))


def test_settings_of_environment_and_file(tmp_path, monkeypatch) -> None:
    file = tmp_path / "service.toml"
    file.write_text('port = 4000\nqueue = 7\nmodels = ["a", "b=c"]\n')
    monkeypatch.setenv("DF2SERVE_CONFIG", str(file))
    monkeypatch.setenv("DF2SERVE_PORT", "4001")
    monkeypatch.setenv("DF2SERVE_DEVICES", "cuda:0, cuda:1")
    settings = Settings(queue=8)
    assert (settings.port, settings.queue) == (4001, 8)
    assert settings.models == ("a", "b=c")
    assert settings.devices == ("cuda:0", "cuda:1")


def test_other_machines_and_sites_are_refused(service, pool) -> None:
    del pool  # it needs the app itself
    other = TestClient(service.app, base_url="http://127.0.0.1", client=("192.0.2.7", 1))
    assert_problem(other.get("/v1/models"), Code.FORBIDDEN)
    answer = service.post(PREDICT, content=npy(), headers={"Sec-Fetch-Site": "cross-site"})
    assert_problem(answer, Code.FORBIDDEN)
    assert service.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400


# -- keys ---------------------------------------------------------------------------------------


def test_keys_scopes_and_rates(tmp_path) -> None:
    keys = (
        {"name": "ada", "sha256": hash_key("a" * 43), "rate": "2/hour"},
        {"name": "bob", "sha256": hash_key("b" * 43), "scopes": {"metrics"}},
    )
    client = TestClient(create_app(Settings(state=tmp_path, keys=keys)))
    answer = client.get("/v1/models")
    assert_problem(answer, Code.UNAUTHORIZED)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert_problem(client.get("/v1/models", headers={"X-API-Key": "wrong"}), Code.UNAUTHORIZED)
    ada = {"Authorization": "Bearer " + "a" * 43}
    assert client.get("/v1/models", headers=ada).json() == {"models": [], "default": None}
    assert client.get("/metrics", headers={"X-API-Key": "b" * 43}).status_code == 200
    assert_problem(client.get("/metrics", headers=ada), Code.FORBIDDEN)
    for _ in range(2):
        assert_problem(client.post(PREDICT, headers=ada), Code.MODEL_NOT_FOUND)
    answer = client.post(PREDICT, headers=ada)
    assert_problem(answer, Code.RATE_LIMITED)
    assert 3000 < int(answer.headers["retry-after"]) <= 3600


def test_a_rate_that_is_none() -> None:
    with pytest.raises(ConfigError, match="expected one such as '60/minute'"):
        Gate(Settings(rate="often"))


# -- models -------------------------------------------------------------------------------------


def test_models_tell_everything(service, cells) -> None:
    listed = service.get("/v1/models").json()
    assert listed["default"] == "tiny"
    assert [facts["name"] for facts in listed["models"]] == ["tiny", "pairs"]
    facts = service.get("/v1/models/tiny").json()
    assert facts["sha256"] == cells.sha256
    assert facts["state"] == "loaded"
    assert facts["channels"] == ["channel 0"]
    assert [item["name"] for item in facts["classes"]] == ["background", "class 1"]
    assert facts["threshold"]["value"] == 0.9
    assert facts["references"] == {"source": "held_out", "scores": [0.1, 0.9, 0.999]}
    assert facts["card"] == "# Cells\n"
    assert facts["license"] is None
    assert facts["limits"]["body_bytes"] == 8 << 20
    assert_problem(service.get("/v1/models/other"), Code.MODEL_NOT_FOUND)


def test_the_example_can_be_predicted(service, cells) -> None:
    example = service.get("/v1/models/tiny/example")
    assert np.array_equal(np.load(io.BytesIO(example.content)), cells.golden().image)
    answer = service.post(PREDICT, params={"format": "npz", "axes": "CYX"}, content=example.content)
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert arrays["probabilities"] == pytest.approx(cells.golden().probs, abs=1e-6)
    assert_problem(service.get("/v1/models/pairs/example"), Code.MODEL_NOT_FOUND)


# -- errors -------------------------------------------------------------------------------------


def test_bad_requests(service) -> None:
    def refused(code, path=PREDICT, **request):
        return assert_problem(service.post(path, **request), code)

    refused(Code.MODEL_NOT_FOUND, "/v1/models/other/predict", content=npy())
    refused(Code.MALFORMED_REQUEST, content=b"")
    refused(Code.UNSUPPORTED_MEDIA_TYPE, json={"image": "http://example.org/a.tif"})
    refused(Code.UNSUPPORTED_FORMAT, content=b"GIF89a" + bytes(100))
    refused(Code.UNDECODABLE_IMAGE, content=npy()[:-10])
    refused(Code.CHANNEL_MISMATCH, "/v1/models/pairs/predict", content=npy())
    refused(Code.AXES_MISMATCH, content=npy((3, 4, 5)))
    refused(Code.BODY_TOO_LARGE, content=bytes((8 << 20) + 1))
    refused(Code.NOT_ACCEPTABLE, content=npy(), headers={"Accept": "image/webp"})
    refused(Code.BAD_PARAMETER, params={"format": "json", "min_size": 3}, content=npy())
    refused(Code.BAD_PARAMETER, params={"outputs": "mask,uncertainty"}, content=npy())
    refused(Code.BAD_PARAMETER, params={"outputs": "everything"}, content=npy())
    refused(Code.BAD_PARAMETER, files={"other": ("a.npy", npy())})
    body = refused(Code.BAD_PARAMETER, params={"tile": 33}, content=npy())
    assert body["errors"][0]["pointer"] == "/query/tile"
    refused(Code.BAD_PARAMETER, params={"tiel": 64}, content=npy())


def test_texts_in_place_of_files_are_never_fetched(service) -> None:
    answer = service.post(PREDICT, data={"image": "http://127.0.0.1:9/a.tif"}, files={"x": b""})
    assert answer.status_code == 422
    answer = service.post(PREDICT, data={"image": "file:///etc/passwd"})
    assert answer.status_code in (415, 422)


def test_a_body_without_a_length_is_limited_while_it_comes(service) -> None:
    sent = []

    def endless():
        while len(sent) < 100:
            sent.append(1)
            yield bytes(1 << 20)

    answer = service.post(PREDICT, content=endless(), headers=NPY)
    assert_problem(answer, Code.BODY_TOO_LARGE)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nothing/here", Code.NOT_FOUND),
        ("GET", "/docs.json", Code.NOT_FOUND),
        ("GET", PREDICT, Code.METHOD_NOT_ALLOWED),
        ("POST", "/v1/admin/models/tiny/unload", Code.FORBIDDEN),
        ("GET", "/v1/jobs/" + "0" * 32, Code.JOB_NOT_FOUND),
        ("GET", "/v1/jobs/..%2f..%2fetc", Code.NOT_FOUND),
    ],
)
def test_other_addresses(service, method, path, code) -> None:
    assert_problem(service.request(method, path), code)


def test_other_methods_are_told_which_ones_there_are(service) -> None:
    assert service.put("/v1/jobs").headers["allow"] == "GET, POST"
    assert service.put(f"/v1/jobs/{'0' * 32}").headers["allow"] == "DELETE, GET"
    assert service.put(PREDICT).headers["allow"] == "POST"


def test_every_answer_is_marked(service) -> None:
    answer = service.get("/v1/health/live", headers={"X-Request-ID": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert service.get("/", headers={"X-Request-ID": "a b"}).headers["x-request-id"] != "a b"


def test_problems_of_workers_hide_what_is_internal() -> None:
    from df2serve.service.problems import problem_of

    assert problem_of("DecodeError", "a.tif is damaged").detail == "a.tif is damaged"
    for error in ("OutputError", "IntegrityError", "ValueError", "RuntimeError"):
        problem = problem_of(error, "/secret/path")
        assert isinstance(problem, Problem)
        assert "secret" not in problem.detail


def test_the_measures(service) -> None:
    assert service.post(PREDICT, content=npy()).status_code == 200
    text = service.get("/metrics").text
    for line in (
        'df2_requests_total{model="tiny",route="/v1/models/{model}/predict",status="200"}',
        'df2_request_seconds_count{phase="infer"}',
        "df2_tiles_total",
        'df2_uncertainty_score_count{model="tiny"}',
        'df2_worker_heartbeat_age_seconds{device="cpu"}',
        'df2_model_resident_bytes{model="tiny"}',
        'df2_jobs{state="failed"}',
    ):
        assert f"\n{line}" in text


# -- hostile images -----------------------------------------------------------------------------


def test_hostile_images_are_refused_and_harm_nobody(service, pool, hostile, tmp_path) -> None:
    """The whole corpus, one after the other; the worker stays the same process."""
    (worker,) = pool.workers
    process = worker.process.pid
    wrong = []
    for name in hostile.hostile_names():
        folder = tmp_path / name
        folder.mkdir()
        path, error = hostile.make_hostile(folder, name)
        if not path.is_file() or path.is_symlink() or name == "name_with_a_null_byte":
            continue
        content = path.read_bytes()
        answer = service.post(PREDICT, params={"name": path.name}, content=content, headers=NPY)
        expected = {error.http_status} if content else {400}
        if answer.status_code not in expected:
            wrong.append((name, answer.status_code, answer.text[:200]))
    assert wrong == []
    assert worker.process.pid == process
    assert service.post(PREDICT, content=npy()).status_code == 200
