"""Outlines enclose exactly the pixels that they were traced around."""

import numpy as np
import pytest
from matplotlib.path import Path
from scipy import ndimage

from df2serve.core.outlines import enclosed_area, fill_outlines, trace_outlines


def random_labels(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, 2))
    # few labels give holes and corners that touch, many give neighbors
    return rng.integers(0, rng.integers(2, 6), shape).astype(np.uint8)


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_filling_undoes_tracing(first: int) -> None:
    for seed in range(first, first + 40):
        labels = random_labels(seed)
        traced = trace_outlines(labels)
        assert list(traced) == sorted(set(np.unique(labels)) - {0})
        for number, parts in traced.items():
            outlines = [outline for part in parts for outline in part]
            (rows, columns), inside = fill_outlines(outlines, labels.shape)
            filled = np.zeros(labels.shape, bool)
            filled[rows, columns] = inside
            assert np.array_equal(filled, labels == number)


def test_parts_and_holes() -> None:
    """One positive outline per connected part, and none that touches itself."""
    for seed in range(80):
        labels = random_labels(seed)
        for number, parts in trace_outlines(labels).items():
            components, count = ndimage.label(labels == number)
            areas = sorted(np.bincount(components.ravel())[1:])
            assert len(parts) == count
            assert sorted(sum(map(enclosed_area, part)) for part in parts) == areas
            for part in parts:
                assert [enclosed_area(outline) > 0 for outline in part] == [
                    True, *[False] * (len(part) - 1)
                ]  # fmt: skip
                for outline in part:
                    assert len(np.unique(outline, axis=0)) == len(outline)
                    steps = np.abs(np.diff(outline, axis=0, append=outline[:1]))
                    assert ((steps > 0).sum(axis=1) == 1).all()


def test_nothing_has_no_outlines() -> None:
    assert trace_outlines(np.zeros((3, 4), np.uint8)) == {}


def test_filling_any_polygon() -> None:
    """The middles of pixels lie inside or outside as matplotlib says, also beyond the image."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:20, :30] + 0.5
    middles = np.stack([column.ravel(), row.ravel()], axis=1)
    for _ in range(200):
        triangle = rng.uniform(-15, 45, (3, 2))
        expected = Path(triangle).contains_points(middles).reshape(20, 30)
        (rows, columns), inside = fill_outlines([triangle], (20, 30))
        filled = np.zeros((20, 30), bool)
        filled[rows, columns] = inside
        assert np.array_equal(filled, expected)


def test_an_outline_that_crosses_itself_is_filled_by_even_and_odd() -> None:
    twice = [np.array([[0, 0], [4, 0], [4, 4], [0, 4]])] * 2
    _, inside = fill_outlines([*twice, twice[0]], (6, 6))
    assert inside.all()
    assert not fill_outlines(twice, (6, 6))[1].any()
