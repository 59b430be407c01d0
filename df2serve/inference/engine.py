"""The loop over tiles, members and views; knows neither files nor ensembles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event

import numpy as np
from numpy.typing import NDArray

from df2serve.backends import FeatureRunner, MemberRunner, TileFeatures
from df2serve.config import InferenceConfig
from df2serve.core import uncertainty
from df2serve.core.agreement import MemberAgreement, most_probable
from df2serve.core.augment import views
from df2serve.core.features import FeatureMeans
from df2serve.core.image_statistics import StatisticsAccumulator
from df2serve.core.mixture import Mixture
from df2serve.core.normalize import Affine
from df2serve.core.resolution import RowInterpolator
from df2serve.core.tiling import Stitcher, TilePlan, TileSpec
from df2serve.errors import BackendError, CancelledError, OutOfMemoryError
from df2serve.inference.prediction import Band
from df2serve.io import require_finite
from df2serve.types import PixelSource, TileBatch

__all__ = ["Engine", "Gathered"]

_Cell = tuple[slice, slice]
"""Rows and columns of a tile."""
_Classes = NDArray[np.unsignedinteger]
"""Most probable classes, axes (masks, pixels)."""


@dataclass(frozen=True)
class Gathered:
    """What is gathered on the way, besides maps."""

    agreement: MemberAgreement
    """What the members say of each pixel."""
    statistics: StatisticsAccumulator
    """Every row of the image."""
    features: FeatureMeans | None = None
    """What the members see, for which all runners have to be feature runners."""


@dataclass(frozen=True)
class _Batch:
    """Some tiles."""

    tiles: TileBatch
    cells: Sequence[_Cell]
    """What no other tile sees closer to its middle."""
    kept: Sequence[_Cell] | None
    """What lies in the image; absent where features are not wanted."""

    def __getitem__(self, some: slice) -> _Batch:
        kept = None if self.kept is None else self.kept[some]
        return _Batch(self.tiles[some], self.cells[some], kept)


@dataclass(frozen=True)
class _Pooled:
    """What all members and views make of some tiles."""

    mixture: Mixture
    classes: _Classes
    """Of every member and, last, of their mean, within the tiles' cells."""
    features: Sequence[TileFeatures]
    """Of every member, where they are wanted."""


_log = logging.getLogger(__name__)


@dataclass
class Engine:
    """Predicts images with members that are already loaded."""

    runners: Sequence[MemberRunner]
    config: InferenceConfig
    num_classes: int
    batch_size: int
    """Network inputs per forward pass; halved for good when the memory does not suffice."""
    distance: bool = False
    """Whether the members have a distance channel."""
    cancel: Event = field(default_factory=Event)
    """Set it to stop between two forward passes."""

    def bands(
        self,
        image: PixelSource,
        *,
        shape: tuple[int, int],
        plan: TilePlan,
        affine: Affine,
        tile_done: Callable[[int], None],
        gathered: Gathered,
    ) -> Iterator[Band]:
        """Yield the rows of a prediction from top to bottom.

        Args:
            image: raw intensities, axes (C, Y, X); read one tile row at a time.
            shape: rows and columns of the prediction, which is interpolated where the image has
                fewer.
            plan: the tiles of the image.
            affine: intensities to network input.
            tile_done: called with the number of tiles finished so far.
            gathered: is told everything that scores are made of, except the bands.

        Raises:
            CancelledError: :attr:`cancel` was set.
            OutOfMemoryError: not even one network input fits.
            BackendError: a distance or features are expected and the members give none.
            DecodeError: an intensity is NaN or infinite.
        """
        per_tile = self.config.map_order == "per_tile"
        channels = self.num_classes + 1 + per_tile + self.distance
        stitcher = Stitcher(plan, channels=channels, sigma=self.config.window_sigma)
        coarse = (plan.rows.length, plan.columns.length)
        finer = None if shape == coarse else RowInterpolator(coarse, shape)
        top, done = 0, 0
        for row in range(len(plan.rows)):
            span = plan.row_span(row)
            pixels = image[:, span, 0 : plan.columns.length]
            require_finite(pixels, f"rows from {span.start}")
            new = max(0, gathered.statistics.rows - span.start)
            gathered.statistics.update(pixels[:, new:])
            group = max(1, self.batch_size // self.config.views)
            every_spec = [TileSpec(row, column) for column in range(len(plan.columns))]
            for first in range(0, len(every_spec), group):
                specs = every_spec[first : first + group]
                batch = _Batch(
                    tiles=affine(np.stack([plan.cut(pixels, spec) for spec in specs])),
                    cells=[plan.cell(spec) for spec in specs],
                    kept=[plan.kept(spec) for spec in specs]
                    if gathered.features is not None
                    else None,
                )
                pooled = self._mixture(batch)
                gathered.agreement.update(pooled.classes)
                if gathered.features is not None:
                    gathered.features.update(pooled.features)
                for spec, maps in zip(specs, self._maps(pooled.mixture), strict=True):
                    stitcher.add(spec, maps)
                done += len(specs)
                tile_done(done)
            final = stitcher.finish_row(row)
            if finer is not None:
                final = finer.push(final)
            if final.shape[1]:
                yield self._band(top, final)
                top += final.shape[1]

    def _maps(self, mixture: Mixture) -> NDArray[np.float32]:
        """Return what is blended.

        These are probabilities, mean squares, where maps are made per tile squared means, and the
        distance where there is one.
        """
        mean = mixture.mean
        maps = [mean, mixture.mean_square[:, None]]
        if self.config.map_order == "per_tile":
            maps.append(np.einsum("nkyx,nkyx->nyx", mean, mean)[:, None])
        if self.distance:
            maps.append(_required(mixture.mean_distance)[:, None])
        return np.concatenate(maps, axis=1)

    def _mixture(self, batch: _Batch) -> _Pooled:
        """Pool all members and views of some tiles, in smaller batches if memory requires."""
        while True:
            try:
                return self._pooled(batch)
            except OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size = max(
                    1, min(self.batch_size, len(batch.tiles) * self.config.views) // 2
                )
                _log.warning("out of memory; going on with batches of %d", self.batch_size)

    def _pooled(self, batch: _Batch) -> _Pooled:
        tiles_at_once = max(1, self.batch_size // self.config.views)
        parts = [
            self._mixture_of_batch(batch[start : start + tiles_at_once])
            for start in range(0, len(batch.tiles), tiles_at_once)
        ]
        if len(parts) == 1:
            return parts[0]
        mixtures = [part.mixture for part in parts]
        distances = [part.distance for part in mixtures if part.distance is not None]
        pooled = Mixture(
            probs=np.concatenate([part.probs for part in mixtures]),
            squares=np.concatenate([part.squares for part in mixtures]),
            count=mixtures[0].count,
            distance=np.concatenate(distances) if distances else None,
        )
        return _Pooled(
            mixture=pooled,
            classes=np.concatenate([part.classes for part in parts], axis=1),
            features=[
                np.concatenate(one) for one in zip(*(part.features for part in parts), strict=True)
            ],
        )

    def _mixture_of_batch(self, batch: _Batch) -> _Pooled:
        members = (self._member(runner, batch) for runner in self.runners)
        mixture, seen = next(members)
        classes, features = [_classes_in(mixture.probs, batch.cells)], [seen]
        for member, seen in members:
            classes.append(_classes_in(member.probs, batch.cells))
            features.append(seen)
            mixture += member
        classes.append(_classes_in(mixture.probs, batch.cells))
        wanted = [one for one in features if one is not None]
        return _Pooled(mixture=mixture, classes=np.stack(classes), features=wanted)

    def _member(self, runner: MemberRunner, batch: _Batch) -> tuple[Mixture, TileFeatures | None]:
        """Return the mixture of one member over all views, and its features if wanted."""
        every_view = views(self.config.views)
        first, *others = (
            every_view[start : start + self.batch_size]
            for start in range(0, len(every_view), self.batch_size)
        )
        self._require_wanted()
        features = None
        if batch.kept is None:
            mixture = runner.run_views(batch.tiles, first)
        else:  # the identity is the first view
            mixture, features = _required_features(runner).run_views_pooled(
                batch.tiles, first, batch.kept
            )
        for some_views in others:
            self._require_wanted()
            mixture += runner.run_views(batch.tiles, some_views)
        return mixture, features

    def _require_wanted(self) -> None:
        if self.cancel.is_set():
            message = "the prediction was cancelled"
            raise CancelledError(message)

    def _band(self, top: int, final: NDArray[np.float32]) -> Band:
        """Turn blended maps into a mask and uncertainties."""
        classes, scale = self.num_classes, self.config.uncertainty_scale
        probs, mean_square = final[:classes], final[classes]
        if self.config.map_order == "per_tile":
            # deepflash2 blends the maps of single tiles: 4/K (1 - blend(Σ p̄²))
            total = uncertainty.aleatoric(final[classes + 1], num_classes=classes, scale=scale)
            doubt = uncertainty.aleatoric(mean_square, num_classes=classes, scale=scale)
            epistemic = np.maximum(total - doubt, 0)
        else:
            total = uncertainty.total(probs, scale=scale)
            epistemic = uncertainty.epistemic(probs, mean_square, scale=scale)
        return Band(
            top=top,
            probs=probs,
            mask=most_probable(probs),
            total=total,
            epistemic=epistemic,
            distance=final[-1] if self.distance else None,
        )


def _classes_in(probs: NDArray[np.float32], cells: Sequence[_Cell]) -> _Classes:
    """Return the most probable classes within the cells of some tiles, one after the other."""
    return np.concatenate(
        [most_probable(tile[:, *cell]).ravel() for tile, cell in zip(probs, cells, strict=True)]
    )


def _required_features(runner: MemberRunner) -> FeatureRunner:
    if not isinstance(runner, FeatureRunner):
        message = f"features are wanted, and {runner.info.backend} gives none; use torch"
        raise BackendError(message)
    return runner


def _required(distance: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if distance is None:
        message = (
            "the ensemble has a distance channel, but its runners give no distance; give runners "
            "whose mixtures have one"
        )
        raise BackendError(message)
    return distance
