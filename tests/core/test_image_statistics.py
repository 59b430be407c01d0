import numpy as np
import pytest

from df2serve.core.image_statistics import StatisticsAccumulator, deviations

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bands", [1, 9])
def test_statistics_do_not_depend_on_bands_and_hold_for_large_images(bands: int) -> None:
    image = RNG.normal(100, 20, (2, 1100, 900)).astype(np.float32)
    image[1] += 50
    gathered = StatisticsAccumulator(image.shape[1:])
    for part in np.array_split(image, bands, axis=1):
        gathered.update(part)
    assert gathered.rows == 1100
    for channel, plane in zip(gathered.compute(), image, strict=True):
        dark, middle, bright = np.percentile(plane, [1, 50, 99])
        assert (channel.dark, channel.middle, channel.bright) == pytest.approx(
            (dark, middle, bright), abs=0.5
        )
        steps = np.abs(np.diff(plane, axis=1)).mean()
        assert channel.sharpness == pytest.approx(steps / (bright - dark), rel=0.02)


def test_blur_and_saturation_show() -> None:
    from df2serve.testing import disturb

    image = RNG.integers(0, 60, (1, 128, 128), dtype=np.uint8)
    found = {}
    for kind in ("blur", "saturation", None):
        gathered = StatisticsAccumulator(image.shape[1:])
        gathered.update(image if kind is None else disturb(image, kind, 0))
        (found[kind],) = gathered.compute()
    assert found["blur"].sharpness < found[None].sharpness / 2
    assert found["saturation"].saturated > 5 * found[None].saturated


def test_only_what_no_reference_has_is_told_and_the_strongest_first() -> None:
    known = [{"a": 1 + 0.1 * i, "b": 5 + 0.1 * i, "c": 3.0} for i in range(10)]
    found = deviations({"a": 1.5, "b": 9.0, "c": 4.0, "d": 1.0}, known)
    assert [one.name for one in found] == ["c", "b"]
    assert str(found[1]) == "b is 9, above all 10 reference images (5 to 5.9)"
    assert "below all" in str(deviations({"b": 1.0}, known)[0])
    assert deviations({"b": 9.0}, known[:4]) == ()  # too few references
    assert deviations({"b": 5.95}, known) == ()  # hardly beyond the range
