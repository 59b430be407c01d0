"""The module that an ensemble becomes, beside the engine that predicts images."""

from pathlib import Path

import pytest
import torch

from df2serve.artifact import Ensemble
from df2serve.artifact.folder import save_ensemble
from df2serve.config import InferenceConfig, OverlapGrid, preset
from df2serve.core.tiling import plan_tiles
from df2serve.errors import ExportError, ParityError
from df2serve.export import ExportSettings, _system
from df2serve.export._system import _origins, _score
from df2serve.export.parity import Reference, measure
from df2serve.export.settings import Variant
from df2serve.export.system import open_source
from df2serve.export.torchscript import module_runner
from df2serve.testing import random_ensemble, tiny_network
from df2serve.testing.ensembles import manifest_fields

NORMALIZATIONS = (
    {"kind": "training", "means": [20.0, 30.0], "stds": [10.0, 25.0]},
    {"kind": "percentile", "low": 2.0, "high": 99.0},
    {"kind": "image"},
    pytest.param({"kind": "none"}, marks=pytest.mark.slow),
)


@pytest.mark.parametrize(
    "normalization", NORMALIZATIONS, ids=["training", "percentile", "image", "none"]
)
def test_modules_compute_what_the_engine_computes(
    normalization: dict[str, object], tmp_path
) -> None:
    fields = manifest_fields(channels=2, classes=3, tile=64) | {"normalization": normalization}
    networks = [tiny_network(0, channels=2, classes=3)]
    ensemble = save_ensemble(tmp_path / "ensemble", fields, networks, files={})
    config = InferenceConfig(
        grid=OverlapGrid(overlap=0.4), views=8, window_sigma=0.2, uncertainty_scale="unit"
    )
    source = open_source(ensemble, ExportSettings(variant="full"), config)
    with Reference(source) as reference:
        cases = [reference.cases(whole=whole) for whole in (False, True)]
    for module, some in zip((source.windowed(), source.whole()), cases, strict=True):
        deviation = measure(module_runner(module), some, "full")
        deviation.require(1e-5, "the module")
        assert deviation.largest > 0


@pytest.mark.parametrize("variant", ["fiji", "full"])
def test_distance_comes_with_the_maps(variant: Variant, tmp_path: Path) -> None:
    ensemble = random_ensemble(
        tmp_path / "ensemble", members=2, channels=1, classes=3, tile=64, distance=True
    )
    source = open_source(ensemble, ExportSettings(variant=variant), None)
    with Reference(source) as reference:
        cases = reference.cases(whole=False)
    deviation = measure(module_runner(source.windowed()), cases, variant)
    deviation.require(1e-5, "the module")
    assert deviation.distance is not None
    assert 0 < deviation.distance < 1e-5
    without = _system.build(
        list(source.networks), **{**source.arguments, "distance": False}, multiple=None
    )
    with pytest.raises(ParityError, match="distance inf"):
        measure(module_runner(without), cases, variant).require(1e-5, "the module")


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_tiles_lie_where_the_plan_puts_them(overlap: float) -> None:
    for length in range(32, 400):
        plan = plan_tiles((length, length), (32, 32), OverlapGrid(overlap=overlap))
        expected = [placed.start for placed in plan.rows.placed]
        assert _origins(length, 32, max(1, int(32 * (1 - overlap)))) == expected


def test_image_without_contrast_gives_numbers(tmp_path) -> None:
    fields = manifest_fields(channels=1, classes=2, tile=64) | {"normalization": {"kind": "image"}}
    ensemble = save_ensemble(
        tmp_path / "ensemble", fields, [tiny_network(0, channels=1, classes=2)], files={}
    )
    module = open_source(ensemble, ExportSettings(), None).windowed()
    with torch.inference_mode():
        assert torch.isfinite(module(torch.full((1, 1, 3, 5), 7.0))).all()


def test_score_of_an_image_without_foreground_is_the_largest_uncertainty() -> None:
    total = torch.tensor([[[[0.2, 0.6]]], [[[0.2, 0.6]]]])
    mask = torch.tensor([[[[0.0, 0.0]]], [[[1.0, 0.0]]]])
    assert _score(total, mask).flatten().tolist() == pytest.approx([0.6, 0.2])


@pytest.mark.parametrize(
    ("settings", "config", "words"),
    [
        ({"member": 3}, None, "got member 3, the ensemble has 3"),
        ({}, preset("deepflash2"), "deepflash2's grid"),
        ({}, InferenceConfig(views=8, tile_shape=(64, 96)), "square tiles, got 64x96"),
        ({}, InferenceConfig(tile_shape=(48, 64)), "48x64 pixels, .* multiples of 32"),
    ],
)
def test_what_has_no_graph_is_refused(
    two_classes: Ensemble, settings: dict, config: InferenceConfig | None, words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        open_source(two_classes, ExportSettings(**settings), config)


def test_precision_and_rule_of_the_graph_are_stated(two_classes: Ensemble) -> None:
    source = open_source(two_classes, ExportSettings(), preset("fast"))
    assert source.config.precision == "fp32"
    assert source.config.empty_score == "largest"
    assert source.arguments["overlap"] == 0.25


def test_ensembles_of_a_coarser_resolution_are_refused(two_classes: Ensemble) -> None:
    config = preset("accurate").updated(zoom_out=2.0)
    with pytest.raises(ExportError, match="pixels 2 times as large as those of images"):
        open_source(two_classes, ExportSettings(), config)
