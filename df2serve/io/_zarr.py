"""OME-Zarr 0.4 and 0.5: the metadata is checked before zarr opens the array."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr

from df2serve.config import DecodeLimits
from df2serve.errors import LimitExceededError, UnsupportedFormatError
from df2serve.io._axes import choose_series
from df2serve.io._container import Folder, ZipContainer
from df2serve.io._store import ReadStore
from df2serve.io._stored import File, Stored, check_bytes, check_dtype
from df2serve.io._units import pixel_size
from df2serve.io.image import PixelSize, Selection

__all__ = ["read_zarr"]

_CODECS_V2 = ("blosc", "gzip", "lz4", "zlib", "zstd")
_CODECS_V3 = ("blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd")
_OVERHEAD_BYTES = 1 << 16
"""What a stored chunk may have beyond twice its values, for headers and indices."""


@dataclass(frozen=True)
class _Grid:
    """A Zarr array as its metadata describes it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    """What is decoded at once."""
    shard: tuple[int, ...]
    """What is one file."""
    blosc: bool
    """Whether files are chunks of Blosc."""
    names: tuple[str, ...] = ()
    """Names of the axes, where the array states them."""


def read_zarr(file: File | Folder, selection: Selection, limits: DecodeLimits) -> Stored:
    """Describe the full resolution of an OME-Zarr image; chunks are decoded window by window.

    Args:
        file: the folder, or a zip file of it.
        selection: ``series`` chooses the image where there are several.
        limits: what is allowed.

    Raises:
        AxesError: there are several images and none is chosen.
        InputError: there is no such image.
        DecodeError: the metadata is damaged.
        UnsupportedFormatError: no image, a codec that is not read, or a link that leads out.
        LimitExceededError: there are too many chunks, or they are too large.
    """
    container = file if isinstance(file, Folder) else ZipContainer(file)
    store = ReadStore(container)
    group = _image_group(file.name, store, selection)
    attributes = _attributes(store, group)
    scales = attributes.get("multiscales")
    multiscale = scales[0] if scales else {}
    path = _join(group, str(multiscale["datasets"][0]["path"]) if scales else "")
    version, grid = _grid(file.name, store, path)
    check_dtype(file.name, grid.dtype)
    _check_chunks(file.name, grid, file.size, limits)
    store.max_bytes = 2 * math.prod(grid.shard) * grid.dtype.itemsize + _OVERHEAD_BYTES
    array = zarr.open_array(store=store, path=path, mode="r", zarr_format=version)
    store.blosc = grid.blosc
    axes = multiscale.get("axes") or [{"name": name} for name in grid.names]
    return Stored(
        format="OME-Zarr" if scales else "Zarr",
        axes=_letters(axes, len(grid.shape)),
        shape=grid.shape,
        dtype=grid.dtype,
        read=lambda window: np.asarray(array[window]),
        channel_names=_channel_names(attributes),
        pixel_size_um=_pixel_size(axes, multiscale) if scales else None,
    )


def _json(store: ReadStore, *path: str) -> dict[str, Any]:
    """Return a metadata file, empty where there is none."""
    data = store.read(_join(*path))
    content = {} if data is None else json.loads(data)
    if not isinstance(content, dict):
        message = f"{path[-1]} holds no object"
        raise TypeError(message)
    return content


def _join(*parts: str) -> str:
    return "/".join(step for part in parts for step in part.split("/") if step not in ("", "."))


def _attributes(store: ReadStore, group: str) -> dict[str, Any]:
    """Return the OME attributes of a group of either version."""
    attributes: dict[str, Any] = _json(store, group, "zarr.json").get("attributes", {})
    return attributes.get("ome", attributes) or _json(store, group, ".zattrs")


def _image_group(name: str, store: ReadStore, selection: Selection) -> str:
    """Return the path of the group, or of the bare array, that is the image."""
    attributes = _attributes(store, "")
    if attributes.get("multiscales") or _is_array(store, ""):
        return ""
    if "bioformats2raw.layout" not in attributes:
        kind = "a plate" if "plate" in attributes else "a Zarr group without an image"
        found = ", ".join(sorted(attributes)) or "no attributes"
        message = f"{name} is {kind} ({found}); give the path of one of the images in it"
        raise UnsupportedFormatError(message)
    groups: list[str] = []
    while _attributes(store, str(len(groups))).get("multiscales"):
        groups.append(str(len(groups)))
    return groups[choose_series(name, groups, selection.series)]


def _is_array(store: ReadStore, path: str) -> bool:
    metadata = _json(store, path, "zarr.json")
    return metadata.get("node_type") == "array" or bool(_json(store, path, ".zarray"))


def _grid(name: str, store: ReadStore, path: str) -> tuple[Literal[2, 3], _Grid]:
    """Return the Zarr version and layout of an array whose codecs are all allowed."""
    modern, classic = _json(store, path, "zarr.json"), _json(store, path, ".zarray")
    if modern.get("node_type") == "array":
        codecs = modern["codecs"]
        _check_codecs(name, [str(codec["name"]) for codec in _flatten(codecs)], _CODECS_V3)
        shard = _lengths(modern["chunk_grid"]["configuration"]["chunk_shape"])
        chunk = shard
        for codec in codecs:
            if codec["name"] == "sharding_indexed":
                chunk = _lengths(codec["configuration"]["chunk_shape"])
        names = tuple(str(axis) for axis in modern.get("dimension_names") or ())
        kind = np.dtype(modern["data_type"])
        blosc = codecs[-1]["name"] == "blosc"
        return 3, _Grid(_lengths(modern["shape"]), kind, chunk, shard, blosc, names)
    if not classic:
        message = f"there is no array at {path!r}"
        raise ValueError(message)
    compressor, filters = classic.get("compressor"), classic.get("filters") or []
    used = [str(codec["id"]) for codec in [*filters, *([compressor] if compressor else [])]]
    _check_codecs(name, used, _CODECS_V2)
    chunk = _lengths(classic["chunks"])
    kind = np.dtype(classic["dtype"])
    blosc = used[-1:] == ["blosc"]
    return 2, _Grid(_lengths(classic["shape"]), kind, chunk, chunk, blosc)


def _lengths(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _flatten(codecs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return codecs together with those inside of shards."""
    found = list(codecs)
    for codec in codecs:
        inner = codec.get("configuration", {})
        found += _flatten([*inner.get("codecs", ()), *inner.get("index_codecs", ())])
    return found


def _check_codecs(name: str, used: Sequence[str], allowed: Sequence[str]) -> None:
    refused = sorted(set(used) - set(allowed))
    if refused:
        message = (
            f"{name} is stored with {', '.join(refused)}; save it with one of {', '.join(allowed)}"
        )
        raise UnsupportedFormatError(message)


def _check_chunks(name: str, grid: _Grid, stored_bytes: int, limits: DecodeLimits) -> None:
    lengths = {len(grid.shape), len(grid.chunk), len(grid.shard)}
    if len(lengths) > 1 or min((*grid.chunk, *grid.shard), default=0) < 1:
        message = f"chunks of shape {grid.chunk} for an array of shape {grid.shape}"
        raise ValueError(message)
    for whole in (grid.shape, grid.shard):
        count = math.prod(
            math.ceil(length / part) for length, part in zip(whole, grid.chunk, strict=True)
        )
        if count > limits.max_pages:
            message = (
                f"{name} has {count} chunks, at most {limits.max_pages} are allowed; store it in "
                "larger chunks or raise DecodeLimits.max_pages"
            )
            raise LimitExceededError(message)
    check_bytes(name, math.prod(grid.chunk) * grid.dtype.itemsize, stored_bytes, limits)


def _letters(axes: Sequence[Any], count: int) -> str:
    if not axes:
        return "?" * count
    names = [axis if isinstance(axis, str) else str(axis["name"]) for axis in axes]
    if len(names) != count:
        message = f"axes {names} for an array of {count} axes"
        raise ValueError(message)
    return "".join(name.upper() if name.upper() in tuple("TCZYX") else "?" for name in names)


def _pixel_size(axes: Sequence[Any], multiscale: dict[str, Any]) -> PixelSize | None:
    """Return the pixel size, where the axes have a unit and the array a scale."""
    place = {
        str(axis["name"]).upper(): (i, str(axis.get("unit", "")))
        for i, axis in enumerate(axes)
        if isinstance(axis, dict)
    }
    if not {"Y", "X"} <= set(place):
        return None
    scales = [
        step["scale"]
        for owner in (multiscale, multiscale["datasets"][0])
        for step in owner.get("coordinateTransformations") or ()
        if step.get("type") == "scale"
    ]
    if not scales:
        return None
    y, x = (math.prod(float(scale[place[axis][0]]) for scale in scales) for axis in "YX")
    return pixel_size(y, x, place["Y"][1], place["X"][1])


def _channel_names(attributes: dict[str, Any]) -> tuple[str, ...] | None:
    omero = attributes.get("omero")
    channels = omero.get("channels") or () if isinstance(omero, dict) else ()
    labels = [channel.get("label") for channel in channels]
    return tuple(str(label) for label in labels) if labels and all(labels) else None
