import numpy as np
import pytest
import torch
from torchvision.transforms import Normalize

from df2serve.config import (
    ImageNormalization,
    NoNormalization,
    PercentileNormalization,
    TrainingNormalization,
)
from df2serve.core import normalize
from df2serve.core.normalize import affine_of, fit_training_normalization
from df2serve.errors import ImageMismatchError, InputError

RNG = np.random.default_rng(0)
IMAGE_8 = RNG.integers(0, 255, (2, 70, 50), dtype=np.uint8)
IMAGE_16 = RNG.integers(0, 60_000, (2, 70, 50), dtype=np.uint16)


def test_training_statistics_ignore_differences_between_images(shared_data) -> None:
    """Against a naive loop, on real images; the pooled deviation would be 12.461 instead."""
    from PIL import Image

    paths = sorted((shared_data / "cfos_hc" / "images").glob("*.png"))
    images = [np.asarray(Image.open(path))[None] for path in paths]
    stats = fit_training_normalization(images)
    means = [image.astype(float).mean() for image in images]
    variances = [image.astype(float).var() for image in images]
    assert stats.means[0] == pytest.approx(np.mean(means), rel=1e-12)
    assert stats.stds[0] == pytest.approx(np.sqrt(np.mean(variances)), rel=1e-12)
    assert stats.stds[0] == pytest.approx(9.778, abs=5e-4)


def test_training_mode_equals_torchvision() -> None:
    affine = affine_of(TrainingNormalization(means=(26.4, 3.5), stds=(12.2, 0.7)), IMAGE_8)
    reference = Normalize((26.4, 3.5), (12.2, 0.7))(torch.from_numpy(IMAGE_8).float())
    assert np.array_equal(affine(IMAGE_8), reference.numpy())


@pytest.mark.parametrize("image", [IMAGE_8, IMAGE_16, IMAGE_16 / 7.0])
def test_percentile_mode_equals_numpy(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalize, "_BAND_BYTES", 1000)
    affine = affine_of(PercentileNormalization(low=1, high=99.8), image)
    low, high = np.percentile(image, [1, 99.8], axis=(1, 2))
    np.testing.assert_allclose(affine.offset, low, rtol=1e-6)
    np.testing.assert_allclose(affine.scale, high - low, rtol=1e-6)


def test_image_mode_gives_zero_mean_and_unit_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalize, "_BAND_BYTES", 1000)
    values = affine_of(ImageNormalization(), IMAGE_16)(IMAGE_16)
    np.testing.assert_allclose(values.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=(1, 2)), 1, atol=1e-5)


def test_no_normalisation_only_casts() -> None:
    values = affine_of(NoNormalization(), IMAGE_16)(IMAGE_16)
    assert values.dtype == np.float32
    assert np.array_equal(values, IMAGE_16.astype(np.float32))


def test_integers_are_not_changed_in_place() -> None:
    before = IMAGE_8.copy()
    affine_of(ImageNormalization(), IMAGE_8)(IMAGE_8)
    assert np.array_equal(before, IMAGE_8)


def test_wrong_channel_count_says_both_numbers() -> None:
    with pytest.raises(ImageMismatchError, match="2 channels, expected 1"):
        affine_of(TrainingNormalization(means=(1.0,), stds=(1.0,)), IMAGE_8)


@pytest.mark.parametrize("mode", [ImageNormalization(), PercentileNormalization()])
def test_flat_channel_is_named(mode) -> None:
    flat = IMAGE_8.copy()
    flat[1] = 7
    with pytest.raises(ImageMismatchError, match="channel 1 of the image has no contrast"):
        affine_of(mode, flat)


def test_training_statistics_refuse_what_has_none() -> None:
    with pytest.raises(InputError, match="no image"):
        fit_training_normalization([])
    with pytest.raises(InputError, match=r"\[1, 2\] channels"):
        fit_training_normalization([IMAGE_8, IMAGE_8[:1]])
    with pytest.raises(ImageMismatchError, match="channel 0 of the training set"):
        fit_training_normalization([np.ones((1, 4, 4))])
    with pytest.raises(InputError, match="no pixels"):
        fit_training_normalization([np.ones((1, 0, 4))])
