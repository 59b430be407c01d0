"""Decoders that are forked beforehand do what others do, and replace one another."""

import io
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from df2serve.config import DecodeLimits
from df2serve.errors import AxesError, DecodeError, LimitExceededError, SourceNotFoundError
from df2serve.io import read_image_isolated
from df2serve.io.isolation import SMALL_BYTES, warm_decoder

WAITING = 2


@pytest.fixture(scope="module")
def warm():
    with warm_decoder() as warm:
        yield warm


def npy(number, size=40):
    stream = io.BytesIO()
    np.save(stream, np.full((size, size), number, np.uint8))
    return stream.getvalue()


def processes():
    """The parent of the decoders, and those that wait, once none is busy any more."""
    parent = psutil.Process().children()[-1]
    assert "df2serve.io._decoder" in parent.cmdline()
    deadline = time.monotonic() + 30
    before, decoders = [], parent.children()
    while len(decoders) != WAITING or decoders != before:
        assert time.monotonic() < deadline, decoders
        time.sleep(0.2)
        before, decoders = decoders, parent.children()
    return parent, decoders


def test_many_at_once(warm) -> None:
    def read(number):
        return np.unique(read_image_isolated(npy(number), warm=warm).data).tolist()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, range(40))) == [[number] for number in range(40)]
    processes()


@pytest.mark.parametrize("size", [40, 4000], ids=["copied", "mapped"])
def test_pixels_are_those_of_the_file(warm, size) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**16, (size, size), np.dtype("<u2"))
    stream = io.BytesIO()
    np.save(stream, pixels)
    image = read_image_isolated(stream.getvalue(), warm=warm)
    assert np.array_equal(image.data[0], pixels)
    assert isinstance(image.data, np.memmap) == (pixels.nbytes > SMALL_BYTES)
    image.data[:] = 0  # it is our own


@pytest.mark.parametrize("victims", ["one decoder", "decoders", "parent"])
def test_kills_between_files(warm, victims) -> None:
    read_image_isolated(npy(1), warm=warm)
    parent, decoders = processes()
    killed = {"one decoder": decoders[:1], "decoders": decoders, "parent": [parent]}[victims]
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    assert (read_image_isolated(npy(2), warm=warm).data == 2).all()
    if victims == "parent":
        assert not psutil.wait_procs(decoders, timeout=10)[1]


def test_errors_and_limits(warm, tmp_path) -> None:
    with pytest.raises(SourceNotFoundError):
        read_image_isolated(tmp_path / "none.png", warm=warm)
    with pytest.raises(AxesError):
        read_image_isolated(npy(1), axes="CZYX", warm=warm)
    with pytest.raises(LimitExceededError, match=r"more than 0\.001 s"):
        read_image_isolated(npy(1, size=5000), limits=DecodeLimits(max_seconds=0.001), warm=warm)
    limits = DecodeLimits(max_memory_bytes=1 << 27)
    with pytest.raises(LimitExceededError, match="memory"):
        read_image_isolated(npy(1, size=14_000), limits=limits, warm=warm)
    assert (read_image_isolated(npy(3), warm=warm).data == 3).all()


def test_a_slow_file_holds_up_no_other(warm) -> None:
    """A decoder that is stopped, as if it were slow, ends at its limit of time."""
    limits = DecodeLimits(max_seconds=2)
    with ThreadPoolExecutor(1) as thread:
        _, (first, _) = processes()
        first.suspend()
        slow = thread.submit(read_image_isolated, npy(1), limits=limits, warm=warm)
        time.sleep(0.2)  # until it has its file
        for number in range(2, 6):  # more than wait
            assert (read_image_isolated(npy(number), warm=warm).data == number).all()
        assert not slow.done()
        first.resume()
        assert (slow.result().data == 1).all()


EVIL = """
import os, socket, time
receive, leave, kept = socket.recv_fds, os._exit, []

def recv_fds(*arguments):
    found = receive(*arguments)
    if len(found[1]) == 5:  # those of a decoder
        kept.extend(os.dup(file) for file in found[1])
    return found

def end(code):
    if kept:
        time.sleep(0.5)
        os.ftruncate(kept[{number}], 0)
    leave(code)

socket.recv_fds, os._exit = recv_fds, end
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """Returns decoders that empty one of their files after they said that they are done."""

    def start(number):
        (tmp_path / "sitecustomize.py").write_text(EVIL.format(number=number))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return warm_decoder()

    return start


def test_pixels_that_a_decoder_takes_away_later(evil) -> None:
    """What were mapped would end this process; whoever had them already keeps them."""
    output, spool = 2, 3
    with evil(output) as warm:
        image = read_image_isolated(npy(7), warm=warm)
        time.sleep(1)
        assert (image.data == 7).all()
    with evil(spool) as warm, pytest.raises(DecodeError, match="nonsense"):
        read_image_isolated(npy(7, size=4000), warm=warm)


def test_nothing_stays() -> None:
    with warm_decoder() as warm:
        read_image_isolated(npy(1), warm=warm)
        parent, decoders = processes()
    assert not psutil.wait_procs([parent, *decoders], timeout=10)[1]
