"""``df2serve export``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from df2serve.cli._terminal import AsJson, EnsembleArgument, print_json, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from df2serve.export.bioimageio import WeightsFormat
    from df2serve.export.exporting import Destination

__all__ = ["export"]

_packaging = partial(typer.Option, rich_help_panel="What a package says and holds")


def export(
    ensemble: EnsembleArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to create.")],
    *,
    to: Annotated[str, typer.Option("--to", help="torchscript, onnx or bioimageio.")],
    as_json: AsJson = False,
    variant: Annotated[
        str | None, typer.Option(help="fiji: one output; full: four outputs with the score.")
    ] = None,
    member: Annotated[
        int | None, typer.Option(help="Export this member alone, counted from 0.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Weights of an ONNX file: fp32 or fp16.")
    ] = None,
    opset: Annotated[str | None, typer.Option(help="Of an ONNX file: fiji or modern.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="accurate or fast; else the ensemble's own.")
    ] = None,
    formats: Annotated[
        str | None, _packaging(help="Of pytorch_state_dict,torchscript,onnx; all by default.")
    ] = None,
    author: Annotated[
        list[str] | None, _packaging("--author", "--authors", help="Name; once per author.")
    ] = None,
    license_id: Annotated[
        str | None, _packaging("--license", help="SPDX identifier, such as CC-BY-4.0.")
    ] = None,
    description: Annotated[
        str | None, _packaging(help="What the ensemble segments, in which images.")
    ] = None,
    card: Annotated[Path | None, _packaging(help="YAML file of all that people say.")] = None,
    image: Annotated[
        Path | None, _packaging(help="Image with foreground to test with; else the golden one.")
    ] = None,
) -> None:
    """Write an ensemble for Fiji, the BioImage Model Zoo and other programs, and compare both."""
    from df2serve.artifact import load_ensemble
    from df2serve.config import preset as named_preset

    opened = load_ensemble(ensemble)
    destination = _destination(to)
    try:
        from df2serve.export import ExportSettings, export_ensemble, load_card
    except ImportError as error:
        from df2serve.errors import BackendUnavailableError

        message = f"exports need packages that are not installed ({error}); "
        message += "pip install 'df2serve[export]'"
        raise BackendUnavailableError(message) from error
    options: dict[str, Any] = {} if formats is None else {"formats": _formats(formats)}
    exported = export_ensemble(
        opened,
        output,
        destination,
        settings=ExportSettings().updated(
            variant=variant, member=member, precision=precision, opset=opset
        ),
        config=None if preset is None else named_preset(preset),
        card=load_card(card, authors=author or (), license_id=license_id, description=description),
        image=None if image is None else _pixels(image),
        **options,
    )
    if as_json:
        print_json(
            {
                "output": str(exported.path),
                "bytes": exported.bytes,
                "deviations": {kind: asdict(one) for kind, one in exported.deviations.items()},
            }
        )
        return
    for kind, one in exported.deviations.items():
        say(f"{kind}: deviates from the ensemble by at most {one.largest:.1e}")
    typer.echo(f"{exported.path}: {exported.bytes / 1e6:.1f} MB")


def _destination(name: str) -> Destination:
    from df2serve.errors import ConfigError

    if name not in ("torchscript", "onnx", "bioimageio"):
        message = f"got --to {name}; expected torchscript, onnx or bioimageio"
        raise ConfigError(message)
    return cast("Destination", name)


def _formats(names: str) -> Sequence[WeightsFormat]:
    from df2serve.errors import ConfigError

    known = ("pytorch_state_dict", "torchscript", "onnx")
    chosen = [name.strip() for name in names.split(",")]
    if not set(chosen) <= set(known):
        message = f"got --formats {names}; expected some of {','.join(known)}"
        raise ConfigError(message)
    return cast("Sequence[WeightsFormat]", chosen)


def _pixels(path: Path) -> NDArray[np.generic]:
    """Return an image, axes (C, Y, X)."""
    from df2serve.io import open_image

    with open_image(path) as image:
        _, height, width = image.shape
        return image.data[:, 0:height, 0:width]
