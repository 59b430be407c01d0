"""``ensemble.json`` and ``calibration.json``: everything an ensemble says about itself.

The format's rules are in docs/artifact-format.md. Unknown keys are errors; a file is trusted only
with the size and hash recorded here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import cycle
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
    "CALIBRATION_VERSION",
    "MANIFEST_LIMIT",
    "SCHEMA_VERSION",
    "Calibration",
    "ChannelInfo",
    "ClassInfo",
    "ExpertRange",
    "FailureBound",
    "FileEntry",
    "Manifest",
    "Member",
    "PixelSizeInfo",
    "Reference",
    "ReferenceKind",
    "RelativePath",
    "ReviewThreshold",
    "ScorePercentiles",
    "ShareInterval",
    "Temperature",
    "WeightsOrigin",
    "build_manifest",
    "parse_calibration",
    "parse_manifest",
]

SCHEMA_VERSION = 1
CALIBRATION_VERSION = 2
MANIFEST_LIMIT = 16 << 20
"""Bytes of the largest ``ensemble.json`` that is read."""


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


_COLORS = ("#000000", "#00b300", "#e69f00", "#56b4e9", "#cc79a7", "#d55e00", "#f0e442")


def colored_classes(names: Iterable[str]) -> list[dict[str, str]]:
    """Return ``classes`` of a manifest, with display colors that people tell apart.

    Args:
        names: in index order, background first; colors repeat from the eighth class on.

    Example:
        >>> colored_classes(["background", "cell"])[1]
        {'name': 'cell', 'color': '#00b300'}
    """
    return [
        {"name": name, "color": color} for name, color in zip(names, cycle(_COLORS), strict=False)
    ]


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
    zoom_out: Annotated[float, Field(ge=1, le=64)] = 1.0
    """Pixels of an image per pixel that the networks were trained on, along each axis."""
    distance_channel: Literal["relative"] | None = None
    """What the sigmoid of an output channel behind the K logits means, where the networks have one:
    distance of an object's pixel to the object's outside, relative to the largest of the object."""
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
        if "ensemble.json" in self.files:
            message = "files lists ensemble.json, which cannot hold its own hash"
            raise ValueError(message)
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
    def has_distance(self) -> bool:
        """Whether the networks have a distance channel."""
        return self.distance_channel is not None

    @property
    def num_outputs(self) -> int:
        """Output channels of the networks: K logits and, where there is one, the distance."""
        return self.num_classes + self.has_distance

    @property
    def num_channels(self) -> int:
        """C."""
        return len(self.channels)

    def to_json(self) -> bytes:
        """Return the bytes of ``ensemble.json``; equal manifests give equal bytes."""
        content = self.model_dump(mode="json")
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


# -- calibration --------------------------------------------------------------------------------

ReferenceKind: TypeAlias = Literal["held_out", "out_of_fold"]
"""No member saw the image, or it was predicted by the members alone that did not see it. Only
``held_out`` images tell what the whole ensemble does with new ones."""

Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class ShareInterval(Frozen):
    """A counted share with its 95 % confidence interval."""

    share: Share
    low: Share
    high: Share


class ReviewThreshold(Frozen):
    """A score from which on predictions are to be reviewed (eq. 8)."""

    score: str
    """Name of the risk score, such as ``u``."""
    value: Number
    """Score of a reference image whose prediction failed; review from here on."""
    metric: str
    """Quality metric that decides what failed, such as ``dice``."""
    required: Number
    """Quality below which a prediction has failed (τ)."""
    failing: Annotated[int, Field(ge=1)]
    """Failing reference images."""
    references: Annotated[int, Field(ge=1)]
    """All reference images."""
    kind: ReferenceKind
    """What they are; ``out_of_fold`` carries no guarantee."""
    rank: Annotated[int, Field(ge=1)] = 1
    """Place of the value among the failing scores, or groups of them; 1 is the smallest."""
    failing_groups: Annotated[int, Field(ge=1)] | None = None
    """Groups, such as animals, with failing images; absent where every image stands for itself."""
    level: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest chance of a new failing image to escape review, ``rank / (n + 1)`` with n failing
    images or groups; absent where nothing is guaranteed."""
    selected: Share | None = None
    """Share of the reference images that would be reviewed."""
    precision: ShareInterval | None = None
    """Share of the failing ones among those."""

    @model_validator(mode="after")
    def _honest(self) -> ReviewThreshold:
        if self.kind == "out_of_fold" and self.level is not None:
            message = "out_of_fold references guarantee no level; leave it out"
            raise ValueError(message)
        return self

    @property
    def meaning(self) -> str:
        """A sentence for people: where the threshold comes from, and what it guarantees."""
        if self.kind == "out_of_fold":
            return "the threshold comes from images of the training: it guarantees nothing"
        origin = (
            f"the threshold comes from {self.failing} of {self.references} reference images, those "
            f"with {self.metric} < {self.required:g}"
        )
        if self.level is None:
            return f"{origin}: it guarantees nothing"
        return (
            f"{origin}: another such image escapes review with a chance of at most {self.level:.3f}"
        )


class FailureBound(Frozen):
    """What is known where no held-out reference failed, so that no threshold can be certified."""

    metric: str
    """Quality metric that decides what failed."""
    required: Number
    """Quality that all predictions reached (τ)."""
    references: Annotated[int, Field(ge=1)]
    """Held-out reference images."""
    groups: Annotated[int, Field(ge=1)]
    """Groups, such as animals, that they belong to; all images where they have none."""
    bound: Share
    """Predictions fail at most this often, with 95 % confidence: 3 / ``groups``."""

    @property
    def meaning(self) -> str:
        """A sentence for people."""
        return (
            f"none of {self.references} reference images has {self.metric} < {self.required:g}: at "
            f"most {self.bound:.1%} of all predictions do, with 95 % confidence"
        )


class Reference(Frozen):
    """An image whose prediction was compared with the truth."""

    name: str
    image_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    kind: ReferenceKind
    group: str | None = None
    """What it shares with similar images, such as the animal."""
    scores: dict[str, Number]
    """Risk scores by name."""
    quality: dict[str, Number]
    """Quality of the prediction by metric; none where prediction and truth are both empty."""
    statistics: dict[str, Number] = Field(default_factory=dict)
    """What the image looks like: brightness, sharpness, amount of foreground, by name."""


class ScorePercentiles(Frozen):
    """How a score is distributed over the references of one kind."""

    score: str
    kind: ReferenceKind
    references: Annotated[int, Field(ge=1)]
    percents: tuple[Annotated[float, Field(ge=0, le=100)], ...]
    values: tuple[Number, ...]
    """Score at each of the percents."""


class ExpertRange(Frozen):
    """Where predictions lie between the experts, image by image."""

    metric: str
    reference: Literal["estimate", "leave_one_out"]
    """Whether experts are compared with the truth that they contributed to, or with the estimate of
    the others."""
    images: Annotated[int, Field(ge=1)]
    worst: Share
    """Mean over images of the worst expert's quality."""
    mean: Share
    """Mean over images of the experts' mean quality."""
    best: Share
    """Mean over images of the best expert's quality."""
    below_worst: Share
    """Share of the images whose prediction is worse than the worst expert."""
    in_range: Share
    """Share of the images whose prediction is neither worse nor better than all experts."""
    above_best: Share
    """Share of the images whose prediction is better than the best expert."""


class Temperature(Frozen):
    """By how much the probabilities are too sure; measured, and applied nowhere."""

    value: Annotated[float, Field(gt=0)]
    """Dividing the logits by this gives the best likelihood; more than 1 is too sure."""
    kind: ReferenceKind
    pixels: Annotated[int, Field(ge=1)]
    """Pixels that it was fitted to, in and around objects."""
    nll_before: Number
    """Mean negative log-likelihood of the probabilities as they are, in nat."""
    nll_after: Number
    ece_before: Share
    """Expected calibration error of the probabilities as they are, 20 bins."""
    ece_after: Share


class Calibration(Frozen):
    """The content of ``calibration.json``."""

    schema_version: Literal[2] = 2
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """Inference settings of all scores, as in the manifest; scores of others do not compare. Those
    that the manifest recommends when empty."""
    thresholds: tuple[ReviewThreshold, ...] = ()
    failure_bound: FailureBound | None = None
    """Instead of thresholds, where no reference failed."""
    references: tuple[Reference, ...] = ()
    percentiles: tuple[ScorePercentiles, ...] = ()
    expert_ranges: tuple[ExpertRange, ...] = ()
    temperature: Temperature | None = None

    def threshold(self, score: str) -> ReviewThreshold | None:
        """Return the threshold of a score, if there is one."""
        return next((t for t in self.thresholds if t.score == score), None)

    def reference_scores(self, score: str, kind: ReferenceKind) -> tuple[float, ...]:
        """Return a score of all references of one kind that have it."""
        return tuple(
            reference.scores[score]
            for reference in self.references
            if reference.kind == kind and score in reference.scores
        )

    def to_json(self) -> bytes:
        """Return the bytes of ``calibration.json``; equal calibrations give equal bytes."""
        content = self.model_dump(mode="json")
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


# -- reading ------------------------------------------------------------------------------------


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
    return build_manifest(_json_object(content, "ensemble.json", newest=SCHEMA_VERSION))


def parse_calibration(content: bytes) -> Calibration:
    """Read ``calibration.json``.

    Raises:
        ManifestError: as for :func:`parse_manifest`.
    """
    raw = _json_object(content, "calibration.json", newest=CALIBRATION_VERSION)
    if raw.get("schema_version") == 1:
        raw["schema_version"] = 2  # which only adds what may be absent
    try:
        return Calibration.model_validate(raw)
    except ValidationError as error:
        raise ManifestError(describe_validation_error("calibration.json", error)) from error


def _json_object(content: bytes, name: str, *, newest: int) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"{name} is not JSON: {error}"
        raise ManifestError(message) from error
    if not isinstance(raw, dict):
        message = f"{name} holds a {type(raw).__name__}; expected an object"
        raise ManifestError(message)
    version = raw.get("schema_version")
    if isinstance(version, int) and version > newest:
        message = (
            f"{name} has schema version {version}, this df2serve reads up to {newest}; "
            "install a newer df2serve"
        )
        raise ManifestError(message)
    return raw
