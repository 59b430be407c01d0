"""An ensemble, a predictor that is open, and images for the writers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from df2serve import Predictor
from df2serve.testing import random_ensemble


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    target = tmp_path_factory.mktemp("writers") / "ensemble"
    with Predictor(random_ensemble(target, members=2, channels=1, classes=3, tile=64)) as opened:
        yield opened


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images with a pixel size, one of them in a subfolder."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    (folder / "day 2").mkdir(parents=True)
    for name in ("1.tif", "2.tif", "day 2/1.tif"):
        pixels = rng.integers(0, 255, (150, 90), dtype=np.uint8)
        tifffile.imwrite(
            folder / name, pixels, imagej=True, resolution=(2, 4), metadata={"unit": "um"}
        )
    return folder
