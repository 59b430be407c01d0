import shutil
from pathlib import Path

import pytest

from df2serve.artifact import Ensemble, load_ensemble
from df2serve.testing.ensembles import random_ensemble


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("ensembles") / "tiny"
    return random_ensemble(target, members=2, channels=1, classes=2, tile=64).source


@pytest.fixture
def tiny(tiny_folder: Path, tmp_path: Path) -> Ensemble:
    """A copy that the test may damage."""
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    return load_ensemble(tmp_path / "tiny")
