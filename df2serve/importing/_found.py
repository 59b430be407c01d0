"""What is known of imported networks, before they are an ensemble."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from torch import nn

from df2serve.config import InferenceConfig, Normalization

__all__ = ["Found", "source_facts"]


@dataclass(frozen=True, eq=False)
class Found:
    """Networks and what their files say; None where they are silent."""

    members: Sequence[nn.Module]
    folds: Sequence[int | None]
    """Fold that each member did not see."""
    num_classes: int
    """K."""
    num_channels: int
    """C."""
    inference: InferenceConfig
    """Settings to recommend."""
    training: dict[str, JsonValue]
    """Where the networks come from."""
    normalization: Normalization | None = None
    tile_shape: tuple[int, int] | None = None
    zoom_out: float | None = None
    encoder_weights: str | None = None
    notes: tuple[str, ...] = ()
    """What people should know."""


def source_facts(kind: str, files: Sequence[Path]) -> dict[str, JsonValue]:
    """Return what the manifest says about the origin of networks."""
    listed: list[JsonValue] = [{"name": path.name, "sha256": _sha256(path)} for path in files]
    return {"imported_from": kind, "files": listed}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
