"""Conformance kits: subclass one in your tests and it checks what the protocol promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import pytest
from numpy.typing import NDArray

from df2serve.backends import FeatureRunner, MemberRunner, RunnerInfo
from df2serve.core.augment import views
from df2serve.core.mixture import Mixture
from df2serve.errors import BackendError

__all__ = ["MemberRunnerContract"]


class MemberRunnerContract(ABC):
    """What every :class:`~df2serve.backends.MemberRunner` has to fulfil.

    Subclass it, implement the two methods, and let pytest collect the subclass.
    """

    tolerance: float = 1e-5
    """Largest difference from the reference probabilities; widen it for reduced precision."""

    channels: int = 2
    """C of the network under test."""

    distance: bool = False
    """Whether the network under test has a distance channel."""

    @abstractmethod
    def create(self) -> MemberRunner:
        """Return a new runner of the network under test."""

    @abstractmethod
    def reference(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what ``run`` is to return, computed in float32 by other means."""

    def tiles(self, count: int, rows: int, columns: int) -> NDArray[np.float32]:
        """Return normalised tiles, axes (N, C, Y, X); equal arguments give equal tiles."""
        rng = np.random.default_rng([count, rows, columns])
        return rng.normal(size=(count, self.channels, rows, columns)).astype(np.float32)

    def test_follows_the_protocol(self) -> None:
        with self.create() as runner:
            assert isinstance(runner, MemberRunner)
            assert isinstance(runner.info, RunnerInfo)
            assert runner.info.precision in {"fp32", "bf16", "fp16"}
            assert runner.info.preferred_pixels >= 1

    def test_returns_probabilities(self) -> None:
        with self.create() as runner:
            probs = runner.run(self.tiles(3, 64, 96))
        assert probs.dtype == np.float32
        assert probs.shape[0] == 3
        assert probs.shape[2:] == (64, 96)
        if self.distance:
            probs, distance = probs[:, :-1], probs[:, -1]
            assert 0 <= distance.min() <= distance.max() <= 1
        assert probs.min() >= 0
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)

    def test_equals_the_reference_at_several_shapes(self) -> None:
        with self.create() as runner:
            for count, rows, columns in [(1, 64, 64), (2, 64, 96), (3, 128, 64)]:
                tiles = self.tiles(count, rows, columns)
                np.testing.assert_allclose(
                    runner.run(tiles), self.reference(tiles), atol=self.tolerance
                )

    def test_does_not_depend_on_the_batch(self) -> None:
        tiles = self.tiles(4, 64, 64)
        with self.create() as runner:
            together = runner.run(tiles)
            alone = np.concatenate([runner.run(tiles[i : i + 1]) for i in range(4)])
        np.testing.assert_allclose(together, alone, atol=max(1e-6, self.tolerance / 10))

    def test_repeats_bitwise(self) -> None:
        tiles = self.tiles(2, 64, 64)
        with self.create() as runner:
            first = runner.run_views(tiles, views(4))
            second = runner.run_views(tiles, views(4))
        assert np.array_equal(first.probs, second.probs)
        assert np.array_equal(first.squares, second.squares)

    def test_views_equal_one_pass_per_view(self) -> None:
        tiles = self.tiles(2, 64, 64)
        with self.create() as runner:
            for count in (1, 4, 8):
                pooled = runner.run_views(tiles, views(count))
                naive = Mixture.from_samples(
                    [view.invert(runner.run(view.apply(tiles))) for view in views(count)],
                    distance=self.distance,
                )
                assert pooled.count == naive.count == count
                atol = max(1e-6, self.tolerance / 10)
                np.testing.assert_allclose(pooled.mean, naive.mean, atol=atol)
                np.testing.assert_allclose(pooled.mean_square, naive.mean_square, atol=atol)
                assert (pooled.distance is not None) == self.distance
                if pooled.mean_distance is not None and naive.mean_distance is not None:
                    np.testing.assert_allclose(pooled.mean_distance, naive.mean_distance, atol=atol)

    def test_features_change_nothing_and_depend_on_the_tile_alone(self) -> None:
        """Of runners that give features; others pass."""
        tiles, kept = self.tiles(3, 64, 96), [(slice(0, 64), slice(9, 96))] * 3
        with self.create() as runner:
            if not isinstance(runner, FeatureRunner):
                return
            expected = runner.run_views(tiles, views(4))
            found, features = runner.run_views_pooled(tiles, views(4), kept)
            strided = np.flip(np.ascontiguousarray(np.flip(tiles, -1)), -1)
            alone = [
                runner.run_views_pooled(strided[i : i + 1], views(1), kept[:1])[1] for i in range(3)
            ]
        assert np.array_equal(found.probs, expected.probs)
        assert np.array_equal(found.squares, expected.squares)
        assert features.dtype == np.float32
        assert features.shape[0] == 3
        atol = max(1e-6, self.tolerance / 10) * float(np.abs(features).max())
        np.testing.assert_allclose(features, np.concatenate(alone), atol=atol)

    def test_leaves_its_input_alone_and_takes_any_memory_layout(self) -> None:
        tiles = self.tiles(2, 64, 64)
        before = tiles.copy()
        strided = np.flip(tiles, -1)
        read_only = tiles.copy()
        read_only.flags.writeable = False
        with self.create() as runner:
            assert np.array_equal(runner.run(strided), runner.run(np.ascontiguousarray(strided)))
            runner.run_views(read_only, views(4))
            runner.run(tiles)
        assert np.array_equal(tiles, before)

    def test_results_stay_valid_after_later_calls(self) -> None:
        with self.create() as runner:
            probs = runner.run(self.tiles(1, 64, 64))
            kept = probs.copy()
            runner.run(self.tiles(2, 64, 64)[:1])
            assert np.array_equal(probs, kept)

    def test_closed_runner_says_so(self) -> None:
        runner = self.create()
        runner.close()
        runner.close()
        with pytest.raises(BackendError, match="closed"):
            runner.run(self.tiles(1, 64, 64))
