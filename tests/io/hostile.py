"""Files that are damaged, lie, ask for too much, or are not what they seem, made on demand.

``hostile_inputs(folder)`` writes one file or folder per kind and returns what each must give:
exactly one error of this class, soon and without much memory.
"""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import tifffile
import zarr

from df2serve.errors import (
    AxesError,
    DecodeError,
    Df2ServeError,
    InputError,
    LimitExceededError,
    SourceNotFoundError,
    UnsupportedFormatError,
)

Maker = Callable[[Path], bytes | None]
"""Returns the contents of a file, or makes something else at the path."""

_MAKERS: list[tuple[str, type[Df2ServeError], Maker]] = []


class Hostile(NamedTuple):
    """An input and the class of the error that it must give."""

    name: str
    path: Path
    error: type[Df2ServeError]


def hostile_inputs(folder: Path) -> list[Hostile]:
    """Write every kind into a folder; return names, paths and the errors that they must give."""
    return [Hostile(name, _make(folder, name, maker), error) for name, error, maker in _MAKERS]


def hostile_names() -> list[str]:
    return [name for name, _, _ in _MAKERS]


def make_hostile(folder: Path, name: str) -> tuple[Path, type[Df2ServeError]]:
    """Write one kind into a folder; return its path and the error that it must give."""
    error, maker = next((error, maker) for known, error, maker in _MAKERS if known == name)
    return _make(folder, name, maker), error


def _make(folder: Path, name: str, maker: Maker) -> Path:
    path = folder / name
    content = maker(path)
    if content is not None:
        path.write_bytes(content)
    return path


def _gives(error: type[Df2ServeError], suffix: str = "") -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        _MAKERS.append((maker.__name__ + suffix, error, maker))
        return maker

    return register


def _noise(*shape: int, dtype: str = "u1") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


# -- no image at all ----------------------------------------------------------------------------


@_gives(DecodeError, ".png")
def empty(path):
    return b""


@_gives(SourceNotFoundError, ".tif")
def missing(path):
    return None


@_gives(SourceNotFoundError)
def name_with_a_null_byte(path):
    return None


@_gives(UnsupportedFormatError)
def directory(path):
    path.mkdir()


@_gives(UnsupportedFormatError)
def fifo(path):
    os.mkfifo(path)


@_gives(UnsupportedFormatError)
def endless_device(path):
    path.symlink_to("/dev/zero")


@_gives(SourceNotFoundError)
def link_to_itself(path):
    path.symlink_to(path)


@_gives(UnsupportedFormatError, ".tif")
def text(path):
    return b"sample;area\n1;20\n"


@_gives(UnsupportedFormatError, ".png")
def gif_named_png(path):
    stream = io.BytesIO()
    PIL.Image.fromarray(_noise(8, 8)).save(stream, "GIF")
    return stream.getvalue()


@_gives(UnsupportedFormatError, ".tif")
def bmp_named_tif(path):
    return _encoded("BMP")


@_gives(UnsupportedFormatError, ".jpg")
def webp_named_jpg(path):
    return _encoded("WEBP")


@_gives(UnsupportedFormatError, ".tif")
def web_page(path):
    return b"<!DOCTYPE html><title>404</title>"


# -- PNG and JPEG -------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([_chunk(b"IHDR", header), *chunks, _chunk(b"IEND", b"")])


def _encoded(form: str, mode: str = "L") -> bytes:
    stream = io.BytesIO()
    image = PIL.Image.fromarray(_noise(64, 64)).convert("RGB").convert(mode)
    image.save(stream, form)
    return stream.getvalue()


@_gives(DecodeError)
def png_truncated(path):
    return _encoded("PNG")[:-1500]


@_gives(DecodeError)
def png_truncated_16_bit_color(path):
    data = zlib.compress(_noise(4, 49).tobytes())
    return _png(8, 64, _chunk(b"IDAT", data), depth=16, color=2)


@_gives(DecodeError)
def png_signature_only(path):
    return b"\x89PNG\r\n\x1a\n"


@_gives(DecodeError)
def png_without_pixels(path):
    return _png(16, 16)


@_gives(DecodeError)
def png_zero_width(path):
    return _png(0, 16, _chunk(b"IDAT", zlib.compress(b"\0" * 16)))


@_gives(DecodeError)
def png_bad_checksum(path):
    data = bytearray(_encoded("PNG"))
    data[len(data) // 2] ^= 255
    return bytes(data)


@_gives(LimitExceededError)
def png_bomb(path):
    deflated = zlib.compress(b"\0" * 10_000_000, 9)
    return _png(60_000, 60_000, _chunk(b"IDAT", deflated))


@_gives(LimitExceededError)
def png_of_few_bytes_for_many_pixels(path):
    return _png(30_000, 30_000, _chunk(b"IDAT", zlib.compress(b"\0" * 1000)))


@_gives(LimitExceededError)
def png_bomb_16_bit_color(path):
    return _png(30_000, 30_000, _chunk(b"IDAT", zlib.compress(b"\0" * 1000)), depth=16, color=2)


@_gives(DecodeError)
def png_text_bomb(path):
    bomb = zlib.compress(b"a" * 50_000_000, 9)
    pixels = _chunk(b"IDAT", zlib.compress(b"\0" * 72))
    return _png(8, 8, _chunk(b"zTXt", b"Comment\0\0" + bomb), pixels)


@_gives(UnsupportedFormatError)
def png_animation(path):
    frames = [PIL.Image.fromarray(_noise(8, 8) + i) for i in range(3)]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])


@_gives(InputError)
def png_partly_transparent(path):
    PIL.Image.fromarray(_noise(8, 8, 4)).save(path, "PNG")


@_gives(DecodeError)
def jpeg_truncated(path):
    return _encoded("JPEG")[:-900]


@_gives(DecodeError)
def jpeg_start_only(path):
    return b"\xff\xd8\xff\xe0"


@_gives(UnsupportedFormatError)
def jpeg_cmyk(path):
    return _encoded("JPEG", "CMYK")


@_gives(LimitExceededError)
def jpeg_lying_size(path):
    data = bytearray(_encoded("JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


# -- TIFF ---------------------------------------------------------------------------------------

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_DESCRIPTION, _STRIPS, _SAMPLES, _ROWS, _SIZES = 270, 273, 277, 278, 279
_TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_SIZES = 322, 323, 324, 325


def _tiff(data: bytes, tags: dict[int, int | list[int] | bytes], following: int = 0) -> bytes:
    """Return a little-endian TIFF whose data begin at byte 8, followed by values and one page."""
    values, entries = b"", b""
    start = 8 + len(data)
    for code in sorted(tags):
        value = tags[code]
        if isinstance(value, bytes):
            kind, count, packed = 2, len(value), value
        else:
            numbers = value if isinstance(value, list) else [value]
            kind, count, packed = 4, len(numbers), struct.pack(f"<{len(numbers)}I", *numbers)
        if len(packed) > 4:
            entries += struct.pack("<HHII", code, kind, count, start + len(values))
            values += packed
        else:
            entries += struct.pack("<HHI", code, kind, count) + packed.ljust(4, b"\0")
    page = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", start + len(values)) + data + values + page


def _stripped(data: bytes, **changes: int | list[int]) -> bytes:
    """Return a gray 16 x 16 TIFF of one strip, with some fields changed."""
    fields = {
        "width": 16, "length": 16, "bits": 8, "compression": 1, "photometric": 1, "strips": 8,
        "samples": 1, "rows": 16, "sizes": len(data),
    }  # fmt: skip
    codes = {
        "width": _WIDTH, "length": _LENGTH, "bits": _BITS, "compression": _COMPRESSION,
        "photometric": _PHOTOMETRIC, "strips": _STRIPS, "samples": _SAMPLES, "rows": _ROWS,
        "sizes": _SIZES,
    }  # fmt: skip
    return _tiff(data, {codes[name]: value for name, value in (fields | changes).items()})


def _tiled(side: int, tile: int, offsets: list[int], sizes: list[int], data: bytes) -> bytes:
    return _tiff(
        data,
        {
            _WIDTH: side, _LENGTH: side, _BITS: 8, _COMPRESSION: 8, _PHOTOMETRIC: 1, _SAMPLES: 1,
            _TILE_WIDTH: tile, _TILE_LENGTH: tile, _TILES: offsets, _TILE_SIZES: sizes,
        },
    )  # fmt: skip


def _written(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


@_gives(DecodeError)
def tiff_truncated(path):
    return _written(_noise(64, 64), photometric="minisblack", metadata=None)[:-600]


@_gives(DecodeError)
def tiff_truncated_compressed(path):
    image = _written(_noise(64, 64), compression="zlib", metadata=None)
    return image[: len(image) // 2]


@_gives(DecodeError)
def tiff_magic_only(path):
    return b"II*\0"


@_gives(DecodeError)
def tiff_without_page(path):
    return b"II*\0\0\0\0\0"


@_gives(DecodeError)
def tiff_garbage_after_magic(path):
    return b"II*\0" + _noise(500).tobytes()


@_gives(DecodeError)
def tiff_tags_beyond_end(path):
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 4000) + b"\0" * 100


@_gives(DecodeError)
def tiff_bad_bigtiff_header(path):
    return b"II+\0" + struct.pack("<HHQ", 7, 0, 16) + b"\0" * 64


@_gives(LimitExceededError)
def tiff_circular_pages(path):
    data = _stripped(b"\0" * 256)
    return data[:-4] + struct.pack("<I", struct.unpack("<I", data[4:8])[0])


@_gives(DecodeError)
def tiff_zero_width(path):
    return _stripped(b"\0" * 256, width=0)


@_gives(DecodeError)
def tiff_no_strips(path):
    return _tiff(b"", {_WIDTH: 16, _LENGTH: 16, _BITS: 8, _COMPRESSION: 1, _PHOTOMETRIC: 1})


@_gives(DecodeError)
def tiff_strip_at_zero(path):
    return _stripped(zlib.compress(b"\0" * 256), compression=8, strips=0)


@_gives(DecodeError)
def tiff_strip_beyond_end(path):
    return _stripped(zlib.compress(b"\0" * 256), compression=8, strips=100_000)


@_gives(DecodeError)
def tiff_strip_longer_than_file(path):
    return _stripped(zlib.compress(b"\0" * 256), compression=8, sizes=1 << 31)


@_gives(DecodeError)
def tiff_strip_decodes_to_too_little(path):
    return _stripped(zlib.compress(b"\0" * 100), compression=8)


@_gives(DecodeError)
def tiff_corrupt_deflate(path):
    return _stripped(_noise(80).tobytes(), compression=8)


@_gives(DecodeError)
def tiff_corrupt_lzw(path):
    return _stripped(b"\xff" * 80, compression=5)


@_gives(DecodeError)
def tiff_corrupt_zstd(path):
    return _stripped(b"\x28\xb5\x2f\xfd" + _noise(80).tobytes(), compression=50000)


@_gives(DecodeError)
def tiff_corrupt_jpeg(path):
    return _stripped(b"\xff\xd8\xff" + _noise(80).tobytes(), compression=7)


@_gives(DecodeError)
def tiff_sparse_50000(path):
    deflated = zlib.compress(b"\0" * 512 * 512)
    missing = 98 * 98 - 64
    sizes = [len(deflated)] * 64 + [0] * missing
    return _tiled(50_000, 512, [8] * 64 + [0] * missing, sizes, deflated)


@_gives(DecodeError)
def tiff_missing_tiles(path):
    deflated = zlib.compress(_noise(64, 64).tobytes())
    return _tiled(256, 64, [8] * 10 + [0] * 6, [len(deflated)] * 10 + [0] * 6, deflated)


@_gives(DecodeError)
def tiff_too_few_tiles(path):
    deflated = zlib.compress(_noise(64, 64).tobytes())
    return _tiled(256, 64, [8] * 10, [len(deflated)] * 10, deflated)


@_gives(LimitExceededError)
def tiff_huge_tile_on_one_pixel(path):
    deflated = zlib.compress(b"\0" * 1000)
    return _tiled(1, 65_536, [8], [len(deflated)], deflated)


@_gives(LimitExceededError)
def tiff_shared_strips_bomb(path):
    deflated = zlib.compress(b"\0" * 3_000_000, 9)
    strips = [8] * 300
    return _stripped(
        deflated, width=30_000, length=30_000, rows=100, compression=8, strips=strips,
        sizes=[len(deflated)] * 300,
    )  # fmt: skip


@_gives(DecodeError)
def tiff_lying_size(path):
    return _stripped(b"\0" * 256, width=2_000_000_000, length=2_000_000_000, rows=2_000_000_000)


@_gives(LimitExceededError)
def tiff_too_many_channels(path):
    image = _noise(300, 4, 4)
    return _written(image, photometric="minisblack", metadata={"axes": "CYX"})


@_gives(UnsupportedFormatError)
def tiff_lzma(path):
    return _written(_noise(64, 64), compression="lzma", metadata=None)


@_gives(UnsupportedFormatError)
def tiff_unknown_codec(path):
    return _stripped(b"\0" * 256, compression=34_887)


@_gives(UnsupportedFormatError)
def tiff_lab_colors(path):
    return _stripped(b"\0" * 768, samples=3, bits=[8, 8, 8], photometric=8)


@_gives(UnsupportedFormatError)
def tiff_complex(path):
    return _written(_noise(16, 16).astype("c8"), metadata=None)


@_gives(DecodeError)
def tiff_nan(path):
    image = np.zeros((16, 16), "f4")
    image[3, 5] = np.nan
    return _written(image, metadata=None)


@_gives(DecodeError)
def tiff_infinite(path):
    return _written(np.full((16, 16), np.inf, "f2"), metadata=None)


@_gives(AxesError)
def tiff_pages_without_meaning(path):
    return _written(_noise(3, 16, 16), photometric="minisblack", metadata=None)


@_gives(AxesError)
def tiff_several_images(path):
    with tifffile.TiffWriter(path) as writer:
        writer.write(_noise(16, 16), metadata=None)
        writer.write(_noise(24, 20), metadata=None)


@_gives(AxesError)
def imagej_z_stack_without_choice(path):
    return _written(_noise(5, 16, 16), imagej=True, metadata={"axes": "ZYX"})


@_gives(DecodeError)
def imagej_lying_slices(path):
    text = b"ImageJ=1.11a\nimages=900\nslices=900\nhyperstack=true\n\0"
    tags = {
        _WIDTH: 16, _LENGTH: 16, _BITS: 8, _COMPRESSION: 1, _PHOTOMETRIC: 1, _DESCRIPTION: text,
        _STRIPS: 8, _SAMPLES: 1, _ROWS: 16, _SIZES: 256,
    }  # fmt: skip
    return _tiff(b"\0" * 256, tags)


# -- OME-TIFF -----------------------------------------------------------------------------------

_OME = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
_HERE = "urn:uuid:00000000-0000-0000-0000-000000000001"
_ELSEWHERE = "urn:uuid:00000000-0000-0000-0000-000000000002"


def _ome(content: str, head: str = "") -> bytes:
    xml = f'<?xml version="1.0" encoding="UTF-8"?>{head}<OME {_OME} UUID="{_HERE}">{content}</OME>'
    return _written(_noise(16, 16), description=xml, metadata=None)


def _pixels(data: str, channels: int = 1) -> str:
    return (
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="16" '
        f'SizeY="16" SizeC="{channels}" SizeZ="1" SizeT="1">{data}</Pixels></Image>'
    )


@_gives(UnsupportedFormatError)
def ome_of_several_files(path):
    other = f'<UUID FileName="secret.ome.tif">{_ELSEWHERE}</UUID>'
    tifffile.imwrite(path.with_name("secret.ome.tif"), _noise(16, 16))
    first = '<TiffData IFD="0" PlaneCount="1" FirstC="0"/>'
    second = f'<TiffData IFD="0" PlaneCount="1" FirstC="1">{other}</TiffData>'
    return _ome(_pixels(first + second, channels=2))


@_gives(UnsupportedFormatError)
def ome_described_elsewhere(path):
    return _ome(f'<BinaryOnly MetadataFile="set.companion.ome" UUID="{_ELSEWHERE}"/>')


@_gives(DecodeError)
def ome_missing_planes(path):
    return _ome(_pixels('<TiffData IFD="0" PlaneCount="1"/>', channels=3))


@_gives(DecodeError)
def ome_page_out_of_range(path):
    return _ome(_pixels('<TiffData IFD="7" PlaneCount="1"/>'))


@_gives(LimitExceededError)
def ome_huge_counts(path):
    return _ome(_pixels('<TiffData IFD="0" PlaneCount="2000000000"/>'))


@_gives(DecodeError)
def ome_entity_bomb(path):
    entities = "".join(
        f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' if i else '<!ENTITY e0 "aaaaaaaaaa">'
        for i in range(9)
    )
    return _ome("&e8;", f"<!DOCTYPE OME [{entities}]>")


@_gives(DecodeError)
def ome_file_entity(path):
    return _ome("&e;", '<!DOCTYPE OME [<!ENTITY e SYSTEM "file:///etc/hostname">]>')


@_gives(DecodeError)
def ome_broken_xml(path):
    return _ome("<Image><Pixels></Image>")


# -- NPY and NPZ --------------------------------------------------------------------------------


def _npy(shape: str, kind: str = "'|u1'", data: bytes = b"", pad: int = 0) -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * pad + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@_gives(DecodeError)
def npy_truncated(path):
    return _npy("(64, 64)", data=b"\0" * 4000)


@_gives(DecodeError)
def npy_lying_shape(path):
    return _npy("(4000000000, 4000000000)", data=b"\0" * 100)


@_gives(DecodeError)
def npy_negative_shape(path):
    return _npy("(-4, -4)", data=b"\0" * 16)


@_gives(DecodeError)
def npy_zero_size(path):
    return _npy("(0, 16)")


@_gives(AxesError)
def npy_number(path):
    return _npy("()", data=b"\0")


@_gives(AxesError)
def npy_one_axis(path):
    return _npy("(16,)", data=b"\0" * 16)


@_gives(AxesError)
def npy_three_axes_without_meaning(path):
    return _npy("(3, 16, 16)", data=b"\0" * 768)


@_gives(DecodeError)
def npy_header_is_code(path):
    return _npy("__import__('os').getcwd()")


@_gives(DecodeError)
def npy_endless_header(path):
    return _npy("(4, 4)", data=b"\0" * 16, pad=60_000)


@_gives(UnsupportedFormatError)
def npy_pickle(path):
    return _npy("(4, 4)", kind="'|O'", data=pickle.dumps(_Payload(path.with_name("was_run"))))


class _Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.proof),)


@_gives(UnsupportedFormatError)
def npy_complex(path):
    return _npy("(4, 4)", kind="'<c8'", data=b"\0" * 128)


@_gives(UnsupportedFormatError)
def npy_records(path):
    return _npy("(4, 4)", kind="[('a', '<u2'), ('b', '<u2')]", data=b"\0" * 64)


@_gives(DecodeError)
def npy_nan(path):
    return _npy("(4, 4)", kind="'<f8'", data=np.full((4, 4), np.nan).tobytes())


def _zip(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


@_gives(AxesError)
def npz_two_arrays(path):
    array = _npy("(4, 4)", data=b"\0" * 16)
    return _zip(**{"a.npy": array, "b.npy": array})


@_gives(DecodeError)
def npz_lying_shape(path):
    return _zip(**{"a.npy": _npy("(100000, 100000)", data=b"\0" * 16)})


@_gives(DecodeError)
def npz_bad_checksum(path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.npy", _npy("(4, 4)", data=b"\x07" * 16))
    return stream.getvalue().replace(b"\x07" * 16, b"\x08" * 16)


@_gives(LimitExceededError)
def npz_lying_member_size(path):
    array = _npy("(65535, 65535)", data=b"\0" * 16)
    true_size = struct.pack("<I", len(array))
    lie = struct.pack("<I", len(array) - 16 + 65_535 * 65_535)
    return _zip(**{"a.npy": array}).replace(true_size, lie)


@_gives(DecodeError)
def npz_bomb_behind_a_small_member(path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", _npy("(4, 4)", data=b"\0" * 80_000_000))
    small = len(_npy("(4, 4)", data=b"\0" * 16))
    true_size = struct.pack("<I", small - 16 + 80_000_000)
    return stream.getvalue().replace(true_size, struct.pack("<I", small))


@_gives(UnsupportedFormatError)
def zip_of_something_else(path):
    return _zip(**{"readme.txt": b"hello", "../../escape.txt": b"hello"})


@_gives(DecodeError)
def zip_truncated(path):
    return _zip(**{"a.npy": _npy("(64, 64)", data=_noise(64, 64).tobytes())})[:-40]


# -- OME-Zarr -----------------------------------------------------------------------------------


def _zarr(path: Path, *, version: int = 2, dataset: str = "0", **array: object) -> None:
    """Write a small OME-Zarr, then change fields of its array's metadata."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.create_array("0", data=_noise(32, 32), chunks=(16, 16))
    multiscale = {
        "axes": [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}],
        "datasets": [{"path": dataset}],
    }
    attributes = {"multiscales": [multiscale]}
    group.attrs.update(attributes if version == 2 else {"ome": {"version": "0.5"} | attributes})
    metadata = path / "0" / (".zarray" if version == 2 else "zarr.json")
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | array))


@_gives(DecodeError)
def zarr_broken_json(path):
    _zarr(path)
    (path / "0/.zarray").write_text('{"shape": [32, 32')


@_gives(UnsupportedFormatError)
def zarr_without_metadata(path):
    _zarr(path)
    for metadata in [*path.rglob(".z*")]:
        metadata.unlink()


@_gives(LimitExceededError)
def zarr_of_too_many_chunks(path):
    _zarr(path, shape=[1000, 1000], chunks=[1, 1])


@_gives(DecodeError)
def zarr_truncated_chunk(path):
    _zarr(path)
    chunk = path / "0/1.1"
    chunk.write_bytes(chunk.read_bytes()[:20])


@_gives(DecodeError)
def zarr_array_missing(path):
    _zarr(path, dataset="5")


@_gives(DecodeError)
def zarr_path_leads_out(path):
    _zarr(path.with_name("zarr_neighbor"))
    _zarr(path, dataset="../zarr_neighbor/0")


@_gives(UnsupportedFormatError)
def zarr_link_leads_out(path):
    _zarr(path)
    secret = path.with_name("secret_chunk")
    secret.write_bytes(b"secret")
    (path / "0/0.0").unlink()
    (path / "0/0.0").symlink_to(secret)


@_gives(UnsupportedFormatError)
def zarr_pickle_filter(path):
    _zarr(path, filters=[{"id": "pickle"}])


@_gives(UnsupportedFormatError)
def zarr_unknown_codec(path):
    _zarr(path, version=3, codecs=[{"name": "bytes"}, {"name": "numcodecs.pickle"}])


@_gives(UnsupportedFormatError)
def zarr_objects(path):
    _zarr(path, dtype="|O")


@_gives(LimitExceededError)
def zarr_huge_shape(path):
    _zarr(path, shape=[1_000_000_000, 1_000_000_000])


@_gives(LimitExceededError)
def zarr_huge_chunk(path):
    _zarr(path, shape=[1, 1], chunks=[100_000, 100_000])


@_gives(LimitExceededError)
def zarr_sparse_bomb(path):
    _zarr(path, version=3, shape=[30_000, 30_000])


@_gives(DecodeError)
def zarr_zero_chunk(path):
    _zarr(path, chunks=[0, 0])


@_gives(DecodeError)
def zarr_zero_size(path):
    _zarr(path, shape=[0, 32])


@_gives(UnsupportedFormatError)
def zarr_group_without_image(path):
    zarr.open_group(path, mode="w", zarr_format=3)


@_gives(DecodeError)
def zarr_zip_truncated(path):
    folder = path.with_name("zipped")
    _zarr(folder)
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return _zip(**files)[:-60]
