"""Scores of whole predictions: all members, views and tiles of real networks."""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import df2serve
from df2serve.artifact import Ensemble
from df2serve.config import PRESETS, RuntimeConfig
from df2serve.core.augment import views
from df2serve.core.metrics import dice
from df2serve.core.tiling import TileSpec, plan_tiles
from df2serve.testing import random_ensemble

RNG = np.random.default_rng(5)
IMAGE = np.add.outer(60 * np.sin(np.arange(150) / 9), 60 * np.cos(np.arange(110) / 7)) + 110
IMAGE = (IMAGE + RNG.normal(scale=6, size=IMAGE.shape)).clip(0, 255).astype(np.uint8)
FAST = PRESETS["accurate"].updated(views=1)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = tmp_path_factory.mktemp("scores") / "ensemble"
    return random_ensemble(folder, members=3, channels=1, classes=3, tile=64)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Dice score, 1 for two empty masks."""
    score = dice(first, second)
    return 1.0 if score is None else score


@pytest.mark.parametrize("batch_size", [None, 1])
def test_disagreement_is_that_of_all_members_and_views(
    ensemble: Ensemble, batch_size: int | None
) -> None:
    """Every pixel of every member is taken from the tile whose middle is nearest."""
    config = PRESETS["accurate"]
    runtime = RuntimeConfig(batch_size=batch_size)
    with df2serve.Predictor(ensemble, config=config, runtime=runtime) as predictor:
        found = predictor.predict(IMAGE).scores
        plan = plan_tiles(IMAGE.shape, (64, 64), config.grid)
        masks = np.zeros((4, *IMAGE.shape), np.uint8)
        for row in range(len(plan.rows)):
            for column in range(len(plan.columns)):
                band = IMAGE[None, plan.row_span(row)]
                tile = plan.cut(band, TileSpec(row, column))
                normal = (tile[None].astype(np.float32) - 60) / np.float32(40)
                samples = np.stack(
                    [
                        [view.invert(runner.run(view.apply(normal)))[0] for view in views(4)]
                        for runner in predictor.engine.runners
                    ]
                )
                members = samples.mean(axis=1)
                classes = np.stack([*members, members.mean(axis=0)]).argmax(axis=1)
                kept = plan.rows.kept[row], plan.columns.kept[column]
                placed = plan.rows.placed[row], plan.columns.placed[column]
                cell = plan.cell(TileSpec(row, column))
                inside = np.zeros((64, 64), dtype=bool)
                inside[cell] = True
                masks[:, *placed][:, inside[kept]] = classes[:, *kept][:, inside[kept]]
    *members, mean = masks
    present = [k for k in (1, 2) if (masks == k).any()]
    pairs = [[overlap(a == k, b == k) for a, b in combinations(members, 2)] for k in present]
    assert found.one_minus_pairwise_dice == pytest.approx(1 - np.mean(pairs), abs=1e-6)
    own = [[overlap(member == k, mean == k) for member in members] for k in present]
    assert found.one_minus_member_dice == pytest.approx(1 - np.mean(own), abs=1e-6)
    assert 0 < found.one_minus_pairwise_dice < 1


def test_cells_tell_nearly_what_stitched_masks_of_members_tell(ensemble: Ensemble) -> None:
    with df2serve.Predictor(ensemble, config=FAST) as predictor:
        found = predictor.predict(IMAGE).scores
        masks = []
        for runner in predictor.engine.runners:
            with df2serve.Predictor(ensemble, config=FAST, runners=[runner]) as alone:
                prediction = alone.predict(IMAGE)
            assert prediction.scores.one_minus_pairwise_dice is None
            masks.append(prediction.mask)
    present = [k for k in (1, 2) if any((mask == k).any() for mask in masks)]
    pairs = [[overlap(a == k, b == k) for a, b in combinations(masks, 2)] for k in present]
    assert found.one_minus_pairwise_dice == pytest.approx(1 - np.mean(pairs), abs=0.05)


@pytest.mark.parametrize(("members", "classes"), [(1, 2), (2, 7)])
def test_everything_is_finite_and_becomes_json(tmp_path: Path, members: int, classes: int) -> None:
    images = [
        np.full((40, 40), 7, np.uint8),
        np.zeros((1, 1), np.uint16),
        RNG.integers(0, 255, (40, 33), dtype=np.uint8),
        np.full((32, 40), 1e6, np.float32),
    ]
    opened = random_ensemble(
        tmp_path / "ensemble", members=members, channels=1, classes=classes, tile=32
    )
    with df2serve.Predictor(opened, config=FAST) as predictor:
        for image in images:
            summary = predictor.predict(image).summary
            content = dataclasses.asdict(summary.scores) | summary.statistics
            json.dumps(content, allow_nan=False)
            assert (summary.scores.one_minus_pairwise_dice is None) == (members == 1)
            assert {"share of foreground", "sharpness of channel 0"} <= summary.statistics.keys()


def test_statistics_are_those_of_the_image(ensemble: Ensemble) -> None:
    statistics = df2serve.predict(IMAGE, ensemble=ensemble, config=FAST).summary.statistics
    dark, middle, bright = np.percentile(IMAGE, [1, 50, 99])
    assert statistics["dark level of channel 0"] == dark
    assert statistics["background level of channel 0"] == middle
    assert statistics["bright level of channel 0"] == bright
    assert statistics["saturated share of channel 0"] == np.mean(IMAGE.max() == IMAGE)
    steps = np.abs(np.diff(IMAGE.astype(float), axis=1)).mean()
    assert statistics["sharpness of channel 0"] == pytest.approx(steps / (bright - dark), rel=0.01)
