"""Decoders that are forked beforehand do what others do, and replace one another."""

import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from df2serve.config import DecodeLimits
from df2serve.errors import AxesError, LimitExceededError, SourceNotFoundError
from df2serve.io import read_image_isolated
from df2serve.io.isolation import warm_decoder


@pytest.fixture(scope="module")
def warm():
    with warm_decoder() as warm:
        yield warm


def npy(number, size=40):
    stream = io.BytesIO()
    np.save(stream, np.full((size, size), number, np.uint8))
    return stream.getvalue()


def processes():
    """The parent of the decoders, and the one that waits."""
    parent = psutil.Process().children()[-1]
    assert "df2serve.io._decoder" in parent.cmdline()
    return parent, parent.children()


def test_many_at_once(warm) -> None:
    def read(number):
        return np.unique(read_image_isolated(npy(number), warm=warm).data).tolist()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, range(40))) == [[number] for number in range(40)]
    _, decoders = processes()
    assert len(decoders) == 1


@pytest.mark.parametrize("victim", ["decoder", "parent"])
def test_kills_between_files(warm, victim) -> None:
    read_image_isolated(npy(1), warm=warm)
    parent, decoders = processes()
    for process in decoders if victim == "decoder" else [parent]:
        os.kill(process.pid, signal.SIGKILL)
    assert (read_image_isolated(npy(2), warm=warm).data == 2).all()
    if victim == "parent":
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
        _, (waiting,) = processes()
        waiting.suspend()
        slow = thread.submit(read_image_isolated, npy(1), limits=limits, warm=warm)
        while waiting in processes()[1][-1:]:  # until another one waits
            pass
        assert (read_image_isolated(npy(2), warm=warm).data == 2).all()
        assert not slow.done()
        waiting.resume()
        assert (slow.result().data == 1).all()


def test_nothing_stays() -> None:
    with warm_decoder() as warm:
        read_image_isolated(npy(1), warm=warm)
        parent, decoders = processes()
    assert not psutil.wait_procs([parent, *decoders], timeout=10)[1]
