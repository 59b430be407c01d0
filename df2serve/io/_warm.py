"""A process that has the decoders loaded, and forks one for each file."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO, Self

__all__ = ["WarmDecoder", "serve"]

_FILES = 5
"""Descriptors of a request: the request, the file, the answer, complaints, and the exit code."""


class WarmDecoder:
    """Starts decoders within milliseconds, where a new interpreter takes a second.

    The process that forks never looks at a file itself; each decoder looks at one, under the limits
    of its request. It may be used from many threads.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        """Prepare.

        Args:
            environment: what decoders see of it.
        """
        self._environment = environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def __enter__(self) -> Self:
        """Start the process; it loads the decoders meanwhile."""
        with self._lock:
            self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def run(
        self,
        request: dict[str, Any],
        given: BinaryIO,
        output: BinaryIO,
        complaints: BinaryIO,
        *,
        seconds: float,
    ) -> int | None:
        """Run a decoder.

        Returns:
            Its exit code, or the negative number of the signal that ended it; None if it took more
            than the given time.
        """
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as reply:
            with os.fdopen(writer, "wb") as code, tempfile.TemporaryFile() as asked:
                asked.write(json.dumps(request).encode())
                asked.seek(0)
                self._send([file.fileno() for file in (asked, given, output, complaints, code)])
            if not select.select([reply], [], [], seconds)[0]:
                return None
            text = reply.read()
        return int(text) if text else -signal.SIGKILL

    def _send(self, files: list[int]) -> None:
        """Hand over a request; the process is started anew if it has ended."""
        with self._lock:
            for _ in range(2):
                if self._connection is not None:
                    try:
                        socket.send_fds(self._connection, [b"."], files)
                    except OSError:
                        self._end()
                    else:
                        return
                self._start()
            message = "the process that starts decoders ended twice"
            raise OSError(message)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "df2serve.io._decoder", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=self._environment,
            )
        self._connection = ours

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def serve(connection: socket.socket, decode: Any) -> None:
    """Fork a decoder for every request, until the connection is closed.

    Args:
        connection: where requests come from.
        decode: reads an image as requested; gets the request and the file of the answer.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        byte, files, _, _ = socket.recv_fds(connection, 1, _FILES)
        if not byte:
            return
        if os.fork() == 0:
            connection.close()
            _keep(files, decode)
        for file in files:
            os.close(file)


def _keep(files: list[int], decode: Any) -> None:
    """Fork the decoder, wait for it and tell its exit code; never returns."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked, given, output, complaints, code = files
        if (pid := os.fork()) == 0:
            os.close(code)
            for source, target in ((given, 0), (complaints, 1), (complaints, 2)):
                os.dup2(source, target)
            with os.fdopen(asked, "rb") as request, os.fdopen(output, "wb") as answer:
                decode(json.load(request), answer)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):  # whoever asked may have been killed
            os.write(code, str(os.waitstatus_to_exitcode(status)).encode())
    except BaseException:  # noqa: BLE001 - nothing may go on in a forked process
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)
