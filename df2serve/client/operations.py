"""What clients do, without doing it: generators that ask for requests and get their answers.

Both clients drive the same generators, one with blocking calls and one with awaited ones.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, TypeAlias, TypeVar
from urllib.parse import quote

import httpx2

from df2serve.client.problems import Patience, error_of
from df2serve.client.results import JobOutcome, Ranking, Result, parse, result_of
from df2serve.client.uploads import Sent, StoredImage, Upload
from df2serve.config import ClientConfig
from df2serve.errors import (
    ArtifactNotFoundError,
    CancelledError,
    InputError,
    ServiceBusyError,
    ServiceError,
)
from df2serve.service.jobs.schemas import ItemInfo, JobInfo, Manifest
from df2serve.service.schemas import ModelFacts, ModelList, UploadInfo, Validation

__all__ = [
    "Call",
    "Follow",
    "Listener",
    "Steps",
    "cancel",
    "describe",
    "model",
    "models",
    "outcome",
    "predict",
    "ranking",
    "remove",
    "results",
    "submit",
    "upload",
    "validate",
    "wait",
]

T = TypeVar("T")
FormField: TypeAlias = tuple[str, tuple[str | None, BinaryIO | str]]
Listener: TypeAlias = Callable[[JobInfo], None]
"""Told of a job after every change."""


@dataclass(frozen=True)
class Call:
    """A request."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    uploads: tuple[Sent, ...] = ()
    repeatable: bool = True
    """Whether it does the same when it arrives twice."""
    content: bytes | None = None
    """The body, where that is no form."""
    pause_s: float = 0.0
    """How long to wait before it."""

    @contextmanager
    def files(self) -> Iterator[list[FormField] | None]:
        """Give the fields of the form for one attempt."""
        with ExitStack() as stack:
            fields: list[FormField] = []
            for upload in self.uploads:
                if isinstance(upload, StoredImage):
                    fields.append(("upload", (None, upload.id)))
                    continue
                file = upload.file()
                stack.callback(file.close)
                fields.append(("image", (upload.name, file)))
            yield fields or None


@dataclass(frozen=True)
class Follow:
    """Listen to the events of a job until its end; the answer is the last of them."""

    id: str
    listener: Listener | None = None

    @property
    def path(self) -> str:
        """Where they are."""
        return f"/v1/jobs/{self.id}/events"

    def is_last(self, event: httpx2.ServerSentEvent) -> bool:
        """Tell the listener of an event; return whether it is the last one."""
        if self.listener is not None:
            self.listener(parse(JobInfo, event.data))
        return event.event == "end"


Steps: TypeAlias = Generator[Call | Follow, httpx2.Response, T]
"""Gets the answer of each step, or has the error of it thrown in."""
_TUS = {"Tus-Resumable": "1.0.0"}


def models() -> Steps[ModelList]:
    """List the models."""
    return parse(ModelList, (yield Call("GET", "/v1/models")).content)


def model(name: str | None) -> Steps[ModelFacts]:
    """Tell everything of a model, the default one if none is named."""
    name = yield from _named(name)
    return parse(ModelFacts, (yield Call("GET", f"/v1/models/{quote(name, safe='')}")).content)


def validate(name: str | None, upload: Sent, query: Mapping[str, str]) -> Steps[Validation]:
    """Say what a prediction would be."""
    name = yield from _named(name)
    path = f"/v1/models/{quote(name, safe='')}/validate"
    return parse(Validation, (yield Call("POST", path, query, uploads=(upload,))).content)


def predict(name: str | None, upload: Sent, query: Mapping[str, str]) -> Steps[Result]:
    """Predict an image; wait for the job that a long prediction becomes."""
    name = yield from _named(name)
    path = f"/v1/models/{quote(name, safe='')}/predict"
    answer = yield Call("POST", path, query, uploads=(upload,))
    if answer.status_code == httpx2.codes.ACCEPTED:
        job = yield from wait(parse(JobInfo, answer.content).id, None)
        if job.problem is not None:
            raise error_of(int(str(job.problem.get("status", 500))), job.problem)
        if job.state == "dismissed":
            message = f"job {job.id}, which the prediction had become, was dismissed"
            raise CancelledError(message)
        answer = yield Call("GET", f"/v1/jobs/{job.id}/results/0/answer")
    return result_of(answer.content)


def submit(
    name: str | None, uploads: tuple[Sent, ...], query: Mapping[str, str], key: str | None
) -> Steps[JobInfo]:
    """Make a job; it is the same one however often the request arrives."""
    chosen = {} if name is None else {"model": name}
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    answer = yield Call("POST", "/v1/jobs", {**query, **chosen}, headers, uploads)
    return parse(JobInfo, answer.content)


def upload(file: Upload, config: ClientConfig) -> Steps[StoredImage]:
    """Send a file in parts; go on behind what has come where a connection breaks."""
    size, name = file.size, base64.b64encode(file.name.encode()).decode()
    headers = _TUS | {"Upload-Length": str(size), "Upload-Metadata": f"filename {name}"}
    made = yield Call("POST", "/v1/uploads", headers=headers)
    id = parse(UploadInfo, made.content).id
    place = f"/v1/uploads/{quote(id, safe='')}"
    patience, offset = Patience(config), 0
    while offset < size:
        content = file.part(offset, config.chunk_bytes)
        if not content:
            message = f"{file.name} became shorter while it was sent; send it when it is whole"
            raise InputError(message)
        part = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
        try:
            answer = yield Call("PATCH", place, {}, _TUS | part, repeatable=False, content=content)
        except ServiceBusyError as error:
            pause = patience.after_failure(error)
            answer = yield Call("HEAD", place, headers=_TUS, pause_s=pause)
        before, offset = offset, _offset(answer)
        if offset > before:
            patience.renew()
    return StoredImage(id, file.name, size)


def remove(image: StoredImage) -> Steps[None]:
    """Remove an image that was uploaded."""
    yield Call("DELETE", f"/v1/uploads/{quote(image.id, safe='')}", headers=_TUS, repeatable=False)


def _offset(answer: httpx2.Response) -> int:
    text = answer.headers.get("upload-offset", "")
    if not (text.isascii() and text.isdecimal()):
        message = "got an answer without Upload-Offset; is this the address of a df2serve?"
        raise ServiceError(message)
    return int(text)


def describe(id: str) -> Steps[JobInfo]:
    """Tell how a job is."""
    return parse(JobInfo, (yield Call("GET", f"/v1/jobs/{quote(id, safe='')}")).content)


def wait(id: str, listener: Listener | None) -> Steps[JobInfo]:
    """Wait for the end of a job."""
    return parse(JobInfo, (yield Follow(id, listener)).content)


def results(id: str) -> Steps[Manifest]:
    """List the results of a job."""
    return parse(Manifest, (yield Call("GET", f"/v1/jobs/{id}/results")).content)


def outcome(id: str, item: ItemInfo) -> Steps[JobOutcome]:
    """Fetch the result of an image of a job."""
    if item.problem is not None:
        error = error_of(int(str(item.problem.get("status", 500))), item.problem)
        return JobOutcome(item.name, None, error)
    answer = yield Call("GET", f"/v1/jobs/{id}/results/{item.index}/answer")
    return JobOutcome(item.name, result_of(answer.content), None)


def ranking(id: str) -> Steps[Ranking]:
    """List the images of a job by decreasing U."""
    return parse(Ranking, (yield Call("GET", f"/v1/jobs/{id}/ranking")).content)


def cancel(id: str) -> Steps[JobInfo]:
    """Stop a job; one that has ended stays as it is."""
    job = yield from describe(id)
    if job.ended is None:
        yield Call("DELETE", f"/v1/jobs/{id}", repeatable=False)
        job = yield from describe(id)
    return job


def _named(name: str | None) -> Steps[str]:
    if name is not None:
        return name
    default = (yield from models()).default
    if default is None:
        message = "the service has no models; start it with one: df2serve serve ENSEMBLE"
        raise ArtifactNotFoundError(message)
    return default
