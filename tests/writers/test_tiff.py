"""Files written row by row, read back by tifffile and by the project's own readers."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from df2serve.io import PixelSize, read_image
from df2serve.writers import TiffRowWriter, tiff


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("cuts", [[300], [1, 2, 299], [7] * 50, [150, 151, 290]])
@pytest.mark.parametrize("planes", [None, 3])
def test_rows_in_any_portions_give_the_same_image(
    tmp_path: Path, dtype: str, cuts: list[int], planes: int | None
) -> None:
    shape = (300, 1100) if planes is None else (planes, 300, 1100)
    pixels = (np.random.default_rng(0).random(shape) * 250).astype(dtype)
    names = tuple(f"class {i}" for i in range(planes or 0))
    path = tmp_path / "image.tif"
    with TiffRowWriter(
        path,
        shape=shape,
        dtype=dtype,
        display_range=(0, 2),
        pixel_size_um=PixelSize(y_um=0.5, x_um=0.25),
        plane_names=names,
    ) as writer:
        for rows in np.split(pixels, [cut for cut in np.cumsum(cuts) if cut < 300], axis=-2):
            writer.append(rows)
    with tifffile.TiffFile(path) as file:
        assert np.array_equal(file.asarray().reshape(shape), pixels)
        assert file.is_imagej
        assert (file.imagej_metadata["min"], file.imagej_metadata["max"]) == (0, 2)
        assert file.imagej_metadata.get("Labels", []) == list(names)
    image = read_image(path)
    assert np.array_equal(image.data.reshape(shape), pixels)
    assert image.pixel_size_um == PixelSize(y_um=0.5, x_um=0.25)
    assert [path.name for path in tmp_path.iterdir()] == ["image.tif"]


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 1, 1), (2, 3, 1), (4, 3, 1), (2, 1, 3)])
def test_single_rows_and_columns(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    path = tmp_path / "a.tif"
    with TiffRowWriter(path, shape=shape, dtype="float32", display_range=(0, 1)) as writer:
        writer.append(pixels)
    assert np.array_equal(tifffile.imread(path), pixels)


def test_compressed(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    shape = (2000, 2000)
    with TiffRowWriter(path, shape=shape, dtype=np.uint8, display_range=(0, 1)) as writer:
        writer.append(np.zeros(shape, np.uint8))
    assert path.stat().st_size < 2000 * 2000 / 50


def test_more_than_imagej_can_hold_becomes_bigtiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff, "_IMAGEJ_BYTES", 1000)
    path, pixels = tmp_path / "image.tif", np.arange(3000, dtype=np.uint16).reshape(50, 60)
    size = PixelSize(y_um=0.5, x_um=0.25)
    with TiffRowWriter(
        path, shape=(50, 60), dtype=np.uint16, display_range=(0, 1), pixel_size_um=size
    ) as writer:
        writer.append(pixels)
    with tifffile.TiffFile(path) as file:
        assert (file.is_bigtiff, file.is_imagej) == (True, False)
        assert np.array_equal(file.asarray(), pixels)
    image = read_image(path)
    assert image.pixel_size_um is not None
    assert (image.pixel_size_um.y_um, image.pixel_size_um.x_um) == pytest.approx((0.5, 0.25))


def test_nothing_is_left_when_writing_stops(tmp_path: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="stop"),
        TiffRowWriter(
            tmp_path / "image.tif", shape=(9, 9), dtype=np.uint8, display_range=(0, 1)
        ) as writer,
    ):
        writer.append(np.zeros((3, 9), np.uint8))
        message = "stop"
        raise RuntimeError(message)
    assert list(tmp_path.iterdir()) == []
