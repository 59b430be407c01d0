"""Centers of patches: exact shares, no forbidden pixel, the same whenever they are drawn."""

import numpy as np
import pytest
from scipy import stats

from df2serve.errors import InputError
from df2serve_training.sampler import PatchSampler
from df2serve_training.settings import SamplingSettings
from df2serve_training.targets import IGNORED

UNIFORM = SamplingSettings()
SHARES = (0.9, 0.06, 0.03, 0.01)


def target(shares=SHARES, shape=(60, 80), seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(len(shares), p=shares, size=shape).astype(np.uint8)


def sampler(targets, settings=UNIFORM, *, seed=1, member=0):
    return PatchSampler(targets, settings, seed=seed, member=member)


def drawn_classes(targets, settings, count):
    patches = sampler(targets, settings)
    centers = [patches.draw(number) for number in range(count)]
    return np.bincount([targets[c.image][c.row, c.column] for c in centers], minlength=4)


@pytest.mark.parametrize(
    ("class_weights", "expected"),
    [("uniform", [0.25] * 4), ("deepflash2", [0.485, 0.304, 0.157, 0.053])],
)
def test_four_classes_have_their_shares(class_weights, expected):
    # an exact number of pixels of every class, so that the published shares apply
    exact = np.repeat(np.arange(4), [9000, 600, 300, 100]).astype(np.uint8)
    shuffled = np.random.default_rng(0).permutation(exact).reshape(100, 100)
    counts = drawn_classes([shuffled], SamplingSettings(class_weights=class_weights), 2000)
    wanted = np.array(expected) / np.sum(expected) * 2000
    assert stats.chisquare(counts, wanted).pvalue > 0.01
    assert stats.chisquare(counts, np.array(SHARES) * 2000).pvalue < 1e-9


def test_images_without_a_class_share_out_the_others():
    targets = [target((1, 0, 0, 0)), target((0.5, 0, 0.5, 0))]
    counts = drawn_classes(targets, UNIFORM, 2000)
    assert counts[[1, 3]].tolist() == [0, 0]
    assert stats.chisquare(counts[[0, 2]], [1500, 500]).pvalue > 0.01


@pytest.mark.parametrize("settings", [UNIFORM, SamplingSettings(class_weights="deepflash2")])
def test_every_pixel_of_an_empty_mask_is_equally_likely(settings):
    empty = sampler([np.zeros((5, 8), np.uint8)], settings)
    places = [empty.draw(number) for number in range(2000)]
    counts = np.bincount([place.row * 8 + place.column for place in places], minlength=40)
    assert stats.chisquare(counts).pvalue > 0.01


def test_every_pixel_of_a_class_is_equally_likely():
    mask = np.zeros((30, 40), np.uint8)
    mask[7, [0, 3, 39]] = mask[8, 5] = mask[29, [38, 39]] = mask[0, 0] = 1
    patches = sampler([mask])
    places = [patches.draw(number) for number in range(2000)]
    found = [(p.row, p.column) for p in places if mask[p.row, p.column]]
    pixels, counts = np.unique(found, axis=0, return_counts=True)
    assert pixels.tolist() == np.argwhere(mask).tolist()
    assert stats.chisquare(counts).pvalue > 0.01


def test_ignored_pixels_are_never_drawn():
    mask = target()
    mask[:, :70] = IGNORED
    mask[10:20] = IGNORED
    patches = sampler([mask])
    centers = [patches.draw(number) for number in range(1000)]
    assert all(mask[c.row, c.column] != IGNORED for c in centers)


def test_images_take_turns():
    targets = [target(seed=seed) for seed in range(7)]
    patches = sampler(targets)
    images = np.array([patches.draw(number).image for number in range(70)]).reshape(10, 7)
    assert (np.sort(images) == np.arange(7)).all()
    assert len(np.unique(images, axis=0)) > 5


def test_patches_are_functions_of_seed_member_and_number():
    targets = [target(seed=seed) for seed in range(3)]
    numbers = range(50)
    first = [sampler(targets).draw(number) for number in numbers]
    again = sampler(targets)
    assert [again.draw(number) for number in reversed(numbers)] == first[::-1]
    for other in (sampler(targets, seed=2), sampler(targets, member=1)):
        same = sum(
            other.draw(number) == center for number, center in zip(numbers, first, strict=True)
        )
        assert same < 5


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "got 0 targets"),
        ([target(), np.full((4, 4), IGNORED, np.uint8)], r"that counts are \[1\]"),
    ],
)
def test_nothing_to_draw(targets, message):
    with pytest.raises(InputError, match=message):
        sampler(targets)
