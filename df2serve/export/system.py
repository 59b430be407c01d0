"""The part of an ensemble that an export takes, and the module that it becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from df2serve.artifact import Ensemble, input_multiple
from df2serve.config import (
    ImageNormalization,
    InferenceConfig,
    NoNormalization,
    OverlapGrid,
    PercentileNormalization,
    TrainingNormalization,
)
from df2serve.core.uncertainty import scale_factor
from df2serve.errors import ExportError
from df2serve.export import _system
from df2serve.export.settings import ExportSettings, Variant

__all__ = ["INPUT", "ExportSource", "open_source"]

INPUT = "input"
"""Name of the input."""

_STRIDE = 32
_OUTPUTS: dict[Variant, tuple[str, ...]] = {
    "fiji": ("prediction",),
    "full": ("probabilities", "mask", "uncertainty", "score"),
}


@dataclass(frozen=True, eq=False)
class ExportSource:
    """Networks, and everything that turns their logits into maps."""

    ensemble: Ensemble
    settings: ExportSettings
    config: InferenceConfig
    """What is computed; ``tile_shape`` is set."""
    members: tuple[int, ...]
    """Indices of the members that are exported."""
    networks: tuple[nn.Module, ...]
    """Their networks, in float32 on the processor."""

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return self.config.tile_shape or self.ensemble.manifest.tile_shape

    @property
    def has_distance(self) -> bool:
        """Whether the members give the distance to the boundary of objects."""
        return self.ensemble.manifest.has_distance

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        names = _OUTPUTS[self.settings.variant]
        separate = self.settings.variant == "full" and self.has_distance
        return (*names, "distance") if separate else names

    @property
    def multiple(self) -> int:
        """What rows and columns of the whole image as one tile are extended to multiples of."""
        return math.lcm(_STRIDE, *(input_multiple(network) for network in self.networks))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that put the members together, by name."""
        manifest, config = self.ensemble.manifest, self.config
        if not isinstance(config.grid, OverlapGrid):
            raise TypeError(config.grid)
        classes = manifest.num_classes
        rows, columns = self.tile_shape
        return {
            "variant": self.settings.variant,
            "channels": manifest.num_channels,
            "classes": classes,
            "views": config.views,
            "tile_rows": rows,
            "tile_columns": columns,
            "overlap": config.grid.overlap,
            "sigma": config.window_sigma,
            "factor": scale_factor(classes, config.uncertainty_scale),
            "distance": self.has_distance,
            **self._normalization(),
        }

    def _normalization(self) -> dict[str, Any]:
        match self.ensemble.manifest.normalization:
            case PercentileNormalization(low=low, high=high):
                return {"normalization": "percentile", "low": low, "high": high}
            case ImageNormalization():
                return {"normalization": "image"}
            case TrainingNormalization() | NoNormalization():
                return {"normalization": "constant"}

    def whole(self) -> nn.Module:
        """Return the module that takes the whole image as one tile."""
        return self._built(self.networks, multiple=self.multiple)

    def windowed(self, networks: Sequence[nn.Module] | None = None) -> nn.Module:
        """Return the module that blends overlapping tiles, possibly with other networks."""
        return self._built(self.networks if networks is None else networks, multiple=None)

    def _built(self, networks: Sequence[nn.Module], *, multiple: int | None) -> nn.Module:
        module = _system.build(list(networks), multiple=multiple, **self.arguments)
        normalization = self.ensemble.manifest.normalization
        if isinstance(normalization, TrainingNormalization):
            affine = module.moments.normalization  # type: ignore[union-attr]  # set by build
            for name, values in (("offset", normalization.means), ("scale", normalization.stds)):
                getattr(affine, name).copy_(torch.tensor(values).reshape(1, -1, 1, 1))
        return module


def open_source(
    ensemble: Ensemble, settings: ExportSettings, config: InferenceConfig | None
) -> ExportSource:
    """Load what an export takes.

    Args:
        ensemble: where the weights are.
        settings: what is exported.
        config: what is computed; the ensemble's recommendation when absent.

    Raises:
        ExportError: there is no such member, or a graph cannot compute what is asked.
        ArtifactError: a member is damaged.
    """
    count = len(ensemble)
    if settings.member is not None and settings.member >= count:
        message = f"got member {settings.member}, the ensemble has {count}, counted from 0"
        raise ExportError(message)
    members = tuple(range(count)) if settings.member is None else (settings.member,)
    source = ExportSource(
        ensemble=ensemble,
        settings=settings,
        config=_graph_config(ensemble, config or ensemble.manifest.inference),
        members=members,
        networks=tuple(map(ensemble.load_member, members)),
    )
    if any(side % source.multiple for side in source.tile_shape):
        message = (
            f"got tiles of {source.tile_shape[0]}x{source.tile_shape[1]} pixels, the networks need "
            f"multiples of {source.multiple}"
        )
        raise ExportError(message)
    return source


def _graph_config(ensemble: Ensemble, config: InferenceConfig) -> InferenceConfig:
    """Return settings as a graph computes them, or refuse those that it cannot compute."""
    rows, columns = config.tile_shape or ensemble.manifest.tile_shape
    zoom_out = config.zoom_out or ensemble.manifest.zoom_out
    if zoom_out != 1:
        message = (
            f"the networks see pixels {zoom_out:g} times as large as those of images, and no graph "
            "averages images; predict with df2serve"
        )
        raise ExportError(message)
    problem = None
    if not isinstance(config.grid, OverlapGrid) or config.map_order != "blended":
        problem = "deepflash2's grid and its order of blending have no graph"
    elif config.views == 8 and rows != columns:
        problem = f"quarter turns need square tiles, got {rows}x{columns}"
    if problem:
        message = f"{problem}; choose the preset 'accurate' or 'fast'"
        raise ExportError(message)
    return config.updated(tile_shape=(rows, columns), precision="fp32", empty_score="largest")
