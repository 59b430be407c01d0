"""Files that would run code, exhaust memory or lie: refused with one clear error, and no effect."""

import builtins
import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from df2serve.errors import Df2ServeError, IntegrityError, UnsafeArtifactError
from df2serve.importing import import_ensemble
from df2serve.importing._pickle import read_pickle
from df2serve.importing._torch_file import open_torch_file

UNSAFE = "nothing of it was run"


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


class State:
    """Pickled as a plain object of a class of ours, with a state."""

    def __init__(self, state: object) -> None:
        self.state = state


def attacks(marker: Path) -> Iterator[tuple[str, object]]:
    """Objects that would create the marker, or reach out otherwise, when they are unpickled."""
    shell = f"touch {marker}"
    yield "os.system", Calls(os.system, shell)
    yield "eval", Calls(builtins.eval, f"open({str(marker)!r}, 'w')")
    yield "exec", Calls(builtins.exec, f"open({str(marker)!r}, 'w')")
    yield "open", Calls(builtins.open, str(marker), "w")
    yield "getattr", Calls(builtins.getattr, "", "join")
    yield "import", Calls(builtins.__import__, "antigravity")
    yield "subprocess", Calls(subprocess.Popen, shell, -1, None, None, None, None, None, True, True)
    yield "torch.load", Calls(torch.load, str(marker))
    yield "torch.hub", Calls(torch.hub.load, "lab/cells", "net")
    yield "nested", {"model": OrderedDict(a=[("x", Calls(os.system, shell))])}
    yield "argument", Calls(OrderedDict, [("a", Calls(os.system, shell))])
    yield "class", State({"a": 1})
    yield "a name alone", [os.system]


def saved(content: object, path: Path, *, form: str) -> Path:
    """Write a member of deepflash2 whose settings hold something hostile."""
    member = {"model": {"w": torch.zeros(2)}, "arch": content, "encoder_name": "resnet34"}
    torch.save(member, path, pickle_protocol=2, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", ["row", "zip"])
def test_calls_are_refused_and_not_made(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "marker"
    for name, attack in attacks(marker):
        path = saved(attack, tmp_path / f"{name}.pth", form=form)
        with pytest.raises(UnsafeArtifactError, match=UNSAFE) as caught:
            import_ensemble([path], tmp_path / "ensemble")
        assert caught.value.__notes__ == [path.name]
        assert not marker.exists()
        assert not (tmp_path / "ensemble").exists()
    path = saved(Calls(os.system, f"touch {marker}"), tmp_path / "control.pth", form=form)
    torch.load(path, weights_only=False)
    assert marker.exists()  # the attacks are real ones


def test_the_verb_tells_it_in_one_line(df2serve, tmp_path: Path) -> None:
    path = saved(Calls(os.system, "true"), tmp_path / "a.pth", form="zip")
    code, out, errors = df2serve("import", path, "-o", tmp_path / "ensemble")
    assert (code, out) == (2, "")
    assert errors.startswith(f"error: it wants {os.system.__module__}.system, which is neither")
    assert errors.endswith("(a.pth)\n")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("name", ["data.pkl", "constants.pkl"])
def test_archives_of_torchscript(tmp_path: Path, name: str) -> None:
    """Only the pickle of the modules is read, and as data."""
    marker = tmp_path / "marker"
    evil = pickle.dumps(Calls(os.system, f"touch {marker}"), protocol=2)
    contents = {"data.pkl": pickle.dumps({}, protocol=2), "constants.pkl": evil} | {name: evil}
    with zipfile.ZipFile(tmp_path / "e.pt", "w") as archive:
        for entry, content in contents.items():
            archive.writestr(f"e/{entry}", content)
        archive.writestr("e/code/__torch__/x.py", f"import os; os.system('touch {marker}')")
    with pytest.raises(Df2ServeError):
        import_ensemble([tmp_path / "e.pt"], tmp_path / "ensemble")
    assert not marker.exists()


# -- instructions -------------------------------------------------------------------------------

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


FOREIGN = {
    "protocol 0": pickle.dumps(Calls(os.system, "true"), protocol=0),
    "protocol 4": pickle.dumps(Calls(os.system, "true"), protocol=4),
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'true'\no.",
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"P1\n.",
    "a state for a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",
    "a module with arguments": b"\x80\x02c__torch__.x\nNet\nK\x01\x85\x81.",
    "an object of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.",
    "a call of a module": b"\x80\x02c__torch__.x\nNet\n)R.",
    "a call of text": b"\x80\x02" + unicode("os.system") + b")R.",
    "a dotted name": b"\x80\x04" + unicode("torch") + unicode("os.system") + b"\x93.",
    "a name in a name": b"\x80\x02c__torch__.x\nNet;os.system\n.",
}
DAMAGED = {
    "empty": b"",
    "no end": b"\x80\x02]",
    "nothing on the stack": b"\x80\x02.",
    "nothing to pop": b"\x80\x02\x85.",
    "no mark": b"\x80\x02t.",
    "nothing remembered": b"\x80\x02h\x05.",
    "half a text": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "half a long text": b"\x80\x02\x8d" + b"\xff" * 8 + b"abc.",
    "a list as a dictionary": b"\x80\x02](K\x01K\x02u.",
    "a dictionary as a list": b"\x80\x02}K\x01a.",
    "a tuple as a key": b"\x80\x02})K\x01s.",
    "an odd dictionary": b"\x80\x02}(K\x01u.",
    "a wrong number of arguments": b"\x80\x02" + TENSOR + b")R.",
    "a negative size": b"\x80\x02" + TENSOR + b"(NK\x00J\xff\xff\xff\xff\x85K\x01\x85tR.",
    "a stored text": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "no kind of storage": b"\x80\x02(" + unicode("storage") + b"NNNK\x01tQ.",
    "an array of objects": b"\x80\x02cnumpy\ndtype\n" + unicode("O8") + b"\x85R.",
    "an array of halves": b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_instructions_that_pytorch_does_not_write(name: str) -> None:
    with pytest.raises(UnsafeArtifactError, match=UNSAFE):
        read_pickle(io.BytesIO(FOREIGN[name]))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pickles(name: str) -> None:
    with pytest.raises(IntegrityError, match="its pickled part is damaged"):
        read_pickle(io.BytesIO(DAMAGED[name]))


def test_indices_and_nesting_cost_nothing() -> None:
    far = b"\x80\x02Nr\xff\xff\xff\xff."  # the C unpickler makes a table of this length
    assert read_pickle(io.BytesIO(far)).value is None
    deep = b"\x80\x02)" + b"\x85" * 1_000_00 + b"."
    assert isinstance(read_pickle(io.BytesIO(deep)).value, tuple)


# -- tensors ------------------------------------------------------------------------------------


def stored_tensors(path: Path) -> dict[str, torch.Tensor]:
    with open_torch_file(path) as file:
        return {name: file.tensor(found) for name, found in file.root.items()}


@pytest.mark.parametrize("form", ["row", "zip"])
def test_tensors_are_torchs(tmp_path: Path, form: str) -> None:
    base = torch.arange(24, dtype=torch.float32)
    tensors = {
        "plain": base.reshape(2, 3, 4),
        "view": base.reshape(4, 6)[1:, ::2],
        "turned": base.reshape(4, 6).T,
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(5),
        "parameter": torch.nn.Parameter(base[:2].clone()),
        **{
            str(dtype): torch.tensor([0, 1, 3]).to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool)
        },
    }
    path = tmp_path / "tensors.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    found = stored_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("form", ["row", "zip"])
def test_tensors_that_lie(tmp_path: Path, form: str) -> None:
    """Small files that ask for much memory, or for what is beside their numbers."""
    path = tmp_path / "lies.pth"
    torch.save(
        {"w": torch.zeros(1).expand(1 << 40)},
        path,
        _use_new_zipfile_serialization=form == "zip",
    )
    with pytest.raises(IntegrityError, match="but 1 numbers for it"):
        stored_tensors(path)
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    shape = b"K\x00K\x04\x85"
    assert content.count(shape) == 1
    path.write_bytes(content.replace(shape, b"K\x01K\x04\x85"))
    with pytest.raises(IntegrityError, match=r"damaged: Bad CRC|but 4 numbers for it"):
        stored_tensors(path)


@pytest.mark.parametrize("form", ["row", "zip"])
def test_truncated_files(tmp_path: Path, form: str) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"w": torch.arange(9.0)}, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    for length in range(1, len(content), max(1, len(content) // 100)):
        path.write_bytes(content[:length])
        with pytest.raises(Df2ServeError):
            stored_tensors(path)


def test_entries_that_are_not_stored_as_they_are(tmp_path: Path) -> None:
    """Compression could blow up, and torch never compresses numbers."""
    torch.save({"w": torch.zeros(1 << 16)}, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(IntegrityError, match="it lacks 262144 bytes under"):
        stored_tensors(tmp_path / "packed.pth")
