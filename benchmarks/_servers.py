"""Servers of the same ensemble, each a process of its own, and what is sent to them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import psutil  # type: ignore[import-untyped]

__all__ = ["CONTENDERS", "OURS", "Contender", "Server", "started"]

HERE = Path(__file__).parent
_READY_SECONDS = 600.0
_UNLIMITED = {
    "DF2SERVE_RATE": "1000000/minute",
    "DF2SERVE_SYNC_SECONDS": "3600",
    "DF2SERVE_QUEUE": "10000",
    "BENTOML_DO_NOT_TRACK": "True",
}


@dataclass(frozen=True)
class Contender:
    """How a server is started, and how it is asked."""

    name: str
    command: tuple[str, ...]
    """``{port}`` stands for its port."""
    path: str
    ready: str
    form: bool = False
    """Whether the image is sent in a form, or as the body."""

    def request(self, image: bytes) -> dict[str, Any]:
        """Return what a request for the mask of an image consists of, for httpx2."""
        if self.form:
            return {"url": self.path, "files": {"image": ("a.tif", image, "image/tiff")}}
        headers = {"Content-Type": "image/tiff", "Accept": "image/tiff"}
        return {"url": self.path, "content": image, "headers": headers}


_BENTO = (sys.executable, "-m", "bentoml", "serve", "--port", "{port}", "--host", "127.0.0.1")
OURS = Contender(
    "df2serve serve",
    (sys.executable, "-c", "from df2serve.cli import main; main()", "serve", "--port", "{port}"),
    "/v1/models/tiny/predict",
    "/readyz",
)
CONTENDERS = (
    OURS,
    Contender(
        "df2serve serve, two workers",
        (*OURS.command, "--device", "cpu", "--device", "cpu"),
        OURS.path,
        OURS.ready,
    ),
    Contender(
        "df2serve in BentoML",
        (*_BENTO, "df2serve.service.bento:Df2Serve"),
        "/v1/models/tiny/predict",
        "/readyz",
    ),
    Contender(
        "BentoML, one `@bentoml.api`",
        (*_BENTO, "_naive_bento:Naive"),
        "/predict",
        "/readyz",
        form=True,
    ),
    Contender(
        "LitServe",
        (sys.executable, str(HERE / "_naive_litserve.py"), "{port}"),
        "/predict",
        "/health",
        form=True,
    ),
)


@dataclass(frozen=True)
class Server:
    """A contender that runs."""

    contender: Contender
    url: str
    process: psutil.Process
    seconds_to_ready: float
    client: httpx2.Client = field(repr=False)
    plain: HTTPConnection = field(repr=False)

    def ask(self, image: bytes) -> httpx2.Response:
        """Return the answer to one request."""
        return self.client.post(**self.contender.request(image)).raise_for_status()

    def ask_plainly(self, image: bytes) -> tuple[float, Mapping[str, str]]:
        """Ask by the standard library, whose own share of the time is least.

        Returns:
            The seconds from sending the request to having the whole answer, and its headers.
        """
        request = self.client.build_request("POST", **self.contender.request(image))
        body, headers = request.read(), dict(request.headers)
        self.plain.close()  # servers close connections that were idle
        self.plain.connect()
        began = time.perf_counter()
        self.plain.request("POST", request.url.path, body, headers)
        with self.plain.getresponse() as answer:
            answer.read()
            seconds = time.perf_counter() - began
            if answer.status != 200:
                message = f"{self.contender.name} answers with {answer.status}"
                raise RuntimeError(message)
            return seconds, {name.lower(): value for name, value in answer.getheaders()}

    def memory_mib(self) -> float:
        """Return the memory of all its processes; what they share counts once."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(float(each.memory_full_info().pss) for each in processes) / 2**20


@contextmanager
def started(contender: Contender, ensemble: Path) -> Iterator[Server]:
    """Start a server, and wait until it takes requests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory() as state,
        (Path(state) / "log").open("wb") as log,
        httpx2.Client(base_url=url, timeout=3600) as client,
    ):
        began = time.perf_counter()
        process = subprocess.Popen(
            [part.replace("{port}", port) for part in contender.command],
            env=_environment(ensemble, Path(state), port),
            cwd=HERE,
            stdout=log,
            stderr=log,
        )
        try:
            while not _is_ready(client, contender):
                if process.poll() is not None or time.perf_counter() - began > _READY_SECONDS:
                    message = (
                        f"{contender.name} does not start: {(Path(state) / 'log').read_text()}"
                    )
                    raise RuntimeError(message)
                time.sleep(0.02)
            seconds = time.perf_counter() - began
            plain = HTTPConnection("127.0.0.1", int(port), timeout=3600)
            with closing(plain):
                yield Server(contender, url, psutil.Process(process.pid), seconds, client, plain)
        finally:
            _end(process)


def _environment(ensemble: Path, state: Path, port: str) -> Mapping[str, str]:
    return (
        os.environ
        | _UNLIMITED
        | {
            "DF2SERVE_MODELS": str(ensemble),
            "DF2SERVE_STATE": str(state / "state"),
            "DF2SERVE_PORT": port,
            "BENTOML_HOME": str(state / "bentoml"),
            "BENCHMARK_ENSEMBLE": str(ensemble),
        }
    )


def _is_ready(client: httpx2.Client, contender: Contender) -> bool:
    try:
        return client.get(contender.ready).status_code == 200
    except httpx2.TransportError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it started."""
    children = (
        psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    )
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in children:
        if child.is_running():
            child.kill()
