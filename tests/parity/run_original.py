"""Run the original package's engine, unmodified, on one image and save what it returns.

Executed by the interpreter of an environment of its own, which has the original but not df2serve.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from deepflash2.inference import InferenceEnsemble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path, help=".npy of float32, axes (Y, X, C)")
    parser.add_argument("output", type=Path, help=".npz to write")
    parser.add_argument("members", type=Path, nargs="+", help="TorchScript files")
    parser.add_argument("--settings", type=json.loads, help="JSON: the engine's other arguments")
    arguments = parser.parse_args()

    members = [torch.jit.load(path) for path in arguments.members]
    engine = InferenceEnsemble(members, **arguments.settings)
    with torch.inference_mode():
        argmax, softmax, stdeviation = engine(torch.from_numpy(np.load(arguments.image)))
    np.savez(
        arguments.output,
        argmax=argmax.numpy(),
        softmax=softmax.numpy(),
        stdeviation=stdeviation.numpy(),
    )


if __name__ == "__main__":
    main()
