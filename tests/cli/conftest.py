"""The command line as a person uses it: arguments in; exit code, output and errors out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from df2serve.artifact import Ensemble
from df2serve.testing import random_ensemble


@pytest.fixture(scope="session")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    target = tmp_path_factory.mktemp("cli") / "ensemble"
    return random_ensemble(target, members=2, channels=1, classes=2, tile=64)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("1.png", "2.png"):
        PillowImage.fromarray(rng.integers(0, 255, (80, 70), dtype=np.uint8)).save(folder / name)
    return folder
