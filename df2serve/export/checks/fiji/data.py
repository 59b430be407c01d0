"""Rules on element types and on the tensors that come with the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from df2serve.export.checks.fiji.rule import Problem, Subject, rule
from df2serve.export.checks.report import Severity
from df2serve.export.checks.tensors import Axis, Fixed, Parametrized, Tensor

__all__ = ["RULES", "read_tensor"]

_DTYPES = frozenset(
    {"float32", "float64", "int16", "int32", "int64", "int8", "uint16", "uint32", "uint8"}
)
_FLAT = 1e-4
"""Test outputs within this distance of zero are rejected."""
_MARGIN = 1e-4
"""Least distance of the two most probable classes for an argmax that no engine turns over."""


def read_tensor(path: Path) -> NDArray[Any] | str:
    """Return a tensor without loading its values, or why it cannot be read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, MemoryError) as error:
        return f"no NumPy array: {' '.join(str(error).split()):.120}"
    return array if isinstance(array, np.ndarray) else "not a single NumPy array (.npy)"


def _tests(subject: Subject, tensors: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, NDArray[Any]]]:
    """Yield test tensors that can be read and are not too large to look at."""
    for tensor in tensors:
        path = subject.package.find(tensor.test)
        array = read_tensor(path) if path else None
        if (
            isinstance(array, np.ndarray)
            and array.dtype.kind in "bfiu"
            and array.nbytes <= subject.package.limits.max_tensor_bytes
        ):
            yield tensor, array


@rule(
    "FIJI030",
    Severity.ERROR,
    demand="Outputs have a type that Java knows: 8, 16 or 32 bit integers, int64, or 32 or 64 bit "
    "floats.",
    reason="Fiji stops with 'Unsupported data type' on bool, float16 and uint64.",
    remedy="Convert to float32 at the end of the model.",
)
def _output_types(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.outputs:
        if tensor.dtype is not None and tensor.dtype not in _DTYPES:
            yield Problem(f"{tensor.place}.data.type", f"got {tensor.dtype:.40}")


@rule(
    "FIJI031",
    Severity.WARNING,
    demand="All inputs and outputs are float32.",
    reason="Fiji always feeds float32, and reads uint8 as signed numbers.",
    remedy="Take and return float32; masks as well.",
)
def _float32(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.tensors:
        if tensor.dtype not in {None, "float32"}:
            yield Problem(f"{tensor.place}.data.type", f"got {tensor.dtype:.40}, expected float32")


@rule(
    "FIJI032",
    Severity.ERROR,
    demand="Every tensor has a test tensor: a .npy file of the shape that the axes state.",
    reason="Fiji's test run and all tests of the Zoo start from it.",
    remedy="Save the tensors of one image with numpy.save and name them in test_tensor.",
)
def _test_tensors(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.tensors:
        path = subject.package.find(tensor.test)
        array = read_tensor(path) if path else "missing, or not inside the package"
        if isinstance(array, str):
            yield Problem(tensor.test_place, array)
        elif not _fits(tensor, array):
            message = f"got shape {array.shape}, which the {len(tensor.axes)} axes do not allow"
            yield Problem(tensor.test_place, message)


def _fits(tensor: Tensor, array: NDArray[Any]) -> bool:
    return array.ndim == len(tensor.axes) and all(
        _allows(axis, size) for axis, size in zip(tensor.axes, array.shape, strict=True)
    )


def _allows(axis: Axis, size: int) -> bool:
    if axis.kind == "channel" and axis.channel_names is not None:
        return size == len(axis.channel_names)
    match axis.size:
        case Fixed(size=fixed):
            return size == fixed
        case Parametrized(min=least, step=step):
            return size >= least and (size - least) % max(step, 1) == 0
    return True


@rule(
    "FIJI033",
    Severity.ERROR,
    demand="There is no sample_tensor, or it is a TIFF file with the pixels of the test tensor.",
    reason="The Zoo's test with DeepImageJ runs on the sample and compares with the test output.",
    remedy="Leave sample_tensor out.",
)
def _samples(subject: Subject) -> Iterator[Problem]:
    for tensor in subject.inputs:
        if tensor.sample is None:
            continue
        path, test = subject.package.find(tensor.sample), subject.package.find(tensor.test)
        if path is None or test is None:
            yield Problem(f"{tensor.place}.sample_tensor", "missing, or without a test tensor")
        elif path.suffix.lower() not in {".tif", ".tiff"}:
            yield Problem(f"{tensor.place}.sample_tensor", f"{path.name} is no TIFF file")
        elif message := _difference(path, test):
            yield Problem(f"{tensor.place}.sample_tensor", message)


def _difference(sample: Path, test: Path) -> str | None:
    """Return how the pixels of a TIFF file differ from a tensor."""
    from df2serve.errors import InputError
    from df2serve.io import read_image_isolated

    try:
        image = np.asarray(read_image_isolated(sample).data)
    except InputError as error:
        return f"cannot be read: {error}"
    tensor = read_tensor(test)
    if isinstance(tensor, str) or not np.array_equal(np.squeeze(image), np.squeeze(tensor)):
        return "has other pixels than the test tensor"
    return None


@rule(
    "FIJI034",
    Severity.ERROR,
    demand=f"Every test output has a value beyond {_FLAT:g} from zero.",
    reason="The validation rejects empty outputs, because they prove nothing.",
    remedy="Choose a test image with foreground.",
)
def _not_empty(subject: Subject) -> Iterator[Problem]:
    for tensor, array in _tests(subject, subject.outputs):
        if array.size and float(np.abs(array.astype(np.float64)).max()) <= _FLAT:
            yield Problem(tensor.test_place, "all values are about zero")


@rule(
    "FIJI035",
    Severity.WARNING,
    demand=f"No pixel of the test output is closer than {_MARGIN:g} to a tie of two classes.",
    reason="The Zoo's test with DeepImageJ allows no pixel of a mask to differ, and engines differ "
    "in the last digits.",
    remedy="Choose another crop for the test image.",
)
def _ties(subject: Subject) -> Iterator[Problem]:
    for tensor, array in _tests(subject, subject.outputs):
        for position, axis in enumerate(tensor.axes):
            names = axis.channel_names or ()
            classes = [index for index, name in enumerate(names) if name.startswith("p_")]
            if len(classes) < 2 or array.ndim != len(tensor.axes):
                continue
            if array.shape[position] != len(names):
                continue
            probs = np.sort(np.take(array, classes, axis=position), axis=position)
            margin = np.take(probs, -1, axis=position) - np.take(probs, -2, axis=position)
            if close := int((margin < _MARGIN).sum()):
                yield Problem(tensor.test_place, f"{close} pixels are close to a tie")


RULES = (
    _output_types,
    _float32,
    _test_tensors,
    _samples,
    _not_empty,
    _ties,
)
