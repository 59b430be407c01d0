import numpy as np
import pytest

from df2serve.core.augment import View, views


@pytest.mark.parametrize("view", views(8))
def test_inverse_undoes_the_view(view: View) -> None:
    tiles = np.random.default_rng(0).random((2, 3, 8, 8))
    assert np.array_equal(view.invert(view.apply(tiles)), tiles)


def test_eight_views_are_the_symmetries_of_the_square() -> None:
    tile = np.arange(9).reshape(3, 3)
    turned = [np.rot90(base, k) for base in (tile, tile.T) for k in range(4)]
    assert {view.apply(tile).tobytes() for view in views(8)} == {t.tobytes() for t in turned}


def test_four_views_are_the_flips_in_the_order_of_the_original() -> None:
    tile = np.arange(6).reshape(2, 3)
    expected = [tile, tile[::-1], tile[:, ::-1], tile[::-1, ::-1]]
    for view, flipped in zip(views(4), expected, strict=True):
        assert np.array_equal(view.apply(tile), flipped)
    assert views(1) == views(4)[:1]
