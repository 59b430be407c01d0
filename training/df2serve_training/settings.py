"""Settings of training and their defaults; frozen, unknown keys are errors."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from df2serve.config import Frozen

__all__ = [
    "AugmentSettings",
    "Chance",
    "DataSettings",
    "FoldSettings",
    "JobSettings",
    "SamplingSettings",
]

Side = Annotated[int, Field(ge=32, multiple_of=32)]


# -- data ---------------------------------------------------------------------------------------


class DataSettings(Frozen):
    """How files are read and paired."""

    title: ClassVar[str] = "data settings"
    masks: Literal["binary", "classes", "instances"] = "binary"
    """What masks hold: 0 and one other value, class indices, or one label per object."""
    num_classes: Annotated[int, Field(ge=2, le=255)] = 2
    """K, the background included; more than 2 only with ``masks = "classes"``."""
    mask_suffix: str | None = None
    """What mask names have after the image's stem, such as ``_mask``; inferred when absent."""
    ignore_value: int | None = None
    """Value in the masks of pixels that do not count."""
    axes: str | None = None
    """Letters of TCZYX in stored order, where image files do not say which axis is which."""
    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Channels to take, counted from 0, in this order; all of them when absent."""
    zoom_out: Annotated[float, Field(ge=1, le=64)] = 1.0
    """Pixels of the file per pixel of the training, along each axis."""
    normalization: Literal["training", "image"] = "image"
    """Subtract mean and divide by standard deviation of each image, so that a brighter background
    is not taken for objects, or constants of the training set, as the original code does."""
    cache: bool = True
    """Keep all images and masks in memory once they are read."""

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        if self.masks != "classes" and self.num_classes != 2:
            message = f"masks = {self.masks!r} has 2 classes; use masks = 'classes' for more"
            raise ValueError(message)
        return self


class FoldSettings(Frozen):
    """How images are divided into folds."""

    title: ClassVar[str] = "fold settings"
    count: Annotated[int, Field(ge=2)] = 5
    """Number of folds."""
    method: Literal["plain", "stratified", "grouped"] = "plain"
    """At random; with every stratum spread over all folds; or with every group in one fold."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    column: str | None = None
    """Column of the table with an image's stratum or group; without one, strata are formed by the
    classes that are present and the share of foreground."""
    file_column: str | None = None
    """Column of the table with file names, with or without suffix; found when absent."""
    allow_train_as_validation: bool = False
    """Let a single image be trained and validated on."""

    @model_validator(mode="after")
    def _consistent(self) -> FoldSettings:
        if self.method == "grouped" and self.column is None:
            message = "method = 'grouped' needs column, the column of the table with the groups"
            raise ValueError(message)
        if self.method == "plain" and self.column is not None:
            message = "column needs method = 'stratified' or 'grouped'"
            raise ValueError(message)
        return self


# -- patches ------------------------------------------------------------------------------------


class SamplingSettings(Frozen):
    """Where patches lie."""

    title: ClassVar[str] = "sampling settings"
    patch_shape: tuple[Side, Side] = (512, 512)
    """Rows and columns of a patch in pixels of the training."""
    class_weights: Literal["uniform", "deepflash2"] = "uniform"
    """Chance of a patch to be centered on class k among those present in its image: equal for all,
    or proportional to f(1 - f) with f the share of the class, as deepflash2 does."""


class Chance(Frozen):
    """A random strength that is applied to some of the patches."""

    probability: Annotated[float, Field(ge=0, le=1)]
    """Share of the patches that are changed."""
    low: float
    """Smallest strength."""
    high: float
    """Largest strength; all between are equally likely."""

    @model_validator(mode="after")
    def _ordered(self) -> Chance:
        if self.low > self.high:
            message = f"low is {self.low}, which is more than high, {self.high}"
            raise ValueError(message)
        return self


class AugmentSettings(Frozen):
    """How patches are varied. Intensities are meant relative to the range of the training set."""

    title: ClassVar[str] = "augmentation settings"
    flip: bool = True
    """Mirror rows and columns, each for half of the patches."""
    rotation: Chance = Chance(probability=0.5, low=0, high=360)
    """Angle in degrees."""
    zoom: Chance = Chance(probability=0, low=0.8, high=1.25)
    """Magnification; more than 1 shows less of the image."""
    gamma: Chance = Chance(probability=0.5, low=0.8, high=1.2)
    """Exponent of intensities scaled to 0...1; less than 1 brightens."""
    contrast: Chance = Chance(probability=0, low=0.75, high=1.25)
    """Factor on the distance of intensities to the mean of the patch's channel."""
    noise: Chance = Chance(probability=0, low=0, high=0.05)
    """Standard deviation of Gaussian noise, as a share of the intensity range."""

    @model_validator(mode="after")
    def _positive(self) -> AugmentSettings:
        for name in ("zoom", "gamma"):
            if getattr(self, name).low <= 0:
                message = f"{name} takes strengths above 0"
                raise ValueError(message)
        for name in ("contrast", "noise"):
            if getattr(self, name).low < 0:
                message = f"{name} takes strengths from 0"
                raise ValueError(message)
        return self


# -- jobs ---------------------------------------------------------------------------------------


class JobSettings(Frozen):
    """Where members are trained as jobs; nothing here is part of a recipe."""

    title: ClassVar[str] = "job settings"
    executor: Literal["local", "slurm"] = "local"
    """Processes of this machine that outlive the program, or a SLURM cluster."""
    options: dict[str, str | int | float] = Field(default_factory=dict)
    """Of ``sbatch``, with underscores, such as ``partition``, ``time`` and ``gpus_per_node``."""

    @model_validator(mode="after")
    def _limited(self) -> JobSettings:
        if self.executor == "slurm" and "time" not in self.options:
            message = "a SLURM job needs the option time, its limit in minutes or as HH:MM:SS"
            raise ValueError(message)
        return self
