"""What is known of jobs on disk: one folder each, every file whole or not there.

    jobs/ID/job.json              what was asked for, by whom
    jobs/ID/end.json              how it ended, once it did
    jobs/ID/items/N/              one image: upload, results, outcome.json
    jobs/ID/ranking/              the review list, made when asked for

A folder without ``job.json`` belongs to a request that is under way.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from df2serve.config import Frozen
from df2serve.service.formats import Rendering
from df2serve.service.ingest import Upload
from df2serve.service.params import PredictParams
from df2serve.service.records import read_record, write_record
from df2serve.service.schemas import ResultInfo
from df2serve.service.tracing import current_trace

__all__ = ["End", "ItemSpec", "JobSpec", "JobStore", "Outcome", "now"]


class ItemSpec(Frozen):
    """One image of a job."""

    name: str
    upload: str
    """Name of the file in the item's folder."""
    size: int
    sha256: str

    @classmethod
    def of(cls, upload: Upload) -> ItemSpec:
        """Describe an upload."""
        return cls(
            name=upload.name, upload=upload.path.name, size=upload.size, sha256=upload.sha256
        )


class JobSpec(Frozen):
    """What a job is."""

    id: str
    owner: str
    created: str
    """ISO 8601 in UTC."""
    model: str
    params: PredictParams
    rendering: Rendering
    items: tuple[ItemSpec, ...]
    trace: str | None = Field(default_factory=current_trace)
    """Place in the trace of the request that made it."""
    digest: str
    """Hash of everything that was asked for; tells whether a repeated request is the same."""


class Outcome(Frozen):
    """What became of an image."""

    state: Literal["successful", "failed"]
    attempts: int
    result: ResultInfo | None = None
    answer: str | None = None
    """Path of the file in the format of the job, below the item's folder."""
    files: dict[str, str] = Field(default_factory=dict)
    """Path of every output, below the item's folder."""
    problem: dict[str, JsonValue] | None = None


class End(Frozen):
    """How a job ended."""

    state: Literal["successful", "failed", "dismissed"]
    ended: str


class JobStore:
    """The folder of jobs."""

    def __init__(self, root: Path) -> None:
        """Use a folder; it is created where needed."""
        self.root = root

    def folder(self, id: str) -> Path:
        """Return the folder of a job."""
        return self.root / id

    def item(self, id: str, number: int) -> Path:
        """Return the folder of an image."""
        return self.root / id / "items" / str(number)

    def create(self, spec: JobSpec) -> None:
        """Make a job of a folder; from now on it survives restarts."""
        write_record(self.folder(spec.id) / "job.json", spec)

    def spec(self, id: str) -> JobSpec | None:
        """Return what a job is."""
        return read_record(self.folder(id) / "job.json", JobSpec)

    def end(self, id: str) -> End | None:
        """Return how a job ended, if it did."""
        return read_record(self.folder(id) / "end.json", End)

    def write_end(self, id: str, end: End) -> End:
        """Note how a job ended; return what was said first, which is right."""
        found = self.end(id)
        if found is None:
            write_record(self.folder(id) / "end.json", end)
        return found or end

    def outcome(self, id: str, number: int) -> Outcome | None:
        """Return what became of an image, once it is known."""
        return read_record(self.item(id, number) / "outcome.json", Outcome)

    def write_outcome(self, id: str, number: int, outcome: Outcome) -> None:
        """Note what became of an image."""
        write_record(self.item(id, number) / "outcome.json", outcome)

    def specs(self) -> Iterator[JobSpec]:
        """Yield all jobs, in no order."""
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            spec = self.spec(folder.name)
            if spec is not None:
                yield spec

    def remove(self, id: str) -> None:
        """Remove a job and everything of it."""
        shutil.rmtree(self.folder(id), ignore_errors=True)

    def sweep(self) -> None:
        """Remove what requests that were under way have left; call it at the start only."""
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in self.root.iterdir():
            if not (folder / "job.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)


def now() -> str:
    """Return the time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
