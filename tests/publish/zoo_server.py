"""The real server of the BioImage Model Zoo (Hypha) on loopback, its storage played by moto.

Both live in an environment of their own, which `make foreign` builds. The database is a file, so
that the server can be killed and started again.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

PYTHON = Path(sys.prefix) / "foreign/zoo/bin/python"
SETUP = Path(__file__).with_name("zoo_setup.py")
_SECONDS = 240
"""That a start may take on a busy machine."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class ZooServer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self.storage = f"http://127.0.0.1:{free_port()}"
        self.tokens: dict[str, str] = {}
        self._environment = {
            **os.environ,
            "HYPHA_ROOT_TOKEN": secrets.token_urlsafe(36),
            "JWT_SECRET": secrets.token_urlsafe(36),
            "HYPHA_DISABLE_TELEMETRY": "1",
        }
        self._server: subprocess.Popen | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator["ZooServer"]:
        port = self.storage.rpartition(":")[2]
        storage = self._launch("moto.server", "-H", "127.0.0.1", "-p", port)
        try:
            self.start()
            prepared = subprocess.run(
                [PYTHON, SETUP, self.url],
                env=self._environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
            self.tokens = json.loads(prepared.stdout.splitlines()[-1])
            yield self
        finally:
            self.kill()
            storage.kill()
            storage.wait()

    def start(self) -> None:
        self._server = self._launch(
            "hypha.server",
            "--host=127.0.0.1", f"--port={self.url.rpartition(':')[2]}",
            f"--public-base-url={self.url}",
            "--enable-s3", f"--endpoint-url={self.storage}",
            f"--endpoint-url-public={self.storage}",
            "--access-key-id=localkey", "--secret-access-key=localsecret",
            "--region-name=us-east-1", "--workspace-bucket=hypha-workspaces",
            "--s3-admin-type=generic",
            f"--database-uri=sqlite+aiosqlite:///{self.folder}/hypha.db",
            f"--root-token={self._environment['HYPHA_ROOT_TOKEN']}",
        )  # fmt: skip
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end and self._server.poll() is None:
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{self.url}/health/readiness").is_success:
                    return
            time.sleep(0.25)
        log = (self.folder / "hypha.server.log").read_text()[-2000:]
        message = f"the server of the Zoo does not start:\n{log}"
        raise RuntimeError(message)

    def kill(self) -> None:
        """Stop the server without a farewell."""
        if self._server is not None:
            self._server.send_signal(signal.SIGKILL)
            self._server.wait()
            self._server = None

    def call(self, method: str, *, account: str | None = None, **arguments: object) -> object:
        """Ask the artifact service as another program would."""
        token = self.tokens.get(account or "")
        answer = httpx2.post(
            f"{self.url}/public/services/artifact-manager/{method}",
            json=arguments,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=60,
        )
        assert answer.is_success, answer.text
        return answer.json()

    def _launch(self, module: str, *arguments: str) -> subprocess.Popen:
        with (self.folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [PYTHON, "-m", module, *arguments],
                env=self._environment, cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip
