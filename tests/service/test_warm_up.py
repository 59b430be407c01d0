"""Models of every normalization are loaded, and tried, before the first image comes."""

import pytest

from df2serve.artifact import save_ensemble
from df2serve.config import RuntimeConfig
from df2serve.service.worker.shelf import Shelf
from df2serve.testing import tiny_network
from df2serve.testing.ensembles import manifest_fields


@pytest.mark.parametrize(
    "normalization",
    [
        {"kind": "image"},
        {"kind": "percentile", "low": 1, "high": 99.8},
        {"kind": "training", "means": [5, 6], "stds": [2, 3]},
        {"kind": "none"},
    ],
    ids=lambda normalization: normalization["kind"],
)
def test_models_are_tried_when_they_are_loaded(tmp_path, normalization) -> None:
    fields = manifest_fields(channels=2, classes=2, tile=32) | {"normalization": normalization}
    networks = [tiny_network(0, channels=2, classes=2)]
    save_ensemble(tmp_path / "tiny", fields, networks, files={})
    shelf = Shelf(
        {"tiny": str(tmp_path / "tiny")},
        runtime=RuntimeConfig(device="cpu"),
        budget=1 << 30,
        changed=lambda: None,
    )
    with shelf.borrow("tiny", "fp32") as loaded:
        assert len(loaded.runners) == 1
    assert [facts.state for facts in shelf.facts()] == ["loaded"]
    shelf.close()
