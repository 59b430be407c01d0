"""An image of 20,000 rows is read band by band with the memory of a band."""

import tracemalloc

import numpy as np
import pytest
import tifffile
import zarr

from df2serve.io import open_image, read_image

ROWS, COLUMNS, BAND = 20_000, 512, 500
TALL = np.add.outer(np.arange(ROWS), np.arange(COLUMNS) * 7).astype(np.uint16)
BYTES = 4 << 20
"""Four bands are 2 MB, the image is 20 MB."""


def npy(path):
    with path.open("wb") as stream:
        np.save(stream, TALL)


def tiff(**options):
    return lambda path: tifffile.imwrite(path, TALL, metadata=None, **options)


def ome_zarr(version):
    def write(path):
        group = zarr.open_group(path, mode="w", zarr_format=version)
        group.create_array("0", data=TALL, chunks=(256, 256))
        axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
        image = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
        group.attrs.update(image if version == 2 else {"ome": {"version": "0.5"} | image})

    return write


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(npy, id="npy"),
        pytest.param(tiff(), id="tiff-plain"),
        pytest.param(tiff(byteorder=">", rowsperstrip=ROWS), id="tiff-one-strip"),
        pytest.param(tiff(compression="zlib", rowsperstrip=64), id="tiff-strips"),
        pytest.param(tiff(compression="lzw", predictor=True, tile=(256, 256)), id="tiff-tiles"),
        pytest.param(ome_zarr(2), id="ome-zarr-0.4"),
        pytest.param(ome_zarr(3), id="ome-zarr-0.5"),
    ],
)
def test_bands(tmp_path, write):
    path = tmp_path / "tall"
    write(path)
    read_image(path)  # what is loaded and cached once is not counted
    tracemalloc.start()
    with open_image(path) as image:
        assert image.shape == (1, ROWS, COLUMNS)
        for top in range(0, ROWS, BAND):
            band = image.data[0:1, top : top + BAND, 0:COLUMNS]
            assert np.array_equal(band[0], TALL[top : top + BAND])
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BYTES
