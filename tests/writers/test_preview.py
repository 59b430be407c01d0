"""What people see."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from df2serve.inference import Band
from df2serve.writers.preview import Preview

COLORS = ["#000000", "#ff0000", "#0000ff"]


def band(top: int, mask: np.ndarray) -> Band:
    total = np.linspace(0, 1, mask.size, dtype=np.float32).reshape(mask.shape)
    return Band(
        top=top,
        probs=np.zeros((3, *mask.shape), np.float32),
        mask=mask,
        total=total,
        epistemic=total,
    )


def saved(path: Path) -> np.ndarray:
    with PillowImage.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_outlines_have_the_colors_of_their_classes(
    tmp_path: Path, channels: int, dtype: type
) -> None:
    image = (np.random.default_rng(0).random((channels, 20, 30)) * 200).astype(dtype)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 3:12], mask[5:15, 15:25] = 1, 2
    preview = Preview(image, colors=COLORS, largest=1)
    preview.append(band(0, mask[:7]))
    preview.append(band(7, mask[7:]))
    preview.save_overlay(tmp_path / "overlay.png")
    picture = saved(tmp_path / "overlay.png")
    red, blue = ((picture == color).all(axis=2) for color in ([255, 0, 0], [0, 0, 255]))
    edge = np.zeros_like(mask)
    edge[5:15, 3:12] = edge[5:15, 15:25] = 1
    edge[6:14, 4:11] = edge[6:14, 16:24] = 0
    assert np.array_equal(red[:, :13], edge[:, :13] == 1)
    assert np.array_equal(blue[:, 13:], edge[:, 13:] == 1)


def test_the_image_alone(tmp_path: Path) -> None:
    image = np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (3, 30, 1))
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, 3:12] = 1
    preview = Preview(image, colors=COLORS, largest=1)
    preview.append(band(0, mask))
    preview.save_image(tmp_path / "image.jpg")
    preview.save_overlay(tmp_path / "overlay.png")
    alone = saved(tmp_path / "image.jpg")
    assert np.abs(alone - np.moveaxis(image, 0, -1).astype(float)).max() < 8
    assert (saved(tmp_path / "overlay.png") == [255, 0, 0]).all(axis=2).any()


def test_a_constant_image_is_shown(tmp_path: Path) -> None:
    preview = Preview(np.full((1, 9, 9), 7, np.uint16), colors=COLORS, largest=1)
    preview.append(band(0, np.zeros((9, 9), np.uint8)))
    preview.save_overlay(tmp_path / "overlay.png")
    assert saved(tmp_path / "overlay.png").max() == 0


def test_large_images_are_shown_by_every_nth_pixel(tmp_path: Path) -> None:
    image = np.full((1, 5000, 40), 255, np.uint8)
    image[0, ::3, ::3] = (np.arange(0, 5000, 3) // 20)[:, None]
    preview = Preview(image, colors=COLORS, largest=1)
    for top in range(0, 5000, 97):
        rows = min(97, 5000 - top)
        preview.append(band(top, np.zeros((rows, 40), np.uint8)))
    preview.save_overlay(tmp_path / "overlay.png")
    picture = saved(tmp_path / "overlay.png")
    assert picture.shape == (1667, 14, 3)
    shown = picture[..., 0].astype(int)
    assert (shown == shown[:, :1]).all()
    assert (np.diff(shown[:, 0]) >= 0).all()
    assert (shown.min(), shown.max()) == (0, 255)
