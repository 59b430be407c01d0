"""The worker processes, seen from the HTTP process: who does what, and what became of it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from df2serve import errors
from df2serve.config import DecodeLimits, RuntimeConfig
from df2serve.errors import BackendError, Df2ServeError
from df2serve.service.messages import (
    LINE_LIMIT,
    REPORT,
    Alive,
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
    Request,
    Started,
    Thumbnail,
    Unload,
    Validate,
)
from df2serve.service.metrics import Metrics
from df2serve.service.problems import Code, Problem, problem_of
from df2serve.service.schemas import ModelFacts
from df2serve.service.settings import Settings, named_sources

__all__ = ["Pool", "Ticket"]

_log = logging.getLogger(__name__)
_ATTEMPTS = 3
_LOSSES = 10
"""Workers that may end while an image waits in them, without having been begun."""
_STALE_SECONDS = 15.0
"""A worker that was silent for so long is not counted as ready."""
_DEAD_SECONDS = 120.0
"""A worker that was silent for so long is ended."""
_START_SECONDS = 300.0
_UNKNOWN_PASSES = 100
"""Passes that an image counts for as long as its size is not known."""
_THREADS = "OMP_NUM_THREADS"
"""Variable of the environment for threads, which both engines obey."""
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Variable by which PyTorch asks for huge pages, so that large tensors fault a few times only."""

AnyTask = Predict | Validate | Rank | Example | Thumbnail | Load | Unload


@dataclass(eq=False)
class Ticket:
    """A task that was accepted."""

    task: AnyTask
    size: int
    """Bytes of its upload."""
    future: asyncio.Future[Done]
    worker: Worker | None = None
    created: float = field(default_factory=time.monotonic)
    attempts: int = 0
    """How often it was given to a worker."""
    losses: int = 0
    """How often a worker ended that had it."""
    tiles: int | None = None
    passes: int | None = None
    done: int = 0
    """Finished tiles."""
    watchers: list[Callable[[Ticket], None]] = field(default_factory=list)
    """Called after every change."""

    @property
    def remaining(self) -> float:
        """Passes to come: tiles times members times views."""
        if self.passes is None or not self.tiles:
            return _UNKNOWN_PASSES
        return self.passes * (1 - self.done / self.tiles)

    def changed(self) -> None:
        """Tell the watchers."""
        for watcher in list(self.watchers):
            watcher(self)


class Worker:
    """One worker process; a new one takes its place when it ends."""

    def __init__(self, device: str, log_format: str, *, threads: int | None) -> None:
        """Describe it; it does not run yet.

        Args:
            device: what it computes on.
            log_format: of its logs.
            threads: of the processor that it may use; what its engines choose when absent.
        """
        self.device = device
        self._environment = {
            "DF2SERVE_LOG_FORMAT": log_format,
            _HUGE_PAGES: os.environ.get(_HUGE_PAGES, "1"),
        }
        if threads is not None:
            self._environment[_THREADS] = str(threads)
        self.process: asyncio.subprocess.Process | None = None
        self.models: tuple[ModelFacts, ...] = ()
        self.default: str | None = None
        self.tickets: dict[str, Ticket] = {}
        self.heard = 0.0
        self.ready = asyncio.Event()
        self.problem: Df2ServeError | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def silence(self) -> float:
        """Seconds since it was heard last."""
        return time.monotonic() - self.heard

    @property
    def is_fresh(self) -> bool:
        """Whether it was heard of not long ago."""
        return self.ready.is_set() and self.silence < _STALE_SECONDS

    async def start(self) -> asyncio.StreamReader:
        """Start the process; return what it says."""
        ours, theirs = socket.socketpair()
        with theirs:
            secret = ("DF2SERVE_KEYS", "DF2SERVE_DATABASE")
            kept = {k: v for k, v in os.environ.items() if not k.startswith(secret)}
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "df2serve.service.worker",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=kept | self._environment,
                # the terminal's Ctrl-C is for us; we tell it when it is time
                start_new_session=True,
            )
        ours.settimeout(0)
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_LIMIT)
        self.heard = time.monotonic()
        return reader

    def send(self, request: Request) -> None:
        """Give it a request; one that is about to end may never read it."""
        if self._writer is not None:
            self._writer.write(request.model_dump_json().encode() + b"\n")

    async def end(self) -> None:
        """Close the connection, upon which it ends, and make sure that it does."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        process, self.process = self.process, None
        self.ready.clear()
        if process is None:
            return
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Pool:
    """All workers of the service."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Describe the workers; they do not run yet."""
        self._settings = settings
        self._metrics = metrics
        share = _threads_of_each(settings.devices)
        self._workers = [
            Worker(device, settings.log_format, threads=share if device == "cpu" else None)
            for device in settings.devices
        ]
        self._loops: list[asyncio.Task[None]] = []
        self._ending = False
        self._rate: float | None = None
        """Passes per second of one worker, as measured."""
        self.draining = False

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the workers and wait until they have opened the models.

        Raises:
            Df2ServeError: a model cannot be opened, or a worker does not start.
        """
        self._loops = [asyncio.create_task(self._supervise(worker)) for worker in self._workers]
        for worker in self._workers:
            try:
                await asyncio.wait_for(worker.ready.wait(), _START_SECONDS)
            except TimeoutError as error:
                message = f"the worker on {worker.device} did not start in {_START_SECONDS:g} s"
                raise BackendError(message) from error
            if worker.problem is not None:
                raise worker.problem

    async def stop(self) -> None:
        """End the workers; tasks that are left fail."""
        self._ending = True
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await asyncio.gather(*(worker.end() for worker in self._workers))
        for ticket in self.tickets:
            self._fail(
                ticket, Problem(Code.DRAINING, "the service ends; try again", retry_after=10)
            )

    async def drain(self) -> None:
        """Take no further requests, and wait for those that are under way, for a while."""
        self.draining = True
        waiting = [ticket.future for ticket in self.tickets]
        if waiting:
            await asyncio.wait(waiting, timeout=self._settings.drain_seconds)

    # -- models -------------------------------------------------------------------------------

    @property
    def models(self) -> tuple[ModelFacts, ...]:
        """The models, each in the best state that it has in a worker."""
        order = ("failed", "available", "loading", "loaded")
        best: dict[str, ModelFacts] = {}
        for worker in self._workers:
            for facts in worker.models:
                known = best.get(facts.name)
                if known is None or order.index(known.state) < order.index(facts.state):
                    best[facts.name] = facts
        return tuple(best.values())

    def model(self, name: str) -> ModelFacts:
        """Return the facts of a model.

        Raises:
            Problem: there is no such model.
        """
        for facts in self.models:
            if name == facts.name:
                return facts
        known = ", ".join(facts.name for facts in self.models) or "none"
        raise Problem(Code.MODEL_NOT_FOUND, f"there is no such model here; models are {known}")

    @property
    def default(self) -> str | None:
        """Name of the default model."""
        return next((facts.name for facts in self.models if facts.is_default), None)

    def reasons_not_ready(self) -> list[str]:
        """Say why the service takes no requests; nothing when it does."""
        reasons = []
        if self.draining:
            reasons.append("draining")
        if not any(worker.is_fresh for worker in self._workers):
            reasons.append("no worker")
        states = {facts.state for facts in self.models if facts.is_default}
        if self._settings.warm and states and states != {"loaded"}:
            reasons.append(f"default model {states.pop()}")
        if len(self.tickets) >= self._settings.queue:
            reasons.append("queue full")
        return reasons

    # -- tasks --------------------------------------------------------------------------------

    @property
    def tickets(self) -> list[Ticket]:
        """Tasks that were accepted and not answered, oldest first."""
        return [ticket for worker in self._workers for ticket in worker.tickets.values()]

    @property
    def oldest_seconds(self) -> float:
        """Age of the oldest image that waits or is computed; 0 where there is none."""
        created = [ticket.created for ticket in self.tickets if isinstance(ticket.task, Predict)]
        return time.monotonic() - min(created) if created else 0.0

    @property
    def workers(self) -> list[Worker]:
        """All workers."""
        return self._workers

    def find(self, id: str) -> Ticket | None:
        """Return a task that was accepted and not answered."""
        return next((ticket for ticket in self.tickets if ticket.task.id == id), None)

    def backlog_seconds(self) -> float | None:
        """Return how long all that was accepted is going to take, as far as it is known."""
        if self._rate is None:
            return None
        passes = sum(t.remaining for t in self.tickets if isinstance(t.task, Predict))
        return passes / (self._rate * len(self._workers))

    def seconds_for(self, passes: float) -> float | None:
        """Return how long so many passes take, once something was measured."""
        return None if self._rate is None else passes / self._rate

    def admit(self, size: int) -> None:
        """Refuse what would be too much.

        Args:
            size: bytes of the upload.

        Raises:
            Problem: the service is full or about to end.
        """
        settings = self._settings
        if self.draining:
            raise Problem(Code.DRAINING, "the service ends; try again", retry_after=10)
        tickets = [t for t in self.tickets if isinstance(t.task, Predict)]
        if (
            len(tickets) >= settings.queue
            or sum(t.size for t in tickets) + size > settings.queue_bytes
            or sum((t.tiles or 1) - t.done for t in tickets) > settings.queue_tiles
        ):
            share = (self.backlog_seconds() or 5.0) / max(1, len(tickets))
            raise Problem(Code.OVERLOADED, "the queue is full; try again later", retry_after=share)

    def submit(self, task: AnyTask, *, size: int = 0) -> Ticket:
        """Give a task to the worker that has least to do.

        Raises:
            Problem: see :meth:`admit`.
        """
        if isinstance(task, Predict):
            self.admit(size)
        ticket = Ticket(task, size, asyncio.get_running_loop().create_future())
        # a failure that nobody waits for any more is no error of the program
        ticket.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._dispatch(ticket, min(self._workers, key=_load))
        return ticket

    async def ask(self, task: AnyTask) -> Done:
        """Give a task to a worker and wait for the answer.

        Raises:
            Problem: it failed.
        """
        return await self.submit(task).future

    async def ask_all(self, make: Callable[[int], AnyTask]) -> None:
        """Give a task to every worker and wait for all of them.

        Raises:
            Problem: one of them failed.
        """
        loop = asyncio.get_running_loop()
        tickets = []
        for number, worker in enumerate(self._workers):
            ticket = Ticket(make(number), 0, loop.create_future())
            self._dispatch(ticket, worker)
            tickets.append(ticket)
        await asyncio.gather(*(ticket.future for ticket in tickets))

    def cancel(self, ticket: Ticket) -> None:
        """Stop a task before its next forward pass."""
        if ticket.worker is not None and not ticket.future.done():
            ticket.worker.send(Cancel(id=ticket.task.id))

    def _dispatch(self, ticket: Ticket, worker: Worker) -> None:
        ticket.worker = worker
        ticket.attempts += 1
        worker.tickets[ticket.task.id] = ticket
        if worker.ready.is_set():
            worker.send(ticket.task)

    # -- reports ------------------------------------------------------------------------------

    async def _supervise(self, worker: Worker) -> None:
        """Run a worker, and another one whenever it ends."""
        pause = 0.1
        while not self._ending:
            reader = await worker.start()
            worker.send(self._configuration(worker))
            try:
                await self._listen(worker, reader)
            except (OSError, ValueError) as error:
                _log.warning("worker on %s: %s", worker.device, error)
            if worker.ready.is_set():
                pause = 0.1
                self._requeue(worker)
            await worker.end()
            if worker.problem is not None and not worker.models:
                worker.ready.set()  # whoever waits for the start sees the problem
                return
            _log.warning("the worker on %s ended; starting another one", worker.device)
            self._metrics.worker_lost()
            await asyncio.sleep(pause)
            pause = min(2 * pause, 10.0)

    async def _listen(self, worker: Worker, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), _DEAD_SECONDS)
            except TimeoutError:
                _log.error("the worker on %s is silent; ending it", worker.device)
                if worker.process is not None:
                    worker.process.kill()
                return
            if not line:
                return
            worker.heard = time.monotonic()
            self._take(worker, line)

    def _take(self, worker: Worker, line: bytes) -> None:
        report = REPORT.validate_json(line)
        match report:
            case Alive():
                return
            case Catalog():
                worker.models = report.models
                if not worker.ready.is_set():
                    worker.ready.set()
                    for waiting in worker.tickets.values():
                        worker.send(waiting.task)
                return
            case Failed(id="configure"):
                kind = getattr(errors, report.error, Df2ServeError)
                worker.problem = kind(report.message)
                return
        ticket = worker.tickets.get(report.id)
        if ticket is None:
            return
        match report:
            case Started():
                ticket.tiles, ticket.passes = report.tiles, report.passes
            case Progressed():
                self._metrics.tiles(report.done - ticket.done)
                ticket.done, ticket.tiles = report.done, report.total
            case Done():
                del worker.tickets[report.id]
                self._measure(ticket, report)
                if not ticket.future.done():
                    ticket.future.set_result(report)
            case Failed():
                del worker.tickets[report.id]
                if not ticket.future.done():
                    ticket.future.set_exception(problem_of(report.error, report.message))
        ticket.changed()

    def _measure(self, ticket: Ticket, report: Done) -> None:
        if report.result is None or not ticket.passes or report.result.timing.infer <= 0:
            return
        self._metrics.tile_seconds(report.result.timing.infer / (ticket.tiles or 1))
        rate = ticket.passes / report.result.timing.infer
        self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate

    def _requeue(self, worker: Worker) -> None:
        """Keep what a lost worker had for its successor, unless it was lost too often with it."""
        for ticket in list(worker.tickets.values()):
            begun = ticket.tiles is not None
            ticket.tiles = ticket.passes = None
            ticket.done = 0
            ticket.losses += 1
            if ticket.losses >= _LOSSES or (begun and ticket.attempts >= _ATTEMPTS):
                del worker.tickets[ticket.task.id]
                text = f"the worker ended {ticket.losses} times while it had this image"
                self._fail(ticket, Problem(Code.WORKER_LOST, text, retry_after=30))
            elif begun:
                ticket.attempts += 1

    def _fail(self, ticket: Ticket, problem: Problem) -> None:
        if not ticket.future.done():
            ticket.future.set_exception(problem)
        ticket.changed()

    def _configuration(self, worker: Worker) -> Configure:
        settings = self._settings
        return Configure(
            models=named_sources(settings.models),
            warm=settings.warm,
            poll_seconds=settings.poll_seconds,
            runtime=RuntimeConfig().updated(
                backend=settings.backend, device=worker.device, batch_size=settings.batch_size
            ),
            limits=DecodeLimits(
                max_pixels=settings.max_pixels,
                max_channels=settings.max_channels,
                max_file_bytes=settings.max_body_bytes,
                max_seconds=settings.max_decode_seconds,
                max_memory_bytes=settings.max_decode_bytes,
            ),
            model_bytes=settings.model_bytes,
        )


def _threads_of_each(devices: Sequence[str]) -> int | None:
    """Return how many threads each of several workers on the processor gets.

    One has them all, and where the environment says how many, it says so of each.
    """
    sharing = devices.count("cpu")
    if sharing < 2 or _THREADS in os.environ:
        return None
    # those that this process may use, where the system tells
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // sharing)


def _load(worker: Worker) -> tuple[bool, float]:
    """Return what decides who gets the next task, the smallest first."""
    return not worker.ready.is_set(), sum(ticket.remaining for ticket in worker.tickets.values())
