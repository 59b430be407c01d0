"""Pooled features and distances to the nearest, against loops over pixels and images."""

import numpy as np
import pytest

from df2serve.config import CentreGrid, OverlapGrid
from df2serve.core.features import NEAREST, FeatureMeans, inside_shares, nearest_distance
from df2serve.core.oddness import Looks, measure_oddness
from df2serve.core.tiling import TileSpec, plan_tiles

RNG = np.random.default_rng(11)


def pooled(features: np.ndarray, kept: tuple[slice, slice], side: int) -> np.ndarray:
    """The product of weights per row and per column, axes (channel,)."""
    rows, columns = features.shape[1:]
    return np.einsum(
        "cyx,y,x->c",
        features,
        inside_shares(kept[0], side=side, cells=rows),
        inside_shares(kept[1], side=side, cells=columns),
    )


@pytest.mark.parametrize("grid", [OverlapGrid(), CentreGrid()], ids=["overlap", "centre"])
@pytest.mark.parametrize("shape", [(40, 130), (64, 64), (7, 91)])
def test_pooling_is_the_mean_over_pixels_of_the_image(
    shape: tuple[int, int], grid: OverlapGrid | CentreGrid
) -> None:
    """Every pixel of a tile has the features of its cell; those outside of the image are left."""
    plan = plan_tiles(shape, (64, 64), grid)
    features = RNG.normal(size=(3, 4, 4)).astype(np.float32)
    partly = 0
    for row in range(len(plan.rows)):
        for column in range(len(plan.columns)):
            kept = plan.kept(TileSpec(row, column))
            inside = [
                features[:, y // 16, x // 16]
                for y in range(*kept[0].indices(64))
                for x in range(*kept[1].indices(64))
            ]
            partly += len(inside) < 64 * 64
            expected = np.mean(inside, axis=0, dtype=float)
            np.testing.assert_allclose(pooled(features, kept, 64), expected, atol=1e-5)
    assert partly or (shape == (64, 64) and isinstance(grid, OverlapGrid))


@pytest.mark.parametrize(("side", "cells"), [(64, 2), (64, 1), (96, 3), (64, 7)])
def test_weights_of_an_axis_sum_to_one(side: int, cells: int) -> None:
    for kept in (slice(0, side), slice(5, 6), slice(side - 3, side), slice(1, side - 1)):
        shares = inside_shares(kept, side=side, cells=cells)
        samples = np.zeros(cells)
        for sample in range(kept.start * 100, kept.stop * 100):  # a hundred parts per sample
            samples[int((sample + 0.5) / 100 / (side / cells))] += 0.01
        np.testing.assert_allclose(shares, samples / samples.sum(), atol=0.01)
        assert shares.sum() == pytest.approx(1)


def test_tiles_count_alike_whatever_the_batches() -> None:
    tiles = [RNG.normal(size=(7, channels)).astype(np.float32) for channels in (5, 3)]
    at_once, in_parts = FeatureMeans(), FeatureMeans()
    at_once.update(tiles)
    for start, stop in ((0, 1), (1, 5), (5, 7)):
        in_parts.update([one[start:stop] for one in tiles])
    for one, first, second in zip(tiles, at_once.compute(), in_parts.compute(), strict=True):
        mean = one.astype(float).mean(axis=0)
        np.testing.assert_allclose(first, mean / np.sqrt((mean**2).sum()), atol=1e-6)
        np.testing.assert_allclose(first, second, atol=1e-6)
        assert first.dtype == np.float32


def test_zeros_stay_finite() -> None:
    means = FeatureMeans()
    means.update([np.zeros((2, 3), np.float32)])
    assert means.compute()[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [1, 2, NEAREST, NEAREST + 1, 40])
def test_distances_are_those_of_a_loop(count: int) -> None:
    bank = RNG.normal(size=(count, 6)).astype(np.float32)
    vector = RNG.normal(size=6).astype(np.float32)
    distances = sorted(
        sum((float(a) - float(b)) ** 2 for a, b in zip(vector, row, strict=True)) ** 0.5
        for row in bank
    )
    nearest = distances[:NEAREST]
    assert nearest_distance(vector, bank) == pytest.approx(sum(nearest) / len(nearest), abs=1e-9)


@pytest.mark.parametrize("looks", [0, 3])
@pytest.mark.parametrize("channels", [2, 50])
def test_references_that_are_their_own_bank_raise_no_more_false_alarms(
    channels: int, looks: int
) -> None:
    """A reference lacks itself, so that it has one neighbor less than a new image has.

    That makes it a little odder. The share of p-values of at most 0.1 stays below that, up to three
    standard errors of the count; if less than usual were odd as well, it would be 0.125 in 50
    dimensions.
    """
    rng, tries, level = np.random.default_rng([channels, looks]), 1500, 0.1
    alarms = 0
    for _ in range(tries):
        vectors = rng.normal(size=(20, channels)).astype(np.float32)
        bank, new = vectors[:-1], vectors[-1]
        distances = [
            nearest_distance(one, np.delete(bank, i, axis=0)) for i, one in enumerate(bank)
        ]
        pool = [
            Looks({"feature_distance": distance}, {f"look {i}": rng.normal() for i in range(looks)})
            for distance in (*distances, nearest_distance(new, bank))
        ]
        found = measure_oddness(pool[-1], pool[:-1])
        assert found is not None
        alarms += found.p_value <= level
    assert alarms / tries <= level + 3 * (level * (1 - level) / tries) ** 0.5


def test_only_more_distance_than_usual_is_odd() -> None:
    references = [Looks({"feature_distance": 0.1 + 0.01 * i}, {}) for i in range(9)]
    near, far = (
        measure_oddness(Looks({"feature_distance": d}, {}), references) for d in (0.01, 1.0)
    )
    assert near is not None
    assert far is not None
    assert near.strangeness < 0.1
    assert near.p_value == 1
    assert far.strangeness > 10
    assert far.p_value == pytest.approx(0.1)
