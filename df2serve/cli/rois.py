"""``df2serve rois``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from df2serve.cli._terminal import AsJson, print_json, print_table, say

if TYPE_CHECKING:
    from df2serve.io.corrections import Change, Painted

__all__ = ["rois"]

rois = typer.Typer(no_args_is_help=True, help="Objects that were corrected in Fiji.")


@rois.callback()
def _group() -> None:
    """Keep ``import`` a word of its own while it is the only one."""


@rois.command("import")
def import_rois(
    regions: Annotated[Path, typer.Argument(help="Zip file that Fiji's ROI manager has saved.")],
    *,
    like: Annotated[Path, typer.Option(help="The image, or a mask of it: gives the size.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Mask of classes to write, as TIFF.")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="Labels of objects to write as well, as TIFF.")
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="Zip file as predicted, to tell what was changed.")
    ] = None,
    changes: Annotated[
        Path | None, typer.Option(help="Table of changes to write, as CSV; needs --before.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of classes 1, 2, …; else as the regions say.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Axes of the image as stored, where it states none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn corrected regions into a mask and labels to train with."""
    from df2serve.errors import ConfigError
    from df2serve.files import replacing
    from df2serve.io import open_image
    from df2serve.io.corrections import class_names, compare_painted, paint_regions
    from df2serve.io.rois import read_regions
    from df2serve.writers import write_changes, write_labels, write_mask

    if changes is not None and before is None:
        message = "--changes needs --before, the zip file as it was predicted"
        raise ConfigError(message)
    corrected = read_regions(regions)
    predicted = () if before is None else read_regions(before)
    names = _named(classes) if classes else class_names([*predicted, *corrected])
    with open_image(like, axes=axes) as image:
        shape = image.shape[1], image.shape[2]
        size = image.pixel_size_um
    taken = max((item.label or 0 for item in predicted), default=0)
    painted = paint_regions(corrected, shape, classes=names, taken=taken)
    found = None
    if before is not None:
        found = compare_painted(paint_regions(predicted, shape, classes=names), painted)
    with replacing(output) as path:
        write_mask(path, painted.mask, size)
    if labels is not None:
        with replacing(labels) as path:
            write_labels(path, painted.labels, size)
    if changes is not None and found is not None:
        with replacing(changes) as path:
            write_changes(path, found)
    _report(painted, found, output, as_json=as_json)


def _named(classes: str) -> dict[str, int]:
    """Return the index of each class, from 1."""
    from df2serve.errors import ConfigError

    names = [name.strip() for name in classes.split(",")]
    if not all(names) or len(set(names)) < len(names):
        message = f"got --classes {classes!r}; expected different names, such as cell,nucleus"
        raise ConfigError(message)
    return {name: index for index, name in enumerate(names, start=1)}


def _report(
    painted: Painted, changes: Sequence[Change] | None, output: Path, *, as_json: bool
) -> None:
    """Tell what the regions are, and what was changed."""
    clipped = [item.name for item in painted.regions if item.clipped]
    covered = [item.name for item in painted.regions if item.covered_px]
    if as_json:
        rows = None if changes is None else [asdict(change) for change in changes]
        regions = [asdict(item) for item in painted.regions]
        print_json({"output": str(output), "regions": regions, "changes": rows})
        return
    if clipped:
        say(f"note: cut off at the border of the image: {', '.join(clipped)}")
    if covered:
        say(f"note: partly under regions further down the list: {', '.join(covered)}")
    edited = [change for change in changes or () if change.status != "unchanged"]
    if edited:
        print_table([_shown(change) for change in edited])
    typer.echo(f"{len(painted.regions)} objects: {output}")
    if changes is not None:
        counts = Counter[str](change.status for change in changes)
        states = ("unchanged", "changed", "added", "removed")
        typer.echo(", ".join(f"{counts[state]} {state}" for state in states))


def _shown(change: Change) -> dict[str, str]:
    return {
        "region": change.name,
        "what": change.status,
        "pixels": f"{change.area_before_px} to {change.area_after_px}",
        "added": str(change.added_px),
        "removed": str(change.removed_px),
        "reclassified": str(change.reclassified_px),
    }
