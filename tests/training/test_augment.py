"""Patches against scipy and naive formulas; depth and order of drawing do not matter."""

import numpy as np
import pytest
import tifffile
import torch
from pydantic import ValidationError
from scipy import ndimage, stats

from df2serve.core.normalize import affine_of, fit_training_normalization
from df2serve_training.augment import Augmenter, Variation
from df2serve_training.dataset import IntensityRange, LabeledImage
from df2serve_training.patches import PatchSource, PatchStore
from df2serve_training.preflight import check_training_set
from df2serve_training.sampler import PatchCenter, PatchSampler
from df2serve_training.settings import (
    AugmentSettings,
    Chance,
    DataSettings,
    FoldSettings,
    SamplingSettings,
)
from df2serve_training.targets import IGNORED

ALWAYS = {
    "rotation": Chance(probability=1, low=0, high=360),
    "zoom": Chance(probability=1, low=0.7, high=1.4),
    "gamma": Chance(probability=1, low=0.8, high=1.2),
    "contrast": Chance(probability=1, low=0.75, high=1.25),
    "noise": Chance(probability=1, low=0.01, high=0.05),
}
NOTHING = AugmentSettings(
    flip=False,
    rotation={"probability": 0, "low": 0, "high": 0},
    gamma=Chance(probability=0, low=1, high=1),
)
BYTES = IntensityRange((0.0,), (255.0,))
FULL_RANGE = {"uint8": 255, "uint16": 65_535, "float32": 1, "int32": 1000}


def scene(dtype="uint8", *, channels=1, shape=(90, 110), values=(0, 1, 2, 5, IGNORED)):
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((channels, *shape)), (0, 2, 2))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    areas = rng.choice(values, size=(shape[0] // 10 + 1, shape[1] // 10 + 1))
    target = areas.repeat(10, axis=0).repeat(10, axis=1)[: shape[0], : shape[1]]
    pixels = (smooth * FULL_RANGE[dtype]).astype(dtype)
    return LabeledImage(pixels, target.astype(np.uint8), None)


def cut(image, center, matrix=((1, 0), (0, 1)), shape=(64, 32)):
    store = PatchStore([image], device="cpu")
    patch, target = store.cut(PatchCenter(0, *center), np.array(matrix, float), shape)
    assert patch.dtype == torch.float32
    assert target.dtype == torch.uint8
    return patch.numpy(), target.numpy()


def crop(array, center, shape):
    """Return the untransformed patch from an image that is continued by numpy."""
    width = 2 * max(shape)
    padded = np.pad(array, [(0, 0)] * (array.ndim - 2) + [(width, width)] * 2, mode="symmetric")
    top, left = (place + width - side // 2 for place, side in zip(center, shape, strict=True))
    return padded[..., top : top + shape[0], left : left + shape[1]]


def turn(degrees, *, mirror=(1, 1), zoom=1.0):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s], [s, c]]) @ np.diag(mirror) / zoom


def augmenter(settings, low=(0.0,), high=(255.0,), *, seed=3, member=0):
    intensities = IntensityRange(low, high)
    return Augmenter(settings, intensities, seed=seed, member=member, device="cpu")


# -- geometry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FULL_RANGE)
@pytest.mark.parametrize("center", [(45, 50), (0, 0), (89, 109), (3, 100)])
def test_identity_is_the_crop(dtype, center):
    image = scene(dtype, channels=2)
    patch, target = cut(image, center)
    assert np.array_equal(patch, crop(image.pixels, center, (64, 32)))
    assert np.array_equal(target, crop(image.target, center, (64, 32)))


def test_patch_larger_than_image():
    image = scene(shape=(20, 31))
    patch, target = cut(image, (4, 30), shape=(96, 64))
    assert np.array_equal(patch, crop(image.pixels, (4, 30), (96, 64)))
    assert np.array_equal(target, crop(image.target, (4, 30), (96, 64)))


@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored(axis):
    image = scene("uint16")
    mirror = [-1 if axis == index else 1 for index in range(2)]
    patch, target = cut(image, (10, 60), turn(0, mirror=mirror))
    assert np.array_equal(patch, np.flip(crop(image.pixels, (10, 60), (64, 32)), axis + 1))
    assert np.array_equal(target, np.flip(crop(image.target, (10, 60), (64, 32)), axis))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns(quarters):
    image = scene(channels=3)
    patch, target = cut(image, (10, 60), turn(90 * quarters), (64, 64))
    expected = np.rot90(crop(image.pixels, (10, 60), (64, 64)), -quarters, axes=(1, 2))
    assert np.allclose(patch, expected, atol=0.02)
    assert np.array_equal(target, np.rot90(crop(image.target, (10, 60), (64, 64)), -quarters))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    ("center", "matrix"),
    [
        ((45, 50), turn(30)),
        ((2, 108), turn(211, mirror=(-1, 1))),
        ((80, 5), turn(77, mirror=(1, -1), zoom=1.3)),
        ((44, 61), turn(0, zoom=0.6)),
    ],
)
def test_any_matrix_against_scipy(dtype, center, matrix):
    image, shape = scene(dtype, channels=2), (64, 96)
    patch, target = cut(image, center, matrix, shape)
    middle = (np.array(shape) - 1) / 2
    grid = np.moveaxis(np.indices(shape), 0, -1) - middle
    places = grid @ matrix.T + middle + np.array(center) - np.array(shape) // 2
    options = {"coordinates": np.moveaxis(places, -1, 0), "mode": "reflect"}
    for channel, pixels in zip(patch, image.pixels, strict=True):
        expected = ndimage.map_coordinates(pixels.astype(float), order=1, **options)
        assert np.allclose(channel, expected, atol=2e-4 * FULL_RANGE[dtype])
    expected = ndimage.map_coordinates(image.target, order=0, **options)
    clear = (np.abs(places % 1 - 0.5) > 1e-3).all(axis=-1)
    assert clear.mean() > 0.95
    assert np.array_equal(target[clear], expected[clear])


def test_masks_never_get_other_labels():
    image = scene(values=(0, 6, 250, IGNORED))
    draw = augmenter(AugmentSettings(**ALWAYS)).draw
    for number in range(60):
        _, target = cut(image, (number, 2 * number % 110), draw(number).matrix, (32, 64))
        assert set(np.unique(target)) <= {0, 6, 250, IGNORED}


# -- intensities --------------------------------------------------------------------------------


def varied(patch, settings=NOTHING, *, low=(0.0,), high=(255.0,), **strengths):
    values = torch.tensor(patch, dtype=torch.float32)
    variation = Variation(matrix=np.eye(2), **strengths)
    augmenter(settings, low, high).vary_intensities(values, variation)
    return values.numpy()


def test_gamma():
    patch = np.array([[[100.0, 400.0, 1000.0, 1600.0, 50.0]], [[0.0, 1.0, 2.0, 4.0, 3.0]]])
    result = varied(patch, low=(100.0, 0.0), high=(1000.0, 4.0), gamma=0.8)
    scaled = [[0, 300 / 900, 1, 1500 / 900], [0, 0.25, 0.5, 1]]
    expected = np.power(scaled, 0.8) * [[900], [4]] + [[100], [0]]
    assert np.allclose(result[:, 0, :4], expected, rtol=1e-6)
    assert np.isclose(result[0, 0, 4], 50)  # below the range


def test_contrast():
    patch = scene(channels=2).pixels.astype(np.float32)
    result = varied(patch, low=(3.0, 0.0), high=(200.0, 99.0), contrast=0.75)
    mean = patch.mean(axis=(1, 2), keepdims=True)
    assert np.allclose(result, mean + 0.75 * (patch - mean), atol=1e-3)


def test_noise():
    patch = np.full((2, 200, 200), 30.0)
    bounds = {"low": (0.0, 0.0), "high": (100.0, 1000.0)}
    result = varied(patch, noise=0.02, noise_seed=5, **bounds)
    assert np.array_equal(result, varied(patch, noise=0.02, noise_seed=5, **bounds))
    assert (result != varied(patch, noise=0.02, noise_seed=6, **bounds)).mean() > 0.99
    added = result - patch
    assert np.allclose(added.std(axis=(1, 2)), [2, 20], rtol=0.02)
    assert np.allclose(added.mean(axis=(1, 2)), 0, atol=[0.05, 0.5])
    assert stats.kstest(added[0].ravel()[::10] / 2, "norm").pvalue > 0.01
    assert abs(np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1]) < 0.02


def test_channel_without_contrast_stays_finite():
    result = varied(np.full((1, 4, 4), 7.0), low=(7.0,), high=(7.0,), gamma=0.8, contrast=2)
    assert np.array_equal(result, np.full((1, 4, 4), 7.0))


# -- draws --------------------------------------------------------------------------------------


def test_shares_and_ranges_of_draws():
    settings = AugmentSettings(
        zoom=Chance(probability=0.25, low=0.8, high=1.25),
        noise=Chance(probability=0.1, low=0.01, high=0.02),
    )
    drawn = [augmenter(settings).draw(number) for number in range(2000)]
    zooms = np.array([1 / np.sqrt(abs(np.linalg.det(v.matrix))) for v in drawn])
    mirrored = [np.linalg.det(v.matrix) < 0 for v in drawn]
    turned = [not np.isclose(v.matrix[0, 1], 0) for v in drawn]
    changed = [~np.isclose(zooms, 1), mirrored, turned, [v.gamma != 1 for v in drawn]]
    noisy = [v.noise > 0 for v in drawn]
    shares = [np.mean(which) for which in (*changed, noisy)]
    assert np.allclose(shares, [0.25, 0.5, 0.5, 0.5, 0.1], atol=0.035)
    assert {v.contrast for v in drawn} == {1}
    assert 0.8 <= zooms.min() < 0.82
    assert 1.23 < zooms.max() <= 1.25 + 1e-9
    gammas = [v.gamma for v in drawn if v.gamma != 1]
    assert stats.kstest(gammas, stats.uniform(0.8, 0.4).cdf).pvalue > 0.01
    upright = [v for v, turn in zip(drawn, turned, strict=True) if not turn]
    rows_mirrored = np.mean([v.matrix[0, 0] < 0 for v in upright])
    assert abs(rows_mirrored - 0.5) < 0.05


def test_one_setting_does_not_change_the_draws_of_another():
    full = augmenter(AugmentSettings(**ALWAYS)).draw(11)
    less = augmenter(AugmentSettings(**ALWAYS).updated(flip=False, gamma=NOTHING.gamma)).draw(11)
    assert less.gamma == 1
    assert (less.contrast, less.noise, less.noise_seed) == (
        full.contrast,
        full.noise,
        full.noise_seed,
    )
    assert np.allclose(np.abs(less.matrix), np.abs(full.matrix))


@pytest.mark.parametrize(
    "wrong",
    [
        {"zoom": {"probability": 1, "low": 0, "high": 1}},
        {"gamma": {"probability": 1, "low": -1, "high": 1}},
        {"noise": {"probability": 1, "low": -1, "high": 1}},
        {"contrast": {"probability": 2, "low": 1, "high": 1}},
        {"rotation": {"probability": 1, "low": 9, "high": 1}},
    ],
)
def test_strengths_out_of_range(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        AugmentSettings(**wrong)


# -- patches ------------------------------------------------------------------------------------


def source(images, settings, *, intensities=BYTES, member=0):
    targets = [image.target for image in images]
    return PatchSource(
        PatchStore(images, device="cpu"),
        PatchSampler(targets, SamplingSettings(), seed=3, member=member),
        Augmenter(settings, intensities, seed=3, member=member, device="cpu"),
        shape=(64, 32),
    )


def test_batches_go_on_where_they_were_left():
    images = [scene(), scene(shape=(70, 50))]
    whole = source(images, AugmentSettings(**ALWAYS))
    pixels, targets = whole.batch(0, 12)
    assert pixels.shape == (12, 1, 64, 32)
    assert targets.shape == (12, 64, 32)
    resumed = source(images, AugmentSettings(**ALWAYS))
    for first in (8, 4):
        part, part_targets = resumed.batch(first, 4)
        assert torch.equal(part, pixels[first : first + 4])
        assert torch.equal(part_targets, targets[first : first + 4])
    other, _ = source(images, AugmentSettings(**ALWAYS), member=1).batch(0, 12)
    assert not any(torch.equal(a, b) for a, b in zip(other, pixels, strict=True))


def test_without_augmentation_batches_are_crops():
    image = scene()
    pixels, targets = source([image], NOTHING).batch(0, 3)
    sampler = PatchSampler([image.target], SamplingSettings(), seed=3, member=0)
    for number in range(3):
        center = sampler.draw(number)
        place = (center.row, center.column)
        assert np.array_equal(pixels[number], crop(image.pixels, place, (64, 32)))
        assert np.array_equal(targets[number], crop(image.target, place, (64, 32)))


def normalized_batch(folder, dtype, factor):
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for seed in range(2):
        rng = np.random.default_rng(seed)
        pixels = ndimage.gaussian_filter(rng.integers(0, 256, (2, 80, 90)), (0, 1, 1))
        options = {"metadata": {"axes": "CYX"}}
        values = (pixels * factor).astype(dtype)
        tifffile.imwrite(folder / f"images/{seed}.ome.tif", values, ome=True, **options)
        mask = (pixels[0] > 140).astype(np.uint8) * 255
        tifffile.imwrite(folder / f"masks/{seed}.tif", mask)
    training_set = check_training_set(
        folder / "images", folder / "masks", settings=DataSettings(), folds=FoldSettings(count=2)
    )
    images = [training_set.load(image) for image in training_set.images]
    affine = affine_of(
        fit_training_normalization(image.pixels for image in images), images[0].pixels
    )
    batch, targets = source(
        images, AugmentSettings(**ALWAYS), intensities=training_set.intensity_range()
    ).batch(0, 6)
    return affine(batch.numpy()), targets.numpy()


def test_same_scene_in_8_bit_16_bit_and_float(tmp_path):
    expected, targets = normalized_batch(tmp_path / "8", "uint8", 1)
    assert expected.std() > 0.5
    for dtype, factor in (("uint16", 257), ("float32", 1 / 255)):
        result, same = normalized_batch(tmp_path / dtype, dtype, factor)
        assert np.allclose(result, expected, atol=2e-4)
        assert np.array_equal(same, targets)
