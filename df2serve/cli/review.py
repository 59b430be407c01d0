"""``df2serve review``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from df2serve.cli._terminal import AsJson, print_json, print_table

if TYPE_CHECKING:
    from df2serve.writers.annotation import AcceptedMask

__all__ = ["review"]

_COUNT = 10


def review(
    folder: Annotated[
        Path, typer.Argument(help="Results to export from, or training folder to accept into.")
    ],
    *,
    export: Annotated[
        Path | None, typer.Option(help="Folder to create, with the most doubtful images.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="With --export: folder of the predicted images.")
    ] = None,
    count: Annotated[int, typer.Option(help="With --export: how many images.")] = _COUNT,
    crop: Annotated[
        int | None,
        typer.Option(help="With --export: rows and columns of the most uncertain part alone."),
    ] = None,
    accept: Annotated[
        Path | None, typer.Option(help="Folder whose corrected masks go into a training folder.")
    ] = None,
    confirmed: Annotated[
        bool,
        typer.Option(
            "--confirmed", help="With --accept: unchanged masks are right, take them too."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hand doubtful images to people who draw, and take their corrected masks back."""
    from df2serve.errors import ConfigError
    from df2serve.writers.annotation import accept_annotations, export_for_annotation

    if (export is None) == (accept is None):
        message = "give either --export FOLDER or --accept FOLDER"
        raise ConfigError(message)
    if accept is not None:
        classes, masks = accept_annotations(accept, folder, confirmed=confirmed)
        _tell_accepted(folder, classes, masks, as_json=as_json)
        return
    if export is None or images is None:
        message = "--export needs --images, the folder of the images that were predicted"
        raise ConfigError(message)
    manifest = export_for_annotation(folder, export, images=images, count=count, crop=crop)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    typer.echo(f"{len(manifest.items)} images to annotate: {export}")
    typer.echo(f"when masks are corrected: df2serve review TRAINING_FOLDER --accept {export}")


def _tell_accepted(
    training: Path, classes: tuple[str, ...], masks: list[AcceptedMask], *, as_json: bool
) -> None:
    if as_json:
        print_json({"classes": classes, "masks": [asdict(mask) for mask in masks]})
        return
    print_table([_row(mask, classes) for mask in masks])
    accepted = sum(mask.accepted for mask in masks)
    typer.echo(f"{accepted} of {len(masks)} images are in {training}")
    if accepted < len(masks):
        typer.echo("masks without a change are left out; --confirmed takes them too")


def _row(mask: AcceptedMask, classes: tuple[str, ...]) -> dict[str, str]:
    counts = zip(classes, mask.before_px, mask.after_px, strict=True)
    return {
        "mask": mask.file,
        "changed": f"{mask.changed_px} px",
        **{name: f"{before} to {after} px" for name, before, after in counts},
        "accepted": "yes" if mask.accepted else "no",
    }
