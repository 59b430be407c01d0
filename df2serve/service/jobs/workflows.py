"""Jobs as workflows of DBOS, which is imported here only: it takes a while."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID, error
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from df2serve.service.jobs.runner import JobRunner

__all__ = ["Workflows"]

_log = logging.getLogger(__name__)
_VERSION = "1"
"""Version of the workflow's steps; a change of it would leave running jobs behind."""


class Workflows:
    """The workflows of the one runner of this process; calls block."""

    runner: JobRunner | None = None
    """DBOS is one per process, and its workflows are functions of a module."""

    def __init__(self, runner: JobRunner, database: str) -> None:
        """Go on with the workflows of an earlier process.

        Args:
            runner: does the work.
            database: URL of SQLAlchemy.
        """
        Workflows.runner = runner
        self._boot = secrets.token_hex(4)
        config: DBOSConfig = {
            "name": "df2serve",
            "system_database_url": database,
            "executor_id": "df2serve-0",
            "application_version": _VERSION,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
        }
        DBOS(config=config)
        DBOS.launch()

    def begin(self, id: str) -> None:
        """Begin with a job; where that fails, the job is as it was."""
        try:
            with SetWorkflowID(f"{id}-{self._boot}-{secrets.token_hex(4)}"):
                DBOS.start_workflow(_job, id)
        except (SQLAlchemyError, error.DBOSException):
            _log.exception("job %s cannot be begun at present", id)

    def stop(self) -> None:
        """Stop; workflows that have not ended go on with the next start."""
        # it reports every workflow that stops as an error
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        DBOS.destroy()
        Workflows.runner = None


def _runner() -> JobRunner:
    if Workflows.runner is None:
        message = "the service does not run"
        raise RuntimeError(message)
    return Workflows.runner


@DBOS.workflow(name="df2serve.job", max_recovery_attempts=100)
async def _job(id: str) -> None:
    job = _runner().jobs.get(id)
    if job is None:  # it was removed
        return
    job.active += 1
    try:
        await asyncio.gather(*(_image(id, number) for number in range(len(job.spec.items))))
        await _finish(id)
    finally:
        job.active -= 1


@DBOS.step(name="df2serve.image")
async def _image(id: str, number: int) -> None:
    runner = _runner()
    await runner.in_service(runner.process(id, number))


@DBOS.step(name="df2serve.finish")
async def _finish(id: str) -> None:
    runner = _runner()
    await runner.in_service(runner.finish(id))
