"""Which stored axis is which, decided by the file or by the caller and never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from df2serve.config import DecodeLimits
from df2serve.errors import AxesError, InputError, UnsupportedFormatError
from df2serve.io._stored import Reader, Stored, check_dtype, check_size, decoding
from df2serve.io.image import Selection

__all__ = ["Plane", "choose_series", "readings", "resolve_axes", "select_plane"]

_LETTERS = "TCZYXS"
_BAND_ROWS = 1024


def readings(axes: str) -> list[str]:
    """Return every sensible meaning of axes that are partly unknown.

    Args:
        axes: stored axes, ``?`` for an unknown one.

    Example:
        >>> readings("???")
        ['CYX', 'TYX', 'YXC', 'ZYX']
        >>> readings("?YX")
        ['CYX', 'TYX', 'ZYX']
    """
    known = axes.replace("S", "C")
    found = set()
    for letters in permutations("TCZYX", len(axes)):
        reading = "".join(letters)
        fits = all(want in ("?", got) for want, got in zip(known, reading, strict=True))
        if fits and reading.removesuffix("C").endswith("YX"):
            found.add(reading)
    return sorted(found)


def resolve_axes(name: str, stored: Stored, axes: str | None) -> tuple[str, ...]:
    """Return one letter per stored axis, empty for an axis of length 1 without a meaning.

    Args:
        name: name shown to people.
        stored: what the file says.
        axes: what the caller says; may leave out axes of length 1.

    Raises:
        AxesError: the file does not say, or the caller contradicts it.
    """
    if axes is None:
        if len(stored.axes) == 2 and set(stored.axes) <= {"?", "Y", "X"}:
            return ("Y", "X")
        named = {"Y", "X"} <= set(stored.axes)
        letters = tuple(
            "" if named and letter == "?" and length == 1 else letter
            for letter, length in zip(stored.axes, stored.shape, strict=True)
        )
        if "?" in letters or not named:
            raise AxesError(_ambiguous(name, stored, "".join(letters)))
        return letters
    _check_letters(name, axes)
    kept = [i for i, n in enumerate(stored.shape) if n > 1 or stored.axes[i] in ("Y", "X")]
    for places in (range(len(stored.shape)), kept):
        known = "".join(stored.axes[i] for i in places).replace("S", "C")
        given = axes.replace("S", "C")
        if len(known) == len(given) and all(
            want in ("?", got) for want, got in zip(known, given, strict=True)
        ):
            letters_by_place = dict(zip(places, axes, strict=True))
            return tuple(letters_by_place.get(i, "") for i in range(len(stored.shape)))
    message = (
        f"{name} holds an array of shape {stored.shape} with axes {stored.axes} (? = not stated), "
        f"got axes={axes!r}; give one letter per axis that agrees with the file"
    )
    if "?" not in stored.axes:
        message += ", or leave axes out"
    raise AxesError(message)


def _check_letters(name: str, axes: str) -> None:
    letters = set(axes)
    if (
        len(letters) != len(axes)
        or not letters <= set(_LETTERS)
        or not {"Y", "X"} <= letters
        or {"C", "S"} <= letters
    ):
        message = (
            f"{name}: got axes={axes!r}; expected letters of T, C, Z, Y, X, each at most once, Y "
            "and X always (S for color samples instead of C)"
        )
        raise AxesError(message)


def _ambiguous(name: str, stored: Stored, axes: str) -> str:
    shape = tuple(n for n, letter in zip(stored.shape, axes, strict=False) if letter)
    choices = " or ".join(f"axes={reading!r}" for reading in readings(axes))
    advice = f"say which one is meant: {choices}" if choices else "store it as OME-TIFF or OME-Zarr"
    return f"{name} has {len(shape)} axes {shape} and does not say which is which; {advice}"


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of a stored array as pixels (C, Y, X), read on demand."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    name: str
    format: str
    reader: Reader
    letters: tuple[str, ...]
    """Meaning of each stored axis: C, Y, X, or another one, of which a single index is taken."""
    index: dict[str, int]
    """The index taken along the other axes."""
    channels: tuple[int, ...]
    """Stored index of each channel."""

    def __getitem__(self, window: tuple[slice, slice, slice], /) -> NDArray[Any]:
        """Return the window of channels, rows and columns as an array of its own."""
        wanted = [part.indices(length) for part, length in zip(window, self.shape, strict=True)]
        (rows, columns) = (slice(start, max(start, stop)) for start, stop, _ in wanted[1:])
        steps = tuple(slice(None, None, step) for _, _, step in wanted[1:])
        chosen = self.channels[window[0]]
        pixels = np.empty(
            (len(chosen), rows.stop - rows.start, columns.stop - columns.start), self.dtype
        )
        with decoding(self.name, self.format):
            for first, run in _runs(chosen):
                pixels[first : first + len(run)] = self._read(run, rows, columns)
        return pixels[(slice(None), *steps)]

    def _read(self, channels: range, rows: slice, columns: slice) -> NDArray[Any]:
        """Return neighboring channels, axes (C, Y, X)."""
        parts = {"C": slice(channels.start, channels.stop), "Y": rows, "X": columns}
        singles = {letter: slice(i, i + 1) for letter, i in self.index.items()}
        picks = {"": slice(0, 1)} | singles | parts
        block = self.reader(tuple(picks[letter] for letter in self.letters))
        order = [self.letters.index(letter) for letter in "CYX" if letter in self.letters]
        rest = [i for i in range(len(self.letters)) if i not in order]
        block = block.transpose([*rest, *order])
        return block.reshape((len(channels), *block.shape[-2:]))


def _runs(channels: Sequence[int]) -> list[tuple[int, range]]:
    """Split channels into runs of neighbors: where each starts in the output, and its indices."""
    runs: list[tuple[int, range]] = []
    for place, channel in enumerate(channels):
        if runs and channel == runs[-1][1].stop:
            first, run = runs[-1]
            runs[-1] = (first, range(run.start, channel + 1))
        else:
            runs.append((place, range(channel, channel + 1)))
    return runs


def select_plane(
    name: str,
    stored: Stored,
    letters: tuple[str, ...],
    selection: Selection,
    limits: DecodeLimits,
    stored_bytes: int,
) -> Plane:
    """Return the plane that is meant.

    Args:
        name: name shown to people.
        stored: what the file holds.
        letters: meaning of each stored axis.
        selection: which plane and channels.
        limits: what is allowed.
        stored_bytes: bytes of the file.

    Raises:
        AxesError: a longer axis needs a choice.
        InputError: the choice does not exist, or there is transparency.
        UnsupportedFormatError: the type is not an intensity.
        LimitExceededError: the plane is too large.
    """
    check_dtype(name, stored.dtype)
    lengths = dict(zip(letters, stored.shape, strict=True))
    colors = [letter for letter in "CS" if lengths.get(letter, 1) > 1]
    if len(colors) == 2:
        message = (
            f"{name} has {lengths['C']} channels of {lengths['S']} color samples each; store every "
            "sample as a channel of its own"
        )
        raise UnsupportedFormatError(message)
    color = colors[0] if colors else "C" if "C" in letters else "S"
    channels = _channels(name, stored, lengths.get(color, 1), selection.channels)
    singles = {
        letter: _single(name, letter, lengths.get(letter, 1), chosen)
        for letter, chosen in (("T", selection.t), ("Z", selection.z))
    }
    shape = (len(channels), lengths["Y"], lengths["X"])
    check_size(name, shape, stored.dtype, stored_bytes, limits)
    plane = Plane(
        shape=shape,
        dtype=stored.dtype.newbyteorder("="),
        name=name,
        format=stored.format,
        reader=stored.read,
        letters=tuple(
            "C" if letter == color else "" if letter in "CS" else letter for letter in letters
        ),
        index=singles,
        channels=channels,
    )
    return _without_alpha(plane) if stored.alpha and selection.channels is None else plane


def choose_series(name: str, titles: list[str], chosen: int | None) -> int:
    """Return the index of the series that is meant.

    Args:
        name: name shown to people.
        titles: name of each series in file order.
        chosen: what the caller said.

    Raises:
        AxesError: there are several and none is chosen.
        InputError: there is no such series.
    """
    listed = ", ".join(f"{i} ({title})" if title else str(i) for i, title in enumerate(titles))
    if chosen is None and len(titles) > 1:
        message = f"{name} holds {len(titles)} images; choose one with series= {listed}"
        raise AxesError(message)
    if not 0 <= (chosen or 0) < len(titles):
        message = f"{name} holds the series {listed or 'none'}; got series={chosen or 0}"
        raise InputError(message)
    return chosen or 0


def _single(name: str, letter: str, length: int, chosen: int | None) -> int:
    """Return the index along an axis of which one position is read."""
    if chosen is None and length > 1:
        message = (
            f"{name} has {length} positions along {letter}; choose one with "
            f"{letter.lower()}=0 to {letter.lower()}={length - 1}"
        )
        raise AxesError(message)
    if chosen is not None and not 0 <= chosen < length:
        message = (
            f"{name} has {length} positions along {letter}, numbered from 0 to {length - 1}; got "
            f"{letter.lower()}={chosen}"
        )
        raise InputError(message)
    return chosen or 0


def _channels(
    name: str, stored: Stored, length: int, chosen: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Return the stored indices of the channels that are meant."""
    if chosen is None:
        return tuple(range(length))
    if not chosen or not all(0 <= channel < length for channel in chosen):
        names = f" ({', '.join(stored.channel_names)})" if stored.channel_names else ""
        message = (
            f"{name} has {length} channels, numbered from 0 to {length - 1}{names}; got "
            f"channels={chosen}"
        )
        raise InputError(message)
    return tuple(chosen)


def _without_alpha(plane: Plane) -> Plane:
    """Leave out the last channel, which is transparency.

    Raises:
        InputError: something is transparent.
    """
    *colors, _ = plane.channels
    height, width = plane.shape[1:]
    opaque = np.iinfo(plane.dtype).max if plane.dtype.kind == "u" else 1
    last = slice(len(colors), len(colors) + 1)
    for first in range(0, height, _BAND_ROWS):
        if np.any(plane[last, first : first + _BAND_ROWS, 0:width] != opaque):
            message = (
                f"{plane.name} is partly transparent; flatten it, or ignore the transparency with "
                f"channels={tuple(colors)}"
            )
            raise InputError(message)
    return replace(plane, shape=(len(colors), height, width), channels=tuple(colors))
