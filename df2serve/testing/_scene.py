"""What a synthetic microscopy image shows and how it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import Literal

import numpy as np

from df2serve.errors import ConfigError

__all__ = ["CellScene", "Stream", "random_stream"]


class Stream(IntEnum):
    """Independent random streams: changing one part of a scene leaves the draws of others alone."""

    PLACE = 0
    STAIN = 1
    LIGHT = 2
    NUCLEI = 3
    CAMERA = 4
    EXPERTS = 5


def random_stream(seed: int, stream: Stream) -> np.random.Generator:
    """Return the generator of one part of the scene with this seed.

    Raises:
        ConfigError: the seed is negative.
    """
    if seed < 0:
        message = f"seed {seed} is negative; expected 0 or more"
        raise ConfigError(message)
    return np.random.default_rng([seed, stream])


@dataclass(frozen=True, kw_only=True, slots=True)
class CellScene:
    """Settings of a synthetic image; the defaults resemble nuclei with a sparse, noisy marker.

    Raises:
        ConfigError: a value is out of range.
    """

    shape: tuple[int, int] = (512, 512)
    """Rows and columns, in pixels."""
    n_cells: int = 60
    """Cells of the ground truth."""
    radius_px: tuple[float, float] = (6.0, 9.5)
    """Smallest and largest mean radius of a cell, in pixels."""
    elongation: float = 1.5
    """Largest ratio of a cell's long to its short axis, at least 1."""
    irregularity: float = 0.08
    """Standard deviation of the outline around its ellipse, as a share of the radius."""
    touching: float = 0.2
    """Share of the cells that touch another one, in [0, 1]."""
    clustering: float = 0.8
    """Share of the cells that lie along a curved layer, in [0, 1]; the others lie anywhere."""
    dim_share: float = 0.4
    """Share of the cells that are close to invisible, in [0, 1]."""
    classes: Literal["one", "brightness", "shape"] = "one"
    """One foreground class, or two: 1 bright and 2 dim, or 1 round and 2 elongated."""
    psf_sigma_px: float = 1.0
    """Standard deviation of the point spread function in focus, in pixels."""
    photons: float = 45.0
    """Expected photons per pixel of a bright cell."""
    background: float = 7.0
    """Expected photons per pixel of the background."""
    gradient: float = 0.35
    """Loss of light from the brightest place of the field of view to its corner, in [0, 1]."""
    read_noise: float = 1.0
    """Standard deviation of the camera's own noise, in photons."""
    exposure: float = 1.0
    """Gain relative to the one that just avoids saturation."""
    debris: int = 40
    """Bright specks, and half as many faint patches that might be taken for cells."""
    vessels: int = 0
    """Bright tubes across the image."""
    bit_depth: Literal[8, 16] = 8
    """Bits of a pixel value."""
    channels: Literal[1, 2, 3] = 1
    """1 marker; 2 marker and all nuclei; 3 the same two stains in red, green, blue bright field."""
    pixel_size_um: float = 0.62
    """Side of a pixel, in micrometers; carried along, changes no pixel."""

    @property
    def n_classes(self) -> int:
        """Number of classes of the mask, background included."""
        return 2 if self.classes == "one" else 3

    @property
    def full_scale(self) -> int:
        """Largest pixel value."""
        return (1 << self.bit_depth) - 1

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            for part in value if isinstance(value, tuple) else (value,):
                if not low <= part <= high:
                    message = f"{name} = {value} is out of range; expected {low} to {high}"
                    raise ConfigError(message)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                message = f"{name} = {getattr(self, name)!r}; expected one of {allowed}"
                raise ConfigError(message)
        if self.radius_px[0] > self.radius_px[1]:
            message = f"radius_px = {self.radius_px}; expected the smaller radius first"
            raise ConfigError(message)


_RANGES: dict[str, tuple[float, float]] = {
    "shape": (16, inf),
    "n_cells": (0, inf),
    "radius_px": (3, inf),
    "elongation": (1, 4),
    "irregularity": (0, 0.3),
    "touching": (0, 1),
    "clustering": (0, 1),
    "dim_share": (0, 1),
    "psf_sigma_px": (0, inf),
    "photons": (1e-3, 1e6),
    "background": (0, 1e6),
    "gradient": (0, 1),
    "read_noise": (0, inf),
    "exposure": (1e-6, inf),
    "debris": (0, inf),
    "vessels": (0, inf),
    "pixel_size_um": (1e-6, inf),
}
_CHOICES: dict[str, tuple[object, ...]] = {
    "classes": ("one", "brightness", "shape"),
    "bit_depth": (8, 16),
    "channels": (1, 2, 3),
}
