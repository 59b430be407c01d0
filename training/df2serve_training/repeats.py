"""Two or more trainings side by side: which is better, and how much they differ by themselves."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from df2serve.config import Frozen
from df2serve.errors import InputError
from df2serve.io import read_mask
from df2serve_training._annotations import Annotation
from df2serve_training._comparison import Quality, compare, mean_quality
from df2serve_training._evaluation_files import read_evaluation
from df2serve_training._evaluation_rows import Evaluation, ImageRow
from df2serve_training._evaluation_settings import METRICS, Metric
from df2serve_training._statistics import bootstrap, wilcoxon
from df2serve_training.pairing import natural_order

__all__ = [
    "DifferenceRow",
    "RepeatRow",
    "Reproducibility",
    "compare_evaluations",
    "reproducibility",
]


class DifferenceRow(Frozen):
    """One metric of two evaluations of the same images."""

    metric: Metric
    images: int
    """Images that have the metric in both."""
    first: float
    """Mean of the first evaluation."""
    second: float
    """Mean of the second evaluation."""
    difference: float
    """Mean of second minus first."""
    low: float | None
    """Lower end of its bootstrap interval over images, or over groups where there are any."""
    high: float | None
    """Upper end of its bootstrap interval."""
    statistic: float | None
    """Of Wilcoxon's signed-rank test; absent where no image differs."""
    p_value: float | None
    """Two-sided."""


def compare_evaluations(first: Evaluation, second: Evaluation) -> tuple[DifferenceRow, ...]:
    """Compare two evaluations, image by image.

    Raises:
        InputError: they have no image in common, or the truths of an image differ.
    """
    pairs = _common(first, second)
    rows = (_difference(metric, pairs, first) for metric in METRICS)
    return tuple(row for row in rows if row is not None)


class _Image(Frozen):
    file: str
    """Name of the image."""


class RepeatRow(Quality, _Image):
    """How alike the predictions of one image are, as a mean over all pairs of runs."""


class Reproducibility(Frozen):
    """How alike repeated trainings are."""

    runs: int
    images: tuple[RepeatRow, ...]
    """In natural order of their names."""
    mean: Quality
    """Over images."""


def reproducibility(folders: Sequence[str | Path]) -> Reproducibility:
    """Compare the predicted masks of several evaluations of the same images with each other.

    Args:
        folders: of evaluations, for example of trainings that differ in their seed alone.

    Raises:
        InputError: there are fewer than two, they have no image in common, or a mask is missing.
    """
    runs = [(Path(folder), read_evaluation(folder)) for folder in folders]
    if len(runs) < 2:
        message = f"got {len(runs)} evaluation; reproducibility needs two or more"
        raise InputError(message)
    names = set.intersection(*({row.file for row in run.images} for _, run in runs))
    if not names:
        message = "the evaluations have no image in common; evaluate the same images"
        raise InputError(message)
    rows = tuple(_repeat(name, runs) for name in natural_order(names))
    return Reproducibility(runs=len(runs), images=rows, mean=mean_quality(rows))


def _common(first: Evaluation, second: Evaluation) -> list[tuple[ImageRow, ImageRow]]:
    """Return the rows of images that are in both."""
    others = {row.file: row for row in second.images}
    pairs = [
        (row, others[row.file])
        for row in first.images
        if row.file in others and row.image_sha256 == others[row.file].image_sha256
    ]
    if not pairs:
        message = "the evaluations have no image in common; evaluate the same images"
        raise InputError(message)
    areas, others_areas = _truth_areas(first), _truth_areas(second)
    changed = [row.file for row, _ in pairs if areas[row.file] != others_areas[row.file]]
    if changed:
        message = f"the evaluations used different masks of {', '.join(changed)}; use the same ones"
        raise InputError(message)
    return pairs


def _truth_areas(evaluation: Evaluation) -> dict[str, list[int]]:
    """Return the pixels of every class in the truth of every image."""
    areas = defaultdict(list)
    for row in evaluation.classes:
        areas[row.file].append(row.truth_px)
    return areas


def _difference(
    metric: Metric, pairs: Sequence[tuple[ImageRow, ImageRow]], evaluation: Evaluation
) -> DifferenceRow | None:
    """Compare by one metric the images that have it in both evaluations, if there are any."""
    values = [
        (a, b, row.group or (row.file,))
        for row, other in pairs
        if (a := row.of(metric)) is not None and (b := other.of(metric)) is not None
    ]
    if not values:
        return None
    differences = [b - a for a, b, _ in values]
    groups = [group for _, _, group in values]
    interval = bootstrap(differences, groups=groups, settings=evaluation.settings)
    test = wilcoxon(differences)
    return DifferenceRow(
        metric=metric,
        images=len(values),
        first=fmean(a for a, _, _ in values),
        second=fmean(b for _, b, _ in values),
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        statistic=test and test.statistic,
        p_value=test and test.p_value,
    )


def _repeat(name: str, runs: Sequence[tuple[Path, Evaluation]]) -> RepeatRow:
    evaluation = runs[0][1]
    n_classes = len(evaluation.class_names)
    files = [folder / "masks" / f"{name}.png" for folder, _ in runs]
    masks = [read_mask(file, kind="classes", num_classes=n_classes).classes for file in files]
    compared = [
        compare(
            *map(Annotation.of_classes, pair),
            n_classes=n_classes,
            min_size=evaluation.settings.min_size,
            valid=None,
        )
        for pair in itertools.combinations(masks, 2)
    ]
    quality = mean_quality(mean_quality(one.quality for one in classes) for classes in compared)
    return RepeatRow(file=name, **quality.model_dump())
