"""What a client may ask for: bounded parameters of a prediction."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from df2serve.config import (
    Frozen,
    InferenceConfig,
    InstanceConfig,
    OverlapGrid,
    Precision,
    PresetName,
    preset,
)
from df2serve.errors import ConfigError

__all__ = ["PredictParams"]

_VIEWS: dict[str, Literal[1, 4, 8]] = {"none": 1, "flips": 4, "d4": 8}
Index = Annotated[int, Field(ge=0, le=1_000_000)]


class PredictParams(Frozen):
    """Parameters of ``predict``; those that are absent are the model's own."""

    axes: Annotated[str, Field(pattern=r"^[TCZYXS]{2,6}$")] | None = None
    """Axes of the image as stored, where the file does not state them."""
    channels: Annotated[str, Field(pattern=r"^\d{1,4}(,\d{1,4}){0,63}$")] | None = None
    """Channels to take, in this order, counted from 0, such as ``0,2``."""
    series: Index | None = None
    """Image series, counted from 0."""
    z: Index | None = None
    """Plane, counted from 0."""
    t: Index | None = None
    """Time point, counted from 0."""
    pixel_size: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """Side of a pixel in micrometers, such as ``0.25`` or ``0.25um``, whatever the file says."""
    preset: PresetName | None = None
    """Named settings."""
    tta: Literal["none", "flips", "d4"] | None = None
    """Test-time views: 1, 4 or 8."""
    members: Annotated[int, Field(ge=1, le=64)] | None = None
    """Take only the first members; faster, and U compares with no threshold."""
    tile: Annotated[int, Field(ge=32, le=2048, multiple_of=32)] | None = None
    """Rows and columns of a tile."""
    overlap: Annotated[float, Field(ge=0, le=0.875)] | None = None
    """Smallest overlap of neighboring tiles, as a share of their side."""
    precision: Precision | None = None
    """Arithmetic of the networks."""
    instances: Literal["watershed", "components"] | None = None
    """Find objects as well."""
    min_size: Annotated[int, Field(ge=0, le=1 << 30)] | None = None
    """Leave out objects of fewer pixels."""

    @field_validator("pixel_size", mode="before")
    @classmethod
    def _micrometers(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value.removesuffix("um").removesuffix("\N{MICRO SIGN}m").strip()
        return value

    @property
    def channel_numbers(self) -> tuple[int, ...] | None:
        """The channels to take."""
        if self.channels is None:
            return None
        return tuple(int(number) for number in self.channels.split(","))

    def inference(self, recommended: InferenceConfig) -> InferenceConfig:
        """Return the settings of the computation.

        Args:
            recommended: the model's own.

        Raises:
            ConfigError: the parameters contradict each other.
        """
        chosen = recommended if self.preset is None else preset(self.preset)
        if self.overlap is not None and not isinstance(chosen.grid, OverlapGrid):
            message = f"overlap={self.overlap:g} does not go with the grid {chosen.grid.kind}"
            raise ConfigError(message)
        return chosen.updated(
            tile_shape=self.tile and (self.tile, self.tile),
            views=self.tta and _VIEWS[self.tta],
            grid=None if self.overlap is None else OverlapGrid(overlap=self.overlap),
            precision=self.precision,
        )

    def objects(self, *, needed: bool) -> InstanceConfig | None:
        """Return how objects are found, if they are.

        Args:
            needed: an output needs them.

        Raises:
            ConfigError: a smallest size without objects.
        """
        if self.instances is not None or needed:
            return InstanceConfig().updated(method=self.instances, min_size=self.min_size)
        if self.min_size is not None:
            message = "min_size needs instances=watershed or instances=components"
            raise ConfigError(message)
        return None
