import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from df2serve.config import CentreGrid, Grid, OverlapGrid
from df2serve.core.tiling import Stitcher, TilePlan, TileSpec, gaussian_window, plan_tiles

GRIDS = [OverlapGrid(), OverlapGrid(overlap=0.25), OverlapGrid(overlap=0), CentreGrid()]


def every_tile(plan: TilePlan) -> list[TileSpec]:
    return [TileSpec(r, c) for r in range(len(plan.rows)) for c in range(len(plan.columns))]


def stitched(plan: TilePlan, tiles: dict[TileSpec, np.ndarray], channels: int) -> np.ndarray:
    stitcher = Stitcher(plan, channels=channels, sigma=0.125)
    bands = []
    for row in range(len(plan.rows)):
        for column in range(len(plan.columns)):
            spec = TileSpec(row, column)
            stitcher.add(spec, tiles[spec])
        bands.append(stitcher.finish_row(row))
    return np.concatenate(bands, axis=1)


@pytest.fixture(scope="module")
def original(golden: Path) -> dict:
    return json.loads((golden / "deepflash2.json").read_text())


def centre_plan(case: dict) -> TilePlan:
    grid = CentreGrid(border_padding_factor=case["bpf"], max_tile_shift=case["max_shift"])
    return plan_tiles((case["len"], case["len"]), (case["tile"], case["tile"]), grid)


def test_centres_of_the_original_reproduce(original: dict) -> None:
    for case in original["tile_centers_1d"]["cases"]:
        axis = centre_plan(case).rows
        middle = case["tile"] // 2
        centres = [
            span.start - kept.start + middle
            for span, kept in zip(axis.placed, axis.kept, strict=True)
        ]
        assert sorted(centres) == sorted(case["centers"])


def test_kept_and_placed_spans_of_the_original_reproduce(original: dict) -> None:
    for case in original["tile_slices_1d"]["cases"]:
        axis = centre_plan(case).rows
        ours = [
            ((k.start, k.stop), (p.start, p.stop))
            for k, p in zip(axis.kept, axis.placed, strict=True)
        ]
        theirs = [
            (tuple(k), tuple(p)) for k, p in zip(case["in_tile"], case["in_image"], strict=True)
        ]
        assert sorted(ours) == sorted(theirs)


def test_tile_counts_of_the_original_reproduce(original: dict) -> None:
    for case in original["forward_counts"]["cases"]:
        assert len(plan_tiles(tuple(case["image"]), (512, 512), CentreGrid())) == case["tiles"]


def test_window_of_the_original_reproduces(original: dict) -> None:
    expected = original["gaussian_512_sigma_1_8"]
    kernel = np.multiply.outer(*[gaussian_window(512, 0.125)] * 2)
    got = [kernel.max(), kernel.min(), kernel[0, 256], kernel[128, 128], kernel.sum()]
    names = ["max", "min", "row0_col256", "r128_c128", "sum"]
    np.testing.assert_allclose(got, [expected[name] for name in names], rtol=2e-6)


@pytest.mark.parametrize("side", [64, 128, 256])
def test_samples_equal_torch_grid_sample_as_the_original_uses_it(side: int) -> None:
    """Resampling a ramp with torch shows which image index every sample reads."""
    field = torch.linspace(-1, 1, side)
    for length in [1, 2, 30, 67, 100, 150, 554, 689, 777, 831, 1038, 1344, 1958]:
        axis = plan_tiles((length, length), (side, side), CentreGrid()).rows
        ramp = torch.arange(length, dtype=torch.float32).expand(1, 1, 3, length)
        for samples, kept, placed in zip(axis.samples, axis.kept, axis.placed, strict=True):
            centre = torch.tensor(placed.start - kept.start + side // 2)
            x = field * (side / length) + (centre - length / 2) / (length / 2)
            grid = torch.stack([x, torch.zeros_like(x)], dim=-1)[None, None]
            read = torch.nn.functional.grid_sample(
                ramp, grid, mode="nearest", padding_mode="reflection", align_corners=False
            )
            assert samples.tolist() == read[0, 0, 0].int().tolist()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(1, 1), (20, 30), (64, 64), (65, 63), (200, 131)])
def test_identity_tiles_give_the_image_back(grid: Grid, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    plan = plan_tiles(shape, (64, 64), OverlapGrid() if isinstance(grid, CentreGrid) else grid)
    tiles = {spec: plan.cut(image[:, plan.row_span(spec.row)], spec) for spec in every_tile(plan)}
    np.testing.assert_allclose(stitched(plan, tiles, 2), image, atol=2e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_blending_equals_a_full_count_map(grid: Grid) -> None:
    """The naive way: two canvases of the image's size and a division."""
    shape = (150, 203)
    plan = plan_tiles(shape, (64, 96), grid)
    rng = np.random.default_rng(1)
    tiles = {s: rng.random((1, 64, 96), dtype=np.float32) for s in every_tile(plan)}
    window = np.multiply.outer(
        gaussian_window(64, 0.125).astype(float), gaussian_window(96, 0.125).astype(float)
    )
    blended, count = np.zeros(shape), np.zeros(shape)
    for spec, tile in tiles.items():
        inside = plan.rows.kept[spec.row], plan.columns.kept[spec.column]
        target = plan.rows.placed[spec.row], plan.columns.placed[spec.column]
        blended[target] += (tile[0] * window)[inside]
        count[target] += window[inside]
    np.testing.assert_allclose(stitched(plan, tiles, 1)[0], blended / count, atol=1e-6)


def test_cut_reflects_with_the_edge_pixel_repeated() -> None:
    image = np.arange(12).reshape(1, 3, 4)
    plan = plan_tiles((3, 4), (9, 10), OverlapGrid())
    tile = plan.cut(image[:, plan.row_span(0)], TileSpec(0, 0))
    assert np.array_equal(tile, np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="symmetric"))


def test_tiles_inside_the_image_are_views() -> None:
    image = np.zeros((1, 128, 128), dtype=np.uint8)
    plan = plan_tiles((128, 128), (64, 64), OverlapGrid())
    tile = plan.cut(image[:, plan.row_span(1)], TileSpec(1, 1))
    assert tile.base is image


@given(
    length=st.integers(1, 2000),
    side=st.sampled_from([64, 256, 512]),
    grid=st.one_of(
        st.builds(OverlapGrid, overlap=st.floats(0, 0.9)),
        st.builds(
            CentreGrid,
            border_padding_factor=st.sampled_from([0.0, 0.1, 0.25]),
            max_tile_shift=st.sampled_from([0.5, 0.9, 1.0]),
        ),
    ),
)
def test_every_pixel_is_covered_and_rows_advance(length: int, side: int, grid: Grid) -> None:
    axis = plan_tiles((length, length), (side, side), grid).rows
    covered = np.zeros(length, dtype=bool)
    for kept, placed in zip(axis.kept, axis.placed, strict=True):
        assert kept.stop - kept.start == placed.stop - placed.start > 0
        covered[placed] = True
    assert covered.all()
    starts = [placed.start for placed in axis.placed]
    assert starts == sorted(starts)
    assert axis.samples.min() >= 0
    assert axis.samples.max() < length
