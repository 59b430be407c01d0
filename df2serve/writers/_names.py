"""Names of results: one per source, never shared, the same on every file system."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from df2serve.errors import InputError

__all__ = ["assign_names", "relative_names"]


def relative_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return what sources are called: their paths below the folder that holds all of them.

    Args:
        paths: files, or folders that are images.

    Returns:
        Relative POSIX path by path; bytes that are no text appear as escapes.
    """
    whole = [path.absolute() for path in paths]
    root = os.path.commonpath([path.parent for path in whole]) if whole else ""
    return {
        path: absolute.relative_to(root).as_posix().encode(errors="backslashreplace").decode()
        for path, absolute in zip(paths, whole, strict=True)
    }


def assign_names(sources: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return a result's name for each source.

    The name is the source's path without its suffix. Where that is another source's name too, also
    in another case of letters, both keep their suffixes.

    Args:
        sources: relative POSIX paths, all different.
        known: names given before, by source; they stay.

    Raises:
        InputError: a source leads out of its folder.

    Example:
        >>> assign_names(["a/1.tif", "a/2.tif", "a/2.png"], {})
        {'a/1.tif': 'a/1', 'a/2.tif': 'a/2.tif', 'a/2.png': 'a/2.png'}
        >>> assign_names(["1.png"], {"1.tif": "1"})
        {'1.png': '1.png'}
    """
    new = [source for source in sources if source not in known]
    for source in new:
        if PurePosixPath(source).is_absolute() or ".." in PurePosixPath(source).parts:
            message = f"got {source!r} as the name of an image; expected a path inside of a folder"
            raise InputError(message)
    names = {source: _without_suffix(source) for source in new}
    taken = {name.casefold() for name in known.values()}
    while shared := _shared(names, taken):
        names.update((source, source) for source in shared)
    for source in new:
        number = 1
        while names[source].casefold() in taken:
            number += 1
            names[source] = f"{source}~{number}"
        taken.add(names[source].casefold())
    return {source: known.get(source) or names[source] for source in sources}


def _shared(names: Mapping[str, str], taken: set[str]) -> list[str]:
    """Return the sources whose shortened names are not theirs alone."""
    counts = Counter(name.casefold() for name in names.values())
    return [
        source
        for source, name in names.items()
        if name != source and (counts[name.casefold()] > 1 or name.casefold() in taken)
    ]


def _without_suffix(source: str) -> str:
    path = PurePosixPath(source)
    lowered = path.name.lower()
    for double in (".ome.tif", ".ome.tiff", ".ome.zarr", ".zarr.zip"):
        if lowered.endswith(double) and len(lowered) > len(double):
            return str(path.with_name(path.name[: -len(double)]))
    return str(path.with_suffix(""))
