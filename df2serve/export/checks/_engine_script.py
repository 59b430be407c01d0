"""Run a model in whichever engine this interpreter has: ``python _engine_script.py REQUEST``.

It runs in environments of its own with old interpreters, so that it needs NumPy and an engine only.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Write one file of float32 values and one shape per output."""
    request = json.loads(Path(sys.argv[1]).read_text())
    home = Path(sys.argv[1]).parent
    run = (
        _torch(request["model"]) if request["format"] == "torchscript" else _onnx(request["model"])
    )
    shapes = []
    for number, shape in enumerate(request["shapes"]):
        image = np.fromfile(str(home / f"input-{number}.bin"), np.float32).reshape(shape)
        outputs = run(image)
        shapes.append([list(output.shape) for output in outputs])
        for index, output in enumerate(outputs):
            output.astype(np.float32).tofile(str(home / f"output-{number}-{index}.bin"))
    (home / "answer.json").write_text(json.dumps(shapes))


def _onnx(path: str) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})


def _torch(path: str) -> Any:
    import torch

    load: Any = torch.jit.load
    module = load(path, map_location="cpu").eval()

    def run(image: Any) -> Any:
        with torch.no_grad():
            result = module(torch.from_numpy(image))
        results = result if isinstance(result, (list, tuple)) else [result]
        return [item.numpy() for item in results]

    return run


if __name__ == "__main__":
    main()
