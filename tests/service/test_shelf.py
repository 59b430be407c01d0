"""One ensemble under two names: two models that share its bits, and nothing that changes."""

import numpy as np
import pytest

from df2serve.config import RuntimeConfig
from df2serve.errors import ArtifactNotFoundError, ConfigError
from df2serve.inference import Predictor
from df2serve.service.settings import named_sources
from df2serve.service.worker.shelf import Shelf
from df2serve.testing import random_ensemble


@pytest.fixture
def folder(tmp_path):
    random_ensemble(tmp_path / "cells", members=1, channels=1, classes=2, tile=64)
    return str(tmp_path / "cells")


def shelf_of(*models):
    return Shelf(
        named_sources(models),
        runtime=RuntimeConfig(device="cpu"),
        budget=1 << 30,
        changed=lambda: None,
    )


def test_two_names(folder) -> None:
    shelf = shelf_of(folder, f"other={folder}")
    assert shelf.names == ("tiny", "other")
    assert shelf.default == "tiny"
    image = np.arange(4800, dtype=np.uint16).reshape(60, 80)

    def probs(name):
        with shelf.borrow(name, "fp32") as loaded:
            ensemble = loaded.ensemble
            with Predictor(
                ensemble, runtime=RuntimeConfig(device="cpu"), runners=loaded.runners
            ) as predictor:
                return predictor.predict(image).probs

    def states():
        return {facts.name: (facts.state, facts.resident_bytes > 0) for facts in shelf.facts()}

    expected = probs("tiny")
    assert states() == {"tiny": ("loaded", True), "other": ("available", False)}
    assert np.array_equal(probs("other"), expected)
    with shelf.borrow("tiny", "fp32") as one, shelf.borrow("other", "fp32") as two:
        assert one is not two
        shelf.unload("tiny")  # closed when it is given back, and the other one stays
        assert states() == {"tiny": ("available", False), "other": ("loaded", True)}
    assert np.array_equal(probs("other"), expected)
    assert np.array_equal(probs("tiny"), expected)
    first, second = shelf.facts()
    assert (first.id, first.sha256) == (second.id, second.sha256)
    assert (first.is_default, second.is_default) == (True, False)
    shelf.close()


def test_a_new_revision_of_one_name_leaves_the_other(folder, tmp_path) -> None:
    shelf = shelf_of(f"one={folder}", f"two={folder}")
    old = shelf.ensemble("one").sha256
    (tmp_path / "cells").rename(tmp_path / "old")
    new = random_ensemble(folder, members=2, channels=1, classes=2, tile=64)
    shelf.refresh("one")
    assert (shelf.ensemble("one").sha256, shelf.ensemble("two").sha256) == (new.sha256, old)
    assert shelf.is_outdated("two")
    assert not shelf.is_outdated("one")
    shelf.close()


def test_names_that_meet(folder) -> None:
    with pytest.raises(ConfigError, match="two models are called tiny; name one of them as NAME="):
        shelf_of(folder, folder)
    with pytest.raises(ConfigError, match="two models are called a; give them different names"):
        shelf_of(f"a={folder}", f"a={folder}")
    with pytest.raises(ArtifactNotFoundError, match="choose one of a"):
        shelf_of(f"a={folder}").ensemble("tiny")
