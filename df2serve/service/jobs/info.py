"""From a job to what clients are told of it."""

from __future__ import annotations

from df2serve.service.formats import FORMATS
from df2serve.service.jobs.runner import JobRunner, LiveJob
from df2serve.service.jobs.schemas import (
    Artifact,
    ImageCounts,
    ItemInfo,
    JobInfo,
    Manifest,
    Progress,
)

__all__ = ["MEDIA_TYPES", "artifact_path", "describe", "manifest", "media_type_of"]

MEDIA_TYPES = {
    ".csv": "text/csv",
    ".geojson": "application/geo+json",
    ".json": "application/json",
    ".npz": "application/x-npz",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".zip": "application/zip",
}


def describe(runner: JobRunner, job: LiveJob) -> JobInfo:
    """Return what a client is told of a job."""
    done, total = job.tiles
    states = [outcome.state for outcome in job.outcomes.values()]
    place = f"/v1/jobs/{job.spec.id}"
    attempts = [ticket.attempts for ticket in job.tickets.values()]
    attempts += [outcome.attempts for outcome in job.outcomes.values()]
    return JobInfo(
        id=job.spec.id,
        state=job.state,
        model=job.spec.model,
        created=job.spec.created,
        started=job.started,
        ended=job.end.ended if job.end else None,
        images=ImageCounts(
            total=len(job.spec.items),
            successful=states.count("successful"),
            failed=states.count("failed"),
        ),
        progress=Progress(done=done, total=total),
        queue_position=runner.position(job),
        eta_seconds=runner.seconds_left(job),
        attempts=max(attempts, default=0),
        problem=next((o.problem for _, o in sorted(job.outcomes.items()) if o.problem), None),
        links={
            "self": place,
            "events": f"{place}/events",
            "results": f"{place}/results",
            "ranking": f"{place}/ranking",
        },
    )


def manifest(runner: JobRunner, job: LiveJob) -> Manifest:
    """Return what a client is told of a job's results."""
    return Manifest(
        id=job.spec.id,
        state=job.state,
        items=tuple(_item(runner, job, number) for number in range(len(job.spec.items))),
    )


def artifact_path(job: LiveJob, number: int, name: str) -> str | None:
    """Return where a file of a result is, below the folder of its image."""
    outcome = job.outcomes.get(number)
    if outcome is None:
        return None
    if name == "answer":
        return outcome.answer
    return outcome.files.get(name)


def _item(runner: JobRunner, job: LiveJob, number: int) -> ItemInfo:
    outcome, ticket = job.outcomes.get(number), job.tickets.get(number)
    state = outcome.state if outcome else "running" if ticket else "waiting"
    return ItemInfo(
        index=number,
        name=job.spec.items[number].name,
        state=state,
        progress=ticket and Progress(done=ticket.done, total=ticket.tiles or 0),
        quality=outcome.result.quality if outcome and outcome.result else None,
        problem=outcome.problem if outcome else None,
        artifacts=tuple(_artifacts(runner, job, number)),
    )


def _artifacts(runner: JobRunner, job: LiveJob, number: int) -> list[Artifact]:
    outcome = job.outcomes.get(number)
    if outcome is None or outcome.result is None:
        return []
    folder = runner.store.item(job.spec.id, number)
    place = f"/v1/jobs/{job.spec.id}/results/{number}"
    found = []
    for name in ("answer", *outcome.files):
        path = artifact_path(job, number, name)
        if path is not None and (folder / path).is_file():
            found.append(
                Artifact(
                    name=name,
                    media_type=media_type_of(job, name, path),
                    size=(folder / path).stat().st_size,
                    href=f"{place}/{name}",
                )
            )
    return found


def media_type_of(job: LiveJob, name: str, path: str) -> str:
    """Return the media type of a file of a result."""
    if name == "answer":
        return FORMATS[job.spec.rendering.format].media_type
    return MEDIA_TYPES.get(path[path.rfind(".") :], "application/octet-stream")
