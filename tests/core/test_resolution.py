"""Coarser resolutions, beside a naive loop and torch."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from df2serve.core.resolution import CoarseSource, RowInterpolator, coarse_shape, zoom_out

RNG = np.random.default_rng(0)


def covered(length: int, count: int, index: int) -> list[tuple[int, Fraction]]:
    """Return the pixels under a coarse one, each with the share of it that lies under."""
    size = Fraction(length, count)
    begin, end = index * size, (index + 1) * size
    shares = [(i, min(end, Fraction(i + 1)) - max(begin, Fraction(i))) for i in range(length)]
    return [(i, share) for i, share in shares if share > 0]


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 3.7, 20.0])
def test_zooming_out_is_the_mean_over_the_area(factor: float) -> None:
    pixels = RNG.normal(size=(2, 13, 9))
    coarse = zoom_out(pixels, factor)
    assert coarse.shape[1:] == coarse_shape((13, 9), factor)
    for c, y, x in np.ndindex(coarse.shape):
        rows, columns = covered(13, coarse.shape[1], y), covered(9, coarse.shape[2], x)
        total = sum(pixels[c, i, j] * float(a * b) for i, a in rows for j, b in columns)
        area = float(sum(a for _, a in rows) * sum(b for _, b in columns))
        assert coarse[c, y, x] == pytest.approx(total / area, abs=1e-12)


@given(st.floats(1, 6), st.data())
def test_windows_equal_the_whole(factor: float, data: st.DataObject) -> None:
    pixels = RNG.normal(size=(1, 24, 31)).astype(np.float32)
    source = CoarseSource(pixels, factor)
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in source.shape[1:]]
    if any(start == stop for start, stop in bounds):
        return
    rows, columns = (slice(start, stop) for start, stop in bounds)
    whole = zoom_out(pixels, factor)
    np.testing.assert_allclose(source[0:1, rows, columns], whole[:, rows, columns], atol=1e-6)


def test_integers_keep_their_type_and_are_rounded() -> None:
    pixels = np.array([[[1, 2], [2, 2]]], np.uint16)
    assert zoom_out(pixels, 2.0).tolist() == [[[2]]]
    assert zoom_out(pixels, 2.0).dtype == np.uint16


@given(
    coarse=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    factor=st.floats(1, 5),
    data=st.data(),
)
def test_interpolation_equals_torch_whatever_the_blocks(
    coarse: tuple[int, int], factor: float, data: st.DataObject
) -> None:
    fine = (max(1, round(coarse[0] * factor)), max(1, round(coarse[1] * factor)))
    maps = RNG.random((3, *coarse), dtype=np.float32)
    interpolator = RowInterpolator(coarse, fine)
    parts: list[NDArray[np.float32]] = []
    top = 0
    while top < coarse[0]:
        count = data.draw(st.integers(1, coarse[0] - top))
        parts.append(interpolator.push(maps[:, top : top + count]))
        top += count
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], size=fine, mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected.numpy(), atol=2e-6)
