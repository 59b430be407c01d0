"""A pushed ensemble behind the contract of Inference Endpoints."""

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest
import tifffile
from huggingface_hub import snapshot_download
from packaging.requirements import Requirement
from PIL import Image

import df2serve
from df2serve.artifact import Ensemble, ReviewThreshold, with_files
from df2serve.artifact.manifest import Calibration
from df2serve.errors import ConfigError, DecodeError, ImageMismatchError
from df2serve.publish import EndpointHandler, plan_push, push

# how huggingface_hub itself uploads large files
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

DOCS = Path(__file__).parents[2] / "docs"
# what the platform does: https://github.com/huggingface/huggingface-inference-toolkit
PLATFORM = """
import importlib.util, json, sys
folder, *bodies = sys.argv[1:]
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
module = importlib.util.module_from_spec(spec)
sys.modules["handler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
answers = [handler(json.load(open(body))) for body in bodies]
json.dump(answers, sys.stdout, allow_nan=False)
"""


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def files_of(image: np.ndarray) -> dict[str, bytes]:
    """The same image as a file in several formats."""
    files = {name: io.BytesIO() for name in ("tiff", "npy", "png")}
    tifffile.imwrite(files["tiff"], image)
    np.save(files["npy"], image)
    Image.fromarray(image).save(files["png"], format="png")
    return {name: file.getvalue() for name, file in files.items()}


def maps_of(answer: dict) -> dict[str, np.ndarray]:
    return {
        name: tifffile.imread(io.BytesIO(base64.b64decode(content)))
        for name, content in answer["maps"].items()
    }


@pytest.mark.slow
def test_a_pushed_repository_answers_as_the_predictor(
    hub, hub_server, ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)
    with plan_push(ensemble, "hf://lab/cells", endpoint=True) as plan:
        push(plan)
    repository = Path(snapshot_download("lab/cells", local_dir=tmp_path / "repository"))
    (line,) = (repository / "requirements.txt").read_text().splitlines()
    requirement = Requirement(line)
    assert requirement.name == "df2serve"
    assert requirement.specifier.contains(df2serve.__version__)

    image = np.random.default_rng(0).integers(0, 200, (70, 90)).astype(np.uint8)
    bodies = []
    for name, content in files_of(image).items():
        body = {"inputs": encoded(content), "parameters": {"maps": ["mask", "total", "probs"]}}
        bodies.append(tmp_path / f"{name}.json")
        bodies[-1].write_text(json.dumps(body))
    command = (sys.executable, "-c", PLATFORM, repository, *bodies)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
    answers = json.loads(result.stdout)

    expected = df2serve.predict(image, ensemble=ensemble)
    assert len(answers) == 3
    for answer in answers:
        maps = maps_of(answer)
        assert maps.keys() == {"mask", "total", "probs"}
        for name, found in maps.items():
            assert np.array_equal(found, getattr(expected, name)), name
            assert found.dtype == getattr(expected, name).dtype
        assert answer["scores"]["u"] == expected.scores.u
        assert answer["needs_review"] is None
        assert answer["classes"] == ["background", "class 1"]
        assert answer["ensemble"]["sha256"] == ensemble.sha256


@pytest.mark.slow
def test_a_container_answers_as_the_predictor(
    hub, hub_server, ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the documentation sets it up: its variables, its command, its route of health."""
    monkeypatch.setenv("HF_TOKEN", hub_server.OWNER)
    with plan_push(ensemble, "hf://lab/cells") as plan:
        push(plan)
    repository = snapshot_download("lab/cells", local_dir=tmp_path / "repository")
    guide = DOCS.joinpath("hub.md").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^ENV (\w+)=(\S+)$", guide, re.MULTILINE))
    (command,) = (json.loads(line) for line in re.findall(r"^CMD (.+)$", guide, re.MULTILINE))
    (deployed,) = re.findall(r'"port": (\d+), "health_route": "(\S+)"', guide)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = {"/repository": repository, deployed[0]: str(port)}
    assert found.keys() < set(command)
    environment = os.environ | variables | {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    program = Path(sys.executable).with_name(command[0])
    with subprocess.Popen(
        [program, *(found.get(word, word) for word in command[1:])], env=environment
    ) as process:
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                wait_for(client, deployed[1], process)
                image = np.random.default_rng(0).integers(0, 200, (70, 90)).astype(np.uint8)
                inputs = encoded(files_of(image)["tiff"])
                answer = client.post("/", json={"inputs": inputs}).raise_for_status().json()
        finally:
            process.terminate()
    u = answer["result"]["quality"]["uncertainty_score"]
    assert u == pytest.approx(df2serve.predict(image, ensemble=ensemble).scores.u, rel=1e-6)


def wait_for(client: httpx2.Client, route: str, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, process.returncode
        try:
            if client.get(route).status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"{route} did not answer in two minutes")


def test_requests(ensemble: Ensemble) -> None:
    threshold = ReviewThreshold(
        score="u", value=0.0, metric="dice", required=0.7, failing=1, references=2, kind="held_out"
    )
    content = Calibration(thresholds=(threshold,)).to_json()
    handler = EndpointHandler(str(with_files(ensemble, {"calibration.json": content}).source))
    stack = np.random.default_rng(0).integers(0, 200, (3, 40, 50)).astype(np.float32)
    file = io.BytesIO()
    np.save(file, stack)
    inputs = encoded(file.getvalue())
    answer = handler({"inputs": inputs, "parameters": {"axes": "ZYX", "z": 1, "maps": ["mask"]}})
    assert np.array_equal(
        maps_of(answer)["mask"], df2serve.predict(stack[1], ensemble=ensemble).mask
    )
    assert answer["needs_review"] is True
    answer = handler({"inputs": inputs, "parameters": {"axes": "CYX", "channels": [2]}})
    assert maps_of(answer).keys() == {"mask", "total"}
    for body, error, message in [
        ({}, DecodeError, "got inputs of type NoneType; expected an image file in base64"),
        ({"inputs": [1]}, DecodeError, "of type list"),
        ({"inputs": "%"}, DecodeError, "is not base64"),
        ({"inputs": inputs, "parameters": {"mode": 1}}, ConfigError, "invalid parameters: mode"),
        ({"inputs": inputs, "parameters": {"axes": "CYX"}}, ImageMismatchError, "3 channels"),
    ]:
        with pytest.raises(error, match=message):
            handler(body)
