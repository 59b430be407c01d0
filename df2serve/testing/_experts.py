"""How experts outline cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from df2serve.testing._optics import texture

__all__ = ["HABITS", "Habit", "Sketch", "draw_mask"]

_HAND_PX = 6.0  # length along an outline over which a hand drifts
_DOUBT = 0.2  # standard deviation of the logarithm of perceived brightness


@dataclass(frozen=True, kw_only=True, slots=True)
class Habit:
    """What an expert does differently from the ground truth."""

    margin_px: float = 0.0
    """Distance of the drawn outline from the true one, outwards."""
    faintest: float = 0.0
    """Cells that look dimmer than this are left out; 1 = a typical bright cell."""
    lapses: float = 0.0
    """Share of the cells that are overlooked, whatever their brightness."""
    invents: float = 0.0
    """Share of the distractors that are taken for cells."""
    wobble_px: float = 0.5
    """Standard deviation of the outline's distance."""
    merges_px: int = 0
    """Gaps up to twice this wide are closed."""


HABITS: Mapping[str, Habit] = {
    "generous": Habit(margin_px=1.8, lapses=0.02),
    "tight": Habit(margin_px=-1.3, faintest=0.12),
    "strict": Habit(faintest=0.35),
    "eager": Habit(margin_px=0.5, invents=0.6),
    "hasty": Habit(margin_px=0.6, faintest=0.15, lapses=0.08, wobble_px=1.2, merges_px=2),
}
"""The experts, by name."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """What all experts see alike: cells, patches that resemble cells, and their outlines."""

    outside_px: np.ndarray
    """Distance to the nearest outline, negative inside, axes (Y, X)."""
    nearest: np.ndarray
    """Number of the nearest object, cells first, then distractors, axes (Y, X)."""
    class_of: np.ndarray
    """Class of the background and of every object, axis (object)."""
    brightness: np.ndarray
    """Light of every cell, axis (cell)."""

    @classmethod
    def of(cls, objects: np.ndarray, class_of: np.ndarray, brightness: np.ndarray) -> Sketch:
        """Measure the distances to the outlines of objects, axes (Y, X), 0 = background."""
        outside, nearest = ndimage.distance_transform_edt(objects == 0, return_indices=True)
        before = ndimage.minimum_filter(np.where(objects, objects, len(class_of)), 3)
        between = (objects > 0) & (before < objects)  # one side of the line where cells touch
        inside = ndimage.distance_transform_edt((objects > 0) & ~between)
        return cls(outside - inside, objects[tuple(nearest)], class_of, brightness)


def draw_mask(sketch: Sketch, habit: Habit, rng: np.random.Generator) -> np.ndarray:
    """Return one expert's classes, axes (Y, X), uint8, 0 = background.

    Args:
        sketch: what the expert looks at.
        habit: the expert's.
        rng: source of the expert's moods.
    """
    n_cells, n_objects = len(sketch.brightness), len(sketch.class_of) - 1
    perceived = sketch.brightness * rng.lognormal(0, _DOUBT, n_cells)
    seen = (perceived > habit.faintest) & (rng.random(n_cells) >= habit.lapses)
    invented = rng.random(n_objects - n_cells) < habit.invents
    shape = sketch.nearest.shape
    margin = habit.margin_px + habit.wobble_px * texture(shape, rng, grain_px=_HAND_PX)
    drawn = np.r_[False, seen, invented][sketch.nearest] & (sketch.outside_px <= margin)
    if habit.merges_px:
        cross = ndimage.generate_binary_structure(2, 1)
        drawn |= ndimage.binary_closing(drawn, cross, iterations=habit.merges_px)
    return np.where(drawn, sketch.class_of[sketch.nearest], 0).astype(np.uint8)
