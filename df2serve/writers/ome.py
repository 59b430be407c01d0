"""OME-TIFF files of several maps of one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

__all__ = ["write_ome"]


def write_ome(
    path: Path,
    planes: Sequence[NDArray[Any]],
    *,
    names: Sequence[str],
    pixel_size_um: tuple[float, float] | None,
    description: str,
) -> None:
    """Write maps as the named channels of one image, in float32.

    Args:
        path: file to create.
        planes: maps, axes (Y, X) each.
        names: of the channels, one per plane.
        pixel_size_um: rows and columns of a pixel in micrometers, where they are known.
        description: text for people and programs.
    """
    metadata: dict[str, Any] = {
        "axes": "CYX",
        "Channel": {"Name": list(names)},
        "Description": description,
    }
    if pixel_size_um is not None:
        y_um, x_um = pixel_size_um
        metadata |= {
            "PhysicalSizeX": x_um,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": y_um,
            "PhysicalSizeYUnit": "µm",
        }
    stack = np.stack([plane.astype(np.float32, copy=False) for plane in planes])
    tifffile.imwrite(
        path,
        stack,
        ome=True,
        photometric="minisblack",
        compression="zlib",
        metadata=metadata,
    )
