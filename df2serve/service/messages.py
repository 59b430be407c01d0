"""What the HTTP process and a worker process say to each other: one line of JSON each.

Pixels never travel in messages; they lie in files, of which messages name the paths.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from df2serve.config import DecodeLimits, Frozen, RuntimeConfig
from df2serve.service.formats import Rendering
from df2serve.service.params import PredictParams
from df2serve.service.schemas import ModelFacts, ResultInfo, Validation
from df2serve.service.tracing import current_trace

__all__ = [
    "LINE_LIMIT",
    "REPORT",
    "REQUEST",
    "Alive",
    "Cancel",
    "Catalog",
    "Configure",
    "Done",
    "Example",
    "Failed",
    "Load",
    "Predict",
    "Progressed",
    "Rank",
    "Report",
    "Request",
    "Started",
    "Unload",
    "Validate",
]

LINE_LIMIT = 64 << 20
"""Bytes of the longest message."""


# -- to a worker --------------------------------------------------------------------------------


class Configure(Frozen):
    """The first message: what the worker is."""

    kind: Literal["configure"] = "configure"
    models: dict[str, str]
    """Sources by name; a name that starts with ``:`` is to become the ensemble's own."""
    warm: bool
    poll_seconds: float | None
    runtime: RuntimeConfig
    limits: DecodeLimits
    model_bytes: int


class Task(Frozen):
    """Something that is answered once."""

    id: str


class Predict(Task):
    """Predict one image and leave the result in a folder."""

    kind: Literal["predict"] = "predict"
    model: str
    image: str
    """Path of the upload."""
    name: str
    """Name of the image for people."""
    sha256: str | None = None
    """Hash of the upload, where it is known."""
    params: PredictParams
    rendering: Rendering
    trace: str | None = Field(default_factory=current_trace)
    """Place in the trace of whoever asks."""
    target: str
    """Folder of the result; what an earlier attempt left there is reused."""


class Validate(Task):
    """Look at the header of an image."""

    kind: Literal["validate"] = "validate"
    model: str
    image: str
    name: str
    params: PredictParams


class Rank(Task):
    """Order the results of several folders, and leave the list in a folder."""

    kind: Literal["rank"] = "rank"
    folders: tuple[str, ...]
    target: str


class Example(Task):
    """Write the example image of a model."""

    kind: Literal["example"] = "example"
    model: str
    target: str


class Thumbnail(Task):
    """Write a small picture of another one."""

    kind: Literal["thumbnail"] = "thumbnail"
    source: str
    target: str


class Load(Task):
    """Load a model, its newest revision."""

    kind: Literal["load"] = "load"
    model: str


class Unload(Task):
    """Free the memory of a model."""

    kind: Literal["unload"] = "unload"
    model: str


class Cancel(Frozen):
    """Stop a task before its next forward pass; it fails then."""

    kind: Literal["cancel"] = "cancel"
    id: str


Request: TypeAlias = Annotated[
    Configure | Predict | Validate | Rank | Example | Thumbnail | Load | Unload | Cancel,
    Field(discriminator="kind"),
]
REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


# -- from a worker ------------------------------------------------------------------------------


class Catalog(Frozen):
    """The models as they are now; comes at the start and after every change."""

    kind: Literal["catalog"] = "catalog"
    models: tuple[ModelFacts, ...]


class Alive(Frozen):
    """The worker is there; comes every few seconds."""

    kind: Literal["alive"] = "alive"


class Started(Frozen):
    """The image of a task was decoded and waits for the device."""

    kind: Literal["started"] = "started"
    id: str
    tiles: int
    passes: int
    """Tiles times members times views."""


class Progressed(Frozen):
    """Tiles of a task were finished."""

    kind: Literal["progressed"] = "progressed"
    id: str
    done: int
    total: int


class Done(Frozen):
    """A task was answered."""

    kind: Literal["done"] = "done"
    id: str
    result: ResultInfo | None = None
    path: str | None = None
    """File of the answer."""
    files: dict[str, str] = Field(default_factory=dict)
    """Path of every output of a prediction, below the task's folder."""
    validation: Validation | None = None


class Failed(Frozen):
    """A task was not answered."""

    kind: Literal["failed"] = "failed"
    id: str
    error: str
    """Name of an exception of ``df2serve.errors``, or of another one."""
    message: str


Report: TypeAlias = Annotated[
    Alive | Catalog | Started | Progressed | Done | Failed, Field(discriminator="kind")
]
REPORT: TypeAdapter[Report] = TypeAdapter(Report)
