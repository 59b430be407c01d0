"""The images that the benchmarks predict."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from df2serve.io import read_image, read_mask
from df2serve.testing import CellScene, generate_cells

__all__ = ["DATA", "SIDE", "Micrograph", "micrographs"]

SIDE = 1024
DATA = Path(os.environ.get("DF2SERVE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True, eq=False)
class Micrograph:
    """Cells and where they are."""

    name: str
    image: NDArray[np.uint8]
    """Intensities, axes (1, Y, X)."""
    mask: NDArray[np.uint8]
    """Classes, axes (Y, X): 0 background, 1 cell."""


def micrographs() -> Iterator[Micrograph]:
    """Yield images of :data:`SIDE` rows and columns.

    They are the 36 real ones of the paper's training set where the real data are there, else
    synthetic ones without end.
    """
    folder = DATA / "cfos_hc"
    if not folder.is_dir():
        yield from map(_synthetic, count())
        return
    for path in sorted((folder / "images").glob("*.png")):
        image = np.asarray(read_image(path).data, dtype=np.uint8)
        mask = read_mask(folder / "masks_est_GT" / path.name, kind="binary")
        yield Micrograph(f"cFOS {path.stem}", image, mask.classes)


def _synthetic(seed: int) -> Micrograph:
    sample = generate_cells(CellScene(shape=(SIDE, SIDE), n_cells=100), seed)
    return Micrograph(f"synthetic cells, seed {seed}", sample.image.astype(np.uint8), sample.mask)
