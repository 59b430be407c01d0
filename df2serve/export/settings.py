"""What can be chosen about an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from df2serve.config import Frozen

__all__ = ["ExportPrecision", "ExportSettings", "Opset", "Variant"]

Variant: TypeAlias = Literal["fiji", "full"]
Opset: TypeAlias = Literal["fiji", "modern"]
ExportPrecision: TypeAlias = Literal["fp32", "fp16"]

_TOLERANCES: Mapping[ExportPrecision, float] = {"fp32": 1e-5, "fp16": 2e-2}


class ExportSettings(Frozen):
    """Settings of an export."""

    title: ClassVar[str] = "export settings"
    variant: Variant = "fiji"
    """``fiji``: one output with probabilities, total uncertainty and mask as channels; ``full``:
    probabilities, mask, uncertainty (total and epistemic) and the score U as four outputs."""
    member: Annotated[int, Field(ge=0)] | None = None
    """The only member to export, counted from 0; all members when absent."""
    precision: ExportPrecision = "fp32"
    """How ONNX files store weights; the arithmetic is float32 in either case."""
    opset: Opset = "fiji"
    """``fiji``: ONNX opset 17 and IR version 8; ``modern``: opset 20, for recent engines."""

    @property
    def tolerance(self) -> float:
        """Largest deviation of probabilities, uncertainties and scores from the ensemble's."""
        return _TOLERANCES[self.precision]
