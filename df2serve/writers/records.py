"""What a folder of results says of itself: ``run.json`` and one record per image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar, get_args

from pydantic import Field, ValidationError

from df2serve.artifact import Calibration, Ensemble, ReviewThreshold
from df2serve.artifact.manifest import ClassInfo, Manifest
from df2serve.config import Frozen, InferenceConfig, InstanceConfig, describe_validation_error
from df2serve.core.scores import ImageScores
from df2serve.core.uncertainty import maximum_uncertainty
from df2serve.errors import DecodeError, SourceNotFoundError
from df2serve.inference import Provenance

__all__ = [
    "SHAPES",
    "InstanceCount",
    "OutputFile",
    "OutputKind",
    "Record",
    "RunInfo",
    "ShapeKind",
    "read_record",
    "read_run",
]

ShapeKind: TypeAlias = Literal["rois", "geojson"]
"""Outlines of objects, for ImageJ and for QuPath."""
SHAPES: tuple[ShapeKind, ...] = get_args(ShapeKind)
"""All of them."""
OutputKind: TypeAlias = (
    Literal[
        "mask",
        "uncertainty",
        "probabilities",
        "image",
        "overlay",
        "picture",
        "labels",
        "instances",
    ]
    | ShapeKind
)
M = TypeVar("M", bound=Frozen)


class OutputFile(Frozen):
    """One file of a result."""

    path: str
    """Relative to the folder of results, with forward slashes."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class InstanceCount(Frozen):
    """How many objects a result has."""

    kept: int
    """Objects in the labels."""
    removed: int
    """Objects that were too small."""
    removed_px: int
    """Pixels of these."""


class Record(Frozen):
    """Everything about the result of one image, except its pixels."""

    schema_version: Literal[1] = 1
    name: str
    """Name of the result, unique in its folder."""
    files: dict[OutputKind, OutputFile]
    """``mask``, ``uncertainty``; pictures for people (``image``, ``overlay`` with the outlines of
    the mask, ``picture`` of the uncertainty); on request ``probabilities``, and ``labels`` with
    their table ``instances``, ``rois`` and ``geojson``."""
    scores: ImageScores
    statistics: dict[str, float] = Field(default_factory=dict)
    """What the image looks like, by name."""
    provenance: Provenance
    seconds: float
    """Wall-clock time of the computation."""
    batch_size: int
    """Network inputs per forward pass at the end."""
    notes: tuple[str, ...]
    """Remarks for people."""
    instances: InstanceCount | None = None
    """Objects, where they were asked for."""


class RunInfo(Frozen):
    """What all results of a folder have in common."""

    schema_version: Literal[1] = 1
    ensemble_id: str
    ensemble_name: str
    ensemble_sha256: str
    classes: tuple[ClassInfo, ...]
    """Classes by their value in the masks."""
    config: InferenceConfig
    """What was computed."""
    threshold: ReviewThreshold | None
    """U from which on predictions are to be reviewed, if the ensemble carries it."""
    channels: tuple[str, ...] = ()
    """Names of the image's channels in order."""
    instances: InstanceConfig | None = None
    """How masks are divided into objects, where that was asked for."""
    calibration: Calibration = Calibration()
    """References and thresholds of the ensemble, if their scores compare with these."""
    changed_settings: str = ""
    """Settings in which the references differ, which are left out then."""

    @property
    def largest_uncertainty(self) -> float:
        """The largest value that an uncertainty map can take."""
        return maximum_uncertainty(len(self.classes), self.config.uncertainty_scale)

    @classmethod
    def of(
        cls,
        ensemble: Ensemble,
        config: InferenceConfig,
        instances: InstanceConfig | None = None,
    ) -> RunInfo:
        """Describe predictions of an ensemble with these settings."""
        manifest, calibration = ensemble.manifest, ensemble.calibration
        changed = _changed_settings(calibration, config, manifest)
        if changed:
            calibration = Calibration(expert_ranges=calibration.expert_ranges)
        return cls(
            ensemble_id=manifest.id,
            ensemble_name=manifest.name,
            ensemble_sha256=ensemble.sha256,
            classes=manifest.classes,
            config=config,
            threshold=calibration.threshold("u"),
            channels=tuple(channel.name for channel in manifest.channels),
            instances=instances,
            calibration=calibration,
            changed_settings=changed,
        )


def _changed_settings(calibration: Calibration, config: InferenceConfig, manifest: Manifest) -> str:
    """Name the settings that reference scores were computed with and that differ from ours."""
    recommended = manifest.inference
    earlier = calibration.config or recommended.updated(
        tile_shape=recommended.tile_shape or manifest.tile_shape,
        zoom_out=recommended.zoom_out or manifest.zoom_out,
    ).model_dump(mode="json")
    now = config.model_dump(mode="json")
    return ", ".join(
        f"{key.replace('_', ' ')} {earlier.get(key)}, here {now.get(key)}"
        for key in dict.fromkeys([*earlier, *now])
        if key != "preset" and earlier.get(key) != now.get(key)
    )


def read_run(path: Path) -> RunInfo:
    """Read ``run.json``.

    Raises:
        SourceNotFoundError: it does not exist.
        DecodeError: it is damaged.
    """
    return _read(path, RunInfo)


def read_record(path: Path) -> Record:
    """Read the record of one image; errors are those of :func:`read_run`."""
    return _read(path, Record)


def _read(path: Path, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}"
        raise SourceNotFoundError(message) from error
    except ValidationError as error:
        message = describe_validation_error(f"{path}", error)
        raise DecodeError(message) from error
