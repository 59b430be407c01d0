"""The OpenAPI document is true: schemathesis finds no answer that it does not announce."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from df2serve.service.auth import hash_key

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
KEY = "k" * 43
SETTINGS = """
hooks = {hooks}
request-timeout = 60
[checks.positive_data_acceptance]
# no schema can say which bytes are an image that fits the model, nor which jobs there are
expected-statuses = ["2xx", 400, 401, 403, 404, 406, 409, 410, 413, 415, 422, 429]
"""


def check(address, folder, *, examples, phases, key=None):
    """Run all checks of all addresses; return the number of cases, the exit code and the text."""
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS.format(hooks=json.dumps(str(HOOKS))))
    report = folder / "events.ndjson"
    command = [sys.executable, "-m", "schemathesis.cli", f"--config-file={settings}", "run"]
    command += [f"{address}/openapi.json", "--checks=all", f"--max-examples={examples}"]
    command += [
        f"--phases={phases}",
        "--seed=1",
        "--generation-database=none",
        "--report=ndjson",
        "--no-color",
    ]
    command += [f"--report-ndjson-path={report}", "--continue-on-failure", "--max-failures=20"]
    if key is not None:
        command += ["--header", f"Authorization: Bearer {key}"]
    done = subprocess.run(
        command, env=os.environ, cwd=folder, capture_output=True, text=True, check=False
    )
    events = [json.loads(line) for line in report.read_text().splitlines()]
    ended = [
        event["ScenarioFinished"]["recorder"] for event in events if "ScenarioFinished" in event
    ]
    cases = sum(len(recorder.get("cases", ())) for recorder in ended)
    return cases, done.returncode, done.stdout + done.stderr


def test_answers_are_those_of_the_document(address, tmp_path) -> None:
    cases, code, text = check(address, tmp_path, examples=2, phases="examples,fuzzing")
    assert code == 0, text
    assert cases >= 30  # one for every operation


@pytest.mark.slow
def test_answers_are_those_of_the_document_with_keys(running, ensembles, tmp_path) -> None:
    entry = {"name": "ada", "sha256": hash_key(KEY)}
    values = {
        "models": (str(ensembles / "cells"),),
        "state": tmp_path / "state",
        "devices": ("cpu",),
        "rate": "1000000/minute",
        "keys": ({**entry, "scopes": ["predict", "jobs", "admin", "metrics"]},),
    }
    (tmp_path / "state").mkdir()
    with running("uvicorn", values) as (client, _):
        place, phases = str(client.base_url), "examples,coverage,fuzzing,stateful"
        cases, code, text = check(place, tmp_path, examples=20, phases=phases, key=KEY)
    assert code == 0, text
    assert cases >= 2000
