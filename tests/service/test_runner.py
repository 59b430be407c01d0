"""Jobs go on after the end of their process, with a pool that answers at once."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from df2serve.service import Settings
from df2serve.service.formats import Rendering
from df2serve.service.jobs.runner import JobRunner
from df2serve.service.jobs.store import ItemSpec, JobSpec, JobStore, now
from df2serve.service.messages import Done
from df2serve.service.metrics import Metrics
from df2serve.service.params import PredictParams
from df2serve.service.pool import Ticket
from df2serve.service.problems import Code, Problem

JOB = "a" * 32
IMAGES = 5


class InstantPool:
    """Answers some images at once, those that come first; all others wait for ever."""

    draining = False

    def __init__(self, answered: int) -> None:
        self.answered = answered
        self.tickets = []

    def find(self, id):
        return None

    def submit(self, task, *, size=0):
        ticket = Ticket(task, size, asyncio.get_running_loop().create_future(), attempts=1)
        self.tickets.append(ticket)
        if len(self.tickets) <= self.answered:
            ticket.future.set_result(Done(id=task.id))
        return ticket


async def begin(state: Path, how: str) -> None:
    """Accept a job, wait until two of its images are done, and end as told."""
    pool = InstantPool(answered=2)
    runner = JobRunner(Settings(state=state), pool, Metrics())
    await runner.start()
    items = tuple(ItemSpec(name=f"{n}", upload="u", size=1, sha256="0" * 64) for n in range(IMAGES))
    spec = JobSpec(
        id=JOB,
        owner="ada",
        created=now(),
        model="m",
        params=PredictParams(),
        rendering=Rendering("json", ()),
        items=items,
        digest="",
    )
    job = await runner.add(spec)
    while len(pool.tickets) < 4:
        await asyncio.sleep(0.01)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    for ticket in pool.tickets:
        if not ticket.future.done():
            ticket.future.set_exception(Problem(Code.DRAINING, "the end"))
    await runner.stop()
    assert job.end is None


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_job_goes_on_with_what_was_not_done(tmp_path, how) -> None:
    command = [sys.executable, __file__, str(tmp_path), how]
    code = subprocess.run(command, check=False).returncode
    assert code == (-signal.SIGKILL if how == "kill" else 0)

    store = JobStore(tmp_path / "jobs")
    missing = [number for number in range(IMAGES) if store.outcome(JOB, number) is None]
    assert len(missing) == IMAGES - 2

    async def go_on() -> tuple[JobRunner, InstantPool]:
        pool = InstantPool(answered=IMAGES)
        runner = JobRunner(Settings(state=tmp_path), pool, Metrics())
        await runner.start()
        async with asyncio.timeout(60):
            async for _ in runner.watch(runner.jobs[JOB]):
                pass
        await runner.stop()
        return runner, pool

    runner, pool = asyncio.run(go_on())
    job = runner.jobs[JOB]
    assert job.state == "successful"
    assert sorted(job.outcomes) == list(range(IMAGES))
    assert sorted(ticket.task.id for ticket in pool.tickets) == [f"{JOB}-{n}" for n in missing]


if __name__ == "__main__":
    asyncio.run(begin(Path(sys.argv[1]), sys.argv[2]))
