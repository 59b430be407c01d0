"""Files and folders that are whole or not there."""

from pathlib import Path

import pytest

from df2serve.errors import InputError, OutputError
from df2serve.files import new_folder, replace_file, replacing


def fail_in_file(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise error


def fail_in_folder(path: Path, error: type[BaseException]) -> None:
    with new_folder(path) as folder:
        (folder / "file").touch()
        raise error


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    with pytest.raises(error):
        fail_in_file(path, error)
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_system_refuses_is_our_error(tmp_path: Path) -> None:
    for path in (tmp_path / "no/file", tmp_path):
        with pytest.raises(OutputError, match="cannot write"):
            replace_file(path, b"")
    replace_file(tmp_path / "no/file", b"there", parents=True)
    assert (tmp_path / "no/file").read_bytes() == b"there"
    with pytest.raises(OutputError, match="cannot write"), new_folder(tmp_path / "no/file/folder"):
        pass


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_a_failure_leaves_no_folder(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_in_folder(tmp_path / "deep/folder", error)
    assert list((tmp_path / "deep").iterdir()) == []


def test_folders_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for name, settings in (("empty", {}), ("full", {"empty_ok": True}), ("full/file", {})):
        with pytest.raises(OutputError, match="exists"), new_folder(tmp_path / name, **settings):
            pass
    with new_folder(tmp_path / "empty", empty_ok=True) as folder:
        (folder / "file").touch()
    assert (tmp_path / "empty/file").is_file()
