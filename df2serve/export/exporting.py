"""An ensemble to one file: TorchScript, ONNX or a bioimage.io package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from df2serve._version import __version__
from df2serve.artifact import Ensemble
from df2serve.config import InferenceConfig
from df2serve.errors import ExportError, OutputError
from df2serve.export.bioimageio import WeightsFormat, package_contents, write_package
from df2serve.export.card import Card
from df2serve.export.onnx import onnx_bytes
from df2serve.export.parity import Deviation, Reference
from df2serve.export.settings import ExportSettings
from df2serve.export.system import open_source
from df2serve.export.torchscript import torchscript_bytes
from df2serve.files import replace_file, replacing

__all__ = ["Destination", "Exported", "export_ensemble"]

Destination: TypeAlias = Literal["torchscript", "onnx", "bioimageio"]


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far it deviates from its ensemble."""

    path: Path
    bytes: int
    deviations: Mapping[str, Deviation]
    """By the name of the weights' format."""


def export_ensemble(
    ensemble: Ensemble,
    target: str | Path,
    to: Destination,
    *,
    settings: ExportSettings | None = None,
    config: InferenceConfig | None = None,
    card: Card | None = None,
    formats: Sequence[WeightsFormat] = get_args(WeightsFormat),
    image: NDArray[np.generic] | None = None,
) -> Exported:
    """Write an ensemble for other programs; nothing is left at the target when something fails.

    The file is run and compared with the ensemble before it gets its name.

    Args:
        ensemble: what is exported.
        target: file to create; packages end in ``.zip``.
        to: kind of file.
        settings: variant, member and precision; defaults when absent.
        config: what is computed; the ensemble's recommendation when absent.
        card: what people say of the ensemble; packages need authors and a license.
        formats: weights in a package.
        image: raw intensities with foreground, axes (C, Y, X), instead of the golden image.

    Raises:
        OutputError: the target exists, or cannot be written.
        ExportError: the ensemble cannot be exported as asked.
        ParityError: the file does not compute what the ensemble computes.
        ArtifactError: the ensemble is damaged.
    """
    path = Path(target)
    _require_target(path, to)
    completed = (card or Card()).complete(ensemble) if to == "bioimageio" else None
    source = open_source(ensemble, settings or ExportSettings(), config)
    facts = {
        "df2serve": __version__,
        "ensemble": ensemble.manifest.id,
        "sha256": ensemble.sha256,
        "members": list(source.members),
        "classes": [item.name for item in ensemble.manifest.classes],
        "inference": source.config.model_dump(mode="json"),
    }
    deviations: Mapping[str, Deviation]
    with Reference(source, image) as reference:
        reference.check_golden()
        if to == "bioimageio":
            contents, deviations = package_contents(
                source, reference, card=completed or Card(), formats=formats, facts=facts
            )
            with replacing(path, parents=True) as temporary:
                write_package(contents, temporary)
        else:
            if to == "onnx":
                content, found = onnx_bytes(source, reference, facts)
            else:
                content, found = torchscript_bytes(source, reference.cases(whole=False), facts)
            deviations = {to: found}
            replace_file(path, content, parents=True)
    return Exported(path=path, bytes=path.stat().st_size, deviations=deviations)


def _require_target(path: Path, to: Destination) -> None:
    """Refuse a target before any work is done for it."""
    if path.exists():
        message = f"{path} exists; remove it or choose another name"
        raise OutputError(message)
    if to == "bioimageio" and path.suffix != ".zip":
        message = f"packages are zip files, got {path.name}; choose a name that ends in .zip"
        raise ExportError(message)
