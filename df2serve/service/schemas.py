"""What the service answers with, as JSON; also what its processes tell each other of results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue

from df2serve.config import Frozen

__all__ = [
    "ClassFacts",
    "ImageFacts",
    "InputFacts",
    "ModelFacts",
    "ModelList",
    "ModelRef",
    "ObjectFacts",
    "PixelSizeFacts",
    "Quality",
    "ReferenceFacts",
    "ResultInfo",
    "Schema",
    "ThresholdFacts",
    "Timing",
    "UploadInfo",
    "UploadList",
    "Validation",
]


class Schema(BaseModel):
    """Base of what clients get: immutable, described by its docstrings, no NaN."""

    model_config = Frozen.model_config


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PixelSizeFacts(Schema):
    """Edge lengths of a pixel in micrometers."""

    y_um: float
    x_um: float


class ClassFacts(Schema):
    """One class; its value in masks is its position."""

    name: str
    color: str


class ThresholdFacts(Schema):
    """U from which on a prediction is to be reviewed."""

    value: float
    """U_min."""
    source: Literal["held_out", "out_of_fold"]
    """What the reference images are; ``out_of_fold`` carries no guarantee."""
    references: int
    """Reference images."""
    meaning: str
    """A sentence for people."""


class ReferenceFacts(Schema):
    """U of the images whose predictions were compared with the truth."""

    source: Literal["held_out", "out_of_fold"]
    """What they are; ``out_of_fold`` images are those of the training."""
    scores: tuple[float, ...]
    """In increasing order."""


class ModelFacts(Schema):
    """Everything that a client needs to know of a model."""

    name: str
    """Name in addresses."""
    is_default: bool = False
    id: str
    """Identifier of the ensemble."""
    title: str
    description: str
    license: str | None
    """License of the ensemble; absent where its author states none."""
    card: str | None
    """The model card in Markdown."""
    revision: str
    """First letters of ``sha256``."""
    sha256: Sha256
    """Hash of the manifest, which holds the hashes of everything else."""
    state: Literal["available", "loading", "loaded", "failed"] = "available"
    """Whether a worker has it in memory; ``available`` models are loaded by their first request."""
    resident_bytes: int = 0
    """Memory that its weights take."""
    load_seconds: float | None = None
    """How long it took to load them; absent where they are not loaded."""
    axes: Literal["CYX"] = "CYX"
    """Axes of what the networks see: channels, rows and columns."""
    channels: tuple[str, ...]
    """Names of the channels in order."""
    classes: tuple[ClassFacts, ...]
    """Classes by their value in masks, the background first."""
    pixel_size_um: PixelSizeFacts | None
    """Of the images of the training."""
    normalization: dict[str, JsonValue]
    """How intensities become network input."""
    tile_shape: tuple[int, int]
    """Rows and columns of a tile."""
    zoom_out: float
    """Pixels of an image per pixel that the networks see."""
    members: int
    """Number of networks."""
    has_distance: bool
    """Whether the networks give a distance, by which objects that touch are told apart."""
    config: dict[str, JsonValue]
    """Settings that the author recommends."""
    threshold: ThresholdFacts | None
    """Absent where the ensemble carries no U_min."""
    references: ReferenceFacts | None
    """What U compares with; absent where the ensemble carries none."""
    has_example: bool
    """Whether the model has an example image, at ``/v1/models/{name}/example``."""
    limits: dict[str, int | float] = Field(default_factory=dict)
    """Largest requests."""


class ModelList(Schema):
    """The models of the service."""

    models: tuple[ModelFacts, ...]
    default: str | None
    """Name of the model that is used where none is named."""


class ModelRef(Schema):
    """Which model made a result."""

    name: str
    id: str
    revision: str
    sha256: Sha256
    members: int
    """Networks that took part."""


class ImageFacts(Schema):
    """An image as its file describes it."""

    name: str
    format: str
    axes: str | None
    """The stored axes in order."""
    shape: tuple[int, ...]
    """Channels, rows and columns."""
    dtype: str
    pixel_size_um: PixelSizeFacts | None
    channel_names: tuple[str, ...] | None = None


class InputFacts(ImageFacts):
    """An image that was predicted."""

    sha256: Sha256 | None
    """Hash of the file."""


class Quality(Schema):
    """How much a result is to be doubted; higher is worse."""

    uncertainty_score: float | None
    """U (eq. 5): mean total uncertainty over the predicted foreground."""
    undefined_reason: str | None
    """Why there is no U."""
    u_epistemic: float | None
    u_class_balanced: float | None
    one_minus_expected_dice: float | None
    foreground_fraction: float
    empty_prediction: bool
    """No pixel is predicted as foreground."""
    u_min: float | None
    """Threshold (eq. 8); absent where the ensemble carries none."""
    u_min_source: str | None
    needs_review: bool | None
    """U at or above the threshold, or undefined; absent where there is no threshold."""
    percentile: float | None
    """Share of the reference images with a smaller U, in percent; absent without references."""
    warnings: tuple[str, ...]


class ObjectFacts(Schema):
    """How many objects there are."""

    kept: int
    removed: int
    """Too small ones."""
    removed_px: int
    """Pixels of these."""


class Timing(Schema):
    """Where the time went, in seconds."""

    queue: float
    """Waiting for a worker, and for the device while other images had it."""
    decode: float
    infer: float
    encode: float


class ResultInfo(Schema):
    """A result without its pixels."""

    schema_version: Literal[1] = 1
    model: ModelRef
    input: InputFacts
    params: dict[str, JsonValue]
    """Parameters of the request that were given."""
    config: dict[str, JsonValue]
    """Settings in effect."""
    quality: Quality
    largest_uncertainty: float
    """The largest value that an uncertainty map can take; shown brightest in its picture."""
    classes: tuple[ClassFacts, ...]
    class_fractions: tuple[float, ...]
    """Share of the pixels predicted as each class."""
    instances: ObjectFacts | None
    files: dict[str, Sha256]
    """Hash of every output that was made."""
    timing: Timing
    software: dict[str, str]
    """df2serve's version, engine, device and precision."""


class Validation(Schema):
    """What a prediction of an image would be, told from its header alone."""

    valid: bool
    """Whether the image can be predicted with these parameters."""
    image: ImageFacts
    tiles: int
    """Tiles of the image."""
    passes: int
    """Tiles times members times views."""
    seconds: float | None
    """How long the computation is going to take; absent before the first measurement."""
    warnings: tuple[str, ...]


class UploadInfo(Schema):
    """An image that comes in several requests."""

    id: str
    name: str
    length: int
    """Bytes, once it is whole."""
    offset: int
    """Bytes that have come."""
    created: str
    """Times are ISO 8601 in UTC."""
    expires: str
    """When it is removed; later with every byte."""


class UploadList(Schema):
    """One's own uploads."""

    uploads: tuple[UploadInfo, ...]
