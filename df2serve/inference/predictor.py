"""The front doors: :func:`predict` for one image, :class:`Predictor` for many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from df2serve._version import __version__
from df2serve.artifact import Ensemble, load_ensemble
from df2serve.backends import MemberRunner, RunnerInfo, open_members
from df2serve.config import InferenceConfig, RuntimeConfig, preset
from df2serve.core.agreement import MemberAgreement
from df2serve.core.image_statistics import StatisticsAccumulator, named_statistics
from df2serve.core.normalize import affine_of
from df2serve.core.resolution import CoarseSource
from df2serve.core.scores import ScoreAccumulator
from df2serve.core.tiling import plan_tiles
from df2serve.errors import (
    BackendError,
    CancelledError,
    Df2ServeError,
    ImageMismatchError,
    InputError,
)
from df2serve.inference.engine import Engine, Gathered
from df2serve.inference.features import FeatureMeter
from df2serve.inference.prediction import Band, Prediction, Progress, Provenance, Summary
from df2serve.io import Image, open_image

__all__ = ["ImageSource", "Outcome", "PredictionStream", "Predictor", "predict"]

ImageSource = str | Path | bytes | NDArray[np.generic] | Image
Listener = Callable[[Progress], None]
S = TypeVar("S")
T = TypeVar("T")

_PIXEL_SIZE_TOLERANCE = 0.1
_NOT_OPEN = "the predictor is not open; use it as 'with Predictor(...) as predictor:'"


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one image of many: a result or the error that it gave."""

    source: str
    result: T | None
    error: Df2ServeError | None


class PredictionStream:
    """The bands of one prediction, from top to bottom; iterate once, then read the summary."""

    def __init__(
        self,
        predictor: Predictor,
        image: Image,
        *,
        listener: Listener | None,
        computer: Executor | None,
    ) -> None:
        """Prepare; nothing is computed before the first band is asked for.

        Args:
            predictor: must stay open while bands are taken.
            image: what to predict.
            listener: called after each batch of tiles.
            computer: runs the computation; the thread that takes the bands when absent.
        """
        self.image = image
        self.shape = (image.shape[1], image.shape[2])
        self.num_classes = predictor.ensemble.manifest.num_classes
        self.notes = _notes(predictor.ensemble, image)
        self._predictor = predictor
        self._listener = listener
        self._scores = ScoreAccumulator(self.num_classes)
        self._started = time.perf_counter()
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._bands = (
            self._generate() if computer is None else _bands_from(computer, self._generate())
        )
        self._summary: Summary | None = None

    def __iter__(self) -> Iterator[Band]:
        """Return the iterator over the bands."""
        return self._bands

    @property
    def summary(self) -> Summary:
        """Scores and provenance.

        Raises:
            InputError: not all bands were taken yet.
        """
        if self._summary is None:
            message = "the summary exists once all bands were taken; iterate the stream first"
            raise InputError(message)
        return self._summary

    def collect(self) -> Prediction:
        """Take all bands and return the whole prediction."""
        bands = list(self)
        return Prediction.from_bands(bands, self.summary)

    def _generate(self) -> Iterator[Band]:
        engine, config = self._predictor.engine, self._predictor.config
        tile_shape = self._predictor.tile_shape
        source = CoarseSource(self.image.data, config.zoom_out or 1.0)
        plan = plan_tiles(source.shape[1:], tile_shape, config.grid)
        affine = affine_of(self._predictor.ensemble.manifest.normalization, source)

        def tile_done(done: int) -> None:
            if self._listener is not None:
                self._listener(Progress(source=self.image.source, done=done, total=len(plan)))

        meter = self._predictor.meter
        gathered = Gathered(
            agreement=MemberAgreement(len(engine.runners), self.num_classes),
            statistics=StatisticsAccumulator(source.shape[1:]),
            features=meter.means(),
        )
        bands = engine.bands(
            source,
            shape=self.shape,
            plan=plan,
            affine=affine,
            tile_done=tile_done,
            gathered=gathered,
        )
        for band in bands:
            self._scores.update(
                probs=band.probs, mask=band.mask, total=band.total, epistemic=band.epistemic
            )
            yield band
        features = () if gathered.features is None else gathered.features.compute()
        distance, remark = meter.measure(features, self.image.sha256)
        scores = replace(
            self._scores.compute(empty=config.empty_score, agreement=gathered.agreement),
            feature_distance=distance,
        )
        channels = self._predictor.ensemble.manifest.channels
        self._summary = Summary(
            scores=scores,
            statistics=named_statistics(
                gathered.statistics.compute(),
                scores,
                names=[channel.name for channel in channels],
                pixels=math.prod(self.shape),
            ),
            provenance=self._predictor.provenance(self.image, self._created),
            seconds=time.perf_counter() - self._started,
            batch_size=engine.batch_size,
            notes=(*self.notes, remark) if remark else self.notes,
            features=features,
        )


class Predictor:
    """An ensemble in memory, ready for images; use it as a context manager.

    Example:
        >>> from df2serve import Predictor
        >>> with Predictor("my_ensemble") as predictor:  # doctest: +SKIP
        ...     for outcome in predictor.predict_many(["a.tif", "b.tif"]):
        ...         print(outcome.source, outcome.result.scores.u)
    """

    def __init__(
        self,
        ensemble: Ensemble | str | Path,
        *,
        config: InferenceConfig | str | None = None,
        runtime: RuntimeConfig | None = None,
        runners: Sequence[MemberRunner] | None = None,
        collect_features: bool = False,
    ) -> None:
        """Settle what will be computed; members are loaded on entering the context.

        Args:
            ensemble: an open ensemble, or the path of its folder or zip file.
            config: settings or the name of a preset; the ensemble's recommendation when absent.
            runtime: backend, device and batch size; automatic when absent.
            runners: members that run already, instead of those of the ensemble and in their order;
                the caller closes them.
            collect_features: put into summaries what the members see, to make a bank of it, instead
                of comparing it with the bank that the ensemble has.

        Raises:
            ArtifactError: there is no usable ensemble.
            ConfigError: unknown preset.
        """
        self.ensemble = ensemble if isinstance(ensemble, Ensemble) else load_ensemble(ensemble)
        if config is None:
            config = self.ensemble.manifest.inference
        chosen = preset(config) if isinstance(config, str) else config
        self.tile_shape = chosen.tile_shape or self.ensemble.manifest.tile_shape
        self.config = chosen.updated(
            tile_shape=self.tile_shape,
            zoom_out=chosen.zoom_out or self.ensemble.manifest.zoom_out,
        )
        self.runtime = runtime or RuntimeConfig()
        self._runners = runners
        self._cancel = Event()
        self._stack = ExitStack()
        self._collect_features = collect_features
        self._engine: Engine | None = None
        self._meter: FeatureMeter | None = None

    def __enter__(self) -> Self:
        """Load the members.

        Raises:
            BackendError: backend, device or precision is not available, or features are to be
                collected and it gives none.
            ArtifactError: a member or the bank of features is damaged.
        """
        with ExitStack() as stack:
            runners = self._runners or stack.enter_context(
                open_members(
                    self.ensemble,
                    runtime=self.runtime,
                    precision=self.config.precision,
                    tile_shape=self.tile_shape,
                )
            )
            self._meter = FeatureMeter.of(
                self.ensemble, self.config, runners, collect=self._collect_features
            )
            self._stack = stack.pop_all()
        self._engine = Engine(
            runners=runners,
            config=self.config,
            num_classes=self.ensemble.manifest.num_classes,
            batch_size=self.runtime.batch_size or self._suitable_batch(runners[0].info),
            distance=self.ensemble.manifest.has_distance,
            cancel=self._cancel,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free the members."""
        self._engine = self._meter = None
        self._stack.close()

    @property
    def engine(self) -> Engine:
        """The loaded members.

        Raises:
            BackendError: the predictor is not open.
        """
        if self._engine is None:
            raise BackendError(_NOT_OPEN)
        return self._engine

    @property
    def meter(self) -> FeatureMeter:
        """What compares images with the bank of features.

        Raises:
            BackendError: the predictor is not open.
        """
        if self._meter is None:
            raise BackendError(_NOT_OPEN)
        return self._meter

    def _suitable_batch(self, info: RunnerInfo) -> int:
        """Return how many tiles fill a forward pass of the device."""
        return max(1, info.preferred_pixels // math.prod(self.tile_shape))

    def cancel(self) -> None:
        """Stop before the next forward pass; may be called from any thread, and is final."""
        self._cancel.set()

    def stream(
        self,
        image: Image,
        *,
        listener: Listener | None = None,
        computer: Executor | None = None,
    ) -> PredictionStream:
        """Return the prediction of an image band by band, in memory bounded by its width.

        Args:
            image: raw intensities, in memory or read on demand.
            listener: called after each batch of tiles.
            computer: runs the computation; the thread that takes the bands when absent.

        Raises:
            ImageMismatchError: the image's channels are not the ensemble's.
            BackendError: the predictor is not open.
        """
        self._check(image)
        return PredictionStream(self, image, listener=listener, computer=computer)

    def _check(self, image: Image) -> None:
        """Refuse an image whose channels are not the ensemble's."""
        expected = self.ensemble.manifest.channels
        if image.shape[0] != len(expected):
            names = ", ".join(channel.name for channel in expected)
            message = (
                f"{image.source} has {image.shape[0]} channels, the ensemble expects "
                f"{len(expected)} ({names}); select channels to match"
            )
            raise ImageMismatchError(message)

    def predict(
        self,
        image: ImageSource,
        *,
        axes: str | None = None,
        listener: Listener | None = None,
    ) -> Prediction:
        """Return the prediction of one image.

        Args:
            image: path, encoded bytes, array or opened image.
            axes: letters of the axes in order where the image does not state them, as ``CYX``;
                arrays of two axes need none.
            listener: called after each batch of tiles.

        Raises:
            InputError: the image cannot be read or does not fit the ensemble.
            CancelledError: see :meth:`cancel`.
        """
        with _opened(image, axes) as opened:
            return self.stream(opened, listener=listener).collect()

    def predict_many(
        self,
        sources: Iterable[str | Path],
        *,
        consume: Callable[[PredictionStream], T],
        opener: Callable[[str | Path], AbstractContextManager[Image]] = open_image,
        listener: Listener | None = None,
    ) -> Iterator[Outcome[T]]:
        """Predict images one after the other, while others are being read and written.

        Two images are in work at a time, each in a thread of its own, but only one of them at a
        time is computed: while one is decoded or consumed, the other has the device. An image
        that cannot be read, does not fit or cannot be written gives an outcome with its error and
        does not stop the others.

        Args:
            sources: paths.
            consume: takes the stream and makes the result, for example by writing bands to files
                as they come; ``PredictionStream.collect`` keeps all of it in memory. Two calls may
                be under way at a time.
            opener: opens a path as an image.
            listener: called after each batch of tiles.

        Yields:
            One outcome per source, in order.

        Raises:
            CancelledError: see :meth:`cancel`.
            BackendError: members cannot run.
        """
        stopped = Event()

        def report(progress: Progress) -> None:
            if stopped.is_set():
                message = "nobody waits for the remaining images"
                raise CancelledError(message)
            if listener is not None:
                listener(progress)

        def work(source: str | Path) -> Outcome[T]:
            try:
                with opener(source) as image:
                    self._check(image)
                    stream = PredictionStream(self, image, listener=report, computer=computer)
                    return Outcome(source=str(source), result=consume(stream), error=None)
            except (CancelledError, BackendError):
                raise
            except Df2ServeError as error:
                return Outcome(source=str(source), result=None, error=error)

        with (
            ThreadPoolExecutor(1, thread_name_prefix="df2serve-compute") as computer,
            ThreadPoolExecutor(2, thread_name_prefix="df2serve-image") as images,
        ):
            try:
                yield from _two_at_a_time(images, sources, work)
            finally:
                stopped.set()

    def provenance(self, image: Image, created: str) -> Provenance:
        """Return where a result of this predictor comes from."""
        return Provenance(
            source=image.source,
            source_sha256=image.sha256,
            image_shape=tuple(image.shape),
            image_dtype=str(image.dtype),
            image_axes=image.axes,
            selection=image.selection,
            pixel_size_um=image.pixel_size_um,
            ensemble_id=self.ensemble.manifest.id,
            ensemble_sha256=self.ensemble.sha256,
            members=len(self.engine.runners),
            config=self.config,
            runner=self.engine.runners[0].info,
            df2serve_version=__version__,
            created=created,
        )


def predict(
    image: ImageSource,
    *,
    ensemble: Ensemble | str | Path,
    axes: str | None = None,
    config: InferenceConfig | str | None = None,
    runtime: RuntimeConfig | None = None,
) -> Prediction:
    """Return the prediction of one image.

    Args:
        image: path, encoded bytes, array or opened image.
        ensemble: an open ensemble, or the path of its folder or zip file.
        axes: letters of the axes in order where the image does not state them, as ``CYX``; arrays
            of two axes need none.
        config: settings or the name of a preset; the ensemble's recommendation when absent.
        runtime: backend, device and batch size; automatic when absent.

    Returns:
        Probabilities, mask, uncertainty maps and scores.

    Raises:
        InputError: the image cannot be read or does not fit the ensemble.
        ArtifactError: there is no usable ensemble.
        BackendError: backend, device or precision is not available, or memory does not suffice.

    Example:
        >>> from df2serve import predict
        >>> prediction = predict("image.tif", ensemble="my_ensemble")  # doctest: +SKIP
        >>> prediction.mask.shape, prediction.scores.u  # doctest: +SKIP
        ((1024, 1024), 0.31)
    """
    with Predictor(ensemble, config=config, runtime=runtime) as predictor:
        return predictor.predict(image, axes=axes)


def _opened(image: ImageSource, axes: str | None) -> AbstractContextManager[Image]:
    if isinstance(image, Image):
        return nullcontext(image)
    if isinstance(image, np.ndarray):
        return nullcontext(Image.from_array(image, axes=axes))
    return open_image(image, axes=axes)


def _bands_from(computer: Executor, bands: Iterator[Band]) -> Iterator[Band]:
    """Yield bands that another thread computes, one at a time and only when asked for."""
    while (band := computer.submit(next, bands, None).result()) is not None:
        yield band


def _two_at_a_time(pool: Executor, items: Iterable[S], work: Callable[[S], T]) -> Iterator[T]:
    """Yield results in order while the work on the following item has begun."""
    pending: Future[T] | None = None
    for item in items:
        following = pool.submit(work, item)
        if pending is not None:
            yield pending.result()
        pending = following
    if pending is not None:
        yield pending.result()


def _notes(ensemble: Ensemble, image: Image) -> tuple[str, ...]:
    """Return what a careful person would mention about this image and this ensemble."""
    trained, given = ensemble.manifest.pixel_size_um, image.pixel_size_um
    if trained is None or given is None:
        return ()
    if abs(given.y_um / trained.y_um - 1) <= _PIXEL_SIZE_TOLERANCE:
        return ()
    return (
        f"pixel size {given.y_um:.4g} um differs from the training images' {trained.y_um:.4g} um; "
        "objects appear at another scale",
    )
