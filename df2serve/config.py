"""Settings, their defaults and the named presets.

Every default of the package lives here and only here. Models are frozen, unknown keys are errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from df2serve.errors import ConfigError

__all__ = [
    "PRESETS",
    "CentreGrid",
    "CheckLimits",
    "ClientConfig",
    "DecodeLimits",
    "Grid",
    "HubLimits",
    "ImageNormalization",
    "InferenceConfig",
    "InstanceConfig",
    "NoNormalization",
    "Normalization",
    "OverlapGrid",
    "PercentileNormalization",
    "Precision",
    "PresetName",
    "RankingName",
    "ReviewConfig",
    "RuntimeConfig",
    "SeedConfig",
    "TrainingNormalization",
    "ZooSettings",
    "describe_validation_error",
    "preset",
]

PresetName: TypeAlias = Literal["accurate", "deepflash2", "fast"]
RankingName: TypeAlias = Literal["paper", "failure", "ood"]
Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]


class Frozen(BaseModel):
    """Base of the settings: immutable, no unknown keys, docstrings become field descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
    title: ClassVar[str] = "settings"
    """What error messages call it."""

    def updated(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced; ``None`` leaves a field as it is.

        Raises:
            ConfigError: a field is unknown or its value out of range.
        """
        values = self.model_dump() | {k: v for k, v in changes.items() if v is not None}
        try:
            return self.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe_validation_error(self.title, error)) from error


# -- normalisation ------------------------------------------------------------------------------


class TrainingNormalization(Frozen):
    """``(x - mean) / std`` with constants of the training set, per channel, on raw intensities."""

    kind: Literal["training"] = "training"
    means: tuple[float, ...]
    """Per channel: mean over images of the image's mean."""
    stds: tuple[Annotated[float, Field(gt=0)], ...]
    """Per channel: square root of the mean over images of the image's variance."""


class PercentileNormalization(Frozen):
    """Maps two percentiles of each channel of each image to 0 and 1."""

    kind: Literal["percentile"] = "percentile"
    low: Annotated[float, Field(ge=0, lt=100)] = 1.0
    """Percentile that becomes 0."""
    high: Annotated[float, Field(gt=0, le=100)] = 99.8
    """Percentile that becomes 1."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            message = f"low is {self.low}, expected less than high, {self.high}"
            raise ValueError(message)
        return self


class ImageNormalization(Frozen):
    """Zero mean and unit variance for each channel of each image."""

    kind: Literal["image"] = "image"


class NoNormalization(Frozen):
    """The networks take raw intensities."""

    kind: Literal["none"] = "none"


Normalization: TypeAlias = Annotated[
    TrainingNormalization | PercentileNormalization | ImageNormalization | NoNormalization,
    Field(discriminator="kind"),
]
"""How intensities become network input; recorded in the ensemble's manifest."""


# -- tiling and inference -----------------------------------------------------------------------


class OverlapGrid(Frozen):
    """Tiles that start at the image's edges and overlap by a share of their side."""

    kind: Literal["overlap"] = "overlap"
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Smallest overlap of neighbouring tiles, as a share of the tile's side."""


class CentreGrid(Frozen):
    """The tile-centre rule of deepflash2, with its reflected frame and resampling."""

    kind: Literal["centre"] = "centre"
    border_padding_factor: Annotated[float, Field(ge=0, lt=0.5)] = 0.25
    """Width of the reflected frame, as a share of the tile's side."""
    max_tile_shift: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest distance of neighbouring centres, as a share of the tile's side."""


Grid: TypeAlias = Annotated[OverlapGrid | CentreGrid, Field(discriminator="kind")]
"""Where tiles lie."""


class InferenceConfig(Frozen):
    """What is computed: everything here changes numbers."""

    title: ClassVar[str] = "inference settings"
    preset: PresetName | None = None
    """Preset that this started from, if any."""
    grid: Grid = OverlapGrid()
    tile_shape: tuple[Annotated[int, Field(ge=32)], Annotated[int, Field(ge=32)]] | None = None
    """Rows and columns of a tile in pixels; the ensemble's own when absent."""
    zoom_out: Annotated[float, Field(ge=1, le=64)] | None = None
    """Pixels of an image per pixel that the networks see, along each axis; the ensemble's own when
    absent. Images are averaged, and maps are interpolated back."""
    window_sigma: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Standard deviation of the Gaussian blending window, as a share of the tile's side."""
    views: Literal[1, 4, 8] = 4
    """Test-time views: 1 identity, 4 flips, 8 flips and quarter turns."""
    map_order: Literal["blended", "per_tile"] = "blended"
    """Uncertainty from the blended probabilities, or per tile and then blended."""
    uncertainty_scale: Literal["paper", "unit"] = "paper"
    """Paper's factor 4/K, or rescaled so that the maximum is 1 for every number of classes."""
    empty_score: Literal["largest", "absent"] = "largest"
    """U of a prediction without foreground: the largest value of its map, or absent."""
    precision: Precision = "fp32"
    """Arithmetic of the networks; ``auto`` takes the fastest type that the device runs natively."""


PRESETS: Mapping[PresetName, InferenceConfig] = {
    "accurate": InferenceConfig(preset="accurate"),
    "deepflash2": InferenceConfig(
        preset="deepflash2", grid=CentreGrid(), map_order="per_tile", empty_score="absent"
    ),
    "fast": InferenceConfig(preset="fast", grid=OverlapGrid(overlap=0.25), precision="auto"),
}
"""Named settings; docs/performance.md gives each one's measured cost and deviation."""


def preset(name: str) -> InferenceConfig:
    """Return the settings of a preset.

    Raises:
        ConfigError: there is no preset of this name.
    """
    for known, config in PRESETS.items():
        if known == name:
            return config
    message = f"unknown preset {name!r}; choose one of {', '.join(sorted(PRESETS))}"
    raise ConfigError(message)


class RuntimeConfig(Frozen):
    """Where and how it is computed: nothing here changes numbers beyond rounding."""

    title: ClassVar[str] = "runtime settings"
    backend: Literal["auto", "torch", "onnx"] = "auto"
    """Engine that runs the members."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Network inputs (tiles times views) per forward pass; suited to the device when absent."""


# -- instances ----------------------------------------------------------------------------------


class SeedConfig(Frozen):
    """Which maxima of a distance map become objects of their own."""

    h: Annotated[float, Field(gt=0)]
    """Depth of the dip between two maxima below which they are one."""
    lowest: Annotated[float, Field(ge=0)]
    """Maxima below this are none, unless a connected component has no other."""


class CellposeConfig(Frozen):
    """A network of cellpose, and how its flows divide a mask."""

    version: str
    """Version of cellpose."""
    weights: str
    """Name of the file of weights."""
    weights_sha256: str
    """Its SHA-256."""
    diameter: Annotated[float, Field(gt=0)] | None = None
    """Diameter of the objects in pixels; without it, images are not rescaled for the network."""
    flow_threshold: Annotated[float, Field(ge=0)] = 0.4
    """Objects whose flows differ more than this from those of their shape are left out; 0 keeps all
    of them."""


class InstanceConfig(Frozen):
    """How a mask of classes is divided into objects."""

    title: ClassVar[str] = "instance settings"
    method: Literal["watershed", "components", "cellpose"] = "watershed"
    """``components``: pixels of a class that touch by an edge are one object. ``watershed`` divides
    these components further, by the distance channel of the ensemble where it has one, else by the
    Euclidean distance to the outside of the component. ``cellpose``: pixels that the flows of a
    network of cellpose lead to one place are one object; pixels that they lead nowhere are left
    out."""
    cellpose: CellposeConfig | None = None
    """For ``cellpose``; see :class:`df2serve.backends.cellpose.Cellpose`."""
    learned: SeedConfig = SeedConfig(h=0.05, lowest=0.3)
    """For the distance channel, which is 1 in the middle of an object."""
    euclidean: SeedConfig = SeedConfig(h=1.0, lowest=0.0)
    """For the distance in pixels."""
    min_size: Annotated[int, Field(ge=0)] = 0
    """Objects of fewer pixels are left out."""


# -- review ---------------------------------------------------------------------------------------


class ReviewConfig(Frozen):
    """In which order predictions are reviewed, and what is said of them."""

    title: ClassVar[str] = "review settings"
    by: RankingName = "paper"
    """``paper``: by U (eq. 5). ``failure``: by how little the members' masks agree, or by expected
    Dice where there is one member. ``ood``: by how unlike the references the scores are."""
    false_calls: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Largest expected share of ordinary images among those called out of distribution."""
    quality_level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Chance of a stated range to hold the quality of the prediction."""


# -- decoding -----------------------------------------------------------------------------------


class DecodeLimits(Frozen):
    """How much an input may ask for before it is refused."""

    max_pixels: Annotated[int, Field(ge=1)] = 1 << 30
    """Pixels per plane, counted once for all channels."""
    max_bytes: Annotated[int, Field(ge=1)] = 8 << 30
    """Decoded bytes of the selection that is read."""
    max_file_bytes: Annotated[int, Field(ge=1)] = 16 << 30
    """Bytes of the file itself."""
    max_ratio: Annotated[float, Field(ge=1)] = 10_000.0
    """Decoded bytes per stored byte."""
    max_channels: Annotated[int, Field(ge=1)] = 256
    """Channels per image."""
    max_pages: Annotated[int, Field(ge=1)] = 100_000
    """Pages (directories) of a TIFF, chunks of a Zarr array."""
    max_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Processor and wall-clock time of a decoder process; in-process reading is not timed."""
    max_memory_bytes: Annotated[int, Field(ge=1 << 27)] = 4 << 30
    """Address space that a decoder process may use beyond its start."""


class CheckLimits(Frozen):
    """How much a package may ask for before its check stops."""

    title: ClassVar[str] = "limits of checks"
    max_files: Annotated[int, Field(ge=1)] = 10_000
    """Files of a package."""
    max_bytes: Annotated[int, Field(ge=1)] = 32 << 30
    """Unpacked bytes of a package."""
    max_ratio: Annotated[float, Field(ge=1)] = 50.0
    """Unpacked bytes per packed byte, of packages with more than ``free_bytes``."""
    free_bytes: Annotated[int, Field(ge=0)] = 256 << 20
    """Unpacked bytes that are never too many."""
    max_description_bytes: Annotated[int, Field(ge=1)] = 4 << 20
    """Bytes of the description (``rdf.yaml``)."""
    max_description_nodes: Annotated[int, Field(ge=1)] = 200_000
    """Values in the description, repeated ones counted as often as they are repeated."""
    max_description_depth: Annotated[int, Field(ge=1)] = 100
    """Levels of the description."""
    max_code_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    """Bytes of code in a TorchScript archive that are looked at."""
    max_tensor_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    """Bytes of a test tensor whose values are looked at."""
    max_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Wall-clock time of one run of a model, in a process of its own."""


class HubLimits(Frozen):
    """How much an ensemble of a hub may ask for before it is refused."""

    title: ClassVar[str] = "limits of downloads"
    max_files: Annotated[int, Field(ge=1)] = 1000
    """Files that are fetched."""
    max_bytes: Annotated[int, Field(ge=1)] = 32 << 30
    """Bytes of all of them together."""


class ZooSettings(Frozen):
    """Where the BioImage Model Zoo takes models in."""

    title: ClassVar[str] = "settings of the Zoo"
    server: Annotated[str, Field(pattern=r"^https?://[^/?#@]+$")] = "https://hypha.aicell.io"
    """Address of the artifact service; without encryption on this machine alone."""
    collection: Annotated[str, Field(pattern=r"^[\w-]+/[\w.-]+$")] = "bioimage-io/bioimage.io"
    """Workspace and name of the collection that holds the models."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Time without an answer after which a request is given up."""


class ClientConfig(Frozen):
    """How long a client of a service waits, and how often it tries."""

    title: ClassVar[str] = "settings of a client"
    retries: Annotated[int, Field(ge=0)] = 4
    """Further attempts of a request that met a busy service or a lost connection."""
    longest_pause_s: Annotated[float, Field(ge=0)] = 60.0
    """Longest time between two attempts; a service that asks for more is not asked again."""
    connect_s: Annotated[float, Field(gt=0)] = 10.0
    """How long a connection may take."""
    silence_s: Annotated[float, Field(gt=0)] = 300.0
    """How long the service may say nothing while a request is under way."""
    chunk_bytes: Annotated[int, Field(ge=1)] = 16 << 20
    """Bytes of an upload that are sent with one request."""


def describe_validation_error(what: str, error: ValidationError) -> str:
    """Return one line that names every offending field, what it got and what is expected."""
    parts = [
        f"{'.'.join(str(step) for step in item['loc']) or 'value'}: "
        f"{item['msg'].removeprefix('Value error, ')} (got {item['input']!r:.80})"
        for item in error.errors(include_url=False)
    ]
    return f"invalid {what}: " + "; ".join(parts)
