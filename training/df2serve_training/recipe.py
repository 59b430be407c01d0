"""A recipe: everything that decides what a training makes of its data; a TOML file."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, ValidationError, model_validator

from df2serve.config import Frozen, describe_validation_error
from df2serve.errors import ConfigError, SourceNotFoundError
from df2serve_training.settings import AugmentSettings, DataSettings, FoldSettings, SamplingSettings

__all__ = [
    "LossName",
    "NetworkSettings",
    "OptimizerSettings",
    "Phase",
    "Recipe",
    "TrainingSettings",
    "list_recipes",
    "load_recipe",
]

LossName: TypeAlias = Literal[
    "ce_dice",
    "ce_plus_dice",
    "cross_entropy",
    "dice",
    "focal",
    "jaccard",
    "lovasz",
    "poly1",
    "tversky",
]


class NetworkSettings(Frozen):
    """The network of every member."""

    title: ClassVar[str] = "network settings"
    architecture: str = "Unet"
    """A class of segmentation-models-pytorch, or ``DeepFlash2Unet``."""
    encoder: str = "tu-convnext_tiny.in12k_ft_in1k"
    """Encoder by smp's name; ``tu-`` takes it from timm."""
    weights: str = "pretrained"
    """Where the encoder starts: ``pretrained`` (fetched from the Hub once), ``random``, or the path
    of a safetensors file with the names of timm, or of smp for its own encoders."""
    weights_license: str | None = None
    """Licence of the weights in a file, as an SPDX identifier."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the architecture."""
    distance_head: bool = False
    """Give the network one output more, the relative distance to the boundary of the object, by
    which touching objects are divided. Objects are those of ``masks = "instances"``, else the
    connected components of every class."""


class OptimizerSettings(Frozen):
    """How weights move."""

    title: ClassVar[str] = "optimizer settings"
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """Decoupled, except for ``adam`` and ``sgd``; none on biases and normalization layers."""
    betas: tuple[float, float] = (0.9, 0.99)
    eps: Annotated[float, Field(gt=0)] = 1e-5
    cycle_momentum: bool = True
    """Let the first beta fall to .85 while the rate rises, and rise again to .95."""
    encoder_rate: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Rate of the encoder relative to the decoder's, where it is not frozen."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient."""


class Phase(Frozen):
    """One cycle of the learning rate: it rises along half a cosine and falls along another."""

    title: ClassVar[str] = "phase"
    share: Annotated[float, Field(gt=0, le=1)]
    """Share of all steps."""
    rate: Annotated[float, Field(gt=0)]
    """Largest learning rate."""
    rise: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the phase in which the rate rises."""
    start_divisor: Annotated[float, Field(ge=1)] = 25.0
    """The rate starts at ``rate`` divided by this."""
    end_divisor: Annotated[float, Field(ge=1)] = 1e5
    """The rate ends at ``rate`` divided by this."""
    freeze_encoder: bool = False
    """Neither weights nor statistics of the encoder change."""


class TrainingSettings(Frozen):
    """How long and how members are trained."""

    title: ClassVar[str] = "training settings"
    steps: Annotated[int, Field(ge=1)] = 2600
    """Optimizer steps per member; fixed, whatever the score."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Patches per step."""
    loss: LossName = "ce_dice"
    distance_weight: Annotated[float, Field(gt=0)] = 0.5
    """Weight of the loss of the distance, where the network has it, beside the loss of classes."""
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)] = (
        Phase(share=0.05, rate=1e-3, freeze_encoder=True),
        Phase(share=0.95, rate=1e-3),
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Weights are averaged over about ``1 / (1 - ema_decay)`` steps; 0 keeps the last ones."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` computes in bf16 where the device has units for it."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    validate_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between two quick validations, which are recorded and decide nothing; none when absent.
    All members are scored after the training in any case."""

    @model_validator(mode="after")
    def _whole(self) -> TrainingSettings:
        total = sum(phase.share for phase in self.phases)
        if abs(total - 1) > 1e-6:
            message = f"the shares of the phases sum to {total:g}, expected 1"
            raise ValueError(message)
        return self


class Recipe(Frozen):
    """The whole recipe."""

    title: ClassVar[str] = "recipe"
    members: Annotated[int, Field(ge=1)] | None = None
    """Members to train, the first folds; as many as folds when absent."""
    data: DataSettings = DataSettings()
    folds: FoldSettings = FoldSettings()
    sampling: SamplingSettings = SamplingSettings()
    augment: AugmentSettings = AugmentSettings()
    network: NetworkSettings = NetworkSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _enough_folds(self) -> Recipe:
        if self.members is not None and self.members > self.folds.count:
            message = f"{self.members} members need as many folds, got {self.folds.count}"
            raise ValueError(message)
        return self

    @property
    def num_members(self) -> int:
        """Members of the ensemble."""
        return self.members or self.folds.count


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    found = files("df2serve_training").joinpath("recipes").iterdir()
    return sorted(
        entry.name.removesuffix(".toml") for entry in found if entry.name.endswith(".toml")
    )


def load_recipe(source: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        source: a TOML file, or the name of a recipe that comes with the package.
        overrides: values that win over the file's, nested by section.

    Raises:
        SourceNotFoundError: there is no such file or recipe.
        ConfigError: the file is no TOML, or a setting is unknown or out of range; all are listed.
    """
    named = files("df2serve_training").joinpath("recipes", f"{source}.toml")
    place = named if named.is_file() else Path(source)
    if not place.is_file():
        message = (
            f"no recipe {str(source)!r}; give a TOML file or one of {', '.join(list_recipes())}"
        )
        raise SourceNotFoundError(message)
    try:
        content = tomllib.loads(place.read_text(encoding="utf-8"))
        return Recipe.model_validate(_merged(content, overrides or {}))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{source} is not TOML: {error}"
        raise ConfigError(message) from error
    except ValidationError as error:
        raise ConfigError(describe_validation_error(f"recipe {source}", error)) from error


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested mappings with the changes in place."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged
