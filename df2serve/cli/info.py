"""``df2serve info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from df2serve.cli._terminal import AsJson, print_json

if TYPE_CHECKING:
    from df2serve.artifact import Ensemble
    from df2serve.io import Image

__all__ = ["info"]


def info(
    path: Annotated[
        str,
        typer.Argument(help="Ensemble (folder, zip file, hf://...), bioimage.io package or image."),
    ],
    *,
    as_json: AsJson = False,
    axes: Annotated[
        str | None, typer.Option(help="Axes of an image as stored, where it states none.")
    ] = None,
) -> None:
    """Tell what an ensemble, a package or an image says about itself."""
    from df2serve.artifact import load_ensemble
    from df2serve.errors import ArtifactNotFoundError, SourceNotFoundError

    is_address = "://" in path
    if not is_address and not Path(path).exists():
        message = f"{path} does not exist; give an ensemble or an image"
        raise SourceNotFoundError(message)
    try:
        opened = load_ensemble(path)
    except ArtifactNotFoundError:
        if is_address:
            raise
        facts = _of_file(path, axes)
        _show(facts, facts, as_json=as_json)
        return
    content = opened.manifest.model_dump(mode="json") | {
        "sha256": opened.sha256,
        "calibration": opened.calibration.model_dump(mode="json"),
    }
    _show(content, _of_ensemble(opened), as_json=as_json)


def _show(content: dict[str, Any], facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(content)
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        typer.echo(f"{key:<{width}}  {value}")


def _of_ensemble(ensemble: Ensemble) -> dict[str, Any]:
    manifest = ensemble.manifest
    size, threshold = manifest.pixel_size_um, ensemble.calibration.threshold("u")
    return {
        "ensemble": f"{manifest.name} ({manifest.id})",
        "description": manifest.description or "none",
        "license": manifest.license or "none stated",
        "members": len(ensemble),
        "classes": ", ".join(item.name for item in manifest.classes),
        "channels": ", ".join(item.name for item in manifest.channels),
        "pixel size": f"{size.y_um:g} x {size.x_um:g} um" if size else "not stated",
        "normalization": manifest.normalization.kind,
        "tile": "{} x {} px".format(*manifest.tile_shape),
        "preset": manifest.inference.preset or "custom",
        "review from": f"U >= {threshold.value:.3f}" if threshold else "no threshold",
        "sha256": ensemble.sha256,
    }


def _of_file(path: str, axes: str | None) -> dict[str, Any]:
    """Return the facts of an image, or else of a package of others."""
    from df2serve.errors import InputError
    from df2serve.io import open_image

    try:
        with open_image(path, axes=axes) as image:
            return _of_image(image)
    except InputError:
        facts = _of_package(Path(path))
        if facts is None:
            raise
        return facts


def _of_package(path: Path) -> dict[str, Any] | None:
    """Return the facts of a bioimage.io package of others; None if it is none."""
    from df2serve.config import CheckLimits
    from df2serve.export.checks.package import open_package
    from df2serve.export.checks.tensors import mapping_at, read_tensors

    with open_package(path, CheckLimits()) as (package, _):
        if package is None:
            return None
        rdf = package.rdf
        tensors = {
            side: ", ".join(f"{item.id} ({item.order})" for item in read_tensors(rdf, side))
            for side in ("inputs", "outputs")
        }
        return {
            "package": str(rdf.get("name", "no name")),
            "description": str(rdf.get("description", "none")),
            "license": str(rdf.get("license", "none stated")),
            "format": str(rdf.get("format_version", "not stated")),
            **tensors,
            "weights": ", ".join(mapping_at(rdf, "weights")) or "none",
        }


def _of_image(image: Image) -> dict[str, Any]:
    channels, height, width = image.shape
    size = image.pixel_size_um
    return {
        "image": image.source,
        "format": image.format,
        "channels": channels,
        "height": height,
        "width": width,
        "dtype": str(image.dtype),
        "axes as stored": image.axes,
        "channel names": ", ".join(image.channel_names or ()) or "not stated",
        "pixel size": f"{size.y_um:g} x {size.x_um:g} um" if size else "not stated",
        "sha256": image.sha256,
    }
