"""What clients are told of jobs, as JSON."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import JsonValue

from df2serve.service.schemas import Quality, Schema

__all__ = [
    "Artifact",
    "ImageCounts",
    "ItemInfo",
    "JobInfo",
    "JobList",
    "JobState",
    "Manifest",
    "Progress",
]

JobState: TypeAlias = Literal["accepted", "running", "successful", "failed", "dismissed"]


class Progress(Schema):
    """How far a job is."""

    done: int
    total: int
    """Of the images that were begun so far."""
    unit: Literal["tile"] = "tile"


class ImageCounts(Schema):
    """The images of a job."""

    total: int
    successful: int
    failed: int


class JobInfo(Schema):
    """A job."""

    id: str
    state: JobState
    model: str
    created: str
    """Times are ISO 8601 in UTC."""
    started: str | None
    ended: str | None
    images: ImageCounts
    progress: Progress
    queue_position: int | None
    """Jobs before this one that have not begun either; absent once it has begun."""
    eta_seconds: float | None
    """How long it is going to take; absent where that is not known."""
    attempts: int
    """How often the image that was tried most was given to a worker."""
    problem: dict[str, JsonValue] | None
    """What was wrong with the first image that failed."""
    links: dict[str, str]


class JobList(Schema):
    """Jobs, the newest first."""

    jobs: tuple[JobInfo, ...]
    next: str | None
    """Value of ``after`` that gives the following ones."""


class Artifact(Schema):
    """A file of a result."""

    name: str
    media_type: str
    size: int
    href: str


class ItemInfo(Schema):
    """An image of a job."""

    index: int
    name: str
    state: Literal["waiting", "running", "successful", "failed"]
    progress: Progress | None
    quality: Quality | None
    problem: dict[str, JsonValue] | None
    artifacts: tuple[Artifact, ...]


class Manifest(Schema):
    """The results of a job."""

    id: str
    state: JobState
    items: tuple[ItemInfo, ...]
