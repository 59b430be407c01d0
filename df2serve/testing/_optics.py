"""From cells to pixel values: stain, focus, illumination, photons, camera."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from df2serve.testing._scene import CellScene
from df2serve.testing._shapes import Layout

__all__ = [
    "debris_light",
    "expose",
    "field_of_view",
    "light_of",
    "texture",
    "transmit",
    "vessel_light",
]

_BLUR_OF_DEPTH = (1.0, 2.0, 3.5)  # point spread function in focus, near it, far from it
_HEADROOM = 1.6  # light that just avoids saturation, relative to a typical bright cell
_WHITE_HEADROOM = 1.15  # the same, relative to an empty bright field
_GRAIN_SAMPLES = 4.0  # pixels per grain before it is enlarged
_OFFSET = 0.015  # what the camera adds, as a share of its range
_WHITE = 20.0  # light of a bright field relative to the one of fluorescence
_STAINS = np.array(  # optical density in red, green, blue of DAB and of hematoxylin
    [[0.27, 0.57, 0.78], [0.65, 0.70, 0.29]]
)


def texture(shape: tuple[int, int], rng: np.random.Generator, *, grain_px: float) -> np.ndarray:
    """Return a smooth random field, axes (Y, X), mean 0 and standard deviation 1.

    Args:
        shape: rows and columns.
        rng: source of the field.
        grain_px: size of its grains in pixels.
    """
    step = max(grain_px / _GRAIN_SAMPLES, 1.0)  # large grains are drawn small and enlarged
    coarse = tuple(int(side / step) + 2 for side in shape)
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), grain_px / step)
    if step > 1:
        field = ndimage.zoom(field, step, order=1)
    field = field[: shape[0], : shape[1]]
    return np.asarray((field - field.mean()) / field.std())


def light_of(
    layout: Layout,
    brightness: np.ndarray,
    depth: np.ndarray,
    grain: np.ndarray,
    *,
    psf_sigma_px: float,
) -> np.ndarray:
    """Return the light of cells behind the lens.

    Args:
        layout: the cells.
        brightness: relative light of every cell, axis (cell).
        depth: index into the blurs from in focus to far from it, axis (cell).
        grain: relative deviation of the stain, axes (Y, X).
        psf_sigma_px: standard deviation of the point spread function in focus, in pixels.

    Returns:
        Light relative to a typical bright cell, axes (Y, X).
    """
    body = np.sqrt(1 - 0.8 * np.minimum(layout.distance, 1) ** 2) * (1 + grain)
    total = np.zeros(layout.labels.shape, np.float32)
    for level, blur in enumerate(_BLUR_OF_DEPTH):
        weights = np.r_[0, brightness * (depth == level)].astype(np.float32)
        plane = weights[layout.labels] * body
        if plane.any():
            total += ndimage.gaussian_filter(plane, blur * psf_sigma_px)
    return np.maximum(total, 0)


def debris_light(scene: CellScene, rng: np.random.Generator) -> np.ndarray:
    """Return the light of bright specks, axes (Y, X), relative to a bright cell."""
    light = np.zeros(scene.shape, np.float32)
    for size in (0.7, 1.4):
        n = scene.debris // 2
        points = tuple(rng.integers(0, side, n) for side in scene.shape)
        specks = np.zeros(scene.shape, np.float32)
        specks[points] = 2 * np.pi * size**2 * rng.lognormal(-1.0, 0.7, n)
        light += ndimage.gaussian_filter(specks, np.hypot(size, scene.psf_sigma_px))
    return light


def vessel_light(scene: CellScene, rng: np.random.Generator) -> np.ndarray:
    """Return the light of tubes with bright walls, axes (Y, X), relative to a bright cell."""
    light = np.zeros(scene.shape, np.float32)
    n_steps = 2 * sum(scene.shape)
    for _ in range(scene.vessels):
        turns = ndimage.gaussian_filter1d(rng.normal(0, 0.06, n_steps), 12)
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turns)
        path = np.cumsum(np.stack([np.sin(heading), np.cos(heading)]), axis=1)
        middle = np.array(scene.shape) * rng.uniform(0.15, 0.85, 2)
        path += (middle - path[:, n_steps // 2])[:, None]
        points = np.rint(path).astype(np.intp)
        shown = ((points >= 0) & (points < np.array(scene.shape)[:, None])).all(axis=0)
        off = np.ones(scene.shape, bool)
        off[tuple(points[:, shown])] = False
        distance = ndimage.distance_transform_edt(off)
        width = rng.uniform(*scene.radius_px) * (1 + 0.15 * texture(scene.shape, rng, grain_px=20))
        tube = 0.7 * np.exp(-(((distance - width) / 3) ** 2)) + 0.6 * (distance < width)
        stain = np.exp(0.35 * texture(scene.shape, rng, grain_px=12.0))
        light = np.maximum(light, rng.uniform(0.5, 1.0) * tube * stain)
    return np.asarray(ndimage.gaussian_filter(light, scene.psf_sigma_px))


def field_of_view(scene: CellScene, rng: np.random.Generator) -> np.ndarray:
    """Return how much of the light arrives, axes (Y, X), 1 at the brightest place."""
    middle = rng.uniform(-0.35, 0.35, 2)
    y, x = (
        np.linspace(-1, 1, side) - shift for side, shift in zip(scene.shape, middle, strict=True)
    )
    falloff = (y[:, None] ** 2 + x[None, :] ** 2) / (np.abs(y).max() ** 2 + np.abs(x).max() ** 2)
    return np.asarray(1 - scene.gradient * falloff)


def expose(photons: np.ndarray, scene: CellScene, rng: np.random.Generator) -> np.ndarray:
    """Return pixel values of a fluorescence image, of the same axes, not yet rounded.

    Args:
        photons: expected photons per pixel.
        scene: noise and gain.
        rng: source of the noise.
    """
    brightest = scene.background + _HEADROOM * scene.photons
    return _digitize(photons, brightest / scene.exposure, scene, rng)


def transmit(stains: np.ndarray, scene: CellScene, rng: np.random.Generator) -> np.ndarray:
    """Return pixel values of a bright-field image, axes (C, Y, X) in red, green, blue.

    Args:
        stains: amount of DAB and hematoxylin, axes (2, Y, X), 1 in a typical cell.
        scene: noise and gain.
        rng: source of the noise.
    """
    white = _WHITE * scene.photons
    photons = white * np.exp(-np.einsum("syx,sc->cyx", stains, _STAINS))
    return _digitize(photons, _WHITE_HEADROOM * white / scene.exposure, scene, rng)


def _digitize(
    photons: np.ndarray, brightest: float, scene: CellScene, rng: np.random.Generator
) -> np.ndarray:
    """Add shot noise and the camera's noise; map ``brightest`` photons to the largest value."""
    read = scene.read_noise * rng.standard_normal(photons.shape, np.float32)
    signal = (rng.poisson(photons) + read) / brightest
    values = np.rint(scene.full_scale * (_OFFSET + signal))
    dtype = np.uint8 if scene.bit_depth == 8 else np.uint16
    return np.clip(values, 0, scene.full_scale).astype(dtype)
