"""``ensemble.json``: everything an ensemble says about itself.

The format's rules are in docs/artifact-format.md. Unknown keys are errors; a file is trusted only
with the size and hash recorded here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from df2serve.config import (
    PRESETS,
    Frozen,
    InferenceConfig,
    Normalization,
    TrainingNormalization,
    describe_validation_error,
)
from df2serve.errors import ManifestError

__all__ = [
    "SCHEMA_VERSION",
    "Calibration",
    "ChannelInfo",
    "ClassInfo",
    "FileEntry",
    "Manifest",
    "Member",
    "PixelSizeInfo",
    "ReviewThreshold",
    "WeightsOrigin",
    "build_manifest",
    "parse_calibration",
    "parse_manifest",
]

SCHEMA_VERSION = 1


def _portable(path: str) -> str:
    """Accept plain relative POSIX paths only: nothing that can leave the folder on any system."""
    parts = PurePosixPath(path).parts
    bad = any(character in path for character in '\\:*?"<>|\0') or not path
    if bad or path.startswith("/") or ".." in parts or "/".join(parts) != path:
        message = "must be a plain relative path with forward slashes"
        raise ValueError(message)
    return path


RelativePath: TypeAlias = Annotated[str, Field(max_length=255), AfterValidator(_portable)]


class FileEntry(Frozen):
    """Size and hash of one file of the ensemble."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class ClassInfo(Frozen):
    """One class; its index is its position."""

    name: Annotated[str, Field(min_length=1)]
    color: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
    """Display color, ``#rrggbb``."""


class ChannelInfo(Frozen):
    """One input channel; its index is its position."""

    name: Annotated[str, Field(min_length=1)]


class PixelSizeInfo(Frozen):
    """Edge lengths of a pixel of the training images in micrometers."""

    y_um: Annotated[float, Field(gt=0)]
    x_um: Annotated[float, Field(gt=0)]


class Member(Frozen):
    """One network of the ensemble: a folder that plain segmentation-models-pytorch can load."""

    folder: RelativePath
    """Holds ``config.json`` and ``model.safetensors``."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """Cross-validation fold that it did not see."""
    validation: dict[str, float] = Field(default_factory=dict)
    """Scores on that fold by metric name."""


class WeightsOrigin(Frozen):
    """Where the encoder's weights started from."""

    name: str
    """Name in timm or of the file; ``random`` for none."""
    license: str | None = None
    """Licence of these weights, as an SPDX identifier where one exists."""


class Manifest(Frozen):
    """The content of ``ensemble.json``."""

    schema_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}$")]
    """Short name in lower case."""
    name: str
    """Title for people."""
    description: str = ""
    license: str | None = None
    """Licence that the author chose for the ensemble; never filled in by a tool."""
    classes: Annotated[tuple[ClassInfo, ...], Field(min_length=2, max_length=65535)]
    """Classes in index order, background first."""
    channels: Annotated[tuple[ChannelInfo, ...], Field(min_length=1)]
    """Input channels in order."""
    pixel_size_um: PixelSizeInfo | None = None
    normalization: Normalization
    tile_shape: tuple[Annotated[int, Field(ge=32)], Annotated[int, Field(ge=32)]]
    """Rows and columns of a tile; the patch size of the training."""
    inference: InferenceConfig = PRESETS["accurate"]
    """Settings that the author recommends."""
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    encoder_weights: WeightsOrigin | None = None
    training: dict[str, JsonValue] = Field(default_factory=dict)
    """How the ensemble was made: data, recipe, hardware, time."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages that made it."""
    files: dict[RelativePath, FileEntry] = Field(default_factory=dict)
    """Every other file of the ensemble."""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if isinstance(self.normalization, TrainingNormalization):
            counts = {len(self.normalization.means), len(self.normalization.stds)}
            if counts != {len(self.channels)}:
                message = f"normalization needs one mean and std per channel ({len(self.channels)})"
                raise ValueError(message)
        for member in self.members:
            for name in ("config.json", "model.safetensors"):
                if f"{member.folder}/{name}" not in self.files:
                    message = f"files does not list {member.folder}/{name}"
                    raise ValueError(message)
        folders = [member.folder for member in self.members]
        if len(set(folders)) < len(folders):
            message = "two members share a folder"
            raise ValueError(message)
        return self

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return len(self.classes)

    @property
    def num_channels(self) -> int:
        """C."""
        return len(self.channels)

    def to_json(self) -> bytes:
        """Return the bytes of ``ensemble.json``; equal manifests give equal bytes."""
        content = self.model_dump(mode="json")
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


class ReviewThreshold(Frozen):
    """A score from which on predictions are to be reviewed (eq. 8)."""

    score: str
    """Name of the risk score, such as ``u``."""
    value: float
    """Smallest score of a reference image whose prediction failed."""
    metric: str
    """Quality metric that decides what failed, such as ``dice``."""
    required: float
    """Quality below which a prediction has failed (τ)."""
    failing: Annotated[int, Field(ge=1)]
    """Failing reference images; a new failing image escapes with probability 1/(failing + 1)."""
    references: Annotated[int, Field(ge=1)]
    """All reference images."""
    kind: Literal["held_out", "out_of_fold"]
    """Whether any member saw the reference images; only ``held_out`` carries the guarantee."""


class Calibration(Frozen):
    """The content of ``calibration.json``."""

    schema_version: Literal[1] = 1
    thresholds: tuple[ReviewThreshold, ...] = ()

    def threshold(self, score: str) -> ReviewThreshold | None:
        """Return the threshold of a score, if there is one."""
        return next((t for t in self.thresholds if t.score == score), None)


def build_manifest(fields: Mapping[str, object]) -> Manifest:
    """Make a manifest of its fields.

    Raises:
        ManifestError: fields are missing, unknown or out of range; all of them are listed.
    """
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise ManifestError(describe_validation_error("ensemble.json", error)) from error


def parse_manifest(content: bytes) -> Manifest:
    """Read ``ensemble.json``.

    Raises:
        ManifestError: not JSON, another schema version, or see :func:`build_manifest`.
    """
    return build_manifest(_json_object(content, "ensemble.json"))


def parse_calibration(content: bytes) -> Calibration:
    """Read ``calibration.json``.

    Raises:
        ManifestError: as for :func:`parse_manifest`.
    """
    raw = _json_object(content, "calibration.json")
    try:
        return Calibration.model_validate(raw)
    except ValidationError as error:
        raise ManifestError(describe_validation_error("calibration.json", error)) from error


def _json_object(content: bytes, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"{name} is not JSON: {error}"
        raise ManifestError(message) from error
    if not isinstance(raw, dict):
        message = f"{name} holds a {type(raw).__name__}; expected an object"
        raise ManifestError(message)
    version = raw.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        message = (
            f"{name} has schema version {version}, this df2serve reads up to {SCHEMA_VERSION}; "
            "install a newer df2serve"
        )
        raise ManifestError(message)
    return raw
