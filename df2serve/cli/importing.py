"""``df2serve import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from df2serve.cli._terminal import AsJson, print_json, say

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["import_networks"]


def import_networks(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="A .pt file of deepflash2, or its .pth files, one per member; or a folder or "
            "hf://org/name of one model of segmentation-models-pytorch."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    *,
    classes: Annotated[
        str | None, typer.Option(help="Names, background first, such as background,cell.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Names in the order of the network's input.")
    ] = None,
    means: Annotated[
        str | None, typer.Option(help="Per channel what intensities are lessened by: 26.4,30.")
    ] = None,
    stds: Annotated[
        str | None, typer.Option(help="Per channel what they are divided by then.")
    ] = None,
    normalization: Annotated[
        str | None, typer.Option(help="Instead of numbers: image, percentile or none.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Side of a tile in pixels.")] = None,
    zoom_out: Annotated[
        float | None, typer.Option(help="Pixels of an image per pixel of the training.")
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="Of the training images, in micrometers.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Title of the ensemble.")] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="That the author of the weights chose.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder in a .pt file, where it is not recognized.")
    ] = None,
    recorded: Annotated[
        Path | None,
        typer.Option(help=".npz of an image and the original's softmax, to compare with."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an ensemble of networks that others trained, without running their code."""
    from df2serve.importing import ImportSettings, import_ensemble

    settings = ImportSettings().updated(
        name=name,
        classes=_words(classes),
        channels=_words(channels),
        normalization=_normalization(normalization, means, stds),
        tile_shape=tile and (tile, tile),
        zoom_out=zoom_out,
        pixel_size_um=pixel_size,
        license=license_id,
        encoder=encoder,
    )
    paths = [_local(source) for source in sources]
    imported = import_ensemble(paths, output, settings=settings, recorded=recorded)
    for note in imported.notes:
        say(f"note: {note}")
    ensemble = imported.ensemble
    if as_json:
        facts = {"output": str(output), "id": ensemble.manifest.id, "sha256": ensemble.sha256}
        print_json(
            {
                **facts,
                "members": len(ensemble),
                "notes": list(imported.notes),
                "deviation": imported.deviation,
            }
        )
        return
    compared = imported.deviation is not None and f", {imported.deviation:.1e} from the original"
    typer.echo(f"{output}: {len(ensemble)} members{compared or ''}")


def _words(text: str | None) -> Sequence[str] | None:
    return None if text is None else tuple(word.strip() for word in text.split(","))


def _normalization(kind: str | None, means: str | None, stds: str | None) -> dict[str, Any] | None:
    from df2serve.errors import ConfigError

    if means is None and stds is None:
        return None if kind is None else {"kind": kind}
    if means is None or stds is None or kind is not None:
        message = "give --means and --stds together, or --normalization instead of both"
        raise ConfigError(message)
    return {"kind": "training", "means": _words(means), "stds": _words(stds)}


def _local(source: str) -> Path:
    """Return where a source is on this machine."""
    if not source.startswith("hf://"):
        return Path(source)
    from df2serve.publish import fetch_model

    return fetch_model(source)
