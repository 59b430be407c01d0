"""Where cells lie and what outline they have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
from scipy import ndimage

from df2serve.errors import ConfigError
from df2serve.testing._scene import CellScene

__all__ = ["Canvas", "Layout", "place"]

_GAP_PX = 2.5  # smallest distance of cells that do not touch
_LARGEST_GROUP = 4  # cells that touch come in groups of 2 to this many, rarely one more
_TRIES = 200  # positions tried per group, angles tried per attached cell
_LARGEST_LOSS = 0.3  # share of an attached cell that its neighbour may cover
_SHALLOWEST = 0.5  # deepest dent of an outline, relative to its ellipse
_BEHIND = 0.93  # distance of attached cells, relative to outlines that just meet
_BLOCKED = -1

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Outline:
    """A star-shaped outline around a center."""

    radius_px: float
    elongation: float
    angle: float
    waves: np.ndarray
    """Complex amplitudes of the outline's deviation, relative to the ellipse, from order 2 on."""

    @property
    def reach_px(self) -> int:
        """Half the side of a square that holds the outline."""
        return int(self.radius_px * self.elongation**0.5 * (1 + np.abs(self.waves).sum())) + 1

    def radii(self, theta: np.ndarray) -> np.ndarray:
        """Return the distance of the outline from its center in these directions, in pixels."""
        turned = theta - self.angle
        stretch = self.elongation**0.5
        ellipse = 1 / np.hypot(np.cos(turned) / stretch, np.sin(turned) * stretch)
        orders = 2 + np.arange(len(self.waves))
        waves = (self.waves * np.exp(1j * orders * turned[..., None])).real.sum(axis=-1)
        return np.asarray(self.radius_px * ellipse * np.maximum(1 + waves, _SHALLOWEST))


@dataclass(frozen=True, slots=True)
class Blob:
    """An outline drawn at a place."""

    center: Point
    outline: Outline
    window: tuple[slice, slice]
    distance: np.ndarray
    """Distance from the center, axes (Y, X) of the window, relative to the outline's."""
    halo: np.ndarray
    """Pixels of the blob and of the gap around it, axes (Y, X) of the window."""

    @property
    def inside(self) -> np.ndarray:
        """Pixels of the blob, axes (Y, X) of the window."""
        return np.asarray(self.distance <= 1)


@dataclass(frozen=True, slots=True)
class Layout:
    """Instances and how far each pixel is from its instance's center."""

    labels: np.ndarray
    """Instance labels, axes (Y, X), int32, 0 = background."""
    distance: np.ndarray
    """0 at the center of an instance to 1 at its outline, axes (Y, X), float32."""


class Canvas:
    """The area that is still free; layouts that are placed on one canvas do not overlap."""

    def __init__(self, scene: CellScene) -> None:
        self.scene = scene
        self.group_of = np.zeros(scene.shape, np.int32)
        self.n_groups = 0

    def is_free(self, blob: Blob) -> bool:
        """Whether the blob keeps its distance from every group but the newest."""
        near = self.group_of[blob.window][blob.inside]
        return bool(((near == 0) | (near == self.n_groups)).all())

    def occupy(self, blob: Blob) -> None:
        """Reserve the blob and the gap around it for the newest group."""
        near = self.group_of[blob.window]
        foreign = blob.halo & (near != 0) & (near != self.n_groups)
        near[blob.halo] = self.n_groups
        near[foreign] = _BLOCKED


def place(
    canvas: Canvas,
    outlines: list[Outline],
    rng: np.random.Generator,
    *,
    touching: float,
    required: bool,
) -> Layout:
    """Lay out cells in groups that touch inside and keep a gap between them.

    Args:
        canvas: free area; what is placed here is taken from it.
        outlines: one per cell, in the order of their labels.
        rng: source of positions.
        touching: share of the cells that touch another one, in [0, 1].
        required: whether every cell has to find a place; if not, the first without ends it.

    Returns:
        Labels 1 to len(outlines), fewer if not ``required``.

    Raises:
        ConfigError: a required cell finds no place.
    """
    layout = Layout(np.zeros(canvas.scene.shape, np.int32), np.ones(canvas.scene.shape, np.float32))
    positions = _positions(canvas.scene, rng, _TRIES * max(len(outlines), 1))
    remaining, n_placed = iter(outlines), 0
    for size in _group_sizes(len(outlines), touching, rng):
        canvas.n_groups += 1
        members: list[Blob] = []
        for outline in islice(remaining, size):
            blob = (
                _attach(canvas, layout, outline, members, rng)
                if members
                else _settle(canvas, layout, outline, positions)
            )
            if blob is None and required:
                message = (
                    f"only {n_placed} of {len(outlines)} cells find a place in "
                    f"{canvas.scene.shape} pixels; lower n_cells or radius_px, or enlarge shape"
                )
                raise ConfigError(message)
            if blob is None:
                return layout
            n_placed += 1
            _draw(layout, blob, n_placed)
            canvas.occupy(blob)
            members.append(blob)
    return layout


def _group_sizes(n_cells: int, touching: float, rng: np.random.Generator) -> list[int]:
    """Divide the cells into groups so that the stated share is in groups of two or more."""
    together = round(n_cells * touching)
    sizes: list[int] = []
    while together >= 2:
        size = int(rng.integers(2, min(together, _LARGEST_GROUP) + 1))
        if together - size == 1:  # a single one left over joins the group
            size += 1
        sizes.append(size)
        together -= size
    return sizes + [1] * (n_cells - sum(sizes))


def _positions(scene: CellScene, rng: np.random.Generator, n: int) -> Iterator[Point]:
    """Draw positions, a share of them along an arc as in a cell layer of a tissue section."""
    rows, columns = scene.shape
    size = min(scene.shape)
    radius = rng.uniform(0.35, 0.8) * size
    center = np.array([rows, columns]) * rng.uniform(0.3, 0.7, 2)
    center[0] += radius * 0.6
    angle = rng.uniform(0, 2 * np.pi, n)
    distance = radius + rng.normal(0, 0.07 * size, n)
    layer = center + distance[:, None] * np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    last = np.array(scene.shape) - 1
    anywhere = rng.uniform(0, 1, (n, 2)) * last
    points = np.where(rng.random((n, 1)) < scene.clustering, layer, anywhere)
    inside = ((points >= 0) & (points <= last)).all(axis=1)
    # a layer that is full sends the rest of its cells elsewhere
    return iter([(y, x) for y, x in np.concatenate([points[inside], anywhere]).tolist()])


def _settle(
    canvas: Canvas, layout: Layout, outline: Outline, positions: Iterator[Point]
) -> Blob | None:
    """Return the outline at the first position that is free."""
    for position in islice(positions, _TRIES):
        blob = _blob(outline, position, canvas.scene.shape)
        if _fits(canvas, layout, blob):
            return blob
    return None


def _attach(
    canvas: Canvas,
    layout: Layout,
    outline: Outline,
    members: list[Blob],
    rng: np.random.Generator,
) -> Blob | None:
    """Return the outline beside a member of its group, partly behind it."""
    rows, columns = canvas.scene.shape
    for angle in rng.uniform(0, 2 * np.pi, _TRIES):
        member = members[int(rng.integers(len(members)))]
        reach = member.outline.radii(angle) + outline.radii(angle + np.pi)
        y = member.center[0] + _BEHIND * float(reach) * np.sin(angle)
        x = member.center[1] + _BEHIND * float(reach) * np.cos(angle)
        if not (0 <= y <= rows - 1 and 0 <= x <= columns - 1):
            continue
        blob = _blob(outline, (y, x), canvas.scene.shape)
        covered = np.mean(layout.labels[blob.window][blob.inside] > 0)
        if 0 < covered <= _LARGEST_LOSS and _fits(canvas, layout, blob):
            return blob
    return None


def _fits(canvas: Canvas, layout: Layout, blob: Blob) -> bool:
    """Whether the blob keeps its distance and what shows of it is in one piece."""
    own = blob.inside & (layout.labels[blob.window] == 0)
    return canvas.is_free(blob) and ndimage.label(own)[1] == 1


def _blob(outline: Outline, center: Point, shape: tuple[int, int]) -> Blob:
    """Draw an outline around a center, cut off at the image's edges."""
    reach = outline.reach_px + int(_GAP_PX) + 1
    rows, columns = (
        slice(max(int(c) - reach, 0), min(int(c) + reach + 1, side))
        for c, side in zip(center, shape, strict=True)
    )
    y = np.arange(rows.start, rows.stop)[:, None] - center[0]
    x = np.arange(columns.start, columns.stop)[None, :] - center[1]
    distance, radii = np.hypot(y, x), outline.radii(np.arctan2(y, x))
    return Blob(center, outline, (rows, columns), distance / radii, distance <= radii + _GAP_PX)


def _draw(layout: Layout, blob: Blob, label: int) -> None:
    """Give the blob's free pixels to an instance."""
    window = layout.labels[blob.window]
    own = blob.inside & (window == 0)
    window[own] = label
    layout.distance[blob.window][own] = blob.distance[own]
