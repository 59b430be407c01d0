"""Files that appear under their names when they are complete, and not before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from df2serve.errors import Df2ServeError, OutputError

__all__ = ["Staging", "staging"]


@dataclass
class Staging:
    """Temporary files, each beside the place where it is going to be."""

    _targets: dict[Path, Path] = field(default_factory=dict)

    def path(self, target: Path) -> Path:
        """Return where to write what will become ``target``; its folder is created."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self._targets[target] = target.with_name(f".{target.name}.part")
        return self._targets[target]

    def sha256(self, target: Path) -> str:
        """Return the hash of what was written for ``target``."""
        with self._targets[target].open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def publish(self) -> None:
        """Give the files their names, in the order in which they were asked for."""
        for target, temporary in self._targets.items():
            temporary.replace(target)
        self._targets.clear()

    def discard(self) -> None:
        """Remove what was not published."""
        for temporary in self._targets.values():
            temporary.unlink(missing_ok=True)


@contextmanager
def staging() -> Iterator[Staging]:
    """Publish all files at the end of the context, or none of them if it fails.

    Raises:
        OutputError: a file cannot be written, for example for want of space.
    """
    files = Staging()
    try:
        yield files
        files.publish()
    except Df2ServeError:
        raise
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        message = (
            f"cannot write{where}: {error.strerror or error}; results written before are untouched"
        )
        raise OutputError(message) from error
    finally:
        files.discard()
