import numpy as np
import pytest

from df2serve.errors import ConfigError
from df2serve.testing import DISTURBANCES, FITTED_SCENE, disturb, generate_cells

IMAGE = generate_cells(FITTED_SCENE, 0).image


@pytest.mark.parametrize("kind", DISTURBANCES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_are_disturbed_in_their_own_type(kind: str, dtype: type) -> None:
    image = IMAGE.astype(dtype) * (1 if dtype == np.uint8 else 200)
    found = disturb(image, kind, 4)
    assert (found.shape, found.dtype) == (image.shape, image.dtype)
    assert np.mean(found != image) > 0.001
    assert np.array_equal(found, disturb(image, kind, 4))
    assert not np.array_equal(found, disturb(image, kind, 5))


def test_disturbances_are_what_they_say() -> None:
    def roughness(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(float))).mean())

    assert roughness(disturb(IMAGE, "blur", 0)) < roughness(IMAGE) / 2
    assert np.mean(disturb(IMAGE, "saturation", 0) == 255) > np.mean(IMAGE == 255) + 0.0005
    for kind in ("fold", "particles", "vessels"):  # these add light, and only in places
        added = disturb(IMAGE, kind, 0).astype(int) - IMAGE
        assert added.min() >= 0
        assert 0.001 < np.mean(added > 3) < 0.8


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="no disturbance is called 'rain'; choose one of blur"):
        disturb(IMAGE, "rain", 0)
    with pytest.raises(ConfigError, match="type float64; expected uint8 or uint16"):
        disturb(IMAGE.astype(float), "blur", 0)
