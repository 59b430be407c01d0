"""OME-Zarr written by ome-zarr-py's layout through zarr, as folders and zip files."""

import io
import json
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
import zarr
from numcodecs import LZ4, LZMA, Blosc, Delta, GZip, Zlib, Zstd

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


def axes_of(letters, unit="micrometer"):
    types = {"T": "time", "C": "channel"}
    return [
        {"name": letter.lower(), "type": types.get(letter, "space")}
        | ({} if letter in types or unit is None else {"unit": unit})
        for letter in letters
    ]


def write(path, array=STACK, *, version=3, axes="CYX", unit="micrometer", scale=None, **options):
    """Write an image with two levels; scale belongs to the first."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    options.setdefault("chunks", (1,) * (array.ndim - 2) + (32, 32))
    group.create_array("0", data=array, **options)
    group.create_array("1", data=array[..., ::2, ::2])
    scale = scale or [1.0] * array.ndim
    levels = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": scale},
                {"type": "translation", "translation": [0.0] * array.ndim},
            ],
        }
        for level in (0, 1)
    ]
    content = {"multiscales": [{"axes": axes_of(axes, unit), "datasets": levels}]}
    if version == 3:
        group.attrs["ome"] = {"version": "0.5"} | content
    else:
        content["multiscales"][0]["version"] = "0.4"
        group.attrs.update(content)
    return path


def zipped(folder, prefix=""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    return buffer.getvalue()


def edit(path, change):
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("version", [2, 3])
def test_folder_and_zip(tmp_path, version):
    folder = write(tmp_path / "a.zarr", version=version)
    for source in (folder, zipped(folder), zipped(folder, "inside/a.zarr/")):
        with open_image(source) as image:
            assert image.format == "OME-Zarr"
            assert image.shape == (3, 70, 90)
            assert np.array_equal(image.data[1:3, 20:41, 33:90:4], STACK[1:, 20:41, 33::4])
            assert np.array_equal(image.read().data, STACK)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", ["?", "u1", "<u2", "i4", "<f4", "f8"])
def test_types(tmp_path, version, kind):
    array = (STACK % 100).astype(kind)
    image = read_image(write(tmp_path / "a.zarr", array, version=version))
    assert image.dtype == np.dtype(kind)
    assert np.array_equal(image.data, array)


@pytest.mark.parametrize("codec", [None, Zlib(), GZip(), Zstd(), LZ4(), Blosc()], ids=str)
def test_codecs_of_version_2(tmp_path, codec):
    folder = write(tmp_path / "a.zarr", version=2, compressors=codec)
    assert np.array_equal(read_image(folder).data, STACK)


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": None},
        {"compressors": zarr.codecs.GzipCodec()},
        {"compressors": zarr.codecs.ZstdCodec()},
        {"compressors": zarr.codecs.BloscCodec()},
        {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]},
        {"filters": [zarr.codecs.TransposeCodec(order=(2, 0, 1))]},
        {"chunks": (1, 16, 16), "shards": (1, 32, 64)},
    ],
    ids=["none", "gzip", "zstd", "blosc", "crc32c", "transpose", "shards"],
)
def test_codecs_of_version_3(tmp_path, options):
    folder = write(tmp_path / "a.zarr", **options)
    assert np.array_equal(read_image(folder).data, STACK)


def test_codecs_outside_of_the_list(tmp_path):
    for name, options in (
        ("lzma", {"compressors": LZMA()}),
        ("delta", {"filters": [Delta("<u2")]}),
    ):
        folder = write(tmp_path / name, version=2, **options)
        with pytest.raises(
            UnsupportedFormatError, match=f"stored with {name}; save it with one of"
        ):
            read_image(folder)
    folder = write(tmp_path / "v3", chunks=(1, 16, 16), shards=(1, 32, 64))

    def poison(content):
        content["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle"})

    edit(folder / "0" / "zarr.json", poison)
    with pytest.raises(UnsupportedFormatError, match=r"stored with numcodecs.pickle; save it"):
        read_image(folder)


@pytest.mark.parametrize("version", [2, 3])
def test_planes_names_and_pixel_size(tmp_path, version):
    array = np.random.default_rng(1).integers(0, 255, (2, 3, 4, 20, 30), dtype=np.uint16)
    folder = write(
        tmp_path / "a.zarr", array, version=version, axes="TCZYX", unit="nanometer",
        scale=[1, 1, 2000, 500, 250],
    )  # fmt: skip
    names = {"channels": [{"label": label} for label in ("DAPI", "cFOS", "NeuN")]}
    if version == 3:
        edit(folder / "zarr.json", lambda content: content["attributes"]["ome"].update(omero=names))
    else:
        edit(folder / ".zattrs", lambda content: content.update(omero=names))
    image = read_image(folder, selection=Selection(t=1, z=3, channels=(2, 0)))
    assert np.array_equal(image.data, array[1, [2, 0], 3])
    assert image.channel_names == ("NeuN", "DAPI")
    assert image.pixel_size_um == PixelSize(y_um=0.5, x_um=0.25)
    own = PixelSize(y_um=1, x_um=2)
    assert read_image(folder, selection=Selection(t=0, z=0), pixel_size_um=own).pixel_size_um == own
    with pytest.raises(AxesError, match="4 positions along Z; choose one with z=0 to z=3"):
        read_image(folder, selection=Selection(t=0))
    with pytest.raises(InputError, match=r"numbered from 0 to 2 \(DAPI, cFOS, NeuN\)"):
        read_image(folder, selection=Selection(t=0, z=0, channels=(3,)))


def test_a_scale_of_all_levels_multiplies(tmp_path):
    folder = write(tmp_path / "a.zarr", scale=[1, 2, 3])
    overall = [{"type": "scale", "scale": [1, 0.5, 0.25]}]
    edit(
        folder / "zarr.json",
        lambda content: content["attributes"]["ome"]["multiscales"][0].update(
            coordinateTransformations=overall
        ),
    )
    assert read_image(folder).pixel_size_um == PixelSize(y_um=1, x_um=0.75)


@pytest.mark.parametrize("unit", [None, "pixel", "parsnip"])
def test_no_unit_no_pixel_size(tmp_path, unit):
    assert read_image(write(tmp_path / "a.zarr", unit=unit)).pixel_size_um is None


def test_several_images(tmp_path):
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    for series in (0, 1):
        write(tmp_path / "a.zarr" / str(series), STACK[:, series:], version=2)
    chosen = read_image(tmp_path / "a.zarr", selection=Selection(series=1))
    assert np.array_equal(chosen.data, STACK[:, 1:])
    with pytest.raises(AxesError, match="holds 2 images; choose one with series="):
        read_image(tmp_path / "a.zarr")


def test_bare_array(tmp_path):
    for version in (2, 3):
        path = tmp_path / f"{version}.zarr"
        zarr.create_array(path, data=STACK, chunks=(1, 32, 32), zarr_format=version)
        assert np.array_equal(read_image(path, axes="CYX").data, STACK)
        with pytest.raises(AxesError, match=r"axes='CYX' or axes='TYX' or axes='YXC'"):
            read_image(path)
    named = tmp_path / "named.zarr"
    zarr.create_array(named, data=STACK, chunks=(1, 32, 32), dimension_names=["c", "y", "x"])
    image = read_image(named)
    assert (image.format, image.pixel_size_um) == ("Zarr", None)
    assert np.array_equal(image.data, STACK)


def test_plates_and_other_groups(tmp_path):
    zarr.open_group(tmp_path / "p.zarr", mode="w", attributes={"ome": {"plate": {}}})
    with pytest.raises(UnsupportedFormatError, match=r"is a plate \(plate\); give the path of one"):
        read_image(tmp_path / "p.zarr")
    zarr.open_group(tmp_path / "g.zarr", mode="w")
    with pytest.raises(
        UnsupportedFormatError, match=r"a Zarr group without an image \(no attributes"
    ):
        read_image(tmp_path / "g.zarr")


@pytest.mark.parametrize("target", ["/etc", "../../other"])
def test_links_that_lead_out(tmp_path, target):
    (tmp_path / "other").mkdir()
    folder = write(tmp_path / "a.zarr")
    shutil.rmtree(folder / "0" / "c")
    (folder / "0" / "c").symlink_to(target, target_is_directory=True)
    with pytest.raises(UnsupportedFormatError, match="c is a link that leads out of the folder"):
        read_image(folder)


@pytest.mark.parametrize("path", ["../b.zarr/0", "/etc", "0/../../b.zarr/0"])
def test_datasets_that_lead_out(tmp_path, path):
    folder = write(tmp_path / "a.zarr")
    write(tmp_path / "b.zarr")
    edit(
        folder / "zarr.json",
        lambda content: content["attributes"]["ome"]["multiscales"][0]["datasets"][0].update(
            path=path
        ),
    )
    with pytest.raises(DecodeError, match="cannot be read as OME-Zarr: there is no array at"):
        read_image(folder)


@pytest.mark.parametrize(
    ("field", "value", "error", "reason"),
    [
        ("shape", [10**6, 10**6, 10**6], LimitExceededError, "chunks, at most 100000"),
        ("shape", [3, 70], DecodeError, "chunks of shape"),
        ("shape", [3, 0, 90], DecodeError, "3 channels of 0 x 90 pixels; it has no pixels"),
        ("shape", [-3, 70, 90], DecodeError, "cannot be read as OME-Zarr"),
        ("chunks", [1, 0, 32], DecodeError, "chunks of shape"),
        ("chunks", [1, 10**6, 10**6], LimitExceededError, "max_bytes"),
        ("chunks", [1, 20_000, 20_000], LimitExceededError, "max_ratio"),
        ("chunks", [1, 2, 2], DecodeError, "bytes, at most .* were expected|damaged"),
        ("dtype", "|O", UnsupportedFormatError, "values of type object"),
        ("dtype", "<c8", UnsupportedFormatError, "values of type complex64"),
        ("dtype", "nonsense", DecodeError, "cannot be read as OME-Zarr"),
        ("compressor", {"id": "zlib", "level": 1}, DecodeError, "cannot be read as OME-Zarr"),
    ],
)
def test_metadata_that_lies(tmp_path, field, value, error, reason):
    folder = write(tmp_path / "a.zarr", version=2)
    edit(folder / "0" / ".zarray", lambda content: content.update({field: value}))
    with pytest.raises(error, match=reason):
        read_image(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda ome: ome["multiscales"][0]["axes"].pop(),
        lambda ome: ome["multiscales"][0].pop("datasets"),
        lambda ome: ome.update(multiscales=7),
        lambda ome: ome["multiscales"][0]["axes"][0].pop("name"),
        lambda ome: ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0].update(
            scale=[1]
        ),
    ],
    ids=["too few axes", "no datasets", "a number", "no name", "short scale"],
)
def test_broken_multiscales(tmp_path, change):
    folder = write(tmp_path / "a.zarr")
    edit(folder / "zarr.json", lambda content: change(content["attributes"]["ome"]))
    with pytest.raises(DecodeError, match=r"a.zarr cannot be read as OME-Zarr"):
        read_image(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"x"', "[" * 100_000], ids=["empty", "cut", "list", "text", "deep"]
)
def test_broken_json(tmp_path, text):
    folder = write(tmp_path / "a.zarr")
    (folder / "zarr.json").write_text(text)
    with pytest.raises(DecodeError, match=r"a.zarr cannot be read as OME-Zarr"):
        read_image(folder)


def test_damaged_chunk(tmp_path):
    folder = write(tmp_path / "a.zarr")
    (folder / "0/c/1/1/1").write_bytes(b"garbage")
    with open_image(folder) as image:
        assert np.array_equal(image.data[0:1, 0:70, 0:90], STACK[:1])
        with pytest.raises(DecodeError, match="cannot be read as OME-Zarr"):
            image.data[1:2, 0:70, 0:90]


def test_chunk_that_is_larger_than_its_values(tmp_path):
    folder = write(tmp_path / "a.zarr")
    (folder / "0/c/1/1/1").write_bytes(bytes(100_000))
    with pytest.raises(
        DecodeError, match="0/c/1/1/1 has 100000 bytes, at most 69632 were expected"
    ):
        read_image(folder)


def test_limits(tmp_path):
    folder = write(tmp_path / "a.zarr", chunks=(1, 8, 8))
    for field, value, reason in (
        ("max_pages", 300, "324 chunks"),
        ("max_channels", 2, "3 channels"),
        ("max_pixels", 6_299, "6,300 pixels per plane"),
        ("max_bytes", 37_799, "37,800 decoded bytes"),
        ("max_file_bytes", 1000, "bytes, at most 1,000 are allowed"),
    ):
        with pytest.raises(LimitExceededError, match=f"{reason}.*{field}"):
            read_image(folder, limits=DecodeLimits(**{field: value}))


def test_hash_tells_contents_and_names(tmp_path):
    folder = write(tmp_path / "a.zarr", version=2)
    first = read_image(folder)
    shutil.copytree(folder, tmp_path / "b.zarr")
    assert read_image(tmp_path / "b.zarr").sha256 == first.sha256
    (tmp_path / "b.zarr" / "note").write_text("")
    assert read_image(tmp_path / "b.zarr").sha256 != first.sha256


def test_a_window_reads_only_its_part_of_a_shard(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (1, 512, 512), dtype=np.uint8)
    folder = write(tmp_path / "a.zarr", array, chunks=(1, 32, 32), shards=(1, 512, 512))
    with open_image(folder) as image:
        image.data[0:1, 0:1, 0:1]
        tracemalloc.start()
        window = image.data[0:1, 40:50, 40:50]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert np.array_equal(window, array[:, 40:50, 40:50])
    assert peak < 0.5 * array.nbytes
    with open_image(zipped(folder)) as image:
        assert np.array_equal(image.data[0:1, 40:50, 40:50], array[:, 40:50, 40:50])
