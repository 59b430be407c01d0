"""What every backend promises: the protocol of a member that runs somewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from df2serve.core.augment import View
from df2serve.core.mixture import Mixture
from df2serve.types import TileBatch, TileProbs

__all__ = ["FeatureRunner", "MemberRunner", "RunnerInfo", "TileFeatures", "mixture_of_views"]

TileFeatures: TypeAlias = NDArray[np.float32]
"""Pooled features of tiles, axes (N, channels)."""


@dataclass(frozen=True)
class RunnerInfo:
    """Where a member really runs; part of every result's provenance."""

    backend: str
    """Name and version of the engine, such as ``torch 2.15.0``."""
    device: str
    """Device in words, such as ``cuda:0 (NVIDIA H100)`` or ``cpu``."""
    precision: str
    """Arithmetic of the network: ``fp32``, ``bf16`` or ``fp16``."""
    preferred_pixels: int
    """Pixels of network input per forward pass that suit the device."""


@runtime_checkable
class MemberRunner(Protocol):
    """One member network on one device; owns its memory until it is closed.

    Implementations come with :class:`df2serve.testing.MemberRunnerContract`.
    """

    @property
    def info(self) -> RunnerInfo:
        """Where and how it runs."""

    def run(self, tiles: TileBatch, /) -> TileProbs:
        """Return class probabilities of normalised tiles.

        Args:
            tiles: axes (N, C, Y, X), sides multiples of the network's own.

        Returns:
            Probabilities in float32, axes (N, K, Y, X), whatever the precision of the network. A
            network with a distance channel has the relative distance behind them, as map K + 1.

        Raises:
            OutOfMemoryError: the batch does not fit; a smaller one may.
        """

    def run_views(self, tiles: TileBatch, views: Sequence[View], /) -> Mixture:
        """Return the mixture over test-time views, in the tiles' own orientation.

        Its ``distance`` is there if and only if the network has a distance channel.
        """

    def close(self) -> None:
        """Free the device's memory; closing twice is harmless."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class FeatureRunner(MemberRunner, Protocol):
    """A member that also tells what it sees in an image, in the same forward passes."""

    def run_views_pooled(
        self, tiles: TileBatch, views: Sequence[View], kept: Sequence[tuple[slice, slice]], /
    ) -> tuple[Mixture, TileFeatures]:
        """Return what ``run_views`` returns, bit by bit, and pooled features.

        Args:
            tiles: axes (N, C, Y, X).
            views: test-time views, the identity among them.
            kept: per tile, its rows and columns that lie in the image.

        Returns:
            The mixture and, of the identity view, the mean over these pixels of the deepest
            feature map of the encoder, in which each entry stands for an equal share of the tile
            (:func:`df2serve.core.features.inside_shares`).

        Raises:
            BackendError: the network has no encoder with a deepest feature map.
            OutOfMemoryError: the batch does not fit; a smaller one may.
        """


def mixture_of_views(
    run: Callable[[TileBatch], TileProbs],
    tiles: TileBatch,
    views: Sequence[View],
    *,
    distance: bool = False,
) -> Mixture:
    """Return ``run_views`` for backends that have nothing better: one pass per view, in numpy.

    Args:
        run: that of the backend.
        tiles: axes (N, C, Y, X).
        views: test-time views.
        distance: whether the last map that ``run`` gives is the distance.
    """
    samples = (view.invert(run(view.apply(tiles))) for view in views)
    return Mixture.from_samples(samples, distance=distance)
