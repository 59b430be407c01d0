"""What all formats share: sources, names, hashes, limits, and finding images in folders."""

import hashlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image as Pillow

from df2serve.config import DecodeLimits
from df2serve.errors import (
    DecodeError,
    InputError,
    LimitExceededError,
    SourceNotFoundError,
    UnsupportedFormatError,
)
from df2serve.io import list_images, open_image, read_image
from df2serve.io._axes import readings
from df2serve.types import PixelSource

GRAY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def write_all(folder):
    """Write the same pixels in every lossless format; return the paths."""
    Pillow.fromarray(GRAY).save(folder / "a.png")
    tifffile.imwrite(folder / "a.tif", GRAY, photometric="minisblack")
    tifffile.imwrite(folder / "z.tif", GRAY, photometric="minisblack", compression="zstd")
    np.save(folder / "a.npy", GRAY)
    np.savez(folder / "a.npz", GRAY)
    with zarr.storage.ZipStore(folder / "a.zarr.zip", mode="w") as store:
        zarr.create_array(store, data=GRAY)
    return sorted(folder.iterdir())


def test_content_decides_and_every_kind_of_source_works(tmp_path):
    for path in write_all(tmp_path):
        disguised = path.rename(path.with_suffix(".jpg"))
        content = disguised.read_bytes()
        reader, writer = os.pipe()
        with os.fdopen(writer, "wb") as end:
            end.write(content)
        with (
            tempfile.SpooledTemporaryFile(max_size=100) as spooled,
            disguised.open("rb") as stream,
            os.fdopen(reader, "rb") as pipe,
        ):
            spooled.write(content)
            stream.seek(5)
            for source in (
                disguised, str(disguised), content, io.BytesIO(content), stream, spooled, pipe,
            ):  # fmt: skip
                image = read_image(source)
                assert np.array_equal(image.data, GRAY[None])
                assert image.sha256 == hashlib.sha256(content).hexdigest()
            assert not stream.closed


def test_pixels_are_a_source(tmp_path):
    for path in write_all(tmp_path):
        with open_image(path) as image:
            assert isinstance(image.data, PixelSource)
            window = image.data[0:1, 3:9, 4:8]
            assert np.array_equal(window, GRAY[None, 3:9, 4:8])
            window[:] = 0
            assert np.array_equal(image.read().data, GRAY[None])


def test_names(tmp_path):
    np.save(tmp_path / "a.npy", GRAY)
    content = (tmp_path / "a.npy").read_bytes()
    assert read_image(tmp_path / "a.npy").source == "a.npy"
    assert read_image(tmp_path / "a.npy", name="mine").source == "mine"
    assert read_image(content).source == "upload"
    assert read_image(content, name="mine").source == "mine"


@pytest.mark.parametrize(
    ("source", "error", "reason"),
    [
        (Path("missing.tif"), SourceNotFoundError, "missing.tif cannot be opened: No such file"),
        ("a\0b", SourceNotFoundError, "cannot be opened: embedded null"),
        ("x" * 5000, SourceNotFoundError, "cannot be opened: File name too long"),
        (Path(__file__).parent, UnsupportedFormatError, "is a folder but no OME-Zarr; give one of"),
        (os.devnull, UnsupportedFormatError, "is neither a file nor a folder"),
        (Path(__file__), UnsupportedFormatError, r"starts with b'.*'; the formats .* PNG, JPEG"),
        (b"", DecodeError, r"upload is empty \(0 bytes\)"),
        (b"%PDF-1.7", UnsupportedFormatError, "starts with b'%PDF-1.7'"),
        (b"PK\x03\x04 and nothing", DecodeError, "cannot be read as a zip file"),
    ],
    ids=str,
)
def test_sources_that_are_no_images(source, error, reason):
    with pytest.raises(error, match=reason):
        read_image(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable(tmp_path):
    np.save(tmp_path / "a.npy", GRAY)
    (tmp_path / "a.npy").chmod(0)
    with pytest.raises(SourceNotFoundError, match="Permission denied"):
        read_image(tmp_path / "a.npy")


def test_size_of_the_file_is_limited_before_it_is_read(tmp_path):
    limits = DecodeLimits(max_file_bytes=100)
    with (tmp_path / "big.png").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(LimitExceededError, match=r"1,099,511,627,776 bytes, at most 100.*max_file"):
        read_image(tmp_path / "big.png", limits=limits)

    class Endless(io.RawIOBase):
        def seekable(self):
            return False

        def read(self, count=-1):
            return bytes(count)

    with pytest.raises(LimitExceededError, match="101 bytes, at most 100 are allowed"):
        read_image(Endless(), limits=limits)


def test_errors_of_the_caller_pass_through(tmp_path):
    np.save(tmp_path / "a.npy", GRAY)
    with pytest.raises(ZeroDivisionError), open_image(tmp_path / "a.npy"):
        1 / 0  # noqa: B018


def test_no_file_stays_open(tmp_path):
    def opened():
        return {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list open files")
    for path in write_all(tmp_path):
        read_image(path)
        assert str(path) not in opened()
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(DecodeError):
            read_image(path)
        assert str(path) not in opened()


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("YX", ["YX"]),
        ("?YXS", ["TYXC", "ZYXC"]),
        ("??YX", ["CTYX", "CZYX", "TCYX", "TZYX", "ZCYX", "ZTYX"]),
        ("??????", []),
    ],
)
def test_readings(axes, expected):
    assert readings(axes) == expected


def names(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


def test_list_images(tmp_path):
    for name in (
        "10.png", "2.PNG", "1.tiff", ".hidden.png", "notes.txt", "a.npy", "b.ome.tif",
        "sub/3.png", "sub/.cache/4.png", "c.zarr/zarr.json", "c.zarr/0/5.png",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    top = ["1.tiff", "2.PNG", "10.png", "a.npy", "b.ome.tif", "c.zarr"]
    assert names(list_images(tmp_path), tmp_path) == top
    assert names(list_images(str(tmp_path), pattern="*.png"), tmp_path) == ["10.png"]
    assert names(list_images(tmp_path, pattern="**/*"), tmp_path) == [*top, "sub/3.png"]
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    (tmp_path / "c.zarr" / ".zgroup").touch()
    assert list_images(tmp_path / "c.zarr") == [tmp_path / "c.zarr"]


def test_list_images_finds_nothing(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"holds no images that match '\*'; expected PNG"):
        list_images(tmp_path)
    with pytest.raises(
        SourceNotFoundError, match="nowhere does not exist; give a file or a folder"
    ):
        list_images(tmp_path / "nowhere")
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "a.npy", GRAY)
    for pattern in ("", "/etc/*"):
        with pytest.raises(InputError, match=r"got pattern='.*'; expected names inside of"):
            list_images(tmp_path / "sub", pattern=pattern)


def test_real_images(shared_data):
    found = list_images(shared_data / "cfos_hc" / "images")
    assert len(found) == 36
    for path in found[:3]:
        image = read_image(path)
        assert (image.format, image.dtype, image.shape) == ("PNG", np.uint8, (1, 1024, 1024))
        assert np.array_equal(image.data[0], np.asarray(Pillow.open(path)))
