"""The OpenAPI document is true: schemathesis finds no answer that it does not announce."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from df2serve.service.auth import hash_key

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
KEY = "k" * 43
SETTINGS = """
hooks = {hooks}
request-timeout = 60
[checks]
max_response_time = 60
[checks.positive_data_acceptance]
# no schema can say which bytes are an image that fits the model, nor which jobs there are,
# nor where an upload goes on and what its bytes hash to
expected-statuses = ["2xx", 400, 401, 403, 404, 406, 409, 410, 413, 415, 422, 429, 460]
[checks.negative_data_rejection]
# another version of the protocol of uploads is told with 412
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 422, 428, 429, "5xx"]
[checks.missing_required_header]
expected-statuses = [400, 401, 403, 406, 412, 415, 422]
"""
KNOWN = """
[dictionaries.{name}]
values = {values}
[parameters."{parameter}"]
dictionary = "{name}"
probability = 0.7
"""
JOBS = 8
UPLOADS = 30


@dataclass(frozen=True)
class Run:
    """What schemathesis did."""

    code: int
    text: str
    cases: int
    succeeded: frozenset[tuple[str, str]]
    """Methods and paths that were answered with 2xx."""


def check(address, folder, known, *options):
    """Run all checks of all addresses.

    Args:
        address: of the service.
        folder: where to work.
        known: values of parameters that exist, for most cases; those of the others are made up.
        options: of schemathesis.
    """
    settings = folder / "schemathesis.toml"
    with settings.open("w") as file:
        file.write(SETTINGS.format(hooks=json.dumps(str(HOOKS))))
        for parameter, values in known.items():
            name = parameter.replace(".", "-")
            file.write(KNOWN.format(name=name, parameter=parameter, values=json.dumps(values)))
    report = folder / "events.ndjson"
    command = [sys.executable, "-m", "schemathesis.cli", f"--config-file={settings}", "run"]
    command += [f"{address}/openapi.json", "--checks=all", "--seed=1", "--no-color"]
    command += ["--generation-database=none", "--continue-on-failure", "--max-failures=20"]
    command += ["--report=ndjson", f"--report-ndjson-path={report}", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in report.read_text().splitlines()]
    cases, succeeded = 0, set()
    for event in events:
        recorder = event.get("ScenarioFinished", {}).get("recorder", {})
        for id, case in recorder.get("cases", {}).items():
            cases += 1
            answer = recorder["interactions"].get(id, {}).get("response") or {}
            if answer.get("status_code", 0) // 100 == 2:
                succeeded.add((case["value"]["method"], case["value"]["path"]))
    return Run(done.returncode, done.stdout + done.stderr, cases, frozenset(succeeded))


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(1200, dtype=np.uint16).reshape(30, 40))
    return buffer.getvalue()


def test_answers_are_those_of_the_document(address, cells, tmp_path) -> None:
    known = {"path.model": ["tiny"], "path.version": [cells.sha256[:12]]}
    done = check(address, tmp_path, known, "--max-examples=2", "--phases=examples,fuzzing")
    assert done.code == 0, done.text
    assert done.cases >= 30  # one for every operation


@pytest.mark.slow
def test_answers_are_those_of_the_document_with_keys(running, ensembles, cells, tmp_path) -> None:
    entry = {"name": "ada", "sha256": hash_key(KEY)}
    values = {
        "models": (str(ensembles / "cells"),),
        "state": tmp_path / "state",
        "devices": ("cpu",),
        "rate": "1000000/minute",
        "keys": ({**entry, "scopes": ["predict", "jobs", "admin", "metrics"]},),
    }
    (tmp_path / "state").mkdir()
    bearer = {"Authorization": f"Bearer {KEY}"}
    with running("uvicorn", values) as (client, _):
        client.headers.update(bearer)
        files = {"image": ("a.npy", npy())}
        jobs = [client.post("/v1/jobs", files=files).json()["id"] for _ in range(JOBS)]
        for id in jobs:
            assert "event: end" in client.get(f"/v1/jobs/{id}/events").text
        announced = {"Tus-Resumable": "1.0.0", "Upload-Length": "1000"}
        uploads = [client.post("/v1/uploads", headers=announced) for _ in range(UPLOADS)]
        known = {
            "path.model": ["tiny"],
            "query.model": ["tiny"],
            "path.upload": [upload.json()["id"] for upload in uploads],
            "header.Upload-Offset": ["0"],
            "path.version": [cells.sha256[:12]],
            "path.id": jobs,
            "path.item": [0],
            "path.artifact": ["answer", "mask", "overlay", "result", "uncertainty"],
        }
        options = ["--max-examples=15", "--phases=examples,coverage,fuzzing,stateful"]
        options += [f"--header=Authorization: {bearer['Authorization']}"]
        done = check(client.base_url, tmp_path, known, *options)
        document = client.get("/openapi.json").json()
    assert done.code == 0, done.text
    assert done.cases >= 2000
    operations = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert operations - done.succeeded == set()
