"""Every hostile kind gives exactly one clear error, soon, quietly and without much memory."""

import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from df2serve.errors import DecodeError, Df2ServeError
from df2serve.io import read_image, read_image_isolated

SECONDS = 3
BYTES = 64 << 20


def source_of(path, name):
    return f"{path}\0.tif" if name == "name_with_a_null_byte" else path


def test_there_are_many_kinds(hostile, tmp_path):
    kinds = hostile.hostile_inputs(tmp_path)
    assert len(kinds) >= 90
    assert len({name for name, _, _ in kinds}) == len(kinds)


def test_read_image(hostile, hostile_name, tmp_path, capfd, caplog):
    path, error = hostile.make_hostile(tmp_path, hostile_name)
    before = sorted(tmp_path.rglob("*"))
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(Df2ServeError) as caught:
        read_image(source_of(path, hostile_name))
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.type is error
    assert hostile_name.partition(".")[0] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert seconds < SECONDS
    assert peak < BYTES
    assert "".join(capfd.readouterr()) == ""
    assert caplog.records == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_read_image_isolated(hostile, hostile_name, tmp_path):
    path, error = hostile.make_hostile(tmp_path, hostile_name)
    with pytest.raises(Df2ServeError) as caught:
        read_image_isolated(source_of(path, hostile_name))
    assert caught.type is error
    assert hostile_name.partition(".")[0] in str(caught.value)


@pytest.mark.parametrize("name", ["png_bomb", "zarr_huge_chunk"])
def test_bombs_in_isolation(hostile, name, tmp_path):
    path, error = hostile.make_hostile(tmp_path, name)
    with pytest.raises(error, match="are allowed"):
        read_image_isolated(path)


MEASURE = """
import resource, sys
from df2serve.errors import Df2ServeError
from df2serve.io import read_image_isolated
for path in sys.argv[1:]:
    try:
        read_image_isolated(path)
    except Df2ServeError:
        pass
    else:
        sys.exit("was read: " + path)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_bombs_leave_the_decoder_small(hostile, tmp_path):
    bombs = [name for name in hostile.hostile_names() if "bomb" in name or "huge" in name]
    assert len(bombs) >= 8
    paths = [str(hostile.make_hostile(tmp_path, name)[0]) for name in bombs]
    harmless = tmp_path / "text.tif"
    harmless.write_text("text")

    def peak(*paths):
        command = [sys.executable, "-c", MEASURE, *paths]
        return int(subprocess.run(command, capture_output=True, check=True).stdout) << 10

    assert peak(*paths) < peak(str(harmless)) + BYTES


def test_pickle_would_run(hostile, tmp_path):
    """What makes its refusal mean something: whoever loads it runs it."""
    path, _ = hostile.make_hostile(tmp_path, "npy_pickle")
    np.load(path, allow_pickle=True)
    assert path.with_name("was_run").is_dir()


UNREADABLE = """
import os, sys
from df2serve.errors import SourceNotFoundError
from df2serve.io import read_image
if os.geteuid() == 0:  # root may read everything
    os.seteuid(65534)
try:
    read_image(sys.argv[1])
except SourceNotFoundError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no file modes on this system")
def test_unreadable(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(b"\x89PNG")
    path.chmod(0)
    command = [sys.executable, "-c", UNREADABLE, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "secret.png cannot be opened: Permission denied" in result.stdout


def test_memory_of_the_process_is_never_shown(hostile, tmp_path):
    """A cut Blosc chunk is refused at every length; Blosc itself reads on behind its end."""
    path, _ = hostile.make_hostile(tmp_path, "zarr_truncated_chunk")
    chunk = path / "0/0.0"
    whole = chunk.read_bytes()
    for length in range(0, len(whole), 13):
        chunk.write_bytes(whole[:length])
        with pytest.raises(DecodeError):
            read_image(path)
