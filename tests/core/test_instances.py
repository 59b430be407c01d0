"""Objects of a mask: properties of every division, and judges that know the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from skimage.measure import regionprops

from df2serve.config import InstanceConfig, SeedConfig
from df2serve.core.instances import Instances, find_instances, measure_instances
from df2serve.core.metrics import match_instances
from df2serve.errors import ConfigError
from df2serve.testing import CellScene, generate_cells

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
MASKS = SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=st.integers(0, 3)))
CONFIGS = st.builds(
    InstanceConfig,
    method=st.sampled_from(["components", "watershed"]),
    learned=st.builds(SeedConfig, h=st.floats(0.01, 0.5), lowest=st.floats(0, 1)),
    euclidean=st.builds(SeedConfig, h=st.floats(0.1, 2), lowest=st.floats(0, 2)),
    min_size=st.integers(0, 4),
)


def random_distance(shape: tuple[int, int], seed: int) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(0, 6, shape)  # with plateaus
    return (levels / 5).astype(np.float32)


@given(MASKS, CONFIGS, st.integers(0, 9), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_division(mask: np.ndarray, config: InstanceConfig, seed: int, learned: bool) -> None:
    distance = random_distance(mask.shape, seed) if learned else None
    found = find_instances(mask, config=config, distance=distance)
    again = find_instances(mask.copy(), config=config, distance=distance)
    assert np.array_equal(found.labels, again.labels)
    assert found.labels.dtype == np.int32
    assert np.array_equal(np.unique(np.r_[0, found.labels.ravel()]), np.arange(len(found) + 1))
    for label, class_index in enumerate(found.classes, start=1):
        pixels = found.labels == label
        assert np.unique(mask[pixels]).tolist() == [class_index]
        assert ndimage.label(pixels)[1] == 1
        assert pixels.sum() >= config.min_size
    everything = find_instances(mask, config=config.updated(min_size=0), distance=distance)
    assert np.array_equal(everything.labels > 0, mask > 0)
    areas = np.bincount(everything.labels.ravel())[1:]
    assert found.removed == (areas < config.min_size).sum()
    assert found.removed_px == areas[areas < config.min_size].sum()
    assert found.removed_px == ((mask > 0) & (found.labels == 0)).sum()


@given(MASKS)
@settings(max_examples=50, deadline=None)
def test_components_are_those_of_each_class(mask: np.ndarray) -> None:
    found = find_instances(mask, config=InstanceConfig(method="components"))
    count = 0
    for class_index in (1, 2, 3):
        labels, n = ndimage.label(mask == class_index)
        assert np.array_equal(found.labels[labels > 0], labels[labels > 0] + count)
        count += n
    assert len(found) == count


def disks(*places: tuple[float, float, float], shape: tuple[int, int] = (60, 90)) -> np.ndarray:
    """Labels of disks, each a row, a column and a radius; the nearest center owns a pixel."""
    rows, columns = np.indices(shape)
    far = np.stack([np.hypot(rows - y, columns - x) - r for y, x, r in places])
    return np.where(far.min(axis=0) < 0, far.argmin(axis=0) + 1, 0).astype(np.int32)


def test_touching_disks_are_divided_where_they_touch() -> None:
    truth = disks((30, 25, 15), (30, 52, 15), (25, 76, 8))
    mask = (truth > 0).astype(np.uint8)
    config = InstanceConfig()
    assert len(find_instances(mask, config=config.updated(method="components"))) < 3
    found = find_instances(mask, config=config)
    [matches] = match_instances(truth, found.labels, thresholds=[0.9])
    assert matches.average_precision == 1


def test_two_classes_that_touch_never_share_an_object() -> None:
    truth = disks((30, 25, 15), (30, 52, 15))
    found = find_instances(truth, config=InstanceConfig())
    assert np.array_equal(found.labels, truth)
    assert found.classes.tolist() == [1, 2]


def test_seeds_are_maxima_that_are_deep_and_high_enough() -> None:
    """One row; peaks .9, .5 and .2 with dips to .4 and .1 between them."""
    distance = np.array([[0.3, 0.9, 0.4, 0.5, 0.1, 0.2, 0.1]], np.float32)
    mask = np.ones((1, 7), np.uint8)

    def divided(h: float, lowest: float) -> list[int]:
        config = InstanceConfig(learned=SeedConfig(h=h, lowest=lowest))
        return find_instances(mask, config=config, distance=distance).labels[0].tolist()

    assert divided(0.05, 0) == [1, 1, 1, 2, 2, 3, 3]
    assert divided(0.15, 0) == [1, 1, 1, 1, 1, 1, 1]
    assert divided(0.05, 0.3) == [1, 1, 1, 2, 2, 2, 2]
    assert divided(0.05, 0.95) == [1] * 7


def test_the_end_of_the_image_is_no_boundary() -> None:
    """A disk cut at its center is widest at the edge of the image and remains one object."""
    mask = (disks((0, 45, 20)) > 0).astype(np.uint8)
    assert len(find_instances(mask, config=InstanceConfig())) == 1


def test_measures_equal_those_of_scikit_image() -> None:
    sample = generate_cells(CellScene(shape=(300, 200), n_cells=25, channels=2), seed=1)
    rng = np.random.default_rng(0)
    probability, total, epistemic = rng.random((3, 300, 200), np.float32)
    found = find_instances(sample.mask, config=InstanceConfig(min_size=20))
    measured = measure_instances(
        found,
        image=sample.image,
        probability=probability,
        total=total,
        epistemic=epistemic,
        pixel_area_um2=0.5,
    )
    layers = np.stack([*sample.image, total, epistemic, probability], axis=-1)
    expected = regionprops(found.labels, intensity_image=layers)
    assert len(measured) == len(expected) > 5
    for own, theirs in zip(measured, expected, strict=True):
        assert (own.label, own.area_px) == (theirs.label, theirs.area)
        assert own.area_um2 == theirs.area / 2
        assert (own.top, own.left, own.bottom, own.right) == theirs.bbox
        assert (own.row, own.column) == pytest.approx(theirs.centroid)
        values = [*own.intensities, own.u, own.u_epistemic, own.probability]
        assert values == pytest.approx(theirs.intensity_mean.tolist(), rel=1e-5)


def test_nothing_in_the_image() -> None:
    empty = np.zeros((5, 4), np.uint8)
    found = find_instances(empty, config=InstanceConfig())
    assert isinstance(found, Instances)
    assert (len(found), found.removed, found.labels.max()) == (0, 0, 0)
    zeros = np.zeros((5, 4), np.float32)
    assert (
        measure_instances(
            found,
            image=empty[None],
            probability=zeros,
            total=zeros,
            epistemic=zeros,
            pixel_area_um2=None,
        )
        == ()
    )


def test_pixels_that_flows_leave_out_are_counted() -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[2:18, 2:38] = 1
    mask[5:9, 5:9] = 2
    asked = []

    def divide(class_index: int, inside: np.ndarray) -> np.ndarray:
        assert np.array_equal(inside, mask == class_index)
        asked.append(class_index)
        objects = np.zeros(mask.shape, np.uint16)
        if class_index == 1:
            objects[:, 10:25] = 7  # more than the class has
            objects[10, 30:32] = 3
        return objects

    config = InstanceConfig(method="cellpose", min_size=3)
    found = find_instances(mask, config=config, divide=divide)
    assert asked == [1, 2]
    assert found.classes.tolist() == [1]
    columns = np.arange(40)
    assert np.array_equal(found.labels == 1, (mask == 1) & (columns >= 10) & (columns < 25))
    assert (found.labels > 0).sum() == 16 * 15
    assert found.removed == 1
    assert found.removed_px == (mask > 0).sum() - 16 * 15 > 255


def test_every_pixel_may_belong_to_an_object_of_flows() -> None:
    found = find_instances(
        np.ones((4, 4), np.uint8),
        config=InstanceConfig(method="cellpose"),
        divide=lambda _, inside: np.where(inside, 5, 0),
    )
    assert found.labels.tolist() == [[1] * 4] * 4
    assert (found.removed, found.removed_px) == (0, 0)


def test_cellpose_without_a_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="--cellpose-weights FILE"):
        find_instances(np.ones((3, 3), np.uint8), config=InstanceConfig(method="cellpose"))
