"""Jobs as durable workflows: whatever process dies, every job reaches its end exactly once.

A workflow has one step per image. DBOS keeps in a database which steps are done; the steps keep
their results in the store. After a restart DBOS goes on with the workflows that have not ended;
steps that were interrupted run again and reuse what is whole of their results.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from df2serve.errors import OutputError
from df2serve.service.jobs.store import End, JobSpec, JobStore, Outcome, now
from df2serve.service.messages import Predict
from df2serve.service.metrics import Metrics
from df2serve.service.pool import Pool, Ticket
from df2serve.service.problems import Code, Problem
from df2serve.service.settings import Settings
from df2serve.service.uploads import Uploads

if TYPE_CHECKING:
    from df2serve.service.jobs.workflows import Workflows

__all__ = ["JobRunner", "LiveJob"]

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
_WORKFLOWS = "df2serve.service.jobs.workflows"
_IMAGES_AT_ONCE = 8
_IMAGES_OF_A_JOB = 2
_REPEAT_SECONDS = 1.0
_FULL_SECONDS = 0.5


@dataclass(eq=False)
class LiveJob:
    """A job as it is now."""

    spec: JobSpec
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    tickets: dict[int, Ticket] = field(default_factory=dict)
    work: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    """Images that are being done."""
    end: End | None = None
    started: str | None = None
    active: int = 0
    """Workflows of this process that are at work on it."""
    version: int = 0
    """Counts changes."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Replaced with every change."""
    window: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_IMAGES_OF_A_JOB))

    @property
    def state(self) -> str:
        """One of the states of a job."""
        if self.end is not None:
            return self.end.state
        return "running" if self.started else "accepted"

    @property
    def tiles(self) -> tuple[int, int]:
        """Finished tiles and those known so far."""
        done = total = 0
        for ticket in self.tickets.values():
            done += ticket.done
            total += ticket.tiles or 0
        return done, total

    def touch(self) -> None:
        """Tell everybody who waits that something has changed."""
        self.version += 1
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class JobRunner:
    """All jobs of the service."""

    def __init__(self, settings: Settings, pool: Pool, metrics: Metrics) -> None:
        """Describe it; nothing runs yet."""
        self.store = JobStore(settings.state / "jobs")
        self.uploads = Uploads(settings)
        """Images that jobs are going to be made of."""
        self.jobs: dict[str, LiveJob] = {}
        self.boot = secrets.token_hex(4)
        """Tells the events of this process from those of earlier ones."""
        self._settings = settings
        self._pool = pool
        self._metrics = metrics
        self._room = asyncio.Semaphore(_IMAGES_AT_ONCE)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._workflows: Workflows | None = None
        self._ending = False

    # -- life ---------------------------------------------------------------------------------

    async def load(self) -> None:
        """Import what :meth:`start` needs, beside other work."""
        await asyncio.to_thread(import_module, _WORKFLOWS)

    async def start(self) -> None:
        """Go on with the jobs of an earlier process."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._read_all)
        database = self._settings.database
        url = (
            database.get_secret_value()
            if database
            else f"sqlite:///{self._settings.state / 'jobs.sqlite'}"
        )
        module = await asyncio.to_thread(import_module, _WORKFLOWS)
        self._workflows = await asyncio.to_thread(module.Workflows, self, url)
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Stop; jobs that have not ended go on with the next start."""
        self._ending = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        if self._workflows is not None:
            await asyncio.to_thread(self._workflows.stop)

    def _read_all(self) -> None:
        self.uploads.load()
        self.store.sweep()
        for spec in self.store.specs():
            job = LiveJob(spec, end=self.store.end(spec.id))
            for number in range(len(spec.items)):
                outcome = self.store.outcome(spec.id, number)
                if outcome is not None:
                    job.outcomes[number] = outcome
            job.started = spec.created if job.outcomes else None
            self.jobs[spec.id] = job

    @cached_property
    def secret(self) -> bytes:
        """Random bytes that stay the same over restarts; nobody can guess ids without them."""
        path = self._settings.state / "secret"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor is no path
                file.write(secrets.token_bytes(32))
            return path.read_bytes()

    # -- jobs ---------------------------------------------------------------------------------

    async def add(self, spec: JobSpec) -> LiveJob:
        """Accept a job, whose images lie in their folders; it survives everything from now on."""
        await asyncio.to_thread(self.store.create, spec)
        job = self.jobs[spec.id] = LiveJob(spec)
        await self._start_workflow(spec.id)
        return job

    def get(self, id: str, owner: str) -> LiveJob:
        """Return a job.

        Raises:
            Problem: there is none, or it is somebody else's.
        """
        job = self.jobs.get(id)
        if job is None or job.spec.owner != owner:
            raise Problem(Code.JOB_NOT_FOUND, "there is no such job")
        return job

    def of(self, owner: str) -> list[LiveJob]:
        """Return somebody's jobs, the newest first."""
        own = [job for job in self.jobs.values() if job.spec.owner == owner]
        return sorted(own, key=lambda job: (job.spec.created, job.spec.id), reverse=True)

    async def dismiss(self, job: LiveJob) -> None:
        """Stop a job before its next batch of tiles; one that has ended is removed."""
        if job.end is not None:
            del self.jobs[job.spec.id]
            await asyncio.to_thread(self.store.remove, job.spec.id)
            return
        await self._end(job, "dismissed")
        for ticket in job.tickets.values():
            self._pool.cancel(ticket)

    def position(self, job: LiveJob) -> int | None:
        """Return how many jobs were accepted before and have not begun; None once it has."""
        if job.state != "accepted":
            return None
        waiting = [other for other in self.jobs.values() if other.state == "accepted"]
        return sum(other.spec.created < job.spec.created for other in waiting)

    def seconds_left(self, job: LiveJob) -> float | None:
        """Return how long a job is going to take, as far as it can be told."""
        if job.end is not None:
            return None
        known = [t for t in job.tickets.values() if t.passes]
        if not known:
            return self._pool.backlog_seconds()
        mean = sum(t.passes or 0 for t in known) / len(known)
        unseen = (
            len(job.spec.items) - len(job.outcomes) - sum(t.done < (t.tiles or 0) for t in known)
        )
        passes = sum(t.remaining for t in known if t.done < (t.tiles or 0)) + mean * max(0, unseen)
        return self._pool.seconds_for(passes)

    async def watch(self, job: LiveJob) -> AsyncIterator[LiveJob]:
        """Yield a job after every change, until its end."""
        while True:
            changed, ended = job.changed, job.end is not None
            yield job
            if ended:  # not what became of it meanwhile, which is still to be told
                return
            await changed.wait()

    # -- one image ----------------------------------------------------------------------------

    async def process(self, id: str, number: int) -> None:
        """Predict an image of a job, unless that was done before; runs in the service's loop."""
        job = self.jobs.get(id)
        if job is None or job.end is not None or number in job.outcomes:
            return
        if number not in job.work or job.work[number].done():
            job.work[number] = asyncio.create_task(self._process(job, number))
        await asyncio.shield(job.work[number])

    async def _process(self, job: LiveJob, number: int) -> None:
        async with job.window, self._room:
            if job.end is not None:
                return
            ticket = await self._ticket(job, number)
            if ticket is None:
                return
            job.tickets[number] = ticket
            job.started = job.started or now()
            ticket.watchers.append(lambda _: job.touch())
            job.touch()
            try:
                done = await asyncio.shield(ticket.future)
            except Problem as problem:
                if self._ending or problem.code is Code.DRAINING:
                    await asyncio.Event().wait()  # the next process does it again
                outcome = Outcome(
                    state="failed",
                    attempts=ticket.attempts,
                    problem={
                        "code": problem.code.slug,
                        "status": problem.code.status,
                        "title": problem.code.title,
                        "detail": problem.detail,
                    },
                )
            else:
                folder = self.store.item(job.spec.id, number)
                if done.result is not None:
                    self._metrics.result(done.result)
                outcome = Outcome(
                    state="successful",
                    attempts=ticket.attempts,
                    result=done.result,
                    answer=done.path and done.path.removeprefix(f"{folder}/"),
                    files=done.files,
                )
            if job.end is None:
                await self._written(self.store.write_outcome, job.spec.id, number, outcome)
                job.outcomes[number] = outcome
                job.touch()

    async def finish(self, id: str) -> None:
        """Note the end of a job, all of whose images were done."""
        job = self.jobs.get(id)
        if job is None or job.end is not None:
            return
        good = any(outcome.state == "successful" for outcome in job.outcomes.values())
        await self._end(job, "successful" if good else "failed")

    async def _ticket(self, job: LiveJob, number: int) -> Ticket | None:
        """Give an image to the pool as soon as that has room."""
        task_id = f"{job.spec.id}-{number}"
        while job.end is None:
            found = self._pool.find(task_id)
            if found is not None:
                return found  # the request that became this job has begun with it
            try:
                return self._pool.submit(
                    self.task(job.spec, number), size=job.spec.items[number].size
                )
            except Problem:
                await asyncio.sleep(_FULL_SECONDS)
        return None

    def task(self, spec: JobSpec, number: int) -> Predict:
        """Return what a worker is asked to do for an image."""
        folder, item = self.store.item(spec.id, number), spec.items[number]
        return Predict(
            id=f"{spec.id}-{number}",
            model=spec.model,
            image=str(folder / item.upload),
            name=item.name,
            sha256=item.sha256,
            params=spec.params,
            rendering=spec.rendering,
            trace=spec.trace,
            target=str(folder),
        )

    async def _end(self, job: LiveJob, state: Any) -> None:
        end = End(state=state, ended=now())
        job.end = await asyncio.to_thread(self.store.write_end, job.spec.id, end)
        job.touch()

    async def _written(self, write: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Write what must not be lost; wait where that is not possible at present."""
        while True:
            try:
                return await asyncio.to_thread(write, *args, **kwargs)
            except OutputError as error:
                _log.warning("trying again in %g s: %s", _REPEAT_SECONDS, error)
                await asyncio.sleep(_REPEAT_SECONDS)

    async def _start_workflow(self, id: str) -> None:
        # where that fails, the job is accepted, because its folder says so; the sweeper begins it
        if self._workflows is not None:
            await asyncio.to_thread(self._workflows.begin, id)

    async def _sweep(self) -> None:
        """Remove what is old, and go on with jobs whose workflow came to grief."""
        while True:
            for job in [job for job in self.jobs.values() if job.end is None and not job.active]:
                # DBOS goes on with workflows of a process that was killed, but not with those that
                # were stopped, failed or never begun; two of one job share its images
                await self._start_workflow(job.spec.id)
            oldest = time.time() - 3600 * self._settings.result_hours
            for job in list(self.jobs.values()):
                path = self.store.folder(job.spec.id) / "end.json"
                if job.end is not None and path.is_file() and path.stat().st_mtime < oldest:
                    del self.jobs[job.spec.id]
                    await asyncio.to_thread(shutil.rmtree, path.parent, ignore_errors=True)
            await self.uploads.sweep()
            await asyncio.sleep(self._settings.sweep_seconds)

    async def in_service(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop of the service, and wait for it in the loop of DBOS."""
        if self._loop is None:
            message = "the jobs were not started"
            raise RuntimeError(message)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
