"""Settings of ground-truth estimation and their defaults."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from df2serve.config import Frozen

__all__ = ["GroundTruthSettings", "Method", "Undecided"]

Method: TypeAlias = Literal["staple", "majority", "instance"]
"""How the masks of several experts become one."""

Undecided: TypeAlias = Literal["background", "best_rater"]
"""What a pixel becomes for which no class wins."""

_Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
_PositiveShare: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class GroundTruthSettings(Frozen):
    """How ground truth is estimated, and what is worth a warning."""

    title: ClassVar[str] = "ground truth settings"
    method: Method = "staple"
    """STAPLE and majority voting decide pixel by pixel, ``instance`` object by object."""
    masks: Literal["binary", "classes", "instances"] = "binary"
    """What experts' files hold: 0 and one other value, class indices, or one label per object."""
    num_classes: Annotated[int, Field(ge=2, le=255)] = 2
    """K, the background included; more than 2 only with ``masks = "classes"``."""
    undecided: Undecided = "background"
    """What pixels without a winner become: background, or what the best expert says."""
    max_iterations: Annotated[int, Field(ge=1)] = 100
    """Largest number of iterations of STAPLE."""
    match_iou: _PositiveShare = 0.2
    """Smallest IoU at which two experts' objects may be the same object."""
    min_votes: _PositiveShare = 0.5
    """Smallest share of the experts that mark an object for it to be kept."""
    min_apart: _PositiveShare = 0.4
    """Smallest share of these that draw it as an object of its own, not as part of another."""
    min_size: Annotated[int, Field(ge=0)] = 0
    """Objects of fewer pixels are left out of the agreement of instances."""
    enough_experts: Annotated[int, Field(ge=1)] = 3
    """Fewer experts for an image are worth a warning: STAPLE cannot tell who errs."""
    max_area_ratio: Annotated[float, Field(ge=1)] = 1.25
    """A larger ratio of the estimate's foreground to the majority's is worth a warning."""
    low_agreement: _Share = 0.5
    """A smaller Dice with the estimate of the other experts is worth a warning."""
    mixed_up: _Share = 0.3
    """Such a mask is taken for another image's if its Dice there is higher and at least this."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.masks != "classes" and self.num_classes != 2:
            message = f"masks = {self.masks!r} has 2 classes; use masks = 'classes' for more"
            raise ValueError(message)
        return self
