import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from df2serve.config import OverlapGrid
from df2serve.core.mixture import Mixture
from df2serve.core.tiling import Stitcher, TileSpec, plan_tiles
from df2serve.core.uncertainty import (
    aleatoric,
    epistemic,
    maximum_uncertainty,
    predictive_variance,
    total,
)


def random_probs(seed: int, samples: int, classes: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(scale=3, size=(samples, classes, 5, 4))
    exp = np.exp(logits)
    return exp / exp.sum(axis=1, keepdims=True)


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 7))
def test_closed_form_equals_the_papers_equation(seed: int, samples: int, classes: int) -> None:
    probs = random_probs(seed, samples, classes)
    mean = probs.mean(axis=0)
    for scale in ("paper", "unit"):
        expected = predictive_variance(probs, scale=scale)
        np.testing.assert_allclose(total(mean, scale=scale), expected, atol=1e-14)
        square = (probs**2).sum(axis=1).mean(axis=0)
        parts = aleatoric(square, num_classes=classes, scale=scale) + epistemic(
            mean, square, scale=scale
        )
        np.testing.assert_allclose(parts, expected, atol=1e-14)
        assert expected.max() <= maximum_uncertainty(classes, scale) + 1e-12


def test_parts_equal_the_original_codes_two_functions() -> None:
    """deepflash2: epistemic = mean(p^2) - mean(p)^2, aleatoric = mean(p (1 - p)), over 0.25."""
    probs = random_probs(3, 20, 4)
    square = (probs**2).sum(axis=1).mean(axis=0)
    disagreement = ((probs**2).mean(axis=0) - probs.mean(axis=0) ** 2).mean(axis=0) / 0.25
    doubt = (probs * (1 - probs)).mean(axis=(0, 1)) / 0.25
    np.testing.assert_allclose(epistemic(probs.mean(axis=0), square, scale="paper"), disagreement)
    np.testing.assert_allclose(aleatoric(square, num_classes=4, scale="paper"), doubt)


def test_maxima_and_the_two_stitch_orders_of_the_golden_file(golden: Path) -> None:
    expected = json.loads((golden / "deepflash2.json").read_text())["uncertainty"]
    for classes, value in expected["max_by_K"].items():
        assert maximum_uncertainty(int(classes), "paper") == pytest.approx(value, abs=1e-15)
        uniform = np.full((int(classes), 1, 1), 1 / int(classes))
        assert total(uniform, scale="paper").item() == pytest.approx(value)
    example = expected["two_tiles_example"]
    pairs = np.array([[1 - p, p] for p in example["p_foreground"]])[..., None, None]
    per_tile = np.mean([total(p, scale="paper") for p in pairs])
    assert per_tile == pytest.approx(example["deepflash2_blended_map"])
    blended = total(pairs.mean(axis=0), scale="paper").item()
    assert blended == pytest.approx(example["from_blended_probability"])


def test_stitch_orders_differ_by_the_variance_between_tiles() -> None:
    """Map of blended p - blended map = 4/K sum_k Var_w(p_k over the covering tiles)."""
    plan = plan_tiles((96, 32), (64, 32), OverlapGrid())
    rng = np.random.default_rng(0)
    stitcher = Stitcher(plan, channels=3, sigma=0.125)
    tiles, bands = [], []
    for row in range(2):
        p = rng.random((1, 64, 32), dtype=np.float32)
        probs = np.concatenate([1 - p, p])
        tiles.append(probs)
        stitcher.add(TileSpec(row, 0), np.concatenate([probs, (probs**2).sum(axis=0)[None]]))
        bands.append(stitcher.finish_row(row))
    blended = np.concatenate(bands, axis=1)
    overlap = slice(32, 64)
    first, second = tiles[0][:, 32:], tiles[1][:, :32]
    weight = (blended[0, overlap] - second[0]) / (first[0] - second[0])
    variance = (weight * (1 - weight) * (first - second) ** 2).sum(axis=0)
    gap = total(blended[:2], scale="paper") - (4 / 2) * (1 - blended[2])
    np.testing.assert_allclose(gap[overlap], 2 * variance, atol=1e-5)
    np.testing.assert_allclose(gap[:32], 0, atol=1e-5)


def test_mixture_is_the_mean_over_samples_in_any_grouping() -> None:
    probs = random_probs(5, 6, 3).astype(np.float32)[:, None]
    whole = Mixture.from_samples(probs)
    parts = Mixture.from_samples(probs[:1])
    parts += Mixture.from_samples(probs[1:4])
    parts += Mixture.from_samples(probs[4:])
    for mixture in (whole, parts):
        np.testing.assert_allclose(mixture.mean, probs.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(
            mixture.mean_square, (probs**2).sum(axis=2).mean(axis=0), atol=1e-6
        )
    assert whole.count == parts.count == 6
