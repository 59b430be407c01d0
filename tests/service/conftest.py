"""One service for all tests, in this process, with real worker processes."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from df2serve.artifact import Ensemble, GoldenTensors, load_ensemble, with_files
from df2serve.inference import predict
from df2serve.service import Settings, create_app
from df2serve.service.pool import Pool
from df2serve.testing import random_ensemble

ROOT = Path(__file__).parents[2]
SHELLS = {
    "uvicorn": [sys.executable, "-c", "from df2serve.cli import main; main()", "serve"],
    "bentoml": [sys.executable, "-m", "bentoml", "serve", "df2serve.service.bento:Df2Serve"],
}
THRESHOLD = {
    "score": "u",
    "value": 0.9,
    "metric": "dice",
    "required": 0.8,
    "failing": 2,
    "references": 3,
    "kind": "held_out",
    "level": 0.333,
}


@pytest.fixture(scope="session")
def ensembles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two ensembles: ``cells`` with a threshold and an example, and ``pairs``."""
    root = tmp_path_factory.mktemp("ensembles")
    bare = random_ensemble(root / "cells", members=2, channels=1, classes=2, tile=64)
    image = pattern(60, 70)[None]
    prediction = predict(image, ensemble=bare, axes="CYX")
    references = [
        {
            "name": f"{u}",
            "image_sha256": "0" * 64,
            "kind": "held_out",
            "scores": {"u": u},
            "quality": {"dice": 1 - u},
        }
        for u in (0.1, 0.9, 0.999)
    ]
    calibration = {"thresholds": [THRESHOLD], "references": references}
    golden = GoldenTensors(image=image, probs=prediction.probs, total=prediction.total)
    with_files(
        bare,
        golden.to_files()
        | {"calibration.json": json.dumps(calibration).encode(), "README.md": b"# Cells\n"},
    )
    random_ensemble(root / "pairs", members=1, channels=2, classes=3, tile=64)
    return root


@pytest.fixture(scope="session")
def cells(ensembles: Path) -> Ensemble:
    """The ensemble of the default model."""
    return load_ensemble(ensembles / "cells")


@pytest.fixture(
    scope="session",
    params=[
        "app",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("uvicorn", "bentoml", "bento")),
    ],
)
def service(
    request: pytest.FixtureRequest, ensembles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A client of the running service, in every shell; its models are ``tiny`` and ``pairs``."""
    values: dict[str, Any] = {
        "models": (str(ensembles / "cells"), f"pairs={ensembles / 'pairs'}"),
        "state": tmp_path_factory.mktemp("state"),
        "devices": ("cpu",),
        "max_body_bytes": 8 << 20,
        "max_decode_bytes": 1 << 30,
        "rate": "100000/minute",
    }
    if request.param == "app":
        client = TestClient(
            create_app(Settings(**values)),
            base_url="http://127.0.0.1",
            raise_server_exceptions=False,
            client=("127.0.0.1", 50000),
        )
        with client:
            wait_until_ready(client)
            yield client
    else:
        command = request.getfixturevalue("bento") if request.param == "bento" else request.param
        with running(command, values) as (client, _):
            yield client


@pytest.fixture(scope="session")
def bento(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that serves the built Bento, in an environment of what it asks for alone."""
    folder = tmp_path_factory.mktemp("bento")
    home = os.environ | {"BENTOML_HOME": str(folder), "BENTOML_DO_NOT_TRACK": "True"}
    subprocess.run([sys.executable, "-m", "bentoml", "build"], env=home, cwd=ROOT, check=True)
    (built,) = folder.glob("bentos/df2serve/*/")
    venv, uv = folder / "venv", [sys.executable, "-m", "uv"]
    requirements = built / "env" / "python" / "requirements.txt"
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    install = [*uv, "pip", "install", "--quiet", "--python", venv, "--requirements", requirements]
    subprocess.run(install, check=True)
    elsewhere = ["env", "--unset", "PYTHONPATH", "--chdir", str(folder)]
    return [*elsewhere, str(venv / "bin" / "bentoml"), "serve", str(built)]


@pytest.fixture(scope="session")
def address(service: httpx2.Client) -> Iterator[str]:
    """The same service at a real address, for clients that are no test clients."""
    if not isinstance(service, TestClient):
        yield str(service.base_url)
        return
    port = free_port()
    settings = uvicorn.Config(service.app, port=port, lifespan="off", log_level="warning")
    server = uvicorn.Server(settings)
    serving = service.portal.start_task_soon(server.serve)
    wait_until(lambda: server.started, 30)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    serving.result(30)


@pytest.fixture
def pool(service: httpx2.Client) -> Pool:
    """The workers of the service, for tests that look behind the addresses."""
    if not isinstance(service, TestClient):
        pytest.skip("the service runs in another process")
    return service.app.state.context.pool


@pytest.fixture(scope="session", name="running")
def _running() -> Callable[..., AbstractContextManager[tuple[httpx2.Client, Any]]]:
    """Run the service as a process of its own."""
    return running


@contextmanager
def running(
    shell: str | Sequence[str], values: Mapping[str, Any]
) -> Iterator[tuple[httpx2.Client, subprocess.Popen[bytes]]]:
    """Run the service as a process of its own; give a client and the process.

    Args:
        shell: one of ours, or the command that starts another.
        values: its settings.
    """
    port = free_port()
    variables = {f"DF2SERVE_{name.upper()}": as_text(value) for name, value in values.items()}
    home = Path(values["state"]) / "home"
    environment = os.environ | variables | {"DF2SERVE_PORT": str(port), "BENTOML_HOME": str(home)}
    command = SHELLS[shell] if isinstance(shell, str) else shell
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            wait_until_ready(client, process)
            yield client, process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(300)


def as_text(value: Any) -> str:
    """A setting as an environment variable."""
    return json.dumps(value) if isinstance(value, tuple) else str(value)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(client: httpx2.Client, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for the workers of a service, as long as its process lives."""

    def is_ready() -> bool:
        assert process is None or process.poll() is None, "the service has ended"
        try:
            return client.get("/v1/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    wait_until(is_ready, 300)


def pattern(height: int, width: int) -> np.ndarray:
    """An image without noise, so that it is small when compressed."""
    rows, columns = np.mgrid[:height, :width]
    return ((rows * 7 + columns * 3) % 251).astype(np.uint8)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for something that happens in another process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
