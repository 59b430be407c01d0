"""Files and folders that appear under their names when they are whole, and not before."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from df2serve.errors import Df2ServeError, OutputError

__all__ = ["lacks_room", "new_folder", "replace_file", "replacing"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def lacks_room(error: OSError) -> bool:
    """Whether a file could not be written because the disk is full or must not be written to."""
    return error.errno in _NO_ROOM


@contextmanager
def replacing(path: Path, *, parents: bool = False) -> Iterator[Path]:
    """Give a temporary file beside the path, which takes its place if all goes well.

    Whoever is stopped meanwhile leaves what was there; readers find the old file or the new one.

    Args:
        path: of the file.
        parents: create the folders that it lies in.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    with _output_errors(path):
        try:
            if parents:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes, *, parents: bool = False) -> None:
    """Write a file, see :func:`replacing`.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path, parents=parents) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_folder(target: Path, *, empty_ok: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside the target that becomes it if all goes well.

    Args:
        target: folder to create.
        empty_ok: whether an empty folder may be there already.

    Raises:
        OutputError: the target exists, or cannot be written.
    """
    vacant = empty_ok and target.is_dir() and not any(target.iterdir())
    if target.exists() and not vacant:
        message = f"{target} exists; remove it or choose another folder"
        raise OutputError(message)
    with _output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            if vacant:
                target.rmdir()
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Tell what the system says of a path; errors that are ours already pass."""
    try:
        yield
    except Df2ServeError:
        raise
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise OutputError(message) from error
