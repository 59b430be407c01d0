"""Requests that need no device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from df2serve.config import ReviewConfig
from df2serve.errors import ArtifactNotFoundError, ImageMismatchError
from df2serve.files import replace_file
from df2serve.io import inspect_image_isolated
from df2serve.service.messages import Example, Rank, Thumbnail, Validate
from df2serve.service.schemas import ImageFacts, PixelSizeFacts, Validation
from df2serve.service.worker.prediction import (
    RESULTS,
    Bench,
    count_tiles,
    effective_config,
    pixel_size_of,
    selection_of,
)
from df2serve.service.worker.shelf import Shelf

__all__ = ["rank", "validate", "write_example", "write_thumbnail"]

_THUMBNAIL_PX = 320
"""Longest side."""


def validate(bench: Bench, task: Validate) -> Validation:
    """Say what a prediction would be; only the header of the image is read.

    Raises:
        InputError: the image cannot be read, or does not fit the model.
    """
    ensemble = bench.shelf.ensemble(task.model)
    config, manifest = effective_config(ensemble, task.params), ensemble.manifest
    task.params.objects(needed=False)
    header = inspect_image_isolated(
        task.image,
        axes=task.params.axes,
        selection=selection_of(task.params),
        limits=bench.limits,
        name=task.name,
        warm=bench.warm,
    )
    channels, height, width = header.shape
    if channels != manifest.num_channels:
        names = ", ".join(channel.name for channel in manifest.channels)
        message = (
            f"{task.name} has {channels} channels, the ensemble expects {manifest.num_channels} "
            f"({names}); select channels to match"
        )
        raise ImageMismatchError(message)
    size = pixel_size_of(task.params) or header.pixel_size_um
    tiles = count_tiles(config, (height, width))
    members = min(len(manifest.members), task.params.members or len(manifest.members))
    return Validation(
        valid=True,
        image=ImageFacts(
            name=task.name,
            format=header.format,
            axes=header.axes,
            shape=header.shape,
            dtype=str(np.dtype(header.dtype)),
            pixel_size_um=size and PixelSizeFacts(y_um=size.y_um, x_um=size.x_um),
            channel_names=header.channel_names,
        ),
        tiles=tiles,
        passes=tiles * members * config.views,
        seconds=None,
        warnings=(),
    )


def rank(task: Rank) -> Path:
    """Write the review list of several results as ``ranking.csv`` and ``ranking.json``.

    Returns:
        The folder that holds them.
    """
    from df2serve.writers import ranking_rows, read_results, review, write_table

    target = Path(task.target)
    results = [read_results(Path(folder) / RESULTS) for folder in task.folders]
    run = results[0][0]
    records = [
        record.model_copy(update={"name": f"{number}/{record.name}"})
        for number, (_, found) in enumerate(results)
        for record in found
    ]
    found = review(records, run, config=ReviewConfig())
    rows = ranking_rows(found, run)
    target.mkdir(parents=True, exist_ok=True)
    write_table(rows, target / "ranking")
    content = json.dumps({"threshold": found.threshold, "images": rows}, allow_nan=False)
    replace_file(target / "ranking.json", content.encode())
    return target


def write_example(shelf: Shelf, task: Example) -> Path:
    """Write the example image of a model as NPY, axes (C, Y, X).

    Raises:
        ArtifactNotFoundError: the model has none.
    """
    golden = shelf.ensemble(task.model).golden()
    if golden is None:
        message = f"model {task.model} has no example image"
        raise ArtifactNotFoundError(message)
    path = Path(task.target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.save(stream, golden.image, allow_pickle=False)
    return path


def write_thumbnail(task: Thumbnail) -> Path:
    """Write a small JPEG picture of another picture."""
    target = Path(task.target)
    with PillowImage.open(task.source) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    small.save(target, "JPEG", quality=85)
    return target
