"""Whether an export computes what its ensemble computes.

Every export is run on the ensemble's golden image and on images of odd sizes, and compared with the
ensemble itself, whose members are loaded anew for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from df2serve.backends import open_members
from df2serve.config import RuntimeConfig, TrainingNormalization
from df2serve.errors import ParityError
from df2serve.export.settings import Variant
from df2serve.export.system import ExportSource
from df2serve.inference import Prediction, Predictor

__all__ = ["Case", "Deviation", "Maps", "Reference", "Run", "cut_window", "measure"]

Floats: TypeAlias = NDArray[np.float32]
Run: TypeAlias = Callable[[Floats], Sequence[Floats]]
"""An export: raw intensities (N, C, Y, X) to its outputs in order."""

_UNDECIDED = 1e-4
"""Pixels whose two largest probabilities differ by less may change their class by rounding."""
_GOLDEN_TOLERANCE = 1e-4
"""For golden tensors, which other hardware may have computed."""


@dataclass(frozen=True, eq=False)
class Maps:
    """What an export says of a batch of images."""

    probs: Floats
    """Axes (N, K, Y, X)."""
    mask: Floats
    """Axes (N, Y, X)."""
    total: Floats
    """Axes (N, Y, X)."""
    epistemic: Floats | None
    """Axes (N, Y, X); absent from the variant with one output."""
    score: Floats | None
    """U, axes (N,); absent from the variant with one output."""
    distance: Floats | None
    """Axes (N, Y, X); where the members give one."""

    @classmethod
    def of_outputs(cls, outputs: Sequence[Floats], variant: Variant, classes: int) -> Self:
        """Take the outputs of an export apart."""
        if variant == "fiji":
            (maps,) = outputs
            total, mask, *distance = np.moveaxis(maps[:, classes:], 1, 0)
            found = distance[0] if distance else None
            return cls(maps[:, :classes], mask, total, epistemic=None, score=None, distance=found)
        probs, mask, uncertainty, score, *distance = outputs
        found = distance[0][:, 0] if distance else None
        return cls(probs, mask[:, 0], uncertainty[:, 0], uncertainty[:, 1], score[:, 0], found)


@dataclass(frozen=True, eq=False)
class Case:
    """A batch of images of one size, and what the ensemble says of each."""

    images: Floats
    """Raw intensities, axes (N, C, Y, X)."""
    expected: tuple[Prediction, ...]


@dataclass(frozen=True)
class Deviation:
    """Largest absolute differences between an export and its ensemble over all cases."""

    probs: float
    uncertainty: float
    """Of total and epistemic uncertainty."""
    score: float | None
    """Of U; absent from the variant with one output."""
    distance: float | None
    """Of the distance to the boundary of objects, where the members give one."""
    mask_pixels: int
    """Pixels of another class, but for those whose two largest probabilities differ by less than
    1e-4."""
    undecided_pixels: int
    """Pixels of another class among those."""
    sizes: tuple[tuple[int, int, int], ...]
    """Images, rows and columns of the cases."""

    @property
    def largest(self) -> float:
        """Largest difference of any real number."""
        return max(self.probs, self.uncertainty, self.score or 0.0, self.distance or 0.0)

    def require(self, tolerance: float, what: str) -> None:
        """Refuse an export.

        Raises:
            ParityError: a difference exceeds the tolerance or is no number, or the mask differs.
        """
        if self.largest <= tolerance and (self.mask_pixels == 0 or tolerance > _UNDECIDED):
            return
        stated = {key: value for key, value in asdict(self).items() if value is not None}
        facts = ", ".join(f"{key} {value}" for key, value in stated.items())
        message = (
            f"{what} deviates from its ensemble: {facts}; expected differences of at most "
            f"{tolerance:g} and the same mask; nothing was written"
        )
        raise ParityError(message)


class Reference:
    """The ensemble's own predictions; use it as a context manager."""

    def __init__(self, source: ExportSource, image: NDArray[np.generic] | None = None) -> None:
        """Prepare; members are loaded on entering the context.

        Args:
            source: what is exported.
            image: raw intensities, axes (C, Y, X), instead of the golden image.
        """
        golden = source.ensemble.golden()
        if image is None and golden is not None:
            image = golden.image
        self.has_image = image is not None
        """Whether :attr:`scene` is a real image."""
        self.scene = _noise(source) if image is None else image.astype(np.float32)
        """Where test images are cut from: raw intensities, axes (C, Y, X)."""
        self._source = source
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Load the members.

        Raises:
            ArtifactError: a member is damaged.
        """
        runners = self._stack.enter_context(
            open_members(
                self._source.ensemble,
                runtime=RuntimeConfig(backend="torch", device="cpu"),
                precision="fp32",
                tile_shape=self._source.tile_shape,
            )
        )
        self._runners = [runners[index] for index in self._source.members]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free the members."""
        self._stack.close()

    def predict(self, image: NDArray[np.generic], *, whole: bool) -> Prediction:
        """Return the ensemble's prediction.

        Args:
            image: raw intensities, axes (C, Y, X).
            whole: take the whole image as one tile.
        """
        source = self._source
        config = source.config
        if whole:
            rows, columns = (-(-side // source.multiple) for side in image.shape[1:])
            config = config.updated(tile_shape=(rows * source.multiple, columns * source.multiple))
        runtime = RuntimeConfig(backend="torch", device="cpu")
        with Predictor(
            source.ensemble, config=config, runtime=runtime, runners=self._runners
        ) as predictor:
            return predictor.predict(image, axes="CYX")

    def cases(self, *, whole: bool) -> list[Case]:
        """Return images of several sizes with the ensemble's predictions.

        One tile of the golden image, or of noise, then a batch smaller than a tile, a tiny image,
        and an image larger than a tile, all of odd sizes.
        """
        rows, columns = self._source.tile_shape
        constant = self._source.arguments["normalization"] == "constant"
        sizes = [
            (1, rows, columns),
            (2, rows // 2 + 1, columns // 3),
            (1, 1, 1) if constant else (1, 7, 11),  # a single pixel has no contrast
            (1, rows + 1, columns * 5 // 4 + 3),
        ]
        if whole and self._source.config.views == 8:
            sizes = [(count, side, side) for count, side, _ in sizes]  # the engine turns squares
        batches = [
            np.stack([cut_window(self.scene, index, size) for index in range(count)])
            for count, *size in sizes
        ]
        return [
            Case(batch, tuple(self.predict(image, whole=whole) for image in batch))
            for batch in batches
        ]

    def check_golden(self) -> None:
        """Compare the ensemble with its own golden tensors, where they apply.

        Raises:
            ParityError: the ensemble does not give what it gave when it was made.
        """
        source, golden = self._source, self._source.ensemble.golden()
        recommended = source.ensemble.manifest.inference.updated(tile_shape=source.tile_shape)
        same = source.config == recommended.updated(precision="fp32", empty_score="largest")
        if golden is None or source.settings.member is not None or not same:
            return
        prediction = self.predict(golden.image, whole=False)
        deviation = max(
            float(np.abs(prediction.probs - golden.probs).max()),
            float(np.abs(prediction.total - golden.total).max()),
        )
        if not deviation <= _GOLDEN_TOLERANCE:
            message = (
                f"the ensemble deviates from its golden tensors by {deviation:.3g}, expected at "
                f"most {_GOLDEN_TOLERANCE:g}; its weights are not those that it was made with"
            )
            raise ParityError(message)


def measure(run: Run, cases: Sequence[Case], variant: Variant) -> Deviation:
    """Run an export on all cases and compare."""
    probs = uncertainty = 0.0
    score = 0.0 if variant == "full" else None
    distance = None
    wrong = undecided = 0
    for case in cases:
        found = Maps.of_outputs(run(case.images), variant, len(case.expected[0].probs))
        for index, expected in enumerate(case.expected):
            probs = _larger(probs, found.probs[index], expected.probs)
            uncertainty = _larger(uncertainty, found.total[index], expected.total)
            if found.epistemic is not None:
                uncertainty = _larger(uncertainty, found.epistemic[index], expected.epistemic)
            if found.score is not None and score is not None:
                score = _larger(score, found.score[index], np.float32(expected.scores.u or 0.0))
            if expected.distance is not None:
                given = np.empty(0) if found.distance is None else found.distance[index]
                distance = _larger(distance or 0.0, given, expected.distance)
            ordered = np.sort(expected.probs, axis=0)
            differs = found.mask[index] != expected.mask
            close = ordered[-1] - ordered[-2] < _UNDECIDED
            wrong += int((differs & ~close).sum())
            undecided += int((differs & close).sum())
    sizes = tuple((len(case.images), *case.images.shape[2:]) for case in cases)
    return Deviation(probs, uncertainty, score, distance, wrong, undecided, sizes)


def _larger(so_far: float, found: Any, expected: Any) -> float:
    """Return the largest difference, infinite where the export gave no number."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return max(so_far, float(np.abs(found - expected).max()))


def cut_window(scene: Floats, index: int, size: Sequence[int]) -> Floats:
    """Cut a window of any size out of a scene.

    Args:
        scene: axes (C, Y, X); mirrored at its right and lower edge where the window exceeds it.
        index: which of nine places, counted from 0 in the middle.
        size: rows and columns.
    """
    rows, columns = size
    _, height, width = scene.shape
    wide = np.pad(scene, ((0, 0), (0, rows), (0, columns)), mode="symmetric")
    across, down = ((place + 1) % 3 for place in divmod(index % 9, 3))
    top = max(0, height - rows) * down // 2
    left = max(0, width - columns) * across // 2
    return np.ascontiguousarray(wide[:, top : top + rows, left : left + columns])


def _noise(source: ExportSource) -> Floats:
    """Return noise of plausible intensities, axes (C, Y, X)."""
    manifest = source.ensemble.manifest
    noise = np.random.default_rng(0).uniform(size=(manifest.num_channels, *source.tile_shape))
    largest = np.full(manifest.num_channels, 255.0)
    if isinstance(manifest.normalization, TrainingNormalization):
        means, stds = map(np.array, (manifest.normalization.means, manifest.normalization.stds))
        largest = means + 2 * stds
    scene: Floats = (noise * largest[:, None, None]).astype(np.float32)
    return scene
