"""Tiny ensembles with golden tensors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from df2serve.artifact import Ensemble, GoldenTensors, with_files
from df2serve.export import Card
from df2serve.export.card import Person
from df2serve.inference import predict
from df2serve.testing import CellScene, generate_cells, random_ensemble


def with_golden(ensemble: Ensemble, seed: int = 0) -> Ensemble:
    """Add golden tensors of synthetic cells."""
    channels = ensemble.manifest.num_channels
    scene = CellScene(shape=(96, 96), n_cells=8, channels=channels)
    image = generate_cells(scene, seed=seed).image
    prediction = predict(image, ensemble=ensemble, axes="CYX")
    golden = GoldenTensors(image=image, probs=prediction.probs, total=prediction.total)
    return with_files(ensemble, golden.to_files())


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """Three members, one channel, two classes."""
    target = tmp_path_factory.mktemp("export") / "two"
    return with_golden(random_ensemble(target, members=3, channels=1, classes=2, tile=64))


@pytest.fixture(scope="session")
def four_classes(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """Three members, three channels, four classes."""
    target = tmp_path_factory.mktemp("export") / "four"
    return with_golden(random_ensemble(target, members=3, channels=3, classes=4, tile=64))


@pytest.fixture
def make_ensemble(tmp_path: Path) -> Callable[..., Ensemble]:
    """Build an ensemble that the test may damage."""

    def make(members: int = 1, channels: int = 1, classes: int = 2) -> Ensemble:
        return with_golden(
            random_ensemble(
                tmp_path / "made", members=members, channels=channels, classes=classes, tile=64
            )
        )

    return make


@pytest.fixture(scope="session")
def short_card() -> Card:
    """What a package needs, and nothing else."""
    return Card(
        authors=(Person(name="Ada Lovelace"),), license="MIT", description="Nothing in particular."
    )


@pytest.fixture(scope="session")
def odd_images() -> list[np.ndarray]:
    """One channel, odd sizes, smaller and larger than a tile."""
    rng = np.random.default_rng(5)
    return [rng.uniform(0, 150, (1, *size)).astype(np.float32) for size in ((7, 45), (81, 97))]
