"""A process that has the decoders loaded, and forks one for each file before that comes."""

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
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

__all__ = ["WarmDecoder", "serve"]

Decode: TypeAlias = Callable[[dict[str, Any], BinaryIO], None]

_FILES = 5
"""Descriptors of a request: the request, the file, the answer, complaints, and the exit code."""
_WAKES = 4096
"""Bytes of signals that are taken at once."""


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
        trace: TracebackType | None,
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


def serve(connection: socket.socket, decode: Decode, rehearse: Callable[[], None]) -> None:
    """Give every request to a decoder that was forked beforehand, until the connection is closed.

    Args:
        connection: where requests come from.
        decode: reads an image as requested; gets the request and the file of the answer.
        rehearse: called in each decoder while it has nothing to do.
    """
    _Parent(connection, decode, rehearse).serve()


class _Parent:
    """The process that forks; one decoder always waits, the others are busy with a file each."""

    def __init__(
        self, connection: socket.socket, decode: Decode, rehearse: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._decode = decode
        self._rehearse = rehearse
        self._codes: dict[int, int] = {}
        """Descriptors to which the exit codes of busy decoders are written, by process."""
        self._wakes, self._wake = socket.socketpair()
        self._wake.settimeout(0)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._fork()

    def serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._connection, self._wakes], [], [])
            if self._wakes in ready:
                self._wakes.recv(_WAKES)
                self._reap()
            if self._connection in ready:
                byte, files, _, _ = socket.recv_fds(self._connection, 1, _FILES)
                if not byte:
                    return
                self._hand_over(files)

    def _hand_over(self, files: list[int]) -> None:
        """Give a request to the decoder that waits, or to the next one if it was killed."""
        *needed, code = files
        while True:
            try:
                socket.send_fds(self._idle, [b"."], needed)
                break
            except OSError:
                self._idle.close()
                self._fork()
        self._codes[self._pid] = code
        for file in needed:
            os.close(file)
        self._idle.close()
        self._fork()

    def _reap(self) -> None:
        """Tell the exit codes of decoders that have ended."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if (code := self._codes.pop(pid, None)) is not None:
                    with suppress(BrokenPipeError):  # whoever asked may have been killed
                        os.write(code, str(os.waitstatus_to_exitcode(status)).encode())
                    os.close(code)

    def _fork(self) -> None:
        self._idle, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid:
            theirs.close()
            return
        try:
            self._work(theirs)
        except BaseException:  # noqa: BLE001 - nothing may go on in a forked process
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _work(self, requests: socket.socket) -> None:
        """Wait for one request and answer it, in a forked process."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for shared in (self._idle, self._connection, self._wakes, self._wake):
            shared.close()
        for code in self._codes.values():
            os.close(code)
        self._rehearse()
        byte, files, _, _ = socket.recv_fds(requests, 1, _FILES)
        if not byte:
            return
        asked, given, output, complaints = files
        for source, target in ((given, 0), (complaints, 1), (complaints, 2)):
            os.dup2(source, target)
        with os.fdopen(asked, "rb") as request, os.fdopen(output, "wb") as answer:
            self._decode(json.load(request), answer)
