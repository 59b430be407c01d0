"""Where patches are centered, the same for everybody who knows seed, member and number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from df2serve.errors import InputError
from df2serve_training._random import Purpose, random_numbers
from df2serve_training.settings import SamplingSettings
from df2serve_training.targets import IGNORED

__all__ = ["PatchCenter", "PatchSampler"]


@dataclass(frozen=True)
class PatchCenter:
    """The pixel that a patch is centered on."""

    image: int
    """Place of the image among those of the sampler, counted from 0."""
    row: int
    column: int


class PatchSampler:
    """Draws centers: every image equally often, and in it a class by chance, and of it a pixel.

    Pixels that do not count are never drawn. Images take turns in an order that is new in each
    round. Drawing takes the time of looking through one row of a target.
    """

    def __init__(
        self,
        targets: Sequence[NDArray[np.uint8]],
        settings: SamplingSettings,
        *,
        seed: int,
        member: int,
    ) -> None:
        """Count the classes of every row.

        Args:
            targets: class indices of every image, axes (Y, X), ``IGNORED`` where pixels do not
                count; kept, not copied.
            settings: how classes are weighted.
            seed: of the training.
            member: of the ensemble, counted from 0; members draw different patches.

        Raises:
            InputError: there is no image, or none of an image's pixels counts.
        """
        self._indices = [_ClassIndex(target, settings) for target in targets]
        self._seed = seed
        self._member = member
        blank = [place for place, index in enumerate(self._indices) if not len(index.classes)]
        if blank or not targets:
            message = (
                f"got {len(targets)} targets, those without a pixel that counts are {blank}; "
                "expected at least one target, and in each a pixel that is not ignored"
            )
            raise InputError(message)

    def draw(self, number: int) -> PatchCenter:
        """Return the center of a patch.

        Args:
            number: of the patch among all that the member is trained on, counted from 0.
        """
        turn, place = divmod(number, len(self._indices))
        order = random_numbers(self._seed, self._member, Purpose.ORDER, turn)
        image = int(order.permutation(len(self._indices))[place])
        rng = random_numbers(self._seed, self._member, Purpose.CENTER, number)
        row, column = self._indices[image].draw(rng)
        return PatchCenter(image, row, column)


class _ClassIndex:
    """Finds pixels of a class by their rank in reading order, without a list of them."""

    def __init__(self, target: NDArray[np.uint8], settings: SamplingSettings) -> None:
        self._target = target
        per_row = np.stack([np.bincount(row, minlength=IGNORED + 1)[:IGNORED] for row in target])
        totals = per_row.sum(axis=0)
        self.classes = np.flatnonzero(totals)
        """Classes that are present."""
        self._pixels_to = per_row[:, self.classes].cumsum(axis=0)
        """Pixels of each present class down to and including each row, axes (Y, class)."""
        self._chances = _chances(totals[self.classes], settings)

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return row and column of a random pixel of a random class."""
        place = int(rng.choice(len(self.classes), p=self._chances))
        pixels_to = self._pixels_to[:, place]
        rank = int(rng.integers(pixels_to[-1]))
        row = int(np.searchsorted(pixels_to, rank, side="right"))
        before = int(pixels_to[row - 1]) if row else 0
        columns = np.flatnonzero(self._target[row] == self.classes[place])
        return row, int(columns[rank - before])


def _chances(counts: NDArray[np.int64], settings: SamplingSettings) -> NDArray[np.float64]:
    """Return the chance of every present class.

    Source:
        ``deepflash2``: a pixel's weight is 1 - f, so that a class has f (1 - f) of them all.

    Example:
        >>> counts = np.array([80, 15, 5])
        >>> _chances(counts, SamplingSettings(class_weights="deepflash2")).round(3).tolist()
        [0.478, 0.381, 0.142]
    """
    if settings.class_weights == "uniform" or len(counts) < 2:
        return np.full(len(counts), 1 / max(1, len(counts)))
    share = counts / counts.sum()
    chances: NDArray[np.float64] = share * (1 - share) / (share * (1 - share)).sum()
    return chances
