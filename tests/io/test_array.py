"""NPY and NPZ written by NumPy."""

import io
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from df2serve.config import DecodeLimits
from df2serve.errors import (
    AxesError,
    DecodeError,
    InputError,
    LimitExceededError,
    UnsupportedFormatError,
)
from df2serve.io import Selection, open_image, read_image

STACK = np.random.default_rng(0).integers(0, 60_000, (3, 20, 30), dtype=np.uint16)


def npy_bytes(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def header(**fields):
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"fortran_order": False, "descr": "<u2"} | fields)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind", ["?", "u1", "i1", "<u2", ">u2", "<i4", "<f2", "<f4", ">f4", "<f8", "<i8"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_type_from_path_and_bytes(tmp_path, kind, order):
    array = np.asarray((STACK[0] % 100).astype(kind), order=order)
    np.save(tmp_path / "a.npy", array)
    for source in (tmp_path / "a.npy", (tmp_path / "a.npy").read_bytes()):
        image = read_image(source)
        assert (image.format, image.dtype) == ("NPY", np.dtype(kind).newbyteorder("="))
        assert np.array_equal(image.data[0], array)


@pytest.mark.parametrize("axes", ["CYX", "YXC", "YCX", "XYC", "YXS"])
def test_axes_of_the_caller(axes):
    places = [axes.replace("S", "C").index(letter) for letter in "CYX"]
    assert np.array_equal(read_image(npy_bytes(STACK), axes=axes).data, STACK.transpose(places))


def test_three_axes_are_never_guessed():
    for array in (STACK, STACK[:1], STACK.transpose(1, 2, 0)):
        with pytest.raises(
            AxesError, match=r"axes='CYX' or axes='TYX' or axes='YXC' or axes='ZYX'"
        ):
            read_image(npy_bytes(array))


def test_axes_must_fit():
    with pytest.raises(AxesError, match=r"shape \(3, 20, 30\).*got axes='ZCYX'; give one letter"):
        read_image(npy_bytes(STACK), axes="ZCYX")
    for axes in ("CYY", "CXQ", "CY", "cyx", "CSYX"):
        with pytest.raises(
            AxesError, match=f"got axes='{axes}'; expected letters of T, C, Z, Y, X"
        ):
            read_image(npy_bytes(STACK), axes=axes)
    with pytest.raises(AxesError, match=r"has 6 axes .* does not say which is which"):
        read_image(npy_bytes(np.zeros((1, 2, 1, 3, 4, 5), np.uint8)))
    with pytest.raises(AxesError, match=r"has 1 axes \(7,\)"):
        read_image(npy_bytes(np.zeros(7, np.uint8)))


def test_planes_are_chosen():
    array = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.int32).reshape(2, 3, 4, 5, 6)
    source = npy_bytes(array)
    image = read_image(source, axes="TZCYX", selection=Selection(t=1, z=2, channels=(3, 0, 1)))
    assert np.array_equal(image.data, array[1, 2, [3, 0, 1]])
    with pytest.raises(AxesError, match="has 2 positions along T; choose one with t=0 to t=1"):
        read_image(source, axes="TZCYX")
    with pytest.raises(InputError, match="3 positions along Z, numbered from 0 to 2; got z=3"):
        read_image(source, axes="TZCYX", selection=Selection(t=0, z=3))
    for channels in ((0, 4), (-1,), ()):
        with pytest.raises(InputError, match="4 channels, numbered from 0 to 3; got channels="):
            read_image(source, axes="TZCYX", selection=Selection(t=0, z=0, channels=channels))


def test_windows_are_read_from_the_disk(tmp_path):
    np.save(tmp_path / "a.npy", STACK)
    with open_image(tmp_path / "a.npy", axes="CYX") as image:
        assert np.array_equal(image.data[1:3, 5:9, 0:30:7], STACK[1:3, 5:9, ::7])
        assert image.data[0:3, 19:50, 0:0].shape == (3, 1, 0)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([["a", "b"]]), "type <U1"),
        (np.zeros((3, 4), complex), "type complex128"),
        (np.zeros((3, 4), [("a", "u1")]), "type .*'a'"),
        (np.zeros((3, 4), "M8[s]"), "type datetime64"),
    ],
)
def test_values_that_are_no_numbers(array, reason):
    with pytest.raises(UnsupportedFormatError, match=reason):
        read_image(npy_bytes(array))


def test_pickles_are_never_loaded():
    with pytest.raises(UnsupportedFormatError, match="type object"):
        read_image(npy_bytes(np.array([[object()]]), allow_pickle=True))


def test_values_that_are_not_finite():
    array = np.ones((4, 5), np.float32)
    array[2, 3] = np.nan
    with pytest.raises(DecodeError, match=r"1 of 20 intensities are NaN .* first at \(0, 2, 3\)"):
        read_image(npy_bytes(array))


@pytest.mark.parametrize("keep", [7, 9, 60, 500])
def test_truncated(keep):
    with pytest.raises(DecodeError, match=r"cannot be read as NPY: .*damaged or incomplete"):
        read_image(npy_bytes(STACK)[:keep], axes="CYX")


@pytest.mark.parametrize("shape", [(10**9, 10**9), (-5, 4), (2**40, 2**40)])
def test_lying_header(shape):
    with pytest.raises(DecodeError, match=r"cannot be read as NPY: an array of shape"):
        read_image(header(shape=shape) + bytes(100))


def test_garbage_header():
    for damaged in (
        header(shape=(4, 5)).replace(b"shape", b"shade"),
        header(shape=(4, 5)).replace(b"(4, 5)", b"(4, 5("),
        header(shape=(4, 5)).replace(b"<u2", b"zzz"),
    ):
        with pytest.raises(DecodeError, match="cannot be read as NPY"):
            read_image(damaged + bytes(40))


def test_no_pixels():
    with pytest.raises(DecodeError, match="1 channels of 0 x 7 pixels; it has no pixels"):
        read_image(npy_bytes(np.zeros((0, 7))))


def test_npz():
    image = read_image(npz_bytes(a=STACK[0]))
    assert image.format == "NPZ"
    assert np.array_equal(image.data[0], STACK[0])


def test_npz_of_several_arrays_needs_a_choice():
    source = npz_bytes(first=STACK[0], second=STACK)
    chosen = read_image(source, axes="CYX", selection=Selection(series=1))
    assert np.array_equal(chosen.data, STACK)
    with pytest.raises(AxesError, match=r"2 images; choose one with series=.*1 \(second.npy\)"):
        read_image(source)
    with pytest.raises(InputError, match=r"series 0 \(first.npy\), 1 \(second.npy\); got series=2"):
        read_image(source, selection=Selection(series=2))


def test_npz_bomb():
    with pytest.raises(LimitExceededError, match="40,000,000 decoded bytes, at most 1,000,000"):
        read_image(
            npz_bytes(a=np.zeros((2, 20_000_000), np.uint8)), limits=DecodeLimits(max_bytes=10**6)
        )
    source = npz_bytes(a=np.zeros((1000, 1000), np.uint8))
    with pytest.raises(LimitExceededError, match=r"decoded bytes per stored byte.*max_ratio"):
        read_image(source, limits=DecodeLimits(max_ratio=100))


def test_damaged_npz():
    good = npz_bytes(a=STACK[0])
    with pytest.raises(DecodeError, match="cannot be read as a zip file"):
        read_image(good[:-50])
    damaged = bytearray(good)
    damaged[300:310] = bytes(10)
    with pytest.raises(DecodeError, match="cannot be read as NPZ"):
        read_image(bytes(damaged))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", header(shape=(100, 100)) + bytes(10))
    with pytest.raises(DecodeError, match=r"a.npy announces shape \(100, 100\)"):
        read_image(buffer.getvalue())


def test_zip_of_something_else():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("letter.txt", "dear")
    with pytest.raises(
        UnsupportedFormatError, match="1 files that is neither an NPZ nor an OME-Zarr"
    ):
        read_image(buffer.getvalue())
