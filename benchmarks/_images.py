"""The image that the benchmarks predict."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from df2serve.io import read_image
from df2serve.testing import CellScene, generate_cells

__all__ = ["cell_image"]

_DATA = Path(os.environ.get("DF2SERVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
_CELLS_PER_PIXEL = 100 / 1024**2


def cell_image(size: int) -> tuple[NDArray[np.generic], str]:
    """Return an image of axes (1, Y, X) with ``size`` rows and columns, and what it is.

    It is the upper left corner of a real micrograph, 1024 pixels wide, where the real data are
    there, and synthetic otherwise.
    """
    path = _DATA / "cfos_hc" / "images" / "0001.png"
    if path.exists() and size <= 1024:
        pixels = np.asarray(read_image(path).data[:, :size, :size])
        return pixels, "cFOS micrograph 0001 of the paper's training set"
    scene = CellScene(shape=(size, size), n_cells=round(_CELLS_PER_PIXEL * size**2))
    return generate_cells(scene, seed=0).image, "synthetic cells, seed 0"
