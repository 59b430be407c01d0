"""A folder of results: masks, uncertainty maps, pictures and records, each whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from df2serve.artifact import Ensemble
from df2serve.config import InferenceConfig, InstanceConfig
from df2serve.errors import ConfigError, Df2ServeError, SourceNotFoundError
from df2serve.inference import Band, Prediction, Summary
from df2serve.io import Image
from df2serve.writers._names import assign_names
from df2serve.writers._staging import Staging, staging
from df2serve.writers.preview import Preview
from df2serve.writers.records import (
    InstanceCount,
    OutputFile,
    OutputKind,
    Record,
    RunInfo,
    ShapeKind,
    read_record,
    read_run,
)
from df2serve.writers.tiff import TiffRowWriter

if TYPE_CHECKING:
    from df2serve.backends.cellpose import Cellpose
    from df2serve.writers.instances import InstanceWriter

__all__ = ["Bands", "ResultFolder", "Written", "read_results", "redescribe"]

_RUN = "run.json"
_PLACES: dict[OutputKind, str] = {
    "mask": "masks/{}.tif",
    "uncertainty": "uncertainty/{}.tif",
    "probabilities": "probabilities/{}.tif",
    "image": "previews/{}.jpg",
    "overlay": "previews/{}.png",
    "picture": "uncertainty/{}.png",
    "labels": "labels/{}.tif",
    "instances": "instances/{}.csv",
    "rois": "rois/{}.zip",
    "geojson": "geojson/{}.geojson",
}
_RECORDS = "records"
_PICTURES: tuple[OutputKind, ...] = ("image", "overlay", "picture")
_EVERY_IMAGE: tuple[OutputKind, ...] = ("mask", "uncertainty", *_PICTURES)
"""What is written of every image, unless less is asked for."""


@dataclass(frozen=True)
class _Layer:
    """One TIFF file of every result."""

    kind: OutputKind
    take: Callable[[Band], NDArray[Any]]
    dtype: DTypeLike
    display_range: tuple[float, float]
    plane_names: tuple[str, ...] = ()
    """One per plane; a single plane has none."""

    def open(self, path: Path, shape: tuple[int, int], image: Image) -> TiffRowWriter:
        return TiffRowWriter(
            path,
            shape=(len(self.plane_names), *shape) if self.plane_names else shape,
            dtype=self.dtype,
            display_range=self.display_range,
            pixel_size_um=image.pixel_size_um,
            plane_names=self.plane_names,
        )


@dataclass(frozen=True)
class Written:
    """The result of one image on disk."""

    record: Record
    reused: bool
    """It was there already, and was found to be whole and the result of the same computation."""


class Bands(Protocol):
    """A prediction that comes in bands, as :class:`df2serve.inference.PredictionStream`."""

    @property
    def image(self) -> Image:
        """What was predicted."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def summary(self) -> Summary:
        """Scores and provenance, once all bands were taken."""

    def __iter__(self) -> Iterator[Band]:
        """Yield the bands from top to bottom."""


@dataclass(frozen=True)
class _Whole:
    """A prediction in memory as one band."""

    image: Image
    prediction: Prediction

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[2]

    @property
    def summary(self) -> Summary:
        return self.prediction.summary

    def __iter__(self) -> Iterator[Band]:
        return self.prediction.bands()


class ResultFolder:
    """Writes predictions of one ensemble with one set of settings.

    Example:
        >>> with Predictor("my_ensemble") as predictor:  # doctest: +SKIP
        ...     results = ResultFolder("results", predictor.ensemble, predictor.config)
        ...     images = list_images("images")
        ...     for outcome in predictor.predict_many(images, consume=results.write):
        ...         print(outcome.source, outcome.error or outcome.result.record.scores.u)
    """

    def __init__(
        self,
        target: str | Path,
        ensemble: Ensemble,
        config: InferenceConfig,
        *,
        sources: Sequence[str] = (),
        resume: bool = False,
        kinds: Collection[OutputKind] = _EVERY_IMAGE,
        probabilities: bool = False,
        instances: InstanceConfig | None = None,
        shapes: Sequence[ShapeKind] = (),
        cellpose: Cellpose | None = None,
    ) -> None:
        """Create the folder, or go on with one.

        Args:
            target: folder of the results.
            ensemble: where predictions come from.
            config: what is computed; that of the predictor.
            sources: names of all images to come; results of images that share a name without its
                suffix are told apart from the start.
            resume: go on with results that exist, and reuse those that are whole and up to date.
            kinds: which of the files are written that every image has; each takes time.
            probabilities: write class probabilities as well.
            instances: write objects as well, found in this way; takes memory for whole images.
            shapes: write the outlines of objects as well, for ImageJ and for QuPath.
            cellpose: network that finds objects with the method ``cellpose``; its own settings must
                be among those of ``instances``.

        Raises:
            ConfigError: the method ``cellpose`` without its network; the folder has other content,
                results but no leave to resume, or results of other settings.
            OutputError: it cannot be written.
        """
        self.target = Path(target)
        self.run = RunInfo.of(ensemble, config, instances)
        if shapes and instances is None:
            message = (
                f"{' and '.join(shapes)} hold objects, and none are asked for; say how to find "
                "them (--instances watershed, components or cellpose)"
            )
            raise ConfigError(message)
        _check_cellpose(instances, cellpose)
        self._cellpose = cellpose
        self._instances = instances
        self._shapes = tuple(shapes)
        self._layers = _layers(self.run, {*kinds, "probabilities"} if probabilities else kinds)
        self._pictures = [kind for kind in _PICTURES if kind in kinds]
        self._records: dict[str, Record] = {}
        if (self.target / _RUN).is_file():
            self._adopt(resume=resume)
        elif self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
            message = (
                f"{self.target} exists and holds no results of df2serve; choose a new folder, so "
                "that nothing in it can be overwritten"
            )
            raise ConfigError(message)
        known = {source: record.name for source, record in self._records.items()}
        self._names = known | assign_names(sources, known)
        _write_run(self.run, self.target)

    def write(self, stream: Bands) -> Written:
        """Take the bands of a prediction and write its files; the record comes last.

        Raises:
            OutputError: a file cannot be written; nothing of this image changed.
            InputError: the image cannot be read.
        """
        source = stream.image.source
        if source not in self._names:
            self._names |= assign_names([source], self._names)
        record = self._records.get(source)
        if record is not None and self._is_current(record, stream):
            return Written(record, reused=True)
        name = self._names[source]
        with staging() as files:
            targets, count = self._write_pixels(files, name, stream)
            summary = stream.summary
            record = Record(
                name=name,
                files={
                    kind: OutputFile(
                        path=path.relative_to(self.target).as_posix(), sha256=files.sha256(path)
                    )
                    for kind, path in targets.items()
                },
                scores=summary.scores,
                statistics=summary.statistics,
                provenance=summary.provenance,
                seconds=summary.seconds,
                batch_size=summary.batch_size,
                notes=summary.notes,
                instances=count,
            )
            _write_json(record, files.path(self._record_path(name)))
        return Written(record, reused=False)

    def write_whole(self, image: Image, prediction: Prediction) -> Written:
        """Write a prediction that is in memory; errors are those of :meth:`write`."""
        return self.write(_Whole(image, prediction))

    def _adopt(self, *, resume: bool) -> None:
        """Take over the results of an earlier run."""
        if not resume:
            message = (
                f"{self.target} holds results; resume to go on with them, or choose a new folder"
            )
            raise ConfigError(message)
        earlier, now = read_run(self.target / _RUN), self.run
        if earlier.ensemble_sha256 != now.ensemble_sha256:
            message = (
                f"{self.target} holds results of ensemble {earlier.ensemble_id} "
                f"({earlier.ensemble_sha256[:12]}), got {now.ensemble_id} "
                f"({now.ensemble_sha256[:12]}); choose a new folder"
            )
            raise ConfigError(message)
        if earlier.config != now.config:
            before, after = earlier.config.model_dump(), now.config.model_dump()
            changed = ", ".join(
                f"{key} {before[key]!r} is now {after[key]!r}"
                for key in after
                if before[key] != after[key]
            )
            message = (
                f"{self.target} holds results of other settings: {changed}; use the same settings, "
                "or choose a new folder"
            )
            raise ConfigError(message)
        self._adopt_instances(earlier.instances)
        for path in _record_paths(self.target):
            try:
                record = read_record(path)
            except Df2ServeError:
                continue  # a damaged record vouches for nothing: the image is computed again
            self._records[record.provenance.source] = record

    def _adopt_instances(self, earlier: InstanceConfig | None) -> None:
        """Keep to the instance settings of an earlier run, so that all labels are of one kind."""
        if earlier is None or earlier == self._instances:
            return
        if self._instances is not None:
            message = (
                f"{self.target} holds objects of other settings ({earlier.method}, min_size "
                f"{earlier.min_size}, …); use the same settings, or choose a new folder"
            )
            raise ConfigError(message)
        self.run = self.run.model_copy(update={"instances": earlier})

    def _is_current(self, record: Record, stream: Bands) -> bool:
        """Whether a result is what the stream would give, and undamaged."""
        image, provenance = stream.image, record.provenance
        same = (
            image.sha256 is not None
            and image.sha256 == provenance.source_sha256
            and image.axes == provenance.image_axes
            and image.selection == provenance.selection
            and image.pixel_size_um == provenance.pixel_size_um
            and all(kind in record.files for kind in self._kinds())
            and (self._instances is None or record.instances is not None)
            and all(kind in record.files for kind in self._shapes)
        )
        return same and all(self._is_whole(file) for file in record.files.values())

    def _is_whole(self, file: OutputFile) -> bool:
        try:
            with (self.target / file.path).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
        except OSError:
            return False

    def _record_path(self, name: str) -> Path:
        return self.target / _RECORDS / f"{name}.json"

    def _kinds(self) -> list[OutputKind]:
        """Return what is written of every image, except objects."""
        return [*(layer.kind for layer in self._layers), *self._pictures]

    def _write_pixels(
        self, files: Staging, name: str, stream: Bands
    ) -> tuple[dict[OutputKind, Path], InstanceCount | None]:
        """Write everything but the record; return the files' final places and count objects."""
        kinds = self._kinds()
        if self._instances is not None:
            kinds += ["labels", "instances", *self._shapes]
        targets = {kind: self.target / _PLACES[kind].format(name) for kind in kinds}
        image = stream.image
        preview = Preview(
            image.data,
            colors=[item.color for item in self.run.classes],
            largest=self.run.largest_uncertainty,
        )
        draw = {
            "image": preview.save_image,
            "overlay": preview.save_overlay,
            "picture": preview.save_uncertainty,
        }
        objects = self._instances and _open_objects(
            image, self.run, self._instances, self._cellpose
        )
        with ExitStack() as stack:
            writers = [
                (
                    layer.take,
                    stack.enter_context(
                        layer.open(files.path(targets[layer.kind]), stream.shape, image)
                    ),
                )
                for layer in self._layers
            ]
            for band in stream:
                for take, writer in writers:
                    writer.append(take(band))
                if self._pictures:
                    preview.append(band)
                if objects:
                    objects.append(band)
        for kind in self._pictures:
            draw[kind](files.path(targets[kind]))
        if not objects:
            return targets, None
        return targets, objects.save(
            name,
            labels=files.path(targets["labels"]),
            table=files.path(targets["instances"]),
            rois=files.path(targets["rois"]) if "rois" in targets else None,
            outlines=files.path(targets["geojson"]) if "geojson" in targets else None,
        )


def _open_objects(
    image: Image, run: RunInfo, instances: InstanceConfig, cellpose: Cellpose | None
) -> InstanceWriter:
    from df2serve.writers.instances import InstanceWriter

    return InstanceWriter(image, run, instances, cellpose)


def redescribe(
    folder: Path, ensemble: Ensemble, *, feature_distances: Mapping[str, float] | None = None
) -> None:
    """Let results say what their ensemble carries since it was calibrated.

    Args:
        folder: of results of this ensemble.
        ensemble: with the same members.
        feature_distances: scores of images by the hash of their file, where the bank of the
            ensemble was made of these images.

    Raises:
        DecodeError: the folder holds no results.
        OutputError: it cannot be written.
    """
    run = read_run(folder / _RUN)
    for path in _record_paths(folder):
        record = read_record(path)
        distance = (feature_distances or {}).get(record.provenance.source_sha256 or "")
        if distance is not None:
            scores = replace(record.scores, feature_distance=distance)
            _write_record(record.model_copy(update={"scores": scores}), path)
    _write_run(RunInfo.of(ensemble, run.config, run.instances), folder)


def _write_run(run: RunInfo, folder: Path) -> None:
    with staging() as files:
        _write_json(run, files.path(folder / _RUN))


def _write_record(record: Record, path: Path) -> None:
    with staging() as files:
        _write_json(record, files.path(path))


def _write_json(content: RunInfo | Record, path: Path) -> None:
    path.write_text(content.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_results(folder: str | Path) -> tuple[RunInfo, list[Record]]:
    """Read what a folder of results holds, in the order of its records' paths.

    Raises:
        SourceNotFoundError: the folder holds no results.
        DecodeError: a record is damaged.
    """
    root = Path(folder)
    records = [read_record(path) for path in _record_paths(root)]
    if not records or not (root / _RUN).is_file():
        message = f"{root} holds no results; give a folder that 'df2serve predict' has written"
        raise SourceNotFoundError(message)
    return read_run(root / _RUN), records


def _check_cellpose(instances: InstanceConfig | None, cellpose: Cellpose | None) -> None:
    """Refuse settings that do not tell what finds the objects."""
    wanted = instances is not None and instances.method == "cellpose"
    given = None if cellpose is None else cellpose.config
    if wanted != (given is not None) or (instances and instances.cellpose != given):
        message = (
            f"got objects by {instances and instances.method} with the network "
            f"{given and given.weights}, expected cellpose with the network of its settings; open "
            "the weights as network = Cellpose(FILE), give cellpose=network, and as instances "
            "InstanceConfig(method='cellpose', cellpose=network.config) (on the command line: "
            "--instances cellpose --cellpose-weights FILE)"
        )
        raise ConfigError(message)


def _layers(run: RunInfo, kinds: Collection[OutputKind]) -> list[_Layer]:
    last = len(run.classes) - 1
    names = tuple(item.name for item in run.classes)
    layers = (
        _Layer("mask", lambda band: band.mask, np.min_scalar_type(last), (0, last)),
        _Layer("uncertainty", lambda band: band.total, np.float32, (0, run.largest_uncertainty)),
        _Layer("probabilities", lambda band: band.probs, np.float32, (0, 1), names),
    )
    return [layer for layer in layers if layer.kind in kinds]


def _record_paths(root: Path) -> Iterator[Path]:
    """Yield the records of a folder; a folder of records that is a link is not followed."""
    for parent, folders, names in os.walk(root / _RECORDS):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".json") and not name.startswith("."):
                yield Path(parent) / name
