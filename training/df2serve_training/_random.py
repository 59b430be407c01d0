"""Random numbers that depend on where they are used and on nothing that was drawn before."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

__all__ = ["Purpose", "random_numbers"]


class Purpose(IntEnum):
    """What random numbers are for; each purpose has a stream of its own."""

    ORDER = 0
    CENTER = 1
    TRANSFORM = 2


def random_numbers(seed: int, member: int, purpose: Purpose, number: int) -> np.random.Generator:
    """Return the generator of one thing, such as one patch.

    Args:
        seed: of the training, 0 to 2^64 - 1.
        member: of the ensemble, counted from 0.
        purpose: what for.
        number: of the thing, counted from 0.

    Source:
        Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).

    Example:
        >>> draw = lambda number: int(random_numbers(7, 0, Purpose.CENTER, number).integers(1000))
        >>> draw(5) == draw(5), draw(5) == draw(6)
        (True, False)
    """
    key = np.array([seed, member], np.uint64)
    # the low words count the numbers drawn, so that two streams never meet
    counter = np.array([0, 0, purpose, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
