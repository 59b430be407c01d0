"""Things that go wrong with real images: what a microscope or a section adds to them.

Unlike :func:`~df2serve.testing.generate_ood`, which draws odd images, these change images that
exist, so that their masks stay true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float32
from scipy import ndimage, special

from df2serve.errors import ConfigError
from df2serve.types import ImageArray

__all__ = ["DISTURBANCES", "Disturbance", "disturb"]

Disturbance: TypeAlias = Literal["blur", "fold", "particles", "saturation", "vessels"]
"""``blur`` out of focus, ``fold`` a strip of tissue that lies double, ``particles`` bright dust,
``saturation`` overexposed, ``vessels`` bright tubes."""

DISTURBANCES: tuple[Disturbance, ...] = get_args(Disturbance)
"""All of them."""

_Planes = Float32[np.ndarray, "c y x"]


def disturb(image: ImageArray, kind: Disturbance, seed: int) -> ImageArray:
    """Return an image with a disturbance, in the same type.

    Args:
        image: intensities of an integer type, axes (C, Y, X).
        kind: what goes wrong.
        seed: 0 or more; every seed gives another disturbance.

    Raises:
        ConfigError: there is no such kind, or the intensities are no integers.

    Example:
        >>> image = np.full((1, 64, 64), 20, np.uint8)
        >>> disturb(image, "particles", seed=0).max()
        np.uint8(255)
    """
    if image.dtype.kind != "u":
        message = f"got intensities of type {image.dtype}; expected uint8 or uint16"
        raise ConfigError(message)
    if kind not in _MAKERS:
        message = f"no disturbance is called {kind!r}; choose one of {', '.join(DISTURBANCES)}"
        raise ConfigError(message)
    limit = float(np.iinfo(image.dtype).max)
    planes = _MAKERS[kind](image.astype(np.float32), limit, np.random.default_rng(seed))
    disturbed: ImageArray = np.clip(np.rint(planes), 0, limit).astype(image.dtype)
    return disturbed


def _blur(planes: _Planes, _limit: float, rng: np.random.Generator) -> _Planes:
    sigma = rng.uniform(3, 6)
    return np.stack([ndimage.gaussian_filter(plane, sigma, mode="reflect") for plane in planes])


def _saturation(planes: _Planes, limit: float, rng: np.random.Generator) -> _Planes:
    """Raise the exposure until objects lose their contrast."""
    bright = float(np.percentile(planes, 99.9))
    return planes * np.float32(rng.uniform(1.5, 3) * limit / max(bright, 1))


def _particles(planes: _Planes, limit: float, rng: np.random.Generator) -> _Planes:
    """Add disks with a soft edge, brighter than anything else."""
    shape = planes.shape[1:]
    light = np.zeros(shape, np.float32)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    area = shape[0] * shape[1]
    for _ in range(max(3, round(rng.uniform(20, 40) * area / 2**20))):
        radius = rng.uniform(3, 9)
        row, column = rng.uniform(0, shape)
        distance = np.hypot(rows - row, columns - column)
        np.maximum(light, np.clip(radius + 1 - distance, 0, 1), out=light)
    dusty: _Planes = np.maximum(planes, limit * light)
    return dusty


def _vessels(planes: _Planes, _limit: float, rng: np.random.Generator) -> _Planes:
    """Add curved tubes as bright as the brightest objects."""
    shape = planes.shape[1:]
    light = np.zeros(shape, np.float32)
    for _ in range(3):
        width = rng.uniform(4, 9)
        distance = _distance_to(_path(shape, rng), shape)
        light = np.maximum(light, np.exp(-((distance / width) ** 2)))
    bright = np.percentile(planes, 99.5, axis=(1, 2), keepdims=True)
    crossed: _Planes = planes + bright.astype(np.float32) * light
    return crossed


def _fold(planes: _Planes, _limit: float, rng: np.random.Generator) -> _Planes:
    """Lay a strip of the tissue over itself: other structures, and about twice the light."""
    shape = planes.shape[1:]
    distance = _distance_to(_path(shape, rng, bend=0.1), shape)
    width = rng.uniform(0.06, 0.12) * min(shape)
    strip = special.expit((width - distance) / 2)
    shift = rng.integers(np.ceil(width), np.ceil(3 * width) + 1, size=2)
    folded: _Planes = planes + strip.astype(np.float32) * np.roll(planes, tuple(shift), (1, 2))
    return folded


def _path(shape: tuple[int, int], rng: np.random.Generator, *, bend: float = 0.35) -> np.ndarray:
    """Return points of a curve across the image, axes (point, 2)."""
    along = np.linspace(-0.1, 1.1, 4 * max(shape))
    start, end = rng.uniform(0, 1, 2)
    wave = bend * np.sin(2 * np.pi * (rng.uniform(0.5, 1.5) * along + rng.uniform()))
    across = start + (end - start) * along + wave
    points = np.stack([along, across], axis=1) * shape
    return points if rng.random() < 0.5 else points[:, ::-1] * np.divide(shape, shape[::-1])


def _distance_to(points: np.ndarray, shape: tuple[int, int]) -> Float32[np.ndarray, "y x"]:
    """Return the distance of every pixel to the nearest of some points, in pixels."""
    places = np.rint(points).astype(np.intp)
    inside = places[((places >= 0) & (places < shape)).all(axis=1)]
    far = np.ones(shape, dtype=bool)
    far[tuple(inside.T)] = False
    if far.all():
        return np.full(shape, np.float32(np.hypot(*shape)))
    distance: Float32[np.ndarray, "y x"] = ndimage.distance_transform_edt(far).astype(np.float32)
    return distance


_MAKERS: dict[str, Callable[[_Planes, float, np.random.Generator], _Planes]] = {
    "blur": _blur,
    "fold": _fold,
    "particles": _particles,
    "saturation": _saturation,
    "vessels": _vessels,
}
