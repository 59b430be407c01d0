"""The loop over tiles, members and views; knows neither files nor ensembles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event

import numpy as np
from numpy.typing import NDArray

from df2serve.backends import MemberRunner
from df2serve.config import InferenceConfig
from df2serve.core import uncertainty
from df2serve.core.augment import View, views
from df2serve.core.mixture import Mixture
from df2serve.core.normalize import Affine
from df2serve.core.resolution import RowInterpolator
from df2serve.core.tiling import Stitcher, TilePlan, TileSpec
from df2serve.errors import BackendError, CancelledError, OutOfMemoryError
from df2serve.inference.prediction import Band
from df2serve.io import require_finite
from df2serve.types import PixelSource, TileBatch

__all__ = ["Engine"]

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
    ) -> Iterator[Band]:
        """Yield the rows of a prediction from top to bottom.

        Args:
            image: raw intensities, axes (C, Y, X); read one tile row at a time.
            shape: rows and columns of the prediction, which is interpolated where the image has
                fewer.
            plan: the tiles of the image.
            affine: intensities to network input.
            tile_done: called with the number of tiles finished so far.

        Raises:
            CancelledError: :attr:`cancel` was set.
            OutOfMemoryError: not even one network input fits.
            BackendError: a distance is expected and the members give none.
            DecodeError: an intensity is NaN or infinite.
        """
        per_tile = self.config.map_order == "per_tile"
        channels = self.num_classes + 1 + per_tile + self.distance
        stitcher = Stitcher(plan, channels=channels, sigma=self.config.window_sigma)
        coarse = (plan.rows.length, plan.columns.length)
        finer = None if shape == coarse else RowInterpolator(coarse, shape)
        top, done = 0, 0
        for row in range(len(plan.rows)):
            pixels = image[:, plan.row_span(row), 0 : plan.columns.length]
            require_finite(pixels, f"rows from {plan.row_span(row).start}")
            group = max(1, self.batch_size // self.config.views)
            every_spec = [TileSpec(row, column) for column in range(len(plan.columns))]
            for first in range(0, len(every_spec), group):
                specs = every_spec[first : first + group]
                tiles = affine(np.stack([plan.cut(pixels, spec) for spec in specs]))
                for spec, maps in zip(specs, self._maps(tiles), strict=True):
                    stitcher.add(spec, maps)
                done += len(specs)
                tile_done(done)
            final = stitcher.finish_row(row)
            if finer is not None:
                final = finer.push(final)
            if final.shape[1]:
                yield self._band(top, final)
                top += final.shape[1]

    def _maps(self, tiles: TileBatch) -> NDArray[np.float32]:
        """Return what is blended.

        These are probabilities, mean squares, where maps are made per tile squared means, and the
        distance where there is one.
        """
        mixture = self._mixture(tiles)
        mean = mixture.mean
        maps = [mean, mixture.mean_square[:, None]]
        if self.config.map_order == "per_tile":
            maps.append(np.einsum("nkyx,nkyx->nyx", mean, mean)[:, None])
        if self.distance:
            maps.append(_required(mixture.mean_distance)[:, None])
        return np.concatenate(maps, axis=1)

    def _mixture(self, tiles: TileBatch) -> Mixture:
        """Pool all members and views of some tiles, in smaller batches if memory requires."""
        while True:
            try:
                return self._pooled(tiles)
            except OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size = max(1, min(self.batch_size, len(tiles) * self.config.views) // 2)
                _log.warning("out of memory; going on with batches of %d", self.batch_size)

    def _pooled(self, tiles: TileBatch) -> Mixture:
        tiles_at_once = max(1, self.batch_size // self.config.views)
        parts = [
            self._mixture_of_batch(tiles[start : start + tiles_at_once])
            for start in range(0, len(tiles), tiles_at_once)
        ]
        if len(parts) == 1:
            return parts[0]
        distances = [part.distance for part in parts if part.distance is not None]
        return Mixture(
            probs=np.concatenate([part.probs for part in parts]),
            squares=np.concatenate([part.squares for part in parts]),
            count=parts[0].count,
            distance=np.concatenate(distances) if distances else None,
        )

    def _mixture_of_batch(self, tiles: TileBatch) -> Mixture:
        every_view = views(self.config.views)
        passes = [
            (runner, every_view[first : first + self.batch_size])
            for runner in self.runners
            for first in range(0, len(every_view), self.batch_size)
        ]
        mixture = self._forward(*passes[0], tiles)
        for runner, some_views in passes[1:]:
            mixture += self._forward(runner, some_views, tiles)
        return mixture

    def _forward(
        self, runner: MemberRunner, some_views: Sequence[View], tiles: TileBatch
    ) -> Mixture:
        if self.cancel.is_set():
            message = "the prediction was cancelled"
            raise CancelledError(message)
        return runner.run_views(tiles, some_views)

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
        mask = probs.argmax(axis=0).astype(np.min_scalar_type(classes - 1))
        return Band(
            top=top,
            probs=probs,
            mask=mask,
            total=total,
            epistemic=epistemic,
            distance=final[-1] if self.distance else None,
        )


def _required(distance: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if distance is None:
        message = (
            "the ensemble has a distance channel, but its runners give no distance; give runners "
            "whose mixtures have one"
        )
        raise BackendError(message)
    return distance
