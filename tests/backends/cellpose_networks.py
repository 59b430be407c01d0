"""Compares the cellpose step with cellpose itself; run with any version of cellpose.

Prints what it found as JSON. Sockets are closed all the while. The network of cellpose 3 is a
trained one; that of cellpose 4 is its architecture, made small and left untrained.
"""

import json
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from df2serve.backends.cellpose import Cellpose, divide_by_flows

ROOT = Path(__file__).parents[2]


def close_sockets() -> None:
    """Let nothing be asked of a network from here on."""

    def refuse(*_: object, **__: object) -> None:
        message = "no network"
        raise RuntimeError(message)

    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, refuse)
    socket.getaddrinfo = socket.create_connection = refuse


def touching_disks(seed: int) -> np.ndarray:
    """Return labels of disks that touch and overlap."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((120, 150))
    labels = np.zeros(rows.shape, np.uint16)
    for number in range(1, 25):
        row, column, radius = rng.uniform((0, 0, 5), (120, 150, 14))
        labels[np.hypot(rows - row, columns - column) < radius] = number
    return labels


def compare_dynamics(seed: int) -> int:
    """Return the number of objects, which are those of cellpose."""
    from cellpose import dynamics

    truth = touching_disks(seed)
    [flows] = dynamics.labels_to_flows([truth], device=torch.device("cpu"))
    noise = np.random.default_rng(seed).normal(0, 0.3, (2, *truth.shape))
    field = (5 * (flows[2:4] + noise)).astype(np.float32)
    own = dynamics.resize_and_compute_masks(
        field,
        np.where(truth > 0, 1, -1).astype(np.float32),
        min_size=-1,
        max_size_fraction=1.0,
        device=torch.device("cpu"),
    )
    assert np.array_equal(divide_by_flows(field, truth > 0), own)
    return int(own.max())


def compare_networks(weights: Path, probability: np.ndarray) -> dict[str, object]:
    """Compare a network with the whole of cellpose, which takes its own foreground then."""
    from cellpose import utils
    from cellpose.models import CellposeModel

    network = Cellpose(weights, diameter=20, device="cpu")
    model = CellposeModel(pretrained_model=str(weights), device=torch.device("cpu"))
    extra = {"channels": [0, 0]} if network.config.version.startswith("3") else {}
    own, (_, flows, foreground, *_), _ = model.eval(
        probability,
        diameter=20,
        niter=200,
        normalize=False,
        augment=True,
        min_size=-1,
        max_size_fraction=1.0,
        flow_threshold=0.4,
        **extra,
    )
    inside = foreground > 0
    assert np.allclose(network.flows(probability), flows, atol=1e-5)
    ours = utils.fill_holes_and_remove_small_masks(network.divide(probability, inside), min_size=-1)
    assert np.array_equal(ours, own)
    return {"objects": int(own.max()), "inside": int(inside.sum())} | network.config.model_dump()


if __name__ == "__main__":
    close_sockets()
    found = {"dynamics": [compare_dynamics(seed) for seed in range(5)]}
    disks = ndimage.gaussian_filter((touching_disks(0) > 0).astype(np.float32), 1.5)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "network"
        torch.manual_seed(0)
        if sys.argv[1] == "3":
            sys.path.insert(0, str(ROOT / "benchmarks"))
            from _cyto import write_cyto

            write_cyto(ROOT / ".venv/foreign/cyto/cellpose/models/cyto_0", weights)
        else:
            from cellpose.vit import CPSAM
            from segment_anything import sam_model_registry
            from segment_anything.build_sam import _build_sam

            # the architecture of cellpose 4, made small
            sam_model_registry["vit_l"] = partial(_build_sam, 32, 2, 2, [1])
            torch.save(CPSAM(dtype=torch.float32).state_dict(), weights)
        found["network"] = compare_networks(weights, disks)
    sys.stdout.write(json.dumps(found))
