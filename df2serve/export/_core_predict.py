"""Predictions of bioimageio.core, in a process without network.

``python -m df2serve.export._core_predict REQUEST ANSWER`` reads and writes JSON files, and writes
the outputs as NPY files beside the answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from df2serve.export.checks._core_run import forbid_network

if TYPE_CHECKING:
    from bioimageio.core import PredictionPipeline, Tensor
    from bioimageio.spec.model.v0_5 import ModelDescr

STACKS = ("channel", "index")
"""Kinds of axes that may hold an image's channels, the better one first."""

_LARGEST_BLOCK = 2048
"""Rows and columns that the model sees at once, where its description leaves them open."""


def main() -> None:
    """Predict the images that the request names, one entry of the answer for each."""
    from bioimageio.core import create_prediction_pipeline
    from bioimageio.spec import load_model_description

    request, answer = Path(sys.argv[1]), Path(sys.argv[2])
    asked = json.loads(request.read_text(encoding="utf-8"))
    sys.addaudithook(forbid_network)
    model = load_model_description(asked["rdf"], format_version="latest", perform_io_checks=False)
    with create_prediction_pipeline(model, weights_format=asked["weights"]) as pipeline:
        outputs = [
            _predict(pipeline, model, np.load(path), answer.with_name(f"output-{index}"))
            for index, path in enumerate(asked["images"])
        ]
    answer.write_text(json.dumps(outputs), encoding="utf-8")


def _predict(
    pipeline: PredictionPipeline, model: ModelDescr, image: NDArray[Any], prefix: Path
) -> list[dict[str, str]]:
    """Predict an image, axes (C, Y, X), and return identifiers, axes and files of the outputs."""
    from bioimageio.core import Sample

    (described,) = model.inputs
    height, width = image.shape[1:]
    shape = _allowed(model, "y", height), _allowed(model, "x", width)
    margins = ((0, 0), (0, shape[0] - height), (0, shape[1] - width))
    tensor = _tensor(np.pad(image, margins, mode="symmetric"), described.axes)
    sample = Sample(members={described.id: tensor}, stat={}, id=prefix.name)
    blocks = _blocks(model, shape)
    if blocks is None:
        result = pipeline.predict_sample_without_blocking(sample)
    else:
        result = pipeline.predict_sample_with_blocking(sample, ns=blocks)
    found = []
    for index, (name, output) in enumerate(result.members.items()):
        file = prefix.with_name(f"{prefix.name}-{index}.npy")
        data = output.to_numpy()
        for axis, whole, kept in zip("yx", shape, (height, width), strict=True):
            if axis in output.dims:
                position = output.dims.index(axis)
                length = round(data.shape[position] * kept / whole)
                data = data.take(range(length), axis=position)
        np.save(file, data)
        found.append({"id": str(name), "axes": " ".join(map(str, output.dims)), "file": file.name})
    return found


def _tensor(image: NDArray[Any], axes: Sequence[Any]) -> Tensor:
    """Return an image, axes (C, Y, X), with the model's axes in the model's order."""
    from bioimageio.core import Tensor

    stack = next((axis.id for kind in STACKS for axis in axes if axis.type == kind), None)
    names = [axis.id for axis in axes]
    planes = image if stack else image[0]
    stored = [name for name in (stack, "y", "x") if name]
    ordered = planes.transpose([stored.index(name) for name in names if name in stored])
    missing = tuple(index for index, name in enumerate(names) if name not in stored)
    return Tensor.from_numpy(np.expand_dims(ordered, missing), dims=names)


def _allowed(model: ModelDescr, axis: str, size: int) -> int:
    """Return the smallest size of an image that the model allows and that is not below ``size``."""
    match _size(model, axis):
        case int(fixed):
            return max(size, fixed)
        case None:
            return size
        case open_size:
            steps = max(0, ceil((size - open_size.min) / open_size.step))
            return int(open_size.min + steps * open_size.step)


def _blocks(model: ModelDescr, shape: tuple[int, int]) -> dict[Any, int] | None:
    """Return the size of blocks in steps beyond the minimum; None if the image needs none."""
    (tensor,) = model.inputs
    blocks, needed = {}, False
    for axis, size in zip("yx", shape, strict=True):
        match _size(model, axis):
            case int(fixed):
                needed |= size > fixed
            case None:
                pass
            case open_size:
                needed |= size > _LARGEST_BLOCK
                most = max(0, min(size, _LARGEST_BLOCK) - open_size.min)
                blocks[tensor.id, next(a.id for a in tensor.axes if a.id == axis)] = int(
                    most // open_size.step
                )
    return blocks if needed else None


def _size(model: ModelDescr, name: str) -> Any:
    """Return a number, a size with ``min`` and ``step``, or None if it depends on other tensors."""
    from bioimageio.spec.model.v0_5 import ParameterizedSize

    (tensor,) = model.inputs
    size = next(axis.size for axis in tensor.axes if axis.id == name)
    return size if isinstance(size, (int, ParameterizedSize)) else None


if __name__ == "__main__":
    main()
