"""What a folder of images to annotate says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from df2serve.artifact.manifest import RelativePath
from df2serve.config import Frozen, describe_validation_error
from df2serve.errors import DecodeError, SourceNotFoundError

__all__ = ["MANIFEST", "AnnotationItem", "AnnotationManifest", "read_manifest"]

MANIFEST = "manifest.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AnnotationItem(Frozen):
    """An image, or a part of one, with a mask to correct."""

    file: RelativePath
    """Name of the files in ``images``, ``masks`` and ``predicted``."""
    image_sha256: Sha256
    """Of the file in ``images``."""
    mask_sha256: Sha256
    """Of the file in ``predicted``, and of the one in ``masks`` until it is corrected."""
    name: str
    """Name of the result that it comes from."""
    u: float | None
    """U of the whole image."""
    source: str
    """The image's file."""
    source_sha256: Sha256 | None
    top: Annotated[int, Field(ge=0)]
    """First row within the whole image."""
    left: Annotated[int, Field(ge=0)]
    """First column within the whole image."""
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]


class AnnotationManifest(Frozen):
    """The content of ``manifest.json``."""

    schema_version: Literal[1] = 1
    ensemble_id: str
    ensemble_sha256: Sha256
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """Names by their value in the masks."""
    items: tuple[AnnotationItem, ...]
    """The most doubtful one first."""


def read_manifest(folder: Path) -> AnnotationManifest:
    """Read the manifest of a folder.

    Raises:
        SourceNotFoundError: there is none.
        DecodeError: it is damaged.
    """
    path = folder / MANIFEST
    try:
        return AnnotationManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        message = (
            f"{folder} holds nothing to accept; give a folder that 'df2serve review --export' has "
            "written"
        )
        raise SourceNotFoundError(message) from error
    except ValidationError as error:
        raise DecodeError(describe_validation_error(str(path), error)) from error
