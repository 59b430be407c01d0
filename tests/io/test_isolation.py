"""The confined decoder gives what ``read_image`` gives, and its death hurts nobody."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from df2serve.config import DecodeLimits
from df2serve.errors import AxesError, DecodeError, LimitExceededError, SourceNotFoundError
from df2serve.io import PixelSize, Selection, read_image, read_image_isolated

STACK = np.random.default_rng(0).integers(0, 60_000, (4, 50, 70)).astype(np.uint16)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Folder in which temporary files of the decoder appear."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def ome_tiff(tmp_path):
    path = tmp_path / "cells.ome.tif"
    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": 0.25,
        "PhysicalSizeY": 0.5,
        "Channel": {"Name": ["DAPI", "GFP", "RFP", "Cy5"]},
    }
    tifffile.imwrite(path, STACK, photometric="minisblack", metadata=metadata)
    return path


@pytest.fixture(scope="module")
def zeros(tmp_path_factory):
    """An NPZ of 160 MB that is 160 KB long, more than the least memory that can be allowed."""
    path = tmp_path_factory.mktemp("zeros") / "zeros.npz"
    header = {"descr": "|u1", "fortran_order": False, "shape": (160, 1_000_000)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(160):
            stream.write(bytes(1_000_000))
    return path


def test_same_image(ome_tiff, scratch):
    selection = Selection(channels=(2, 0))
    isolated = read_image_isolated(ome_tiff, selection=selection)
    direct = read_image(ome_tiff, selection=selection)
    assert np.array_equal(isolated.data, STACK[[2, 0]])
    assert isolated.dtype == direct.dtype
    assert isolated.pixel_size_um == direct.pixel_size_um == PixelSize(y_um=0.5, x_um=0.25)
    assert isolated.channel_names == direct.channel_names == ("RFP", "DAPI")
    assert (isolated.axes, isolated.sha256, isolated.source, isolated.format) == (
        direct.axes,
        direct.sha256,
        direct.source,
        direct.format,
    )
    isolated.data[:] = 0
    assert list(scratch.iterdir()) == []


def test_bytes_and_the_callers_word(scratch):
    small = STACK[:, :5, :7]  # fits the buffer of a file, which must be flushed
    stream = io.BytesIO()
    np.save(stream, small)
    image = read_image_isolated(
        stream.getvalue(), axes="CYX", pixel_size_um=PixelSize(y_um=1, x_um=2), name="mine.npy"
    )
    assert np.array_equal(image.data, small)
    assert image.source == "mine.npy"
    assert image.pixel_size_um == PixelSize(y_um=1, x_um=2)
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_zarr_folder_of_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = zarr.open_group("a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=STACK, chunks=(1, 20, 30))
    axes = [{"name": name} for name in "cyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]
    assert np.array_equal(read_image_isolated("a.zarr").data, STACK)


def test_too_little_memory(zeros):
    limits = DecodeLimits(max_memory_bytes=1 << 27)
    with pytest.raises(LimitExceededError, match=r"zeros.npz needs more .* memory"):
        read_image_isolated(zeros, limits=limits)


def test_too_slow(zeros):
    started = time.perf_counter()
    with pytest.raises(LimitExceededError, match=r"zeros.npz took the decoder more than 0.05 s"):
        read_image_isolated(zeros, limits=DecodeLimits(max_seconds=0.05))
    assert time.perf_counter() - started < 10


@pytest.mark.slow
def test_processor_time_alone_ends_the_decoder():
    script = (
        "import signal, df2serve.io._decoder as decoder; from df2serve.config import DecodeLimits\n"
        "decoder._confine(DecodeLimits(max_seconds=0.2))\n"
        "signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
        "while True: pass"
    )
    result = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert result.returncode == -signal.SIGXCPU


@pytest.mark.slow
def test_errors_keep_their_type(tmp_path, scratch):
    np.save(tmp_path / "a.npy", STACK)
    with pytest.raises(AxesError, match=r"a.npy has 3 axes .* axes='CYX'"):
        read_image_isolated(tmp_path / "a.npy")
    with pytest.raises(SourceNotFoundError, match=r"gone.tif cannot be opened"):
        read_image_isolated(tmp_path / "gone.tif")
    assert list(scratch.iterdir()) == []


@pytest.fixture
def take_over(tmp_path, monkeypatch):
    """Return a function that makes every Python that starts run a line of code first."""

    def with_code(code):
        start = tmp_path / "start"
        start.mkdir()
        (start / "sitecustomize.py").write_text(f"import os, sys, signal\n{code}\n")
        monkeypatch.setenv("PYTHONPATH", str(start))

    return with_code


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("SIGSEGV", DecodeError, "made the decoder crash .SIGSEGV"),
        ("SIGKILL", LimitExceededError, "for want of memory"),
        ("SIGXCPU", LimitExceededError, "took the decoder more than 60 s"),
    ],
)
def test_death_of_the_decoder(ome_tiff, scratch, take_over, name, error, words):
    take_over(
        f"print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.{name})"
    )
    with pytest.raises(error, match=words) as caught:
        read_image_isolated(ome_tiff)
    if error is DecodeError:
        assert "last words" in caught.value.__notes__[0]
    assert list(scratch.iterdir()) == []


GOOD = {
    "shape": [1, 2, 3],
    "dtype": "|u1",
    "format": "TIFF",
    "channel_names": None,
    "pixel_size_um": None,
    "sha256": "0" * 64,
    "axes": "CYX",
}


def answering(answer, pixels=b"123456"):
    content = (answer if isinstance(answer, bytes) else json.dumps(answer).encode()).ljust(1 << 20)
    return f"os.write(1, {content!r}.ljust({1 << 20}) + {pixels!r}); os._exit(0)"


def test_answer_is_understood(ome_tiff, take_over):
    """What makes the next test mean something: this answer is right."""
    take_over(answering(GOOD))
    assert read_image_isolated(ome_tiff).data.tobytes() == b"123456"


@pytest.mark.parametrize(
    ("answer", "pixels"),
    [
        (b"", b""),
        (b"\xff{}", b""),
        ([], b""),
        ({}, b""),
        (GOOD, b"12345"),
        (GOOD, b"1234567"),
        (GOOD | {"shape": [0, 2, 3]}, b""),
        (GOOD | {"shape": [-1, -2, 3]}, b"123456"),
        (GOOD | {"shape": [6]}, b"123456"),
        (GOOD | {"shape": [1 << 40, 1 << 40, 1 << 40]}, b"123456"),
        (GOOD | {"dtype": "|O", "shape": [1, 1, 1]}, b"12345678"),
        (GOOD | {"dtype": "u1,u1", "shape": [1, 1, 3]}, b"123456"),
        (GOOD | {"sha256": "none"}, b"123456"),
        (GOOD | {"pixel_size_um": {"y_um": "wide", "x_um": 1}}, b"123456"),
        (GOOD | {"axes": "rm -rf"}, b"123456"),
        (GOOD | {"surprise": 1}, b"123456"),
        ({"error": "SystemExit", "message": "x"}, b""),
        ({"error": "annotations", "message": "x"}, b""),
        ({"error": "CancelledError", "message": "x"}, b""),
        ({"error": "DecodeError", "message": ["x"]}, b""),
    ],
    ids=str,
)
def test_answer_of_a_decoder_taken_over(ome_tiff, take_over, answer, pixels):
    take_over(answering(answer, pixels))
    with pytest.raises(DecodeError, match=r"cells.ome.tif made the decoder give nonsense"):
        read_image_isolated(ome_tiff)


def test_answer_beyond_the_limits(ome_tiff, take_over):
    take_over(answering(GOOD))
    with pytest.raises(DecodeError, match="nonsense") as caught:
        read_image_isolated(ome_tiff, limits=DecodeLimits(max_bytes=5))
    assert caught.value.__notes__ == ["6 bytes of pixels, 6 announced"]


def test_prints_of_libraries_harm_nothing(ome_tiff, take_over):
    take_over("os.write(1, b'x' * 9000); print('y' * 9000)")
    assert np.array_equal(read_image_isolated(ome_tiff).data, STACK)


def test_no_secrets_and_no_open_files_in_the_decoder(ome_tiff, tmp_path, take_over, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    seen = tmp_path / "seen.json"
    take_over(
        "import json; fds = [fd for fd in range(3, 100) if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        f"json.dump([dict(os.environ), fds], open({str(seen)!r}, 'w'))"
    )
    with (tmp_path / "other").open("wb") as other:
        number = other.fileno()
        os.set_inheritable(number, True)
        read_image_isolated(ome_tiff)
    environment, descriptors = json.loads(seen.read_text())
    assert "PYTHONPATH" in environment
    assert "SECRET_TOKEN" not in environment
    assert number not in descriptors
    assert len(descriptors) <= 1  # the one that the question itself opens


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="names there are text")
def test_name_that_is_no_text(ome_tiff, tmp_path):
    path = ome_tiff.rename(tmp_path / os.fsdecode(b"caf\xe9.tif"))
    assert np.array_equal(read_image_isolated(path).data, STACK)
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"caf\\udce9.tif cannot be opened"):
        read_image_isolated(path)


def test_nothing_is_imported_from_the_working_directory(ome_tiff, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("numpy.py").write_text("raise SystemExit(9)")
    assert read_image_isolated(ome_tiff.absolute()).shape == STACK.shape


def test_decoder_is_light():
    script = (
        "import sys, df2serve.io._decoder as _\n"
        "heavy = {'torch', 'zarr', 'skimage', 'scipy', 'pandas', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
