"""What a prediction is: rows as they become final, the whole of it, and where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from df2serve.backends import RunnerInfo
from df2serve.config import InferenceConfig
from df2serve.core.scores import ImageScores
from df2serve.io import PixelSize, Selection
from df2serve.types import MaskArray, PixelMap, ProbMap

__all__ = ["Band", "Prediction", "Progress", "Provenance", "Summary"]


@dataclass(frozen=True)
class Progress:
    """How far the prediction of one image is."""

    source: str
    """Name of the image."""
    done: int
    """Tiles finished, all members and views of them."""
    total: int
    """Tiles of the image."""


@dataclass(frozen=True, eq=False)
class Band:
    """Some rows of a prediction that no later tile can change."""

    top: int
    """Image row of the first row, counted from 0."""
    probs: ProbMap
    """Mean class probabilities (eq. 1), axes (K, rows, X)."""
    mask: MaskArray
    """Most probable class (eq. 2), lowest index on ties, axes (rows, X)."""
    total: PixelMap
    """Total uncertainty (eq. 3-4), axes (rows, X)."""
    epistemic: PixelMap
    """Its epistemic part, axes (rows, X)."""
    distance: PixelMap | None = None
    """Mean relative distance to the boundary of the object, axes (rows, X), in [0, 1], where the
    ensemble has a distance channel."""


@dataclass(frozen=True)
class Provenance:
    """Everything needed to make a result again."""

    source: str
    source_sha256: str | None
    image_shape: tuple[int, ...]
    """Axes (C, Y, X)."""
    image_dtype: str
    image_axes: str | None
    """The stored axes in order, ``_`` for one of length 1 without a meaning."""
    selection: Selection
    """The plane and channels that were taken."""
    pixel_size_um: PixelSize | None
    ensemble_id: str
    ensemble_sha256: str
    members: int
    config: InferenceConfig
    """What was computed; ``tile_shape`` and ``precision`` are the ones in effect."""
    runner: RunnerInfo
    """Where the first member ran; all members run alike."""
    df2serve_version: str
    created: str
    """Start of the computation, ISO 8601 in UTC."""


@dataclass(frozen=True)
class Summary:
    """What is known once the last row is final."""

    scores: ImageScores
    statistics: dict[str, float]
    """What the image looks like, by name: see :mod:`df2serve.core.image_statistics`."""
    provenance: Provenance
    seconds: float
    """Wall-clock time from the first tile to the last row."""
    batch_size: int
    """Network inputs per forward pass at the end, after running out of memory where it did."""
    notes: tuple[str, ...]
    """Remarks for people, such as a pixel size unlike the training's."""
    features: tuple[NDArray[np.float32], ...] = field(default=(), compare=False)
    """What each member sees in the image, a vector of length 1, where that was gathered: see
    :mod:`df2serve.core.features`."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """A whole prediction in memory."""

    probs: ProbMap
    """Mean class probabilities (eq. 1), axes (K, Y, X)."""
    mask: MaskArray
    """Most probable class (eq. 2), axes (Y, X), smallest unsigned type that holds K - 1."""
    total: PixelMap
    """Total uncertainty (eq. 3-4), axes (Y, X), in [0, 4 (K - 1) / K²] on the paper's scale."""
    epistemic: PixelMap
    """Its epistemic part, axes (Y, X)."""
    summary: Summary
    distance: PixelMap | None = None
    """Mean relative distance to the boundary of the object, axes (Y, X), in [0, 1], where the
    ensemble has a distance channel."""

    @property
    def scores(self) -> ImageScores:
        """Image-level scores."""
        return self.summary.scores

    @property
    def aleatoric(self) -> PixelMap:
        """The aleatoric part of the uncertainty, axes (Y, X)."""
        part: PixelMap = np.maximum(self.total - self.epistemic, 0)
        return part

    @classmethod
    def from_bands(cls, bands: Sequence[Band], summary: Summary) -> Prediction:
        """Join all rows."""
        distances = [band.distance for band in bands if band.distance is not None]
        return cls(
            probs=_join([band.probs for band in bands]),
            mask=_join([band.mask for band in bands]),
            total=_join([band.total for band in bands]),
            epistemic=_join([band.epistemic for band in bands]),
            summary=summary,
            distance=_join(distances) if distances else None,
        )

    def bands(self) -> Iterator[Band]:
        """Yield the prediction as one band, for writers that take bands."""
        yield Band(
            top=0,
            probs=self.probs,
            mask=self.mask,
            total=self.total,
            epistemic=self.epistemic,
            distance=self.distance,
        )


def _join(parts: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    """Concatenate along rows, the axis before the last."""
    return np.concatenate(parts, axis=-2)
