"""What a worker does with the requests that it reads from its socket."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, assert_never

from df2serve.errors import CancelledError, Df2ServeError, OutputError
from df2serve.files import lacks_room
from df2serve.io.isolation import WarmDecoder, warm_decoder
from df2serve.service.messages import (
    LINE_LIMIT,
    REQUEST,
    Cancel,
    Catalog,
    Configure,
    Done,
    Example,
    Failed,
    Load,
    Predict,
    Progressed,
    Rank,
    Report,
    Request,
    Started,
    Thumbnail,
    Unload,
    Validate,
)
from df2serve.service.tracing import span, start_tracing, stop_tracing
from df2serve.service.worker.prediction import Bench
from df2serve.service.worker.shelf import Shelf
from df2serve.service.worker.smaller import rank, validate, write_example, write_thumbnail
from df2serve.service.worker.turns import Turns

__all__ = ["serve"]

_log = logging.getLogger(__name__)
_LARGE_PIXELS = 1 << 24
"""Images with more pixels have few threads of their own, so that small ones find one."""
_THREADS = {"decode": 2, "small": 8, "large": 2, "other": 2}


class Worker:
    """Runs requests in threads, of which one at a time computes."""

    def __init__(
        self, configure: Configure, send: Callable[[Report], None], warm: WarmDecoder
    ) -> None:
        """Open the models.

        Raises:
            ArtifactError: one of them cannot be opened.
        """
        self._send = send
        self._cancels: dict[str, threading.Event] = {}
        self._pools = {
            name: ThreadPoolExecutor(count, thread_name_prefix=name)
            for name, count in _THREADS.items()
        }
        self._shelf = Shelf(
            configure.models,
            runtime=configure.runtime,
            budget=configure.model_bytes,
            changed=self._tell_catalog,
        )
        self._bench = Bench(self._shelf, Turns(), configure.runtime, configure.limits, warm)
        self._tell_catalog()
        if configure.warm and self._shelf.default is not None:
            self._pools["other"].submit(self._warm, self._shelf.default)
        if configure.poll_seconds is not None:
            poll = threading.Thread(target=self._poll, args=[configure.poll_seconds], daemon=True)
            poll.start()

    def take(self, request: Request) -> None:
        """Begin with a request; it is answered later."""
        match request:
            case Configure():
                pass
            case Cancel():
                if (event := self._cancels.get(request.id)) is not None:
                    event.set()
            case Predict():
                self._cancels[request.id] = threading.Event()
                self._pools["decode"].submit(self._guarded, request.id, self._decode, request)
            case Validate() | Rank() | Example() | Thumbnail() | Load() | Unload():
                self._pools["other"].submit(self._guarded, request.id, self._small, request)
            case _:
                assert_never(request)

    def _small(self, request: Validate | Rank | Example | Thumbnail | Load | Unload) -> None:
        """Do what takes no device."""
        match request:
            case Validate():
                self._send(Done(id=request.id, validation=validate(self._bench, request)))
            case Rank():
                self._send(Done(id=request.id, path=str(rank(request))))
            case Example():
                self._send(Done(id=request.id, path=str(write_example(self._shelf, request))))
            case Thumbnail():
                self._send(Done(id=request.id, path=str(write_thumbnail(request))))
            case Load():
                self._shelf.refresh(request.model)
                self._send(Done(id=request.id))
            case Unload():
                self._shelf.unload(request.model)
                self._send(Done(id=request.id))

    def _decode(self, task: Predict) -> None:
        started = time.perf_counter()
        self._check(task.id)
        self._shelf.ensemble(task.model)
        with span("decode", task.trace):
            image = self._bench.decode(task)
        seconds = time.perf_counter() - started
        lane = "large" if image.shape[1] * image.shape[2] > _LARGE_PIXELS else "small"

        def compute() -> None:
            answer = self._bench.predict(
                task,
                image,
                decode_seconds=seconds,
                started=lambda tiles, passes: self._send(
                    Started(id=task.id, tiles=tiles, passes=passes)
                ),
                progressed=lambda done, total: self._send(
                    Progressed(id=task.id, done=done, total=total)
                ),
                cancelled=self._cancels[task.id],
            )
            self._cancels.pop(task.id, None)
            self._send(
                Done(
                    id=task.id,
                    result=answer.result,
                    path=str(answer.path),
                    files=answer.files,
                )
            )

        self._pools[lane].submit(self._guarded, task.id, compute)

    def _check(self, id: str) -> None:
        if self._cancels[id].is_set():
            message = "the prediction was cancelled"
            raise CancelledError(message)

    def _guarded(self, id: str, work: Callable[..., None], *arguments: object) -> None:
        """Run a part of a task; whatever it raises is the answer."""
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - becomes the answer
            if not isinstance(error, Df2ServeError):
                _log.exception("task %s failed", id)
            full = isinstance(error, OSError) and lacks_room(error)
            kind = OutputError if full else type(error)
            self._cancels.pop(id, None)
            self._send(Failed(id=id, error=kind.__name__, message=str(error)))

    def _warm(self, name: str) -> None:
        try:
            with self._shelf.borrow(name, self._shelf.ensemble(name).manifest.inference.precision):
                pass
        except Df2ServeError:
            _log.exception("model %s cannot be loaded", name)

    def _poll(self, seconds: float) -> None:
        """Look for new revisions now and then, and take them; what cannot be used is left alone."""
        while True:
            time.sleep(seconds)
            for name in self._shelf.names:
                try:
                    if self._shelf.is_outdated(name):
                        self._shelf.refresh(name)
                except (Df2ServeError, OSError):
                    _log.exception("the new revision of model %s cannot be used", name)

    def _tell_catalog(self) -> None:
        if hasattr(self, "_shelf"):
            self._send(Catalog(models=self._shelf.facts()))


def serve(lines: BinaryIO, send: Callable[[Report], None]) -> None:
    """Do what is asked for until nobody asks any more.

    Args:
        lines: requests, the configuration first.
        send: takes the answers.
    """
    start_tracing()
    configure = REQUEST.validate_json(lines.readline(LINE_LIMIT))
    if not isinstance(configure, Configure):
        message = f"the first message is {configure.kind}, expected configure"
        raise TypeError(message)
    with warm_decoder() as warm:
        try:
            worker = Worker(configure, send, warm)
        except Df2ServeError as error:
            send(Failed(id="configure", error=type(error).__name__, message=str(error)))
            return
        for line in iter(lambda: lines.readline(LINE_LIMIT), b""):
            worker.take(REQUEST.validate_json(line))
    stop_tracing()
