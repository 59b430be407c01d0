"""What a rule of the Fiji lint is, and what it is asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from df2serve.export.checks.onnx_file import OnnxFacts, OnnxFileError, read_onnx
from df2serve.export.checks.package import Package
from df2serve.export.checks.report import Finding, Severity
from df2serve.export.checks.tensors import Axis, Tensor, mapping_at, read_tensors
from df2serve.export.checks.torchscript import (
    TorchScriptFacts,
    TorchScriptFileError,
    read_torchscript,
)

__all__ = ["Problem", "Rule", "Subject", "rule"]


class Problem(NamedTuple):
    """A place, and what was found there."""

    place: str
    message: str


@dataclass(frozen=True, eq=False)
class Subject:
    """A package as the rules see it; files are read once, and only if a rule asks."""

    package: Package

    @property
    def rdf(self) -> Mapping[str, Any]:
        """The fields of the description."""
        return self.package.rdf

    @property
    def is_old(self) -> bool:
        """Whether the description has format 0.4 or older."""
        return self.package.version[:2] < (0, 5) and bool(self.package.version)

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the model."""
        return read_tensors(self.rdf, "inputs")

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        """Outputs of the model."""
        return read_tensors(self.rdf, "outputs")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Inputs, then outputs."""
        return (*self.inputs, *self.outputs)

    def axes(self, tensors: Iterable[Tensor]) -> Iterator[Axis]:
        """Yield all axes of tensors."""
        for tensor in tensors:
            yield from tensor.axes

    @cached_property
    def weights(self) -> Mapping[str, Mapping[str, Any]]:
        """Entries of the weights by format; formats set to nothing are left out."""
        entries = mapping_at(self.rdf, "weights")
        named = {"torchscript" if key == "pytorch_script" else key: entries[key] for key in entries}
        return {str(key): value for key, value in named.items() if isinstance(value, Mapping)}

    def weights_file(self, kind: str) -> Path | None:
        """Return the file with the weights of a format, if it is there."""
        return self.package.find(self.weights.get(kind))

    @cached_property
    def torchscript(self) -> TorchScriptFacts | str | None:
        """What the TorchScript archive says, or why it cannot be read; None without one."""
        path = self.weights_file("torchscript")
        if path is None:
            return None
        try:
            return read_torchscript(path, self.package.limits)
        except TorchScriptFileError as error:
            return str(error)

    @cached_property
    def onnx(self) -> OnnxFacts | str | None:
        """What the ONNX file says, or why it cannot be read; None without one."""
        path = self.weights_file("onnx")
        if path is None:
            return None
        try:
            return read_onnx(path)
        except OnnxFileError as error:
            return str(error)


Check: TypeAlias = Callable[[Subject], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """A demand on packages, and what comes of not meeting it."""

    code: str
    severity: Severity
    demand: str
    """What is asked of the package."""
    reason: str
    """What happens otherwise."""
    remedy: str
    check: Check

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """Yield every place that does not meet the demand."""
        for problem in self.check(subject):
            yield Finding(
                code=self.code,
                severity=self.severity,
                place=problem.place,
                message=problem.message,
                reason=self.reason,
                remedy=self.remedy,
            )


def rule(
    code: str, severity: Severity, *, demand: str, reason: str, remedy: str
) -> Callable[[Check], Rule]:
    """Make a rule of a function that yields problems."""

    def decorate(check: Check) -> Rule:
        return Rule(code, severity, demand, reason, remedy, check)

    return decorate
