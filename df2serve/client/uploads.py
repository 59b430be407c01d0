"""What a client sends: images and parameters."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, TypedDict, cast

from df2serve.config import Precision, PresetName
from df2serve.errors import SourceNotFoundError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FileSource: TypeAlias = str | os.PathLike[str] | bytes | NDArray[np.generic]
    ImageSource: TypeAlias = FileSource | "StoredImage"

__all__ = [
    "Parameters",
    "Sent",
    "StoredImage",
    "Upload",
    "file_of",
    "outputs_of",
    "query_of",
    "upload_of",
    "uploads_of",
]


class Parameters(TypedDict, total=False):
    """Parameters of a prediction, as of the HTTP interface; absent ones are the model's own."""

    axes: str
    """Axes of the image as stored, where it does not state them, such as ``CYX``."""
    channels: Sequence[int]
    """Channels to take, in this order, counted from 0."""
    series: int
    z: int
    t: int
    pixel_size: float
    """Side of a pixel in micrometers, whatever the file says."""
    preset: PresetName
    tta: Literal["none", "flips", "d4"]
    """Test-time views: 1, 4 or 8."""
    members: int
    """Take only the first members."""
    tile: int
    overlap: float
    precision: Precision
    instances: Literal["watershed", "components"]
    """Find objects as well."""
    min_size: int
    """Leave out objects of fewer pixels."""


@dataclass(frozen=True)
class Upload:
    """An image that is sent as it is."""

    name: str
    content: bytes | Path

    def file(self) -> BinaryIO:
        """Return it to be read once; to be closed."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        return cast(BinaryIO, _FileWhenRead(self.content))

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def part(self, start: int, size: int) -> bytes:
        """Return some bytes, fewer at the end."""
        if isinstance(self.content, bytes):
            return self.content[start : start + size]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(size)


@dataclass(frozen=True)
class StoredImage:
    """An image that a service has got already, and keeps for a while."""

    id: str
    name: str
    size: int
    """Bytes."""


Sent: TypeAlias = Upload | StoredImage
"""What stands for an image in a request."""


class _FileWhenRead:
    """What sending needs of a file, which is open from its first byte to its last alone.

    A job has more images than a process may have open files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def tell(self) -> int:
        """Return the position of what is at its start."""
        return 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to the start, or tell where the end is."""
        self.close()
        return self._path.stat().st_size if whence == os.SEEK_END else offset

    def read(self, size: int) -> bytes:
        """Return the next bytes, none at the end."""
        if self._file is None:
            self._file = self._path.open("rb")
        content = self._file.read(size)
        if not content:
            self.close()
        return content

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def upload_of(image: ImageSource, name: str = "image") -> Sent:
    """Return an image as it is sent.

    Args:
        image: see :func:`file_of`, or one that the service has.
        name: what it is called if it has no name.

    Raises:
        SourceNotFoundError: there is no such file.
    """
    return image if isinstance(image, StoredImage) else file_of(image, name)


def file_of(image: FileSource, name: str = "image") -> Upload:
    """Return an image as it is sent for the first time.

    Args:
        image: path of a file, the content of one, or an array.
        name: what it is called if it has no name.

    Raises:
        SourceNotFoundError: there is no such file.
    """
    if isinstance(image, bytes):
        return Upload(name, image)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if not path.is_file():
            message = f"{path} is no file; give the path of an image"
            raise SourceNotFoundError(message)
        return Upload(path.name, path)
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, image, allow_pickle=False)
    return Upload(f"{name}.npy", buffer.getvalue())


def uploads_of(images: Iterable[ImageSource]) -> tuple[Sent, ...]:
    """Return images as they are sent.

    Raises:
        SourceNotFoundError: one of them does not exist.
    """
    return tuple(upload_of(image, f"image-{number}") for number, image in enumerate(images))


def query_of(parameters: Parameters) -> dict[str, str]:
    """Return parameters as they stand in an address.

    Example:
        >>> query_of({"channels": (0, 2), "tta": "none"})
        {'channels': '0,2', 'tta': 'none'}
    """
    given: Mapping[str, Any] = parameters
    return {
        name: ",".join(map(str, value)) if name == "channels" else str(value)
        for name, value in given.items()
        if value is not None
    }


def outputs_of(parameters: Parameters, *, probs: bool) -> dict[str, str]:
    """Return what is asked for: all arrays of a result, and what is told of it, in one file."""
    outputs = ["mask", "uncertainty"]
    if probs:
        outputs.append("probabilities")
    if parameters.get("instances"):
        outputs.append("labels")
    return {"format": "zip", "outputs": ",".join(outputs)}
