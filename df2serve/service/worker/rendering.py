"""From the files of a result to the one file that is sent."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from df2serve.files import replacing
from df2serve.service.formats import FORMATS, Output, Rendering
from df2serve.service.schemas import ResultInfo
from df2serve.writers import Record, ResultFolder
from df2serve.writers.ome import write_ome

__all__ = ["render"]


def render(
    rendering: Rendering, folder: ResultFolder, record: Record, info: ResultInfo, target: Path
) -> Path:
    """Make the file that is sent.

    Args:
        rendering: its format and what it holds.
        folder: where the result is.
        record: of the result.
        info: what is told of it.
        target: path of the file, without a suffix.

    Returns:
        The file; one of the result's own where the format is that of an output.
    """
    item = FORMATS[rendering.format]
    files = {output: folder.target / record.files[output].path for output in rendering.outputs}
    if item.single:
        return files[rendering.outputs[0]]
    path = target.with_suffix(item.suffix)
    with replacing(path, parents=True) as temporary:
        match item.name:
            case "zip":
                _pack(temporary, files, info)
            case "npz":
                _save_arrays(temporary, files)
            case "ome.tiff":
                _save_ome(temporary, files, folder, info)
            case _:
                temporary.write_bytes(info.model_dump_json().encode())
    return path


def _pack(path: Path, files: dict[Output, Path], info: ResultInfo) -> None:
    """Write all files under the names of their outputs; they are compressed already."""
    with zipfile.ZipFile(path, "w") as archive:
        for output, file in files.items():
            archive.write(file, f"{output}{file.suffix}")
        archive.writestr("result.json", info.model_dump_json(indent=2), zipfile.ZIP_DEFLATED)


def _save_arrays(path: Path, files: dict[Output, Path]) -> None:
    """Write an NPZ; NumPy's own compression takes several times as long."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for output, file in files.items():
            with archive.open(f"{output}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, _pixels(file), allow_pickle=False)


def _save_ome(
    path: Path, files: dict[Output, Path], folder: ResultFolder, info: ResultInfo
) -> None:
    planes, names = [], []
    for output, file in files.items():
        pixels = _pixels(file)
        if output == "probabilities":
            planes += list(pixels)
            names += [f"probability {item.name}" for item in folder.run.classes]
        else:
            planes.append(pixels)
            names.append(output)
    size = info.input.pixel_size_um
    write_ome(
        path,
        planes,
        names=names,
        pixel_size_um=None if size is None else (size.y_um, size.x_um),
        description=info.model_dump_json(),
    )


def _pixels(file: Path) -> NDArray[Any]:
    pixels: NDArray[Any] = tifffile.imread(file)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
