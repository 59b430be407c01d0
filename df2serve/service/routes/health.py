"""Whether the service lives and is ready, and its measures."""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

from fastapi import APIRouter, Response

from df2serve._version import __version__
from df2serve.service.jobs.schemas import JobState
from df2serve.service.problems import Code
from df2serve.service.routes.context import Context, MetricsKey, Service, problems
from df2serve.service.schemas import Schema

__all__ = ["router"]

router = APIRouter(tags=["operation"])


class Health(Schema):
    """State of the service."""

    status: Literal["ok", "not_ready"]
    reasons: tuple[str, ...] = ()
    """Why it takes no requests."""


class Version(Schema):
    """Version of the service."""

    df2serve: str


@router.get("/livez", include_in_schema=False)
@router.get("/v1/health/live")
async def live() -> Health:
    """Answer as long as the process runs."""
    return Health(status="ok")


@router.get("/readyz", include_in_schema=False)
@router.get("/health", include_in_schema=False)
@router.get("/ping", include_in_schema=False)
@router.get("/v1/health/ready", responses={503: {"model": Health}})
async def ready(service: Service, response: Response) -> Health:
    """Say whether requests are taken: a worker lives, its default model is there, and so on."""
    reasons = service.pool.reasons_not_ready()
    if reasons:
        response.status_code = 503
        return Health(status="not_ready", reasons=tuple(reasons))
    return Health(status="ok")


@router.get("/version")
async def version() -> Version:
    """Tell the version."""
    return Version(df2serve=__version__)


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems(Code.UNAUTHORIZED, Code.FORBIDDEN)
    | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(service: Service, _: MetricsKey) -> Response:
    """Tell the measures in Prometheus's text format."""
    _update_gauges(service)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _update_gauges(service: Context) -> None:
    metrics, pool = service.metrics, service.pool
    metrics.queue_depth.set(len(pool.tickets))
    metrics.queue_oldest.set(pool.oldest_seconds)
    states = Counter(job.state for job in service.jobs.jobs.values())
    for state in get_args(JobState):
        metrics.jobs.labels(state).set(states[state])
    for worker in pool.workers:
        metrics.heartbeat.labels(worker.device).set(worker.silence)
    for facts in pool.models:
        metrics.resident.labels(facts.name).set(facts.resident_bytes)
        if facts.load_seconds is not None:
            metrics.load.labels(facts.name).set(facts.load_seconds)
