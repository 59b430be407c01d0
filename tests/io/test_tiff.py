"""TIFF of every kind written by tifffile, and damaged by hand."""

import io
import logging
import struct
import tracemalloc
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile

from df2serve.config import DecodeLimits
from df2serve.errors import (
    AxesError,
    DecodeError,
    InputError,
    LimitExceededError,
    UnsupportedFormatError,
)
from df2serve.io import PixelSize, Selection, open_image, read_image

STACK = np.random.default_rng(0).integers(0, 60_000, (3, 70, 90), dtype=np.uint16)
RGB = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def tiff(array, **options):
    buffer = io.BytesIO()
    options.setdefault("photometric", "minisblack")
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


@contextmanager
def peak_below(limit):
    """Fail if the body holds more bytes at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def tag_value(data, code):
    """Return where the value of a tag of the first page lies, its size and count."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tag = file.pages[0].tags[code]
        return tag.valueoffset, tag.dtype, tag.count


def patch(data, code, value, form):
    offset, _, _ = tag_value(data, code)
    return data[:offset] + struct.pack(form, value) + data[offset + struct.calcsize(form) :]


@pytest.mark.parametrize("kind", ["?", "u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_types(kind, compression):
    array = (STACK[0] % 100).astype(kind)
    image = read_image(tiff(array, compression=compression))
    assert (image.format, image.dtype) == ("TIFF", np.dtype(kind))
    assert np.array_equal(image.data[0], array)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"rowsperstrip": 7},
        {"tile": (32, 48)},
        {"tile": (32, 48), "byteorder": ">"},
    ],
    ids=str,
)
@pytest.mark.parametrize("codec", [None, "zlib", "lzw", "zstd", "packbits"])
@pytest.mark.parametrize("from_disk", [True, False])
def test_windows_of_every_layout(tmp_path, layout, codec, from_disk):
    path = tmp_path / "a.dat"
    path.write_bytes(tiff(STACK, metadata={"axes": "CYX"}, compression=codec, **layout))
    source = path if from_disk else path.read_bytes()
    with open_image(source) as image:
        assert np.array_equal(image.data[0:3, 0:70, 0:90], STACK)
        assert np.array_equal(image.data[1:2, 30:33, 40:90], STACK[1:2, 30:33, 40:])
        assert np.array_equal(image.data[::2, 69:70, 3:80:5], STACK[::2, 69:70, 3:80:5])
        bands = [image.data[0:3, y : y + 11, 0:90] for y in range(0, 70, 11)]
        assert np.array_equal(np.concatenate(bands, axis=1), STACK)


@pytest.mark.parametrize("predictor", [2, 3])
def test_predictors(predictor):
    array = STACK.astype(np.float32) if predictor == 3 else STACK
    source = tiff(array, metadata={"axes": "CYX"}, compression="zlib", predictor=predictor)
    assert np.array_equal(read_image(source).data, array)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{}, {"tile": (32, 32)}, {"rowsperstrip": 9}], ids=str)
@pytest.mark.parametrize("codec", [None, "zlib"])
def test_rgb(planar, layout, codec):
    array = RGB if planar == "contig" else RGB.transpose(2, 0, 1)
    source = tiff(array, photometric="rgb", planarconfig=planar, compression=codec, **layout)
    assert np.array_equal(read_image(source).data, RGB.transpose(2, 0, 1))
    with open_image(source, selection=Selection(channels=(2, 1))) as image:
        assert np.array_equal(
            image.data[0:2, 5:50, 60:61], RGB.transpose(2, 0, 1)[[2, 1], 5:50, 60:61]
        )


@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 16}], ids=str)
def test_jpeg_in_tiff(layout):
    smooth = np.linspace(0, 255, 70 * 90).reshape(70, 90).astype(np.uint8)
    color = np.dstack([smooth, smooth[::-1], smooth[:, ::-1]])
    gray = read_image(tiff(smooth, compression="jpeg", **layout))
    assert np.abs(gray.data[0] - smooth.astype(float)).max() < 20
    source = tiff(color, photometric="rgb", compression="jpeg", **layout)
    assert np.array_equal(
        read_image(source).data, tifffile.imread(io.BytesIO(source)).transpose(2, 0, 1)
    )


def test_transparency():
    opaque = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    clear = np.dstack([RGB, RGB[..., 0]])
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    assert np.array_equal(read_image(tiff(opaque, **options)).data, RGB.transpose(2, 0, 1))
    with pytest.raises(InputError, match=r"partly transparent.*channels=\(0, 1, 2\)"):
        read_image(tiff(clear, **options))
    unspecified = tiff(clear, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(read_image(unspecified).data, clear.transpose(2, 0, 1))


def test_pages_without_metadata_are_never_guessed():
    source = tiff(STACK, metadata=None)
    with pytest.raises(AxesError, match=r"axes='CYX' or axes='TYX' or axes='ZYX'"):
        read_image(source)
    assert np.array_equal(read_image(source, axes="CYX").data, STACK)
    chosen = read_image(source, axes="ZYX", selection=Selection(z=2))
    assert np.array_equal(chosen.data, STACK[2:])
    with pytest.raises(AxesError, match=r"axes \?YX .*got axes='YXC'; give one letter per axis"):
        read_image(source, axes="YXC")
    with pytest.raises(AxesError, match=r"axes='CYX' or axes='TYX' or axes='ZYX'"):
        read_image(tiff(STACK))


def test_axes_that_contradict_the_file():
    with pytest.raises(AxesError, match=r"axes CYX .*got axes='ZYX'.*or leave axes out"):
        read_image(tiff(STACK, metadata={"axes": "CYX"}), axes="ZYX")
    assert read_image(tiff(STACK, metadata={"axes": "CYX"}), axes="CYX").shape == STACK.shape
    assert read_image(tiff(RGB, photometric="rgb"), axes="YXC").shape == (3, 70, 90)


def test_several_series():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for array in (STACK[0], STACK[1, :20]):
            writer.write(array, photometric="minisblack", metadata=None)
    chosen = read_image(buffer.getvalue(), selection=Selection(series=1))
    assert np.array_equal(chosen.data[0], STACK[1, :20])
    with pytest.raises(AxesError, match="holds 2 images; choose one with series="):
        read_image(buffer.getvalue())
    with pytest.raises(InputError, match="got series=2"):
        read_image(buffer.getvalue(), selection=Selection(series=2))


def test_imagej_hyperstack():
    array = np.random.default_rng(3).integers(0, 255, (2, 3, 4, 20, 30), dtype=np.uint16)
    options = {"resolution": (4.0, 2.0), "metadata": {"axes": "TZCYX", "unit": "um"}}
    source = tiff(array, imagej=True, **options)
    image = read_image(source, selection=Selection(t=1, z=2))
    assert image.format == "ImageJ TIFF"
    assert np.array_equal(image.data, array[1, 2])
    assert image.pixel_size_um == PixelSize(y_um=0.5, x_um=0.25)
    with pytest.raises(AxesError, match="choose one with t=0 to t=1"):
        read_image(source)
    with pytest.raises(AxesError, match="choose one with z=0 to z=2"):
        read_image(source, selection=Selection(t=0))


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("um", 0.5), ("µm", 0.5), ("\\u00B5m", 0.5), ("micron", 0.5), ("nm", 0.0005), ("mm", 500),
        ("pixel", None), ("inch", None), ("", None),
    ],
)  # fmt: skip
def test_units_of_imagej(unit, expected):
    source = tiff(
        STACK[0], imagej=True, resolution=(2, 2), metadata={"unit": unit.replace("µ", "\\u00B5")}
    )
    size = read_image(source).pixel_size_um
    assert size == (None if expected is None else PixelSize(y_um=expected, x_um=expected))


def test_resolution_tags():
    size = read_image(tiff(STACK[0], resolution=(5000, 2500), resolutionunit="centimeter"))
    assert size.pixel_size_um == PixelSize(y_um=4, x_um=2)
    for unit in ("inch", "none"):
        image = read_image(tiff(STACK[0], resolution=(300, 300), resolutionunit=unit))
        assert image.pixel_size_um is None
    own = PixelSize(y_um=7, x_um=8)
    source = tiff(STACK[0], resolution=(5000, 2500), resolutionunit="centimeter")
    assert read_image(source, pixel_size_um=own).pixel_size_um == own


def ome(array, **metadata):
    return tiff(array, ome=True, metadata=metadata, compression=metadata.pop("codec", None))


def test_ome_tiff():
    array = np.random.default_rng(3).integers(0, 255, (2, 3, 4, 20, 30), dtype=np.uint16)
    source = ome(
        array,
        axes="TCZYX",
        PhysicalSizeX=250, PhysicalSizeXUnit="nm", PhysicalSizeY=0.5, PhysicalSizeYUnit="µm",
        Channel={"Name": ["DAPI", "cFOS", "NeuN"]},
        codec="zlib",
    )  # fmt: skip
    image = read_image(source, selection=Selection(t=1, z=3, channels=(2, 0)))
    assert image.format == "OME-TIFF"
    assert np.array_equal(image.data, array[1, [2, 0], 3])
    assert image.channel_names == ("NeuN", "DAPI")
    assert image.pixel_size_um == PixelSize(y_um=0.5, x_um=0.25)
    with pytest.raises(InputError, match=r"numbered from 0 to 2 \(DAPI, cFOS, NeuN\)"):
        read_image(source, selection=Selection(t=0, z=0, channels=(3,)))


def test_ome_tiff_of_a_pyramid_and_of_several_images():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as writer:
        for array, name in ((STACK, "A"), (STACK[:, :20], "B")):
            writer.write(
                array,
                subifds=1,
                tile=(32, 32),
                photometric="minisblack",
                metadata={"axes": "CYX", "Name": name},
            )
            writer.write(array[:, ::2, ::2], subfiletype=1, tile=(32, 32), photometric="minisblack")
    second = read_image(buffer.getvalue(), selection=Selection(series=1))
    assert np.array_equal(second.data, STACK[:, :20])
    with pytest.raises(AxesError, match=r"series= 0 \(A\), 1 \(B\)"):
        read_image(buffer.getvalue())


def edited_ome(old, new):
    """Return an OME-TIFF with part of its XML replaced by text of the same length."""
    source = ome(STACK, axes="CYX", Description="x" * 200)
    assert old in source
    grown = len(new) - len(old)
    edited = source.replace(old, new, 1)
    return (
        edited.replace(b"x" * grown, b"", 1)
        if grown > 0
        else edited.replace(new, new + b" " * -grown)
    )


def test_ome_tiff_that_names_another_file(tmp_path):
    other = (
        b'<TiffData IFD="0" PlaneCount="3"><UUID FileName="secret.tif">urn:uuid:1</UUID></TiffData>'
    )
    source = edited_ome(b'<TiffData IFD="0" PlaneCount="3"/>', other)
    (tmp_path / "secret.tif").write_bytes(tiff(STACK))
    (tmp_path / "a.tif").write_bytes(source)
    for given in (source, tmp_path / "a.tif"):
        with pytest.raises(
            UnsupportedFormatError, match=r"refers to 'secret.tif'; save the image as a single"
        ):
            read_image(given)


@pytest.mark.parametrize(
    ("old", "new", "error", "reason"),
    [
        (b'SizeZ="1"', b'SizeZ="9"', DecodeError, "damaged or incomplete"),
        (
            b'SizeZ="1"',
            b'SizeZ="999999999"',
            LimitExceededError,
            "announces 2,?999,?999,?997 planes",
        ),
        (b'PlaneCount="3"', b'PlaneCount="3000000000"', LimitExceededError, "max_pages"),
        (b'IFD="0"', b'IFD="2"', DecodeError, "damaged or incomplete"),
        (b"<TiffData", b"<TifffData", DecodeError, "damaged or incomplete"),
        (b"<TiffData", b"<<", DecodeError, "cannot be read as TIFF"),
        (b'SizeX="90"', b'SizeX="95"', DecodeError, "damaged or incomplete"),
    ],
)
def test_ome_xml_that_lies(old, new, error, reason):
    with pytest.raises(error, match=reason):
        read_image(edited_ome(old, new))


@pytest.mark.parametrize("codec", ["jpeg2000", "lerc", "webp", "png", "jpegxl"])
def test_codecs_outside_of_the_list(codec):
    with pytest.raises(UnsupportedFormatError, match=r"is compressed with .*; save it with one of"):
        read_image(tiff(STACK[0].astype(np.uint8) if codec != "webp" else RGB, compression=codec,
                        photometric="rgb" if codec == "webp" else "minisblack"))  # fmt: skip


def test_values_that_are_no_intensities():
    with pytest.raises(UnsupportedFormatError, match="type complex64"):
        read_image(tiff(STACK[0].astype(np.complex64)))
    colormap = np.zeros((3, 256), np.uint16)
    with pytest.raises(
        UnsupportedFormatError, match="stores PALETTE values; save it as gray or RGB"
    ):
        read_image(tiff(RGB[..., 0], photometric="palette", colormap=colormap))
    with pytest.raises(UnsupportedFormatError, match="stores SEPARATED values"):
        read_image(tiff(np.dstack([RGB, RGB[..., :1]]), photometric="separated"))


@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize("keep", [4, 6, 8, 20, 100, 500, -600, -3000])
def test_truncated(codec, keep):
    source = tiff(STACK, metadata={"axes": "CYX"}, compression=codec, rowsperstrip=7)
    with pytest.raises(
        DecodeError, match=r"cut.tif cannot be read as TIFF: .*damaged or incomplete"
    ):
        read_image(source[:keep], name="cut.tif")


def test_truncated_behind_the_first_page():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for plane in STACK:
            writer.write(plane, photometric="minisblack", metadata=None, contiguous=False)
    buffer.seek(0)
    with tifffile.TiffFile(buffer) as file:
        end = file.pages[2].offset
    with pytest.raises(DecodeError, match="cannot be read as TIFF"):
        read_image(buffer.getvalue()[: end + 5], axes="CYX")


@pytest.mark.parametrize("magic", [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"])
@pytest.mark.parametrize("rest", [b"", bytes(100), b"\xff" * 100, b"garbage " * 20])
def test_garbage_behind_the_magic(magic, rest):
    with pytest.raises(DecodeError, match="cannot be read as TIFF"):
        read_image(magic + rest)


def test_text_named_tif(tmp_path):
    (tmp_path / "a.tif").write_text("not an image")
    with pytest.raises(
        UnsupportedFormatError, match=r"a.tif starts with b'not an i'; the formats .*OME-Zarr"
    ):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("tag", [324, 325])
def test_missing_tiles_are_not_zeros(tag):
    source = tiff(STACK[0], tile=(32, 32), compression="zlib")
    offset, kind, count = tag_value(source, tag)
    size = 4 if kind == 4 else 2
    assert count == 9
    for value in (0, 2 ** (8 * size) - 1):
        hole = source[:offset] + value.to_bytes(size, "little") + source[offset + size :]
        with pytest.raises(DecodeError, match=r"page 0 has a strip or tile of .* bytes at byte"):
            read_image(hole)


def test_fewer_tiles_than_the_size_needs():
    source = tiff(STACK[0, :64, :64], tile=(32, 32), compression="zlib", metadata=None)
    with pytest.raises(DecodeError, match="page 0 has 4 of 625 strips or tiles"):
        read_image(patch(patch(source, 256, 800, "<H"), 257, 800, "<H"))


def test_bomb_is_refused_before_decoding():
    source = tiff(STACK[0, :64, :64], tile=(32, 32), compression="zlib", metadata=None)
    big = patch(patch(source, 256, 50_000, "<H"), 257, 50_000, "<H")
    with peak_below(1e6), pytest.raises(DecodeError, match="page 0 has 4 of 2442969 strips"):
        read_image(big)
    whole = tiff(STACK[0, :64, :64], compression="zlib", metadata=None)
    tall = patch(patch(whole, 257, 50_000, "<H"), 278, 50_000, "<H")
    with peak_below(1e6), pytest.raises(LimitExceededError, match=r"max_ratio|max_pixels"):
        read_image(patch(tall, 256, 50_000, "<H"))


def test_huge_tiles_of_a_small_image():
    source = tiff(STACK[0, :1, :1], tile=(16, 16), compression="zlib")
    with pytest.raises(LimitExceededError, match=r"max_ratio|max_pixels|max_bytes"):
        read_image(patch(patch(source, 322, 65520, "<H"), 323, 65520, "<H"))
    with pytest.raises(DecodeError, match="cannot be read as TIFF"):
        read_image(patch(source, 322, 0, "<H"))


def test_segment_that_expands_beyond_its_size():
    bomb = zlib.compress(bytes(200_000_000), 9)
    small = tiff(np.zeros((64, 64), np.uint8), compression="zlib", rowsperstrip=64)
    with tifffile.TiffFile(io.BytesIO(small)) as file:
        offset = file.pages[0].dataoffsets[0]
    source = small[:offset] + bomb
    source = patch(source, 279, len(bomb), "<I")
    with peak_below(1e6), pytest.raises(DecodeError, match="cannot be read as TIFF"):
        read_image(source)


def test_jpeg_that_is_larger_than_its_tile():
    small = tiff(RGB[:32, :32, 0], compression="jpeg", tile=(32, 32))
    with tifffile.TiffFile(io.BytesIO(small)) as file:
        frame = file.pages[0].dataoffsets[0] + small[file.pages[0].dataoffsets[0] :].index(
            b"\xff\xc0"
        )
    lying = small[: frame + 5] + struct.pack(">HH", 60_000, 60_000) + small[frame + 9 :]
    with (
        peak_below(1e6),
        pytest.raises(DecodeError, match="JPEG of 60000 x 60000 pixels in a strip"),
    ):
        read_image(lying)


def test_limits():
    source = tiff(STACK, metadata={"axes": "CYX"})
    for field, value, reason in (
        ("max_channels", 2, "3 channels"),
        ("max_pixels", 6_299, "6,300 pixels per plane"),
        ("max_bytes", 37_799, "37,800 decoded bytes"),
        ("max_file_bytes", 1000, "bytes, at most 1,000 are allowed"),
    ):
        with pytest.raises(LimitExceededError, match=f"{reason}.*{field}"):
            read_image(source, limits=DecodeLimits(**{field: value}))
    many = tiff(np.zeros((30, 8, 8), np.uint8), metadata=None)
    with pytest.raises(LimitExceededError, match="more than 20 pages"):
        read_image(many, axes="CYX", limits=DecodeLimits(max_pages=20))


def test_endless_pages():
    source = bytearray(tiff(STACK[0], metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(source))) as file:
        page = file.pages[0]
        following = page.offset + 2 + 12 * len(page.tags)
    source[following : following + 4] = struct.pack("<I", page.offset)
    with pytest.raises(LimitExceededError, match="has more than 100000 pages"):
        read_image(bytes(source))


def test_damage_inside_of_a_strip(tmp_path):
    source = bytearray(tiff(STACK[0], compression="zlib", rowsperstrip=7))
    with tifffile.TiffFile(io.BytesIO(bytes(source))) as file:
        start = file.pages[0].dataoffsets[5]
    source[start : start + 20] = b"\xff" * 20
    with open_image(bytes(source)) as image:
        assert np.array_equal(image.data[0:1, 0:35, 0:90], STACK[:1, :35])
        with pytest.raises(DecodeError, match="cannot be read as TIFF"):
            image.data[0:1, 35:42, 0:90]


def test_tifffile_is_silent_for_us_and_only_for_us(caplog):
    with pytest.raises(DecodeError):
        read_image(tiff(STACK, metadata=None)[:9000], axes="CYX")
    assert not caplog.records
    logging.getLogger("tifffile").error("somebody else's")
    assert [record.message for record in caplog.records] == ["somebody else's"]


def test_reading_bands_holds_only_the_band(tmp_path):
    tall = np.tile(STACK[0], (60, 10))
    for name, options in {
        "raw": {},
        "strips": {"compression": "zlib", "rowsperstrip": 16},
        "tiles": {"compression": "zlib", "tile": (32, 128)},
    }.items():
        path = tmp_path / name
        tifffile.imwrite(path, tall, photometric="minisblack", **options)
        with open_image(path) as image:
            assert image.shape == (1, 4200, 900)
            with peak_below(0.1 * tall.nbytes):
                for y in range(0, 4200, 50):
                    assert np.array_equal(image.data[0:1, y : y + 50, 0:900][0], tall[y : y + 50])


def test_a_file_is_closed_with_its_context(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], photometric="minisblack", compression="zlib")
    with open_image(path) as image:
        pass
    with pytest.raises(DecodeError, match="closed file"):
        image.data[0:1, 0:5, 0:5]
