"""What every route may use of the running service."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from df2serve.service.auth import Principal, allowed
from df2serve.service.ingest import Take
from df2serve.service.jobs.runner import JobRunner
from df2serve.service.metrics import Metrics
from df2serve.service.pool import Pool
from df2serve.service.problems import Code, ProblemDetails
from df2serve.service.settings import Settings
from df2serve.service.uploads import Uploads

__all__ = [
    "AdminKey",
    "Context",
    "Folder",
    "JobsKey",
    "MetricsKey",
    "PredictKey",
    "Service",
    "problems",
]


@dataclass
class Folder:
    """Where the files of a request lie."""

    path: Path
    keep: bool = False
    """Somebody else is going to remove it."""


@dataclass(frozen=True)
class Context:
    """The parts of the running service."""

    settings: Settings
    pool: Pool
    metrics: Metrics
    jobs: JobRunner

    @property
    def uploads(self) -> Uploads:
        """Images that came before the requests that use them."""
        return self.jobs.uploads

    def take(self, key: Principal) -> Take:
        """Return what gives a client its uploads."""
        return partial(self.uploads.take, owner=key.name)

    @asynccontextmanager
    async def folder(self, id: str) -> AsyncIterator[Folder]:
        """Give the folder of a request; it is removed at the end, unless it is to be kept."""
        folder = Folder(self.jobs.store.folder(id))
        folder.path.mkdir(parents=True)
        try:
            yield folder
        finally:
            if not folder.keep:
                shutil.rmtree(folder.path, ignore_errors=True)


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Service = Annotated[Context, Depends(_context)]
PredictKey = Annotated[Principal, Depends(allowed("predict"))]
JobsKey = Annotated[Principal, Depends(allowed("jobs"))]
AdminKey = Annotated[Principal, Depends(allowed("admin"))]
MetricsKey = Annotated[Principal, Depends(allowed("metrics"))]


def problems(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of error answers for the OpenAPI document."""
    titles: dict[int, list[str]] = {}
    for code in codes:
        titles.setdefault(code.status, []).append(f"`{code.slug}`: {code.title}")
    return {
        status: {
            "model": ProblemDetails,
            "description": "; ".join(texts),
            "content": {"application/problem+json": {}},
        }
        for status, texts in titles.items()
    }
