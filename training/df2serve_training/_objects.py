"""Several experts' objects to one set of objects.

Fusing pixels joins cells that touch as soon as enough outlines overlap between them. Here objects
are matched across experts first; then each is kept or not by vote, and its pixels are decided among
the experts that drew it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import ndimage, sparse

from df2serve.errors import InputError
from df2serve.types import LabelMap, MaskArray
from df2serve_training._annotations import Annotation
from df2serve_training.targets import separate_instances

__all__ = ["FusedObject", "ObjectFusion", "fuse_instances"]


@dataclass(frozen=True, slots=True)
class FusedObject:
    """One object of the estimate."""

    label: int
    """Its number in the label map, from 1."""
    class_index: int
    """Class that most of its experts give it, the lowest of several."""
    votes: int
    """Experts that drew it as an object of its own."""
    support: int
    """Experts that marked at least half of it, whatever they drew there."""
    area_px: int
    """Pixels of the fused object."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjectFusion:
    """One set of objects from several."""

    labels: LabelMap
    """Objects, axes (Y, X), numbered from 1, 0 = background; they may touch."""
    classes: MaskArray
    """Class indices, axes (Y, X), uint8, with background where objects of one class touch."""
    objects: tuple[FusedObject, ...]
    """In order of their labels."""


def fuse_instances(
    annotations: Sequence[Annotation],
    *,
    match_iou: float,
    min_votes: float,
    min_apart: float,
    tie_breaker: int | None = None,
) -> ObjectFusion:
    """Match objects across experts, vote on each, and decide its pixels among those who drew it.

    Objects are matched by decreasing IoU, at most one of every expert. A match is an object of the
    estimate if enough experts marked its place, and enough of these drew it apart from its
    neighbors. A pixel belongs to it if most of the experts that drew it say so; where several claim
    a pixel, the one with the larger share of its experts wins, then the smaller one.

    Args:
        annotations: what each expert drew, all of the same rows and columns.
        match_iou: smallest IoU, in (0, 1], at which objects may be the same. An object that keeps
            a smaller share of its pixels beside the others is dropped.
        min_votes: smallest share of the experts that mark at least half of the object.
        min_apart: smallest share of these that drew it as an object of its own.
        tie_breaker: index of the expert whose drawing counts where an object's experts are divided
            equally; such pixels are left out when absent.

    Raises:
        InputError: no annotations, or of several sizes.

    Example:
        >>> drawn = [[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0]]  # the third merges
        >>> annotations = [Annotation.of_instances(np.array([labels])) for labels in drawn]
        >>> fusion = fuse_instances(annotations, match_iou=0.2, min_votes=0.5, min_apart=0.4)
        >>> fusion.labels.tolist(), [(found.votes, found.support) for found in fusion.objects]
        ([[1, 1, 1, 2, 2, 0]], [(3, 3), (2, 3)])
    """
    _require_same_shape(annotations)
    drawn = _Drawn.of(annotations)
    matches = _matches(drawn, match_iou)
    claims = _claims(drawn, matches, tie_breaker)
    support = _support(drawn, matches, claims)
    votes = np.bincount(matches)
    kept = (support >= min_votes * len(annotations)) & (votes >= min_apart * support)
    labels = np.zeros(drawn.foreground.shape, np.int32)
    labels[drawn.foreground] = 1 + _winners(claims, kept, drawn.numbers.shape[1])
    sizes = np.bincount(claims.match, minlength=len(votes))
    origins = _clean(labels, smallest=match_iou * sizes)
    areas = np.bincount(labels.ravel())
    classes = _classes(drawn, matches)
    objects = tuple(
        FusedObject(
            label=number,
            class_index=int(classes[origin]),
            votes=int(votes[origin]),
            support=int(support[origin]),
            area_px=int(areas[number]),
        )
        for number, origin in enumerate(origins, start=1)
    )
    return ObjectFusion(labels, _separated(labels, objects), objects)


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """Objects of all experts, numbered together from 0, on the pixels that anybody marked."""

    foreground: Bool[np.ndarray, "y x"]
    """Pixels marked by anybody; they are numbered in this order."""
    numbers: Int64[np.ndarray, "r p"]
    """Object of every expert at every marked pixel, -1 = none."""
    owners: Int64[np.ndarray, " n"]
    """Expert of every object."""
    classes: Int64[np.ndarray, " n"]
    """Class of every object."""

    @classmethod
    def of(cls, annotations: Sequence[Annotation]) -> _Drawn:
        foreground = np.any([annotation.labels > 0 for annotation in annotations], axis=0)
        numbers, owners, classes = [], [], []
        n_objects = 0
        for expert, annotation in enumerate(annotations):
            labels = annotation.labels[foreground]
            found, first, inverse = np.unique(
                np.r_[0, labels], return_index=True, return_inverse=True
            )
            n_found = len(found) - 1
            numbers.append(np.where(labels > 0, inverse[1:] - 1 + n_objects, -1))
            owners.append(np.full(n_found, expert))
            classes.append(annotation.classes[foreground][first[1:] - 1].astype(np.int64))
            n_objects += n_found
        return cls(foreground, np.stack(numbers), np.concatenate(owners), np.concatenate(classes))


@dataclass(frozen=True, slots=True, eq=False)
class _Claims:
    """Pixels that most experts of a match give to it; parallel arrays, one entry per claim."""

    match: Int64[np.ndarray, " m"]
    pixel: Int64[np.ndarray, " m"]
    share: Float64[np.ndarray, " m"]
    """Share of the match's experts, at least one half."""


def _matches(drawn: _Drawn, match_iou: float) -> Int64[np.ndarray, " n"]:
    """Return the match of every object, numbered from 0 without gaps."""
    first, second, iou = _overlaps(drawn)
    near = iou >= match_iou
    first, second, iou = first[near], second[near], iou[near]
    parents = list(range(len(drawn.owners)))
    experts = [{int(owner)} for owner in drawn.owners]

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    for pair in np.lexsort((second, first, -iou)):
        one, other = sorted((root(int(first[pair])), root(int(second[pair]))))
        if one != other and experts[one].isdisjoint(experts[other]):
            parents[other] = one
            experts[one] |= experts[other]
    roots = np.array([root(number) for number in parents], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def _overlaps(drawn: _Drawn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of objects of two experts that share pixels, and their IoU."""
    n_objects = len(drawn.owners)
    areas = np.bincount(drawn.numbers[drawn.numbers >= 0], minlength=n_objects)
    table = sparse.csr_array((n_objects, n_objects), dtype=np.int64)
    for index, one in enumerate(drawn.numbers):
        for other in drawn.numbers[index + 1 :]:
            shared = (one >= 0) & (other >= 0)
            table += _counted(one[shared], other[shared], (n_objects, n_objects))
    pairs = table.tocoo()
    union = areas[pairs.row] + areas[pairs.col] - pairs.data
    return pairs.row, pairs.col, pairs.data / union


def _claims(drawn: _Drawn, matches: np.ndarray, tie_breaker: int | None) -> _Claims:
    """Return which pixels the experts of each match give to it."""
    votes = np.bincount(matches)
    experts, pixels = np.nonzero(drawn.numbers >= 0)
    shape = (len(votes), drawn.numbers.shape[1])
    counts = _counted(matches[drawn.numbers[experts, pixels]], pixels, shape).tocoo()
    match, pixel, share = counts.row, counts.col, counts.data / votes[counts.row]
    won = share > 0.5
    if tie_breaker is not None:
        number = drawn.numbers[tie_breaker][pixel]
        won |= (share == 0.5) & (number >= 0) & (matches[number] == match)
    return _Claims(match[won], pixel[won], share[won])


def _support(drawn: _Drawn, matches: np.ndarray, claims: _Claims) -> Int64[np.ndarray, " c"]:
    """Count the experts that drew a match or marked at least half of its pixels."""
    n_matches = int(matches.max(initial=-1)) + 1
    areas = np.bincount(claims.match, minlength=n_matches)
    marked = [
        np.bincount(claims.match[numbers[claims.pixel] >= 0], minlength=n_matches)
        for numbers in drawn.numbers
    ]
    supports = (areas > 0) & (2 * np.stack(marked) >= areas)
    supports[drawn.owners, matches] = True
    support: Int64[np.ndarray, " c"] = supports.sum(axis=0)
    return support


def _classes(drawn: _Drawn, matches: np.ndarray) -> Int64[np.ndarray, " c"]:
    """Return the class that most objects of every match have, the lowest of several."""
    shape = (int(matches.max(initial=-1)) + 1, int(drawn.classes.max(initial=0)) + 1)
    counts = _counted(matches, drawn.classes, shape).toarray()
    winners: Int64[np.ndarray, " c"] = counts.argmax(axis=1)
    return winners


def _winners(claims: _Claims, kept: np.ndarray, n_pixels: int) -> Int64[np.ndarray, " p"]:
    """Return the match that every pixel goes to, -1 = none."""
    valid = kept[claims.match]
    match, pixel, share = claims.match[valid], claims.pixel[valid], claims.share[valid]
    sizes = np.bincount(claims.match, minlength=len(kept))
    winners = np.full(n_pixels, -1, np.int64)
    ascending = np.lexsort((-match, -sizes[match], share))
    winners[pixel[ascending]] = match[ascending]  # of several claims the last one stays
    return winners


def _clean(labels: LabelMap, *, smallest: np.ndarray) -> list[int]:
    """Reduce objects to their largest piece, drop small ones, number them by their first pixel.

    Args:
        labels: matches + 1, axes (Y, X); changed.
        smallest: pixels that are to be left, per match.

    Returns:
        The match of every remaining object, in order.
    """
    for match, box in enumerate(ndimage.find_objects(labels)):
        if box is None:
            continue
        window = labels[box]
        pieces, n_pieces = ndimage.label(window == match + 1)
        areas = np.bincount(pieces[pieces > 0], minlength=n_pieces + 1)
        largest = areas.argmax() if areas.max() >= smallest[match] else n_pieces + 1
        window[(pieces > 0) & (pieces != largest)] = 0
    found, first = np.unique(labels, return_index=True)
    first, found = first[found > 0], found[found > 0]
    origins: Int64[np.ndarray, " o"] = found[np.argsort(first)]
    numbers = np.zeros(len(smallest) + 1, np.int32)
    numbers[origins] = np.arange(1, len(origins) + 1)
    labels[...] = numbers[labels]
    return [int(origin) - 1 for origin in origins]


def _separated(labels: LabelMap, objects: Sequence[FusedObject]) -> MaskArray:
    """Return the classes of objects, with background between those of one class that touch."""
    class_of = np.array([0, *(found.class_index for found in objects)], np.uint8)
    classes: MaskArray = class_of[labels]
    for index in np.unique(class_of[1:]):
        touched = (classes == index) & ~separate_instances(np.where(classes == index, labels, 0))
        classes[touched] = 0
    return classes


def _require_same_shape(annotations: Sequence[Annotation]) -> None:
    shapes = sorted({annotation.labels.shape for annotation in annotations})
    if len(shapes) != 1:
        found = ", ".join(map(str, shapes)) or "none"
        message = (
            f"got {len(annotations)} annotations of sizes {found}; expected at least one, all of "
            "the same rows and columns"
        )
        raise InputError(message)


def _counted(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """Count how often every pair of row and column occurs."""
    return sparse.csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=shape)
