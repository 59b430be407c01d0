"""``/v1/jobs``: predictions that outlive their requests."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field
from starlette.background import BackgroundTask

from df2serve.service.formats import choose, negotiate
from df2serve.service.ingest import Upload, receive_files
from df2serve.service.jobs.info import MEDIA_TYPES, artifact_path, describe, manifest, media_type_of
from df2serve.service.jobs.runner import LiveJob
from df2serve.service.jobs.schemas import JobInfo, JobList, JobState, Manifest
from df2serve.service.jobs.store import ItemSpec, JobSpec, now
from df2serve.service.messages import Rank, Thumbnail
from df2serve.service.problems import Code, Problem
from df2serve.service.routes.context import Context, JobsKey, Service, problems
from df2serve.service.routes.predictions import (
    PredictQuery,
    image_body,
    merged,
    outputs_of,
    params_of,
    repr_digest,
    request_digest,
)

__all__ = ["router"]

router = APIRouter(tags=["jobs"])
JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
ItemNumber = Annotated[int, Path(ge=0, le=1_000_000)]
_KEY = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
_KNOWN = problems(Code.UNAUTHORIZED, Code.FORBIDDEN, Code.JOB_NOT_FOUND, Code.BAD_PARAMETER)
_FILES: dict[str, Any] = {kind: {} for kind in MEDIA_TYPES.values()}
_EVENT_SECONDS = 0.2
"""Shortest time between two events of a job."""


class JobQuery(PredictQuery):
    """Parameters of a new job."""

    model: Annotated[str, Field(max_length=96)] | None = None
    """Model; the default one when absent."""


def _job(id: JobId, service: Service, key: JobsKey) -> LiveJob:
    return service.jobs.get(id, key.name)


Job = Annotated[LiveJob, Depends(_job)]


@router.post(
    "/v1/jobs",
    status_code=202,
    responses=problems(
        Code.MALFORMED_REQUEST,
        Code.UNAUTHORIZED,
        Code.FORBIDDEN,
        Code.MODEL_NOT_FOUND,
        Code.UPLOAD_NOT_FOUND,
        Code.IDEMPOTENCY_CONFLICT,
        Code.UPLOAD_INCOMPLETE,
        Code.BODY_TOO_LARGE,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.BAD_PARAMETER,
        Code.RATE_LIMITED,
        Code.DRAINING,
        Code.INSUFFICIENT_STORAGE,
    ),
    openapi_extra=image_body(many=True),
)
async def create_job(
    query: Annotated[JobQuery, Query()],
    request: Request,
    response: Response,
    service: Service,
    key: JobsKey,
    idempotency_key: _KEY = None,
) -> JobInfo:
    """Accept images, each a field ``image`` of a form, to be predicted when there is time.

    A field ``upload`` with the id of an upload stands for the image that has come with it.
    """
    if service.pool.draining:
        raise Problem(Code.DRAINING, "the service ends; try again", retry_after=10)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        text = "send a form (multipart/form-data) with images as files in the field 'image'"
        raise Problem(Code.UNSUPPORTED_MEDIA_TYPE, text)
    id = _job_id(service, key.name, idempotency_key)
    async with service.folder(uuid.uuid4().hex) as folder:
        uploads, fields = await receive_files(
            request, folder.path, service.take(key), largest=service.settings.max_images
        )
        query = merged(query, fields)
        spec = _spec(service, id, key.name, query, uploads)
        job = service.jobs.jobs.get(id)
        if job is not None:
            if job.spec.digest != spec.digest:
                text = "this Idempotency-Key was used for a job with other images or parameters"
                raise Problem(Code.IDEMPOTENCY_CONFLICT, text)
        elif service.jobs.store.folder(id).exists():
            text = "another request with this Idempotency-Key is under way; try again"
            raise Problem(Code.IDEMPOTENCY_CONFLICT, text)
        else:
            for number, upload in enumerate(uploads):
                target = folder.path / "items" / str(number) / upload.path.name
                target.parent.mkdir(parents=True)
                upload.path.rename(target)
            folder.path = folder.path.rename(service.jobs.store.folder(id))
            job = await service.jobs.add(spec)
            folder.keep = True
    response.headers["Location"] = f"/v1/jobs/{id}"
    return describe(service.jobs, job)


@router.get("/v1/jobs", responses=_KNOWN)
async def list_jobs(
    service: Service,
    key: JobsKey,
    state: JobState | None = None,
    after: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> JobList:
    """List one's own jobs, the newest first."""
    jobs = [job for job in service.jobs.of(key.name) if state in (None, job.state)]
    if after is not None:
        ids = [job.spec.id for job in jobs]
        jobs = jobs[ids.index(after) + 1 :] if after in ids else []
    page = tuple(describe(service.jobs, job) for job in jobs[:limit])
    return JobList(jobs=page, next=page[-1].id if len(jobs) > limit else None)


@router.get("/v1/jobs/{id}", responses=_KNOWN)
async def describe_job(job: Job, service: Service) -> JobInfo:
    """Tell how a job is."""
    return describe(service.jobs, job)


@router.delete("/v1/jobs/{id}", status_code=204, responses=_KNOWN)
async def delete_job(job: Job, service: Service) -> None:
    """Stop a job; one that has ended is removed with its results."""
    await service.jobs.dismiss(job)


@router.get("/v1/jobs/{id}/events", response_class=EventSourceResponse, responses=_KNOWN)
async def job_events(
    job: Job,
    service: Service,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Tell every change of a job as an event, until its end.

    Every event holds the whole job, so that a client that was away goes on with the newest one.
    """
    async for changed in service.jobs.watch(job):
        id = f"{service.jobs.boot}-{changed.version}"
        if id == last_event_id and changed.end is None:
            continue
        kind = "progress" if changed.end is None else "end"
        yield ServerSentEvent(data=describe(service.jobs, changed), event=kind, id=id)
        await asyncio.sleep(_EVENT_SECONDS)


@router.get("/v1/jobs/{id}/results", responses=_KNOWN)
async def job_results(job: Job, service: Service) -> Manifest:
    """List the results of a job, image by image, also while it runs."""
    return await asyncio.to_thread(manifest, service.jobs, job)


@router.get(
    "/v1/jobs/{id}/results/{item}/thumbnail",
    response_class=FileResponse,
    responses=_KNOWN
    | problems(Code.JOB_NOT_READY, Code.NOT_FOUND, Code.RESULT_EXPIRED)
    | {200: {"content": {"image/jpeg": {}}}},
)
async def job_thumbnail(job: Job, service: Service, item: ItemNumber) -> FileResponse:
    """Send a small picture of a result, its overlay."""
    source = _artifact(service, job, item, "overlay")
    id = uuid.uuid4().hex
    target = source.with_name(f"{id}.jpg")
    await service.pool.ask(Thumbnail(id=id, source=str(source), target=str(target)))
    return FileResponse(
        target,
        media_type="image/jpeg",
        headers={"Cache-Control": "private, max-age=3600"},
        background=BackgroundTask(target.unlink, missing_ok=True),
    )


@router.get(
    "/v1/jobs/{id}/results/{item}/{artifact}",
    response_class=FileResponse,
    responses=_KNOWN
    | problems(Code.JOB_NOT_READY, Code.NOT_FOUND, Code.RESULT_EXPIRED, Code.RANGE_NOT_SATISFIABLE)
    | {
        200: {"content": _FILES},
        206: {"description": "The range that was asked for", "content": _FILES},
        304: {"description": "Not changed"},
    },
)
async def job_artifact(
    job: Job,
    service: Service,
    item: ItemNumber,
    artifact: Annotated[str, Path(pattern=r"^[a-z]{1,32}$")],
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """Send a file of a result; parts of it on request (``Range``)."""
    outcome = job.outcomes.get(item)
    if artifact == "result" and outcome is not None and outcome.result is not None:
        return JSONResponse(outcome.result.model_dump(mode="json"))
    path = _artifact(service, job, item, artifact)
    digest = await asyncio.to_thread(_digest, path)
    etag = f'"{digest.hex()}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", **repr_digest(digest)}
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=304, headers=headers)
    return FileResponse(
        path,
        media_type=media_type_of(job, artifact, path.name),
        filename=path.name,
        headers=headers,
    )


@router.get(
    "/v1/jobs/{id}/ranking",
    responses=_KNOWN
    | problems(Code.JOB_NOT_READY)
    | {200: {"content": {"text/csv": {}, "text/html": {}}}},
)
async def job_ranking(job: Job, request: Request, service: Service) -> Response:
    """List the images of a job by decreasing U, as JSON, CSV or HTML."""
    good = [n for n, outcome in sorted(job.outcomes.items()) if outcome.state == "successful"]
    if not good:
        raise Problem(Code.JOB_NOT_READY, "no image of the job has a result yet", retry_after=2)
    target = service.jobs.store.folder(job.spec.id) / "ranking"
    await service.pool.ask(
        Rank(
            id=uuid.uuid4().hex,
            folders=tuple(str(service.jobs.store.item(job.spec.id, n)) for n in good),
            target=str(target),
        )
    )
    content = await asyncio.to_thread((target / "ranking.json").read_bytes)
    accept = request.headers.get("accept", "")
    if "text/csv" in accept:
        return FileResponse(target / "ranking.csv", media_type="text/csv", filename="ranking.csv")
    if "text/html" in accept:
        return Response(_page(json.loads(content)), media_type="text/html")
    return Response(content, media_type="application/json")


def _artifact(service: Context, job: LiveJob, item: int, name: str) -> FilePath:
    """Return a file of a result.

    Raises:
        Problem: it is not there, not yet, or not any more.
    """
    if item >= len(job.spec.items):
        raise Problem(Code.NOT_FOUND, f"the job has {len(job.spec.items)} images, from 0")
    relative = artifact_path(job, item, name)
    if relative is None:
        if item not in job.outcomes:
            raise Problem(Code.JOB_NOT_READY, "this image has no result yet", retry_after=2)
        raise Problem(Code.NOT_FOUND, "this result has no such file")
    path = service.jobs.store.item(job.spec.id, item) / relative
    if not path.is_file():
        raise Problem(Code.RESULT_EXPIRED, "the file was removed")
    return path


def _job_id(service: Context, owner: str, key: str | None) -> str:
    """Return the job's id: random, or always the same for the same key of the same client."""
    if key is None:
        return uuid.uuid4().hex
    return hashlib.blake2b(
        json.dumps([owner, key]).encode(), digest_size=16, key=service.jobs.secret
    ).hexdigest()


def _spec(service: Context, id: str, owner: str, query: JobQuery, uploads: list[Upload]) -> JobSpec:
    name = query.model or service.pool.default
    if name is None:
        raise Problem(Code.MODEL_NOT_FOUND, "the service has no models")
    item = negotiate(None, query.format or "zip")
    if item is None:
        raise Problem(Code.NOT_ACCEPTABLE, "there is no such format")
    rendering = choose(item, outputs_of(query), objects=query.instances is not None)
    params = params_of(query)
    return JobSpec(
        id=id,
        owner=owner,
        created=now(),
        model=service.pool.model(name).name,
        params=params,
        rendering=rendering,
        items=tuple(map(ItemSpec.of, uploads)),
        digest=request_digest(name, params, rendering, uploads),
    )


def _digest(path: Any) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _page(ranking: dict[str, Any]) -> str:
    """Return the review list as a page without scripts."""
    columns = ("rank", "source", "u", "needs_review", "foreground_fraction")
    head = "".join(f"<th>{column}</th>" for column in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row[c]))}</td>" for c in columns) + "</tr>"
        for row in ranking["images"]
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Review list</title>"
        f"<h1>Review list</h1><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )
