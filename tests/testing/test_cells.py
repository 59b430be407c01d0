"""The synthetic images show what their settings say."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from df2serve.core.metrics import dice, label_components, match_instances, mean_dice
from df2serve.errors import ConfigError
from df2serve.testing.cells import (
    OOD_KINDS,
    CellSample,
    CellScene,
    generate_cells,
    generate_ood,
    simulate_experts,
)

SCENE = CellScene(shape=(256, 256), n_cells=30)


def touching_cells(labels: np.ndarray) -> set[int]:
    """Return the cells that have a pixel of another cell among their eight neighbors."""
    found: set[int] = set()
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        other = ndimage.shift(labels, (dy, dx), order=0)
        meets = (labels != other) & (labels > 0) & (other > 0)
        found |= set(labels[meets]) | set(other[meets])
    return found


def digest(sample: CellSample) -> str:
    arrays = (sample.image, sample.labels, sample.mask, sample.distractors)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


# -- ground truth -------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    n_cells=st.integers(0, 40),
    touching=st.floats(0, 1),
    rows=st.integers(200, 260),
    seed=st.integers(0, 1000),
)
def test_every_requested_cell_is_one_connected_instance(
    n_cells: int, touching: float, rows: int, seed: int
) -> None:
    scene = CellScene(shape=(rows, 240), n_cells=n_cells, touching=touching)
    sample = generate_cells(scene, seed)
    assert np.array_equal(np.unique(sample.labels[sample.labels > 0]), np.arange(1, n_cells + 1))
    for label in range(1, n_cells + 1):
        assert label_components(sample.labels == label).max() == 1
    assert sample.brightness.shape == (n_cells,)
    assert np.array_equal(sample.mask > 0, sample.labels > 0)
    assert not ((sample.distractors > 0) & (sample.labels > 0)).any()
    together = round(n_cells * touching)
    assert len(touching_cells(sample.labels)) == (together if together > 1 else 0)


def test_radii_are_those_asked_for() -> None:
    scene = CellScene(n_cells=80, touching=0, radius_px=(5, 11), shape=(700, 700))
    areas = np.bincount(generate_cells(scene, 0).labels.ravel())[1:]
    radii = np.sort(np.sqrt(areas / np.pi))[5:]  # the image's edge cuts a few
    assert radii.min() > 4.5
    assert radii.max() < 12
    assert np.mean(radii) == pytest.approx(8, abs=0.8)


@pytest.mark.parametrize("classes", ["brightness", "shape"])
def test_two_foreground_classes_can_be_told_apart(classes: str) -> None:
    scene = replace(SCENE, classes=classes, touching=0, clustering=0, photons=200.0)
    sample = generate_cells(scene, 2)
    assert scene.n_classes == 3
    assert sample.mask.dtype == np.uint8
    assert set(np.unique(sample.mask)) == {0, 1, 2}
    ids = np.arange(1, scene.n_cells + 1)
    classes_of = ndimage.maximum(sample.mask, sample.labels, ids)
    assert np.array_equal(classes_of, ndimage.minimum(sample.mask, sample.labels, ids))
    if classes == "brightness":
        level = ndimage.mean(sample.image[0], sample.labels, ids)
        assert np.median(level[classes_of == 1]) > 2 * np.median(level[classes_of == 2])
        assert sample.brightness[classes_of == 1].min() > sample.brightness[classes_of == 2].max()
        assert np.count_nonzero(classes_of == 2) == round(scene.dim_share * scene.n_cells)
    else:
        ratio = np.array([axis_ratio(sample.labels == i) for i in ids])
        assert np.median(ratio[classes_of == 1]) < 1.4
        assert np.median(ratio[classes_of == 2]) > 1.8


def axis_ratio(mask: np.ndarray) -> float:
    low, high = np.linalg.eigvalsh(np.cov(np.argwhere(mask).T))
    return float(np.sqrt(high / low))


# -- image --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(("bit_depth", "dtype"), [(8, np.uint8), (16, np.uint16)])
def test_image_has_the_stated_type_and_uses_its_range(
    channels: int, bit_depth: int, dtype: type
) -> None:
    scene = CellScene(shape=(96, 130), n_cells=9, channels=channels, bit_depth=bit_depth)
    sample = generate_cells(scene, 4)
    assert sample.image.shape == (channels, 96, 130)
    assert sample.image.dtype == dtype
    assert sample.labels.dtype == sample.distractors.dtype == np.int32
    assert sample.image.max() > 0.4 * scene.full_scale
    assert np.mean(sample.image == scene.full_scale) < 0.02
    assert len(np.unique(sample.image)) > 60


def test_cells_are_brighter_than_the_background_and_dim_ones_hard_to_see() -> None:
    sample = generate_cells(replace(SCENE, touching=0), 1)
    background = sample.image[0][(sample.labels == 0) & (sample.distractors == 0)]
    level = ndimage.mean(sample.image[0], sample.labels, np.arange(1, SCENE.n_cells + 1))
    dim = sample.brightness < 0.3
    contrast = (level - background.mean()) / background.std()
    assert contrast[~dim].min() > 1.5
    assert 0 < np.median(contrast[dim]) < 1.7
    assert np.corrcoef(level, sample.brightness)[0, 1] > 0.8


def test_noise_follows_photon_statistics() -> None:
    scene = CellScene(n_cells=0, debris=0, gradient=0, read_noise=0.0, bit_depth=16)
    few, many = (
        generate_cells(replace(scene, background=level, photons=5 * level), 0).image[0]
        for level in (20.0, 2000.0)
    )
    # in a flat image the variance comes from photons and, for many photons, from fibers and haze
    relative = [
        np.diff(image.astype(float)).std() / np.sqrt(2) / image.mean() for image in (few, many)
    ]
    offset = 0.015 * scene.full_scale / few.mean()
    assert relative[0] == pytest.approx((1 - offset) / np.sqrt(20), rel=0.05)
    assert relative[1] < 0.25 * relative[0]


def test_second_channel_shows_cells_with_and_without_marker() -> None:
    scene = replace(SCENE, channels=2, clustering=0, dim_share=0, photons=300.0)
    sample = generate_cells(scene, 0)
    marker, nuclei = sample.image
    cells = sample.labels > 0
    assert nuclei[cells].mean() > 2 * np.median(nuclei)
    others = (nuclei > 0.5 * nuclei[cells].mean()) & ~ndimage.binary_dilation(cells, iterations=3)
    assert others.sum() > 0.3 * cells.sum()
    assert marker[others].mean() < 0.4 * marker[cells].mean()


def test_bright_field_is_white_with_dark_stained_cells() -> None:
    sample = generate_cells(replace(SCENE, channels=3, dim_share=0), 0)
    red, _, blue = (channel.astype(float) for channel in sample.image)
    cells = sample.labels > 0
    assert np.median(red) > 220
    assert blue[cells].mean() < 0.7 * np.median(blue)


# -- determinism --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_seed_gives_the_same_sample_whatever_was_drawn_before(channels: int) -> None:
    scene = CellScene(shape=(96, 96), n_cells=6, channels=channels)
    first = [digest(generate_cells(scene, seed)) for seed in range(3)]
    again = [digest(generate_cells(scene, seed)) for seed in reversed(range(3))]
    assert first == again[::-1]
    assert len(set(first)) == 3


def test_optics_and_camera_leave_the_cells_where_they_are() -> None:
    sample = generate_cells(SCENE, 5)
    other = replace(SCENE, photons=5.0, psf_sigma_px=3.0, bit_depth=16, channels=2, vessels=2)
    assert np.array_equal(generate_cells(other, 5).labels, sample.labels)


def test_experts_repeat_with_their_seed_and_change_with_it() -> None:
    sample = generate_cells(SCENE, 0)
    first, again, other = (simulate_experts(sample, seed) for seed in (1, 1, 2))
    for name, mask in first.items():
        assert np.array_equal(mask, again[name])
        assert not np.array_equal(mask, other[name])


# -- experts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def panel() -> list[tuple[CellSample, dict[str, np.ndarray]]]:
    samples = [generate_cells(replace(SCENE, touching=0.4), seed) for seed in range(4)]
    return [(sample, simulate_experts(sample, 0)) for sample in samples]


def test_experts_draw_as_wide_as_stated(
    panel: list[tuple[CellSample, dict[str, np.ndarray]]],
) -> None:
    for sample, experts in panel:
        truth = np.count_nonzero(sample.mask)
        assert np.count_nonzero(experts["generous"]) > 1.2 * truth
        assert np.count_nonzero(experts["tight"]) < 0.85 * truth


def test_experts_see_what_they_are_said_to_see(
    panel: list[tuple[CellSample, dict[str, np.ndarray]]],
) -> None:
    seen: dict[str, list[bool]] = {name: [] for name in panel[0][1]}
    invented = dict.fromkeys(seen, 0)
    n_pieces = dict.fromkeys(seen, 0)
    for sample, experts in panel:
        ids = np.arange(1, sample.labels.max() + 1)
        for name, mask in experts.items():
            seen[name] += (ndimage.mean(mask > 0, sample.labels, ids) > 0.3).tolist()
            invented[name] += len(np.unique(sample.distractors[mask > 0])) - 1
            n_pieces[name] += int(label_components(mask > 0).max())
    dim = np.concatenate([sample.brightness for sample, _ in panel]) < 0.26
    recall = {name: np.mean(found) for name, found in seen.items()}
    strict = np.array(seen["strict"])

    assert recall["generous"] > 0.95
    assert recall["strict"] < recall["hasty"] < recall["generous"]
    assert strict[dim].mean() < 0.1 < 0.9 < strict[~dim].mean()

    n_distractors = sum(int(sample.distractors.max()) for sample, _ in panel)
    assert 0.45 * n_distractors < invented["eager"] < 0.85 * n_distractors
    assert invented["tight"] == invented["strict"] == 0

    assert n_pieces["hasty"] < 0.85 * sum(seen["hasty"])  # merged
    assert n_pieces["tight"] > 0.95 * sum(seen["tight"])  # kept apart


def test_experts_agree_as_moderately_as_real_ones(
    panel: list[tuple[CellSample, dict[str, np.ndarray]]],
) -> None:
    for sample, experts in panel:
        scores = [dice(sample.mask, mask) for mask in experts.values()]
        assert all(score is not None and 0.6 < score < 0.97 for score in scores)
        found = [
            match_instances(sample.labels, label_components(mask > 0), thresholds=(0.5,))[0].recall
            for mask in experts.values()
        ]
        assert max(found) - min(found) > 0.1


@pytest.mark.parametrize("classes", ["brightness", "shape"])
def test_experts_keep_the_classes(classes: str) -> None:
    sample = generate_cells(replace(SCENE, classes=classes), 3)
    for mask in simulate_experts(sample, 0).values():
        assert mask.dtype == np.uint8
        assert mask.max() == 2 or classes == "brightness"
        both = (mask > 0) & (sample.mask > 0)
        assert np.mean(mask[both] == sample.mask[both]) > 0.97
    generous = simulate_experts(sample, 0)["generous"]
    assert mean_dice(sample.mask, generous, n_classes=3) > 0.7


def test_experts_outline_nothing_where_nothing_is() -> None:
    sample = generate_cells(replace(SCENE, n_cells=0, debris=0), 0)
    assert not any(mask.any() for mask in simulate_experts(sample, 0).values())


# -- odd images ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd() -> dict[str, CellSample]:
    return {kind: generate_ood(kind, SCENE, 1) for kind in OOD_KINDS}


def sharpness(sample: CellSample) -> float:
    """Return how steep the outlines of the cells are, relative to their contrast."""
    image = ndimage.gaussian_filter(sample.image[0].astype(float), 1)
    contrast = image[sample.labels > 0].mean() - np.median(image)
    return float(ndimage.gaussian_gradient_magnitude(image, 1)[sample.labels > 0].mean() / contrast)


def test_odd_images_are_odd_in_the_stated_way(odd: dict[str, CellSample]) -> None:
    usual = generate_cells(SCENE, 1)
    full = SCENE.full_scale

    assert np.array_equal(odd["blurred"].labels, usual.labels)
    assert sharpness(odd["blurred"]) < 0.8 * sharpness(usual)

    assert odd["empty"].labels.max() == 0
    assert odd["empty"].image.std() < usual.image.std()

    larger, ordinary = (np.bincount(s.labels.ravel())[1:] for s in (odd["larger"], usual))
    assert np.median(larger) > 4 * np.median(ordinary)

    background = usual.labels + usual.distractors == 0
    spread = [
        s.image[0][background].std() / s.image[0][background].mean() for s in (odd["noisy"], usual)
    ]
    assert spread[0] > 2 * spread[1]

    assert np.mean(odd["saturated"].image == full) > 0.03 > 0.002 > np.mean(usual.image == full)

    tubes = label_components(ndimage.gaussian_filter(odd["vessels"].image[0], 2) > 60)
    assert np.bincount(tubes.ravel())[1:].max() > 5 * ordinary.max()
    assert odd["vessels"].labels.max() == SCENE.n_cells // 4


def test_odd_images_are_reproducible_and_differ(odd: dict[str, CellSample]) -> None:
    assert len({digest(sample) for sample in odd.values()}) == len(OOD_KINDS) == 6
    for kind, sample in odd.items():
        assert digest(generate_ood(kind, SCENE, 1)) == digest(sample)


# -- wrong settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"touching": 1.5}, r"touching = 1\.5.*0 to 1"),
        ({"n_cells": -1}, r"n_cells = -1"),
        ({"shape": (8, 512)}, r"shape = \(8, 512\).*16"),
        ({"radius_px": (9.0, 6.0)}, "smaller radius first"),
        ({"bit_depth": 12}, r"bit_depth = 12.*\(8, 16\)"),
        ({"classes": "many"}, r"classes = 'many'.*'one'"),
    ],
)
def test_settings_out_of_range_are_explained(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CellScene(**wrong)


def test_too_many_cells_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"only \d+ of 500 cells.*lower n_cells"):
        generate_cells(CellScene(shape=(64, 64), n_cells=500), 0)


def test_unknown_kind_and_negative_seed_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"'upside_down'.*'blurred'"):
        generate_ood("upside_down", SCENE, 0)
    with pytest.raises(ConfigError, match="seed -1 is negative"):
        generate_cells(SCENE, -1)
