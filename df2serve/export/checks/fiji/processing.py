"""Rules on the steps before and after the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from df2serve.export.checks.fiji.rule import Problem, Subject, rule
from df2serve.export.checks.report import Severity
from df2serve.export.checks.tensors import Operation, Tensor

__all__ = ["RULES"]

_ALLOWED: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "binarize": (frozenset({"threshold"}), frozenset()),
    "clip": (frozenset({"min", "max"}), frozenset()),
    "ensure_dtype": (frozenset(), frozenset({"dtype"})),
    "fixed_zero_mean_unit_variance": (frozenset({"mean", "std"}), frozenset()),
    "scale_linear": (frozenset({"gain", "offset"}), frozenset({"axes", "axis"})),
    "scale_range": (
        frozenset(),
        frozenset({"min_percentile", "max_percentile", "axes", "eps", "mode"}),
    ),
    "sigmoid": (frozenset(), frozenset()),
    "zero_mean_unit_variance": (frozenset(), frozenset({"axes", "eps", "mode"})),
}
"""Steps that Fiji knows, with the arguments that they need and those that they may have."""
_SCALARS = {
    "binarize": ("threshold",),
    "clip": ("min", "max"),
    "fixed_zero_mean_unit_variance": ("mean", "std"),
}
"""Arguments that have to be single numbers."""
_IN_PLACE = ("clip", "fixed_zero_mean_unit_variance", "scale_linear", "scale_range")
_PERCENTILES = {"max_percentile", "min_percentile"}
_REMEDY = "Do it inside the model, and leave the step out of the description."


def _steps(subject: Subject) -> Iterator[tuple[Tensor, Operation]]:
    for tensor in subject.tensors:
        for operation in tensor.operations:
            yield tensor, operation


def _given(operation: Operation) -> set[str]:
    """Return the arguments that have a value."""
    return {str(key) for key, value in operation.kwargs.items() if value is not None}


@rule(
    "FIJI040",
    Severity.ERROR,
    demand="Steps have the arguments that Fiji needs, and no others.",
    reason="Fiji sets arguments by their names and stops with an IllegalArgumentException.",
    remedy=_REMEDY,
)
def _arguments(subject: Subject) -> Iterator[Problem]:
    for _, operation in _steps(subject):
        if operation.id not in _ALLOWED:
            continue
        needed, optional = _ALLOWED[operation.id]
        given = _given(operation)
        if missing := sorted(needed - given):
            yield Problem(operation.place, f"{operation.id} without {', '.join(missing)}")
        if extra := sorted(given - needed - optional):
            yield Problem(operation.place, f"{operation.id} with {', '.join(extra)}")
        if lists := _lists(operation):
            yield Problem(operation.place, f"{operation.id} with lists for {', '.join(lists)}")


def _lists(operation: Operation) -> list[str]:
    """Return arguments that are lists where Fiji takes single numbers."""
    kwargs: Mapping[str, Any] = operation.kwargs
    if operation.id == "scale_linear":
        given = {name: isinstance(kwargs.get(name), list) for name in ("gain", "offset")}
        has_axes = bool(_given(operation) & {"axes", "axis"})
        mixed = len(set(given.values())) > 1
        return [name for name, is_list in given.items() if is_list and (mixed or not has_axes)]
    names = _SCALARS.get(operation.id, ())
    return [name for name in names if isinstance(kwargs.get(name), list)]


@rule(
    "FIJI041",
    Severity.ERROR,
    demand="There are only steps that Fiji knows.",
    reason="Fiji stops with an IllegalArgumentException; softmax, custom steps and statistics of "
    "another tensor exist in Python only.",
    remedy=_REMEDY,
)
def _unknown(subject: Subject) -> Iterator[Problem]:
    for _, operation in _steps(subject):
        if operation.id not in _ALLOWED:
            yield Problem(operation.place, f"{operation.id or 'a step without a name'}")


@rule(
    "FIJI042",
    Severity.WARNING,
    demand="The model does not rely on ensure_dtype.",
    reason="Fiji ignores ensure_dtype; steps that work in place turn integer images into zeros.",
    remedy=_REMEDY,
)
def _dtype(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.inputs:
        if (tensor.dtype or "float32").startswith("float"):
            continue
        for operation in tensor.operations:
            if operation.id in ("ensure_dtype", *_IN_PLACE):
                message = f"{operation.id} on an input of type {tensor.dtype}"
                yield Problem(operation.place, message)


@rule(
    "FIJI043",
    Severity.WARNING,
    demand="Fiji and Python compute the same.",
    reason="Fiji does not interpolate between the values of percentiles, and normalizes several "
    "channels wrongly, so that its results differ from those in Python.",
    remedy=_REMEDY,
)
def _differences(subject: Subject) -> Iterator[Problem]:
    for tensor, operation in _steps(subject):
        if operation.id == "scale_range" and _given(operation) & {
            "min_percentile",
            "max_percentile",
        }:
            yield Problem(operation.place, "scale_range with percentiles")
        if _is_per_channel(tensor, operation):
            yield Problem(operation.place, f"{operation.id} on {tensor.channels} channels")


def _is_per_channel(tensor: Tensor, operation: Operation) -> bool:
    """Whether each of several channels gets a mean and a variance of its own."""
    axes = operation.kwargs.get("axes")
    if operation.id != "zero_mean_unit_variance" or axes is None or (tensor.channels or 1) == 1:
        return False
    return "c" not in axes and "channel" not in axes if isinstance(axes, (str, list)) else False


RULES = (_arguments, _unknown, _dtype, _differences)
