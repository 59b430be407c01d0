"""A process that has the decoders loaded, and forks one for each file before that comes."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

__all__ = ["Ending", "Files", "WarmDecoder", "serve"]

Decode: TypeAlias = Callable[[dict[str, Any], BinaryIO, BinaryIO], None]

_FILES = 6
"""Descriptors of a request: a socket to the decoder, its files, and where the exit code goes."""
_DONE = b"."
"""What a decoder says when its answer is complete."""
_WAITING = 2
"""Decoders that wait for files, where none is busy."""
_PAUSE_SECONDS = 0.02
"""No decoder is forked before nothing happened for so long, because this slows down others."""
_WAKES = 4096
"""Bytes of signals that are taken at once."""


@dataclass(frozen=True)
class Files:
    """Files without names, through which a decoder and its caller exchange what they have."""

    given: BinaryIO
    """The bytes of an upload."""
    output: BinaryIO
    """Takes the answer, and a few pixels."""
    spool: BinaryIO
    """Takes many pixels."""
    complaints: BinaryIO
    """Takes what the decoder prints."""


@dataclass(frozen=True)
class Ending:
    """How a decoder ended."""

    code: int
    """Its exit code, or the negative number of the signal that ended it; 0 if it is done."""
    gone: bool
    """Whether the process has ended, so that nothing can change its output any more."""


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

    def run(self, request: dict[str, Any], files: Files, *, seconds: float) -> Ending | None:
        """Run a decoder; its end is waited for where it left something in the spool.

        Args:
            request: what it is to do.
            files: what it may read and write.
            seconds: how long to wait for it.

        Returns:
            How it ended; None if it took more than the given time.
        """
        reader, writer = os.pipe()
        ours, theirs = socket.socketpair()
        with os.fdopen(reader, "rb") as reply, ours:
            with os.fdopen(writer, "wb") as code, theirs:
                ends = (theirs, files.given, files.output, files.spool, files.complaints, code)
                self._send([end.fileno() for end in ends])
            ours.settimeout(seconds)
            try:
                ours.sendall(json.dumps(request).encode() + b"\n")
                if ours.recv(1) == _DONE and not os.fstat(files.spool.fileno()).st_size:
                    return Ending(0, gone=False)
            except TimeoutError:
                return None
            except ConnectionError:
                pass  # the exit code tells why
            if not select.select([reply], [], [], seconds)[0]:
                return None
            text = reply.read()
        return Ending(int(text) if text else -signal.SIGKILL, gone=True)

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
        decode: reads an image as requested; gets the request, the output and the spool.
        rehearse: called in each decoder while it has nothing to do.
    """
    _Parent(connection, decode, rehearse).serve()


@dataclass(frozen=True)
class _Waiting:
    """A decoder that has no file yet."""

    pid: int
    requests: socket.socket


class _Parent:
    """The process that forks; some decoders wait, the others are busy with a file each."""

    def __init__(
        self, connection: socket.socket, decode: Decode, rehearse: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._decode = decode
        self._rehearse = rehearse
        self._waiting: deque[_Waiting] = deque()
        self._codes: dict[int, int] = {}
        """Descriptors to which the exit codes of busy decoders are written, by process."""
        self._wakes, self._wake = socket.socketpair()
        self._wake.settimeout(0)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # the garbage collector would write to all memory that is shared with the decoders
        gc.freeze()

    def serve(self) -> None:
        while True:
            needed = not self._codes and len(self._waiting) < _WAITING
            pause = _PAUSE_SECONDS if needed else None
            ready, _, _ = select.select([self._connection, self._wakes], [], [], pause)
            if not ready:
                self._fork()
            if self._wakes in ready:
                self._wakes.recv(_WAKES)
                self._reap()
            if self._connection in ready:
                byte, files, _, _ = socket.recv_fds(self._connection, 1, _FILES)
                if not byte:
                    return
                self._hand_over(files)

    def _hand_over(self, files: list[int]) -> None:
        """Give a request to a decoder that waits, or to a new one."""
        *needed, code = files
        handed = False
        while not handed:
            if not self._waiting:
                self._fork()
            first = self._waiting.popleft()
            with first.requests as requests, suppress(OSError):  # it may have been killed
                socket.send_fds(requests, [b"."], needed)
                self._codes[first.pid] = code
                handed = True
        for file in needed:
            os.close(file)

    def _reap(self) -> None:
        """Tell the exit codes of decoders that have ended."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if (code := self._codes.pop(pid, None)) is not None:
                    with suppress(BrokenPipeError):  # whoever asked may not wait for it
                        os.write(code, str(os.waitstatus_to_exitcode(status)).encode())
                    os.close(code)

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid:
            theirs.close()
            self._waiting.append(_Waiting(pid, ours))
            return
        try:
            ours.close()
            self._work(theirs)
        except BaseException:  # noqa: BLE001 - nothing may go on in a forked process
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _work(self, requests: socket.socket) -> None:
        """Wait for one request and answer it, in a forked process."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        others = [waiting.requests for waiting in self._waiting]
        for shared in (*others, self._connection, self._wakes, self._wake):
            shared.close()
        for code in self._codes.values():
            os.close(code)
        if not select.select([requests], [], [], 0)[0]:
            self._rehearse()
        byte, files, _, _ = socket.recv_fds(requests, 1, _FILES)
        if not byte:
            return
        asked, given, output, spool, complaints = files
        for source, target in ((given, 0), (complaints, 1), (complaints, 2)):
            os.dup2(source, target)
        with socket.socket(fileno=asked) as asker:
            with (
                asker.makefile("rb") as lines,
                os.fdopen(output, "wb") as answer,
                os.fdopen(spool, "wb") as many,
            ):
                self._decode(json.loads(lines.readline()), answer, many)
            asker.sendall(_DONE)
