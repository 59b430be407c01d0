"""One image from its upload to a folder of results."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from df2serve.artifact import Ensemble
from df2serve.config import DecodeLimits, InferenceConfig, RuntimeConfig
from df2serve.core.calibration import mid_rank
from df2serve.core.resolution import coarse_shape
from df2serve.core.tiling import plan_tiles
from df2serve.core.uncertainty import maximum_uncertainty
from df2serve.errors import CancelledError
from df2serve.inference import Predictor, Progress
from df2serve.io import Image, PixelSize, Selection, read_image_isolated
from df2serve.io.isolation import WarmDecoder
from df2serve.service.messages import Predict
from df2serve.service.params import PredictParams
from df2serve.service.schemas import (
    ClassFacts,
    InputFacts,
    ModelRef,
    ObjectFacts,
    PixelSizeFacts,
    Quality,
    ResultInfo,
    Timing,
)
from df2serve.service.tracing import span, tell
from df2serve.service.worker.rendering import render
from df2serve.service.worker.shelf import Loaded, Shelf, references_of
from df2serve.service.worker.turns import Turns
from df2serve.writers import Record, ResultFolder
from df2serve.writers.records import SHAPES

__all__ = [
    "RESULTS",
    "Answer",
    "Bench",
    "count_tiles",
    "effective_config",
    "pixel_size_of",
    "selection_of",
]

RESULTS = "results"


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    result: ResultInfo
    path: Path
    """The file to send."""
    files: dict[str, str]
    """Path of every output, below the task's folder."""


@dataclass(frozen=True)
class Bench:
    """Where images are predicted."""

    shelf: Shelf
    turns: Turns
    runtime: RuntimeConfig
    limits: DecodeLimits
    warm: WarmDecoder

    def decode(self, task: Predict) -> Image:
        """Read the pixels, in a process that may die without harm.

        Raises:
            InputError: the image cannot be read.
        """
        return read_image_isolated(
            task.image,
            axes=task.params.axes,
            selection=selection_of(task.params),
            pixel_size_um=pixel_size_of(task.params),
            limits=self.limits,
            name=task.name,
            sha256=task.sha256,
            warm=self.warm,
        )

    def predict(
        self,
        task: Predict,
        image: Image,
        *,
        decode_seconds: float,
        started: Callable[[int, int], None],
        progressed: Callable[[int, int], None],
        cancelled: Event,
    ) -> Answer:
        """Predict an image and write its result.

        Args:
            task: the request.
            image: its pixels.
            decode_seconds: how long it took to get them.
            started: called with the numbers of tiles and of tiles times members times views.
            progressed: called with the numbers of finished and of all tiles.
            cancelled: set it to stop between two batches.

        Raises:
            InputError: the image or the parameters do not fit the model.
            CancelledError: see ``cancelled``.
        """
        entered = time.perf_counter()
        precision = effective_config(self.shelf.ensemble(task.model), task.params).precision
        with (
            span("predict", task.trace) as trace,
            self.shelf.borrow(task.model, precision) as loaded,
        ):
            config = effective_config(loaded.ensemble, task.params)
            runners = loaded.runners[: task.params.members]
            with Predictor(
                loaded.ensemble, config=config, runtime=self.runtime, runners=runners
            ) as predictor:
                tiles = count_tiles(predictor.config, (image.shape[1], image.shape[2]))
                started(tiles, tiles * len(runners) * config.views)

                batch_started = time.perf_counter()

                def batch_done(progress: Progress) -> None:
                    nonlocal batch_started
                    seconds = time.perf_counter() - batch_started
                    tell("tiles", trace, seconds, done=progress.done, total=progress.total)
                    if cancelled.is_set():
                        message = "the prediction was cancelled"
                        raise CancelledError(message)
                    progressed(progress.done, progress.total)
                    turn.offer()
                    batch_started = time.perf_counter()

                turn = self.turns.turn()
                try:
                    folder = _result_folder(task, loaded, predictor.config)
                    stream = predictor.stream(image, listener=batch_done, computer=turn)
                    record = folder.write(stream).record
                finally:
                    turn.shutdown()
            timing = Timing(
                queue=turn.waited,
                decode=decode_seconds,
                infer=turn.used,
                encode=time.perf_counter() - entered - turn.waited - turn.used,
            )
            info = _result_info(task, loaded, record, image, timing)
            with span("encode", trace):
                path = render(task.rendering, folder, record, info, Path(task.target) / "answer")
        files = {str(kind): f"{RESULTS}/{file.path}" for kind, file in record.files.items()}
        return Answer(info, path, files)


def effective_config(ensemble: Ensemble, params: PredictParams) -> InferenceConfig:
    """Return the settings of a request, with the model's own tile and resolution filled in.

    Raises:
        ConfigError: the parameters contradict each other.
    """
    manifest = ensemble.manifest
    config = params.inference(manifest.inference)
    return config.updated(
        tile_shape=config.tile_shape or manifest.tile_shape,
        zoom_out=config.zoom_out or manifest.zoom_out,
    )


def count_tiles(config: InferenceConfig, shape: tuple[int, int]) -> int:
    """Return the number of tiles of an image.

    Args:
        config: with a tile shape.
        shape: rows and columns.
    """
    coarse = coarse_shape(shape, config.zoom_out or 1.0)
    return len(plan_tiles(coarse, config.tile_shape or coarse, config.grid))


def selection_of(params: PredictParams) -> Selection:
    """Return the plane and channels that a client chose."""
    return Selection(series=params.series, t=params.t, z=params.z, channels=params.channel_numbers)


def pixel_size_of(params: PredictParams) -> PixelSize | None:
    """Return the pixel size that a client stated."""
    size = params.pixel_size
    return None if size is None else PixelSize(size, size)


def _result_folder(task: Predict, loaded: Loaded, config: InferenceConfig) -> ResultFolder:
    target = Path(task.target) / RESULTS
    if target.exists() and not (target / "run.json").is_file():
        shutil.rmtree(target)  # an attempt that was killed at its very beginning
    return ResultFolder(
        target,
        loaded.ensemble,
        config,
        resume=target.exists(),
        kinds={"mask", *task.rendering.outputs},
        probabilities="probabilities" in task.rendering.outputs,
        instances=task.params.objects(needed=task.rendering.needs_objects),
        shapes=[kind for kind in SHAPES if kind in task.rendering.outputs],
    )


def _result_info(
    task: Predict, loaded: Loaded, record: Record, image: Image, timing: Timing
) -> ResultInfo:
    provenance, manifest = record.provenance, loaded.ensemble.manifest
    size, count = image.pixel_size_um, record.instances
    return ResultInfo(
        model=ModelRef(
            name=task.model,
            id=manifest.id,
            revision=loaded.ensemble.sha256[:12],
            sha256=loaded.ensemble.sha256,
            members=provenance.members,
        ),
        input=InputFacts(
            name=image.source,
            format=image.format,
            axes=image.axes,
            shape=tuple(image.shape),
            dtype=str(image.dtype),
            pixel_size_um=size and PixelSizeFacts(y_um=size.y_um, x_um=size.x_um),
            channel_names=image.channel_names,
            sha256=image.sha256,
        ),
        params=task.params.model_dump(mode="json", exclude_none=True),
        config=provenance.config.model_dump(mode="json"),
        quality=_quality(loaded, record),
        largest_uncertainty=maximum_uncertainty(
            len(manifest.classes), provenance.config.uncertainty_scale
        ),
        classes=tuple(ClassFacts(name=c.name, color=c.color) for c in manifest.classes),
        class_fractions=record.scores.class_fractions,
        instances=count
        and ObjectFacts(kept=count.kept, removed=count.removed, removed_px=count.removed_px),
        files={kind: file.sha256 for kind, file in record.files.items()},
        timing=timing,
        software={
            "df2serve": provenance.df2serve_version,
            "backend": provenance.runner.backend,
            "device": provenance.runner.device,
            "precision": provenance.runner.precision,
        },
    )


def _quality(loaded: Loaded, record: Record) -> Quality:
    scores, threshold = record.scores, loaded.ensemble.calibration.threshold("u")
    references = references_of(loaded.ensemble)
    rank = None
    if scores.u is not None and references is not None:
        rank = mid_rank(scores.u, references.scores)
    reason = None
    if scores.u is None:
        reason = "no_valid_pixels" if scores.no_valid_pixels else "empty_prediction"
    return Quality(
        uncertainty_score=scores.u,
        undefined_reason=reason,
        u_epistemic=scores.u_epistemic,
        u_class_balanced=scores.u_class_balanced,
        one_minus_expected_dice=scores.one_minus_expected_dice,
        foreground_fraction=scores.foreground_fraction,
        empty_prediction=scores.empty_prediction,
        u_min=threshold and threshold.value,
        u_min_source=threshold and threshold.kind,
        needs_review=None if threshold is None else scores.u is None or scores.u >= threshold.value,
        percentile=None if rank is None else 100 * rank,
        warnings=(*record.notes, *_warnings(loaded, record)),
    )


def _warnings(loaded: Loaded, record: Record) -> tuple[str, ...]:
    """Say where U does not compare with the threshold."""
    manifest = loaded.ensemble.manifest
    own = manifest.inference.updated(tile_shape=manifest.tile_shape, zoom_out=manifest.zoom_out)
    ignored = {"preset": None, "precision": "fp32"}
    same = own.model_copy(update=ignored) == record.provenance.config.model_copy(update=ignored)
    if same and record.provenance.members == len(loaded.ensemble):
        return ()
    return ("settings differ from the model's own, so that U does not compare with its U_min",)
