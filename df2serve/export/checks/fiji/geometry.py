"""Rules on tensors, axes and sizes: what Fiji can cut into tiles and put together again."""

from __future__ import annotations

import math
from collections.abc import Iterator

from df2serve.export.checks.fiji.rule import Problem, Subject, rule
from df2serve.export.checks.report import Severity
from df2serve.export.checks.tensors import (
    Axis,
    DataDependent,
    Fixed,
    Parametrized,
    Reference,
    Tensor,
)

__all__ = ["RULES"]

_KINDS = ("batch", "channel", "index", "space", "time")
_ORDERS = ("bcyx", "bczyx")
_TILE_LIMIT = 3 * 4096**2
"""Elements of an input tile from which on Fiji's tiling never ends."""
_OUTPUT_LIMIT = 2**31
"""Bytes of an output that a Java array cannot hold."""
_SENSIBLE_PATCH = 64
_SMALLEST_SHARE = 3
"""Images smaller than this part of a fixed size cannot be mirrored to it."""


@rule(
    "FIJI010",
    Severity.ERROR,
    demand="The model has exactly one input.",
    reason="DeepImageJ and the Zoo's tests run models with one input image.",
    remedy="Merge the inputs into channels, or make the others constants of the model.",
)
def _one_input(subject: Subject) -> Iterator[Problem]:
    if len(subject.inputs) != 1:
        yield Problem("inputs", f"got {len(subject.inputs)}, expected 1")


@rule(
    "FIJI011",
    Severity.WARNING,
    demand="The model has exactly one output.",
    reason="ilastik takes one output, and the Zoo's test with DeepImageJ compares the last only.",
    remedy="Write the maps as channels of one output.",
)
def _one_output(subject: Subject) -> Iterator[Problem]:
    if len(subject.outputs) != 1:
        yield Problem("outputs", f"got {len(subject.outputs)}, expected 1")


@rule(
    "FIJI012",
    Severity.ERROR,
    demand="Every axis has a type; axes of space and time have an id of one letter.",
    reason="Fiji keeps the order of axes as a string with one letter per axis.",
    remedy="Write every type, and x, y, z or t as ids.",
)
def _axis_names(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.tensors:
        if not tensor.axes:
            yield Problem(f"{tensor.place}.axes", "no axes")
    for axis in subject.axes(subject.tensors):
        if axis.kind not in _KINDS:
            yield Problem(f"{axis.place}.type", f"got {axis.kind!r}, expected {', '.join(_KINDS)}")
        elif axis.kind in {"space", "time"} and len(axis.id or "") != 1:
            yield Problem(f"{axis.place}.id", f"got {axis.id!r}, expected one letter")


@rule(
    "FIJI013",
    Severity.ERROR,
    demand="Every channel axis has channel_names.",
    reason="Fiji counts the channels by them and stops with a NullPointerException.",
    remedy="Write one name per channel.",
)
def _channel_names(subject: Subject) -> Iterator[Problem]:
    for axis in subject.axes(() if subject.is_old else subject.tensors):
        if axis.kind == "channel" and not axis.channel_names:
            yield Problem(f"{axis.place}.channel_names", "missing or empty")


@rule(
    "FIJI014",
    Severity.ERROR,
    demand="Axes are batch, channel, (z,) y, x, in this order, on inputs and outputs.",
    reason="BiaPy and ilastik accept no other order, and bioimageio.core drops outputs without a "
    "channel axis when it predicts in blocks.",
    remedy="Transpose in the model, and give every tensor a channel axis.",
)
def _order(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.tensors:
        if tensor.axes and tensor.order not in _ORDERS and not _is_no_map(tensor):
            yield Problem(f"{tensor.place}.axes", f"got {tensor.order}, expected bcyx or bczyx")


@rule(
    "FIJI015",
    Severity.ERROR,
    demand="Variable sizes have a step of at least 1 that divides the minimum.",
    reason="Fiji refuses every tile ('Invalid tile size').",
    remedy="Write 'min: 256, step: 1' and let the model pad inside.",
)
def _steps(subject: Subject) -> Iterator[Problem]:
    for axis in subject.axes(subject.inputs):
        match axis.size:
            case Parametrized(step=step) if step < 1:
                yield Problem(f"{axis.place}.size.step", f"got {step}, expected at least 1")
            case Parametrized(min=least, step=step) if least % step:
                yield Problem(f"{axis.place}.size.min", f"{least} is no multiple of step {step}")


@rule(
    "FIJI016",
    Severity.NOTE,
    demand="Users know the largest image.",
    reason="With a variable size and a larger image Fiji's tiling never ends, or the output does "
    "not fit into a Java array.",
    remedy="State the limit in the README, or offer a fixed size for larger images.",
)
def _largest_image(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.inputs[:1]:
        if any(isinstance(axis.size, Parametrized) for axis in tensor.spatial()):
            side = _largest_side(tensor, subject.outputs)
            yield Problem(f"{tensor.place}.axes", f"up to about {side} x {side} pixels in Fiji")


def _largest_side(tensor: Tensor, outputs: tuple[Tensor, ...]) -> int:
    """Return the largest square image, in pixels."""
    halo = max((axis.halo for output in outputs for axis in output.spatial()), default=0)
    channels = max(tensor.channels or 1, 1)
    side = math.isqrt(_TILE_LIMIT // channels) - 2 * halo
    written = max((output.channels or 1 for output in outputs), default=1)
    return max(min(side, math.isqrt((_OUTPUT_LIMIT - 1) // (4 * max(written, 1)))), 0)


@rule(
    "FIJI017",
    Severity.NOTE,
    demand="Users know the smallest image.",
    reason="Fiji mirrors small images up to a fixed size, which fails below a third of it.",
    remedy="State the limit in the README, or make the size variable.",
)
def _smallest_image(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.inputs:
        for axis in tensor.spatial():
            if isinstance(axis.size, Fixed):
                least = -(-axis.size.size // _SMALLEST_SHARE)
                yield Problem(f"{axis.place}.size", f"images need at least {least} pixels here")


@rule(
    "FIJI018",
    Severity.ERROR,
    demand="Spatial axes have neither a scale other than 1 nor a unit; output sizes refer to one "
    "input without an offset.",
    reason="Fiji computes wrong sizes of tiles and outputs.",
    remedy="Remove scale, unit and offset; state the pixel size in the documentation.",
)
def _scales(subject: Subject) -> Iterator[Problem]:
    for axis in subject.axes(subject.tensors):
        if axis.kind == "space" and axis.scale != 1:
            yield Problem(f"{axis.place}.scale", f"got {axis.scale:g}, expected none or 1")
        if axis.kind == "space" and axis.unit is not None:
            yield Problem(f"{axis.place}.unit", f"got {axis.unit:.40}, expected none")
    for tensor in subject.outputs:
        yield from _references(tensor)


def _references(tensor: Tensor) -> Iterator[Problem]:
    sizes = [(axis, axis.size) for axis in tensor.axes if isinstance(axis.size, Reference)]
    for axis, size in sizes:
        if size.offset:
            yield Problem(f"{axis.place}.size.offset", f"got {size.offset:g}, expected none")
        if size.scale != 1:
            yield Problem(f"{axis.place}.size.scale", f"got {size.scale:g}, expected 1")
    named = sorted({size.tensor for _, size in sizes})
    if len(named) > 1:
        yield Problem(f"{tensor.place}.axes", f"sizes refer to several tensors: {', '.join(named)}")


@rule(
    "FIJI019",
    Severity.ERROR,
    demand="Every input is an image, and every output an image or numbers: no lists, no sizes that "
    "depend on the data.",
    reason="Index axes and data-dependent sizes are not supported.",
    remedy="Leave them out, and compute them from the maps, for example by a macro.",
)
def _maps(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.tensors:
        numbers = tensor in subject.outputs and _is_numbers(tensor)
        if tensor.axes and _is_no_map(tensor) and not numbers:
            yield Problem(f"{tensor.place}.axes", f"axes {tensor.order} are not those of an image")


@rule(
    "FIJI067",
    Severity.WARNING,
    demand="No output is a number per image.",
    reason="Of numbers per tile Fiji and bioimageio.core keep those of the last tile.",
    remedy="Leave them out for Fiji, and compute them from the maps, for example by a macro.",
)
def _numbers(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.outputs:
        if _is_numbers(tensor):
            yield Problem(f"{tensor.place}.axes", f"axes {tensor.order}: right for one tile only")


def _is_numbers(tensor: Tensor) -> bool:
    return bool(tensor.axes) and all(axis.kind in {"batch", "channel"} for axis in tensor.axes)


def _is_no_map(tensor: Tensor) -> bool:
    depends = any(isinstance(axis.size, DataDependent) for axis in tensor.axes)
    return depends or len(tensor.spatial()) < 2 or any(axis.kind == "index" for axis in tensor.axes)


@rule(
    "FIJI020",
    Severity.WARNING,
    demand="y and x of outputs have a halo.",
    reason="ilastik and bioimageio.core cut tiles and crop the halo; without one, seams show.",
    remedy="Write 'halo: 32', or as much as an output pixel sees of the input on each side.",
)
def _halo(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.outputs:
        for axis in tensor.spatial():
            if axis.id in {"x", "y"} and axis.halo < 1 and not _is_no_map(tensor):
                yield Problem(f"{axis.place}.halo", "none")


@rule(
    "FIJI021",
    Severity.WARNING,
    demand="The minimum of a variable size is a sensible tile: at least 64, and larger than both "
    "halos.",
    reason="BiaPy takes the minimum for the size of its tiles.",
    remedy="Write 'min: 256, step: 1'.",
)
def _minimum(subject: Subject) -> Iterator[Problem]:
    halo = max((axis.halo for axis in subject.axes(subject.outputs)), default=0)
    for tensor in subject.inputs:
        for axis in tensor.spatial():
            match axis:
                case Axis(size=Parametrized(min=least)) if axis.id in {"x", "y"}:
                    needed = max(_SENSIBLE_PATCH, 2 * halo + 1)
                    if least < needed:
                        place = f"{axis.place}.size.min"
                        yield Problem(place, f"got {least}, expected at least {needed}")


@rule(
    "FIJI022",
    Severity.WARNING,
    demand="The input takes images of any size.",
    reason="A fixed size is often only that of the test image; other images are cut or refused.",
    remedy="Write 'min: 256, step: 1', unless the model really takes one size only.",
)
def _frozen(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.inputs:
        fixed = [axis for axis in tensor.spatial() if isinstance(axis.size, Fixed)]
        if fixed and len(fixed) == len(tensor.spatial()):
            yield Problem(f"{tensor.place}.axes", "every spatial axis has one fixed size")


@rule(
    "FIJI023",
    Severity.WARNING,
    demand="A variable size has step 1.",
    reason="With larger steps and a halo Fiji cuts almost equal, overlapping tiles: up to four "
    "times the work.",
    remedy="Pad to the next multiple inside the model and write 'step: 1'.",
)
def _coarse_steps(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.inputs:
        for axis in tensor.spatial():
            if isinstance(axis.size, Parametrized) and axis.size.step > 1:
                yield Problem(f"{axis.place}.size.step", f"got {axis.size.step}, expected 1")


RULES = (
    _one_input,
    _one_output,
    _axis_names,
    _channel_names,
    _order,
    _steps,
    _largest_image,
    _smallest_image,
    _scales,
    _maps,
    _numbers,
    _halo,
    _minimum,
    _frozen,
    _coarse_steps,
)
