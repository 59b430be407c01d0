"""What becomes of tasks whose worker ends, without any."""

import asyncio

import pytest

from df2serve.service import Settings
from df2serve.service.messages import Rank
from df2serve.service.metrics import Metrics
from df2serve.service.pool import Pool
from df2serve.service.problems import Code


@pytest.mark.parametrize(("begun", "times"), [(True, 3), (False, 10)])
def test_tasks_that_no_worker_survives_are_given_up(tmp_path, begun, times) -> None:
    """Those that only waited are given up later, because others may be to blame."""

    async def lose() -> tuple[int, Exception]:
        pool = Pool(Settings(state=tmp_path, devices=("cpu",)), Metrics())
        (worker,) = pool.workers
        ticket = pool.submit(Rank(id="a", folders=(), target=""))
        lost = 0
        while not ticket.future.done():
            ticket.tiles = 4 if begun else None
            pool._requeue(worker)
            lost += 1
        assert not pool.tickets
        return lost, ticket.future.exception()

    lost, error = asyncio.run(lose())
    assert lost == times
    assert error.code is Code.WORKER_LOST
