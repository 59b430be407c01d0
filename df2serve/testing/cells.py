"""Synthetic microscopy of cells, with ground truth, several experts and odd images.

Everything is drawn from a seed: the same settings and seed give the same pixels. Different seeds
give independent images of the same kind.

Example:
    >>> sample = generate_cells(CellScene(shape=(128, 160), n_cells=8), seed=0)
    >>> sample.image.shape, sample.image.dtype, int(sample.labels.max())
    ((1, 128, 160), dtype('uint8'), 8)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float64

from df2serve.errors import ConfigError
from df2serve.testing import _optics
from df2serve.testing._experts import HABITS, Sketch, draw_mask
from df2serve.testing._scene import CellScene, Stream, random_stream
from df2serve.testing._shapes import Canvas, Layout, Outline, place
from df2serve.types import ImageArray, LabelMap, MaskArray

__all__ = [
    "OOD_KINDS",
    "CellSample",
    "CellScene",
    "OodKind",
    "generate_cells",
    "generate_ood",
    "simulate_experts",
]

OodKind: TypeAlias = Literal["blurred", "empty", "larger", "noisy", "saturated", "vessels"]
"""Ways in which an image differs from those that an ensemble was trained on."""

OOD_KINDS: tuple[OodKind, ...] = get_args(OodKind)
"""All of them."""

_IN_FOCUS, _NEAR_FOCUS, _OUT_OF_FOCUS = range(3)
_DEPTH_SHARES = (0.6, 0.3, 0.1)

# light relative to a typical bright cell, smallest and largest
_BRIGHT, _DIM, _FAINT, _NUCLEUS = (0.4, 1.6), (0.08, 0.25), (0.07, 0.2), (0.5, 1.1)

# long axis relative to the short one, where classes differ by shape
_ROUND, _ELONGATED = (1.0, 1.15), (1.9, 2.4)


@dataclass(frozen=True, slots=True, eq=False)
class CellSample:
    """A synthetic image and what is really there."""

    image: ImageArray
    """Pixel values, axes (C, Y, X), uint8 or uint16."""
    labels: LabelMap
    """Cells, axes (Y, X), numbered from 1, 0 = background."""
    mask: MaskArray
    """Classes, axes (Y, X), uint8, 0 = background."""
    brightness: Float64[np.ndarray, " n"]
    """Light of every cell in the order of the labels, 1 = a typical bright cell."""
    distractors: LabelMap
    """Faint patches that are no cells but may be taken for them, axes (Y, X), 0 = none."""
    scene: CellScene
    """Settings that this was drawn with."""


def generate_cells(settings: CellScene, seed: int) -> CellSample:
    """Draw an image of cells with its ground truth.

    Args:
        settings: what the image shows and how it is taken.
        seed: 0 or more; every seed gives another image.

    Raises:
        ConfigError: the cells do not fit into the image, or the seed is negative.

    Example:
        >>> sample = generate_cells(CellScene(shape=(96, 96), n_cells=5, bit_depth=16), seed=3)
        >>> sample.image.dtype, np.unique(sample.labels).tolist()
        (dtype('uint16'), [0, 1, 2, 3, 4, 5])
    """
    places, stain = random_stream(seed, Stream.PLACE), random_stream(seed, Stream.STAIN)
    n = settings.n_cells
    elongated = _pick(n, 0.5, places) & (settings.classes == "shape")
    dim = _pick(n, settings.dim_share, stain)
    bright = np.clip(stain.lognormal(-0.3, 0.35, n), *_BRIGHT)
    brightness = np.where(dim, stain.uniform(*_DIM, n), bright)
    canvas = Canvas(settings)
    outlines = _outlines(settings, elongated, places)
    cells = place(canvas, outlines, places, touching=settings.touching, required=True)
    faint = _outlines(settings, np.zeros(settings.debris // 2, bool), places)
    distractors = place(canvas, faint, places, touching=0, required=False)

    stains = [_marker_light(settings, cells, brightness, distractors, seed)]
    if settings.channels > 1:
        stains.append(_nuclei_light(settings, cells, canvas, seed))
    second = {"one": np.zeros(n, bool), "brightness": dim, "shape": elongated}[settings.classes]
    class_of = np.r_[0, 1 + second].astype(np.uint8)
    return CellSample(
        image=_take(settings, np.stack(stains), seed),
        labels=cells.labels,
        mask=class_of[cells.labels],
        brightness=brightness,
        distractors=distractors.labels,
        scene=settings,
    )


def generate_ood(kind: OodKind, settings: CellScene, seed: int) -> CellSample:
    """Draw an image that is unlike those of the settings in one way.

    Args:
        kind: ``blurred`` out of focus, ``empty`` no cells, ``larger`` another magnification,
            ``noisy`` few photons, ``saturated`` overexposed, ``vessels`` bright tubes.
        settings: the ordinary images.
        seed: 0 or more; every seed gives another image.

    Raises:
        ConfigError: there is no such kind, or the settings leave no room for it.
    """
    return generate_cells(_odd_scene(kind, settings), seed)


def simulate_experts(sample: CellSample, seed: int) -> dict[str, MaskArray]:
    """Outline the cells as several experts would, each with habits of their own.

    Args:
        sample: what the experts look at.
        seed: 0 or more; another seed is another day.

    Returns:
        Class masks by the expert's habit: ``generous`` draws outlines too wide, ``tight`` too
        narrow, ``strict`` leaves out dim cells, ``eager`` takes faint patches for cells, ``hasty``
        draws roughly, overlooks some cells and merges neighbors.
    """
    rng = random_stream(seed, Stream.EXPERTS)
    n_cells = len(sample.brightness)
    objects = np.where(sample.distractors > 0, sample.distractors + n_cells, sample.labels)
    class_of = np.full(
        objects.max() + 1, 2 if sample.scene.classes == "brightness" else 1, np.uint8
    )
    class_of[sample.labels] = sample.mask
    sketch = Sketch.of(objects, class_of, sample.brightness)
    return {name: draw_mask(sketch, habit, rng) for name, habit in HABITS.items()}


def _odd_scene(kind: OodKind, scene: CellScene) -> CellScene:
    match kind:
        case "blurred":
            return replace(scene, psf_sigma_px=4 * scene.psf_sigma_px)
        case "empty":
            return replace(scene, n_cells=0)
        case "larger":
            low, high = scene.radius_px
            return replace(scene, radius_px=(2.5 * low, 2.5 * high), n_cells=scene.n_cells // 6)
        case "noisy":
            return replace(scene, photons=scene.photons / 12, background=scene.background / 12)
        case "saturated":
            return replace(scene, exposure=5 * scene.exposure)
        case "vessels":
            return replace(scene, vessels=4, n_cells=scene.n_cells // 4)
        case _:
            message = f"no kind of odd image is called {kind!r}; choose one of {OOD_KINDS}"
            raise ConfigError(message)


def _pick(n: int, share: float, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """Choose a share of n things at random."""
    return np.asarray(rng.permutation(n) < round(share * n))


def _outlines(scene: CellScene, elongated: np.ndarray, rng: np.random.Generator) -> list[Outline]:
    """Draw one outline per cell."""
    shapes = []
    for is_long in elongated:
        ratios = (1.0, scene.elongation)
        if scene.classes == "shape":
            ratios = _ELONGATED if is_long else _ROUND
        orders = np.arange(2, 6)
        waves = scene.irregularity / orders * (rng.normal(size=4) + 1j * rng.normal(size=4))
        radius, angle = rng.uniform(*scene.radius_px), rng.uniform(0, np.pi)
        shapes.append(Outline(radius, rng.uniform(*ratios), angle, waves))
    return shapes


def _marker_light(
    scene: CellScene, cells: Layout, brightness: np.ndarray, distractors: Layout, seed: int
) -> np.ndarray:
    """Return the light of the marker, axes (Y, X), 1 = a typical bright cell."""
    rng = random_stream(seed, Stream.LIGHT)
    grain = 0.22 * _optics.texture(scene.shape, rng, grain_px=1.5)
    depth = rng.choice(len(_DEPTH_SHARES), p=_DEPTH_SHARES, size=len(brightness))
    n_faint = int(distractors.labels.max())
    light = _optics.light_of(cells, brightness, depth, grain, psf_sigma_px=scene.psf_sigma_px)
    light += _optics.light_of(
        distractors,
        rng.uniform(*_FAINT, n_faint),
        np.full(n_faint, _OUT_OF_FOCUS),
        grain,
        psf_sigma_px=scene.psf_sigma_px,
    )
    light += _optics.debris_light(scene, rng)
    light += _optics.vessel_light(scene, rng)
    return light


def _nuclei_light(scene: CellScene, cells: Layout, canvas: Canvas, seed: int) -> np.ndarray:
    """Return the light of all nuclei, those without the marker included, axes (Y, X)."""
    rng = random_stream(seed, Stream.NUCLEI)
    grain = 0.15 * _optics.texture(scene.shape, rng, grain_px=2.5)
    others = _outlines(scene, np.zeros(scene.n_cells, bool), rng)
    negative = place(canvas, others, rng, touching=scene.touching, required=False)
    light = np.zeros(scene.shape, np.float32)
    for layout in (cells, negative):
        n = int(layout.labels.max())
        light += _optics.light_of(
            layout,
            rng.uniform(*_NUCLEUS, n),
            rng.choice([_IN_FOCUS, _NEAR_FOCUS], n),
            grain,
            psf_sigma_px=scene.psf_sigma_px,
        )
    return light


def _take(scene: CellScene, stains: np.ndarray, seed: int) -> ImageArray:
    """Return the image that the camera takes of the stains, both with axes (C, Y, X)."""
    rng = random_stream(seed, Stream.CAMERA)
    if scene.channels == 3:
        return _optics.transmit(stains, scene, rng)
    haze = 0.08 * _optics.texture(scene.shape, rng, grain_px=40.0)
    fibers = 0.12 * _optics.texture(scene.shape, rng, grain_px=3.0)
    photons = scene.photons * stains + scene.background * (1 + haze + fibers)
    view = _optics.field_of_view(scene, rng)
    return _optics.expose(np.maximum(photons, 0) * view, scene, rng)
