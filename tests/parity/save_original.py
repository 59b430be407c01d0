"""Save members and an ensemble as the original package does, and what it makes of an image.

Executed by the interpreter of an environment of its own, which has the original but not df2serve.
Weights are random, logits stretched so that probabilities are not all alike.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from deepflash2.inference import InferenceEnsemble
from deepflash2.models import create_smp_model, load_smp_model, save_smp_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds image.npy of float32, axes (Y, X, C)")
    parser.add_argument("--network", type=json.loads, help="JSON: arguments of create_smp_model")
    parser.add_argument("--settings", type=json.loads, help="JSON: arguments of InferenceEnsemble")
    parser.add_argument("--members", type=int)
    arguments = parser.parse_args()

    folder, settings = arguments.folder, arguments.settings
    image = torch.from_numpy(np.load(folder / "image.npy"))
    stats = {
        "channel_means": np.array(settings["channel_means"]),
        "channel_stds": np.array(settings["channel_stds"]),
        "max_tiles_per_image": np.int64(3),
    }
    paths = [folder / f"member-fold{fold}.pth" for fold in range(1, arguments.members + 1)]
    for fold, path in enumerate(paths):
        torch.manual_seed(fold)
        network = create_smp_model(**arguments.network)
        network.segmentation_head[0].weight.data *= 40
        arch = arguments.network["arch"]
        save_smp_model(network, arch, path, stats=stats)
    # from here on as EnsembleLearner.get_inference_ensemble and .save_inference_ensemble
    models = [load_smp_model(path)[0] for path in paths]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ensemble = InferenceEnsemble(models, **settings)
        torch.jit.script(ensemble).save(folder / "ensemble.pt")
    with torch.inference_mode():
        argmax, softmax, stdeviation = torch.jit.load(folder / "ensemble.pt")(image)
    np.savez(
        folder / "recorded.npz",
        image=image.numpy(),
        argmax=argmax.numpy(),
        softmax=softmax.numpy(),
        stdeviation=stdeviation.numpy(),
    )


if __name__ == "__main__":
    main()
