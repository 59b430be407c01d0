"""The network that cellpose 0.0.1.6 carries for MXNet, as a file for cellpose 3."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["write_cyto"]

_LIST, _ARRAY = 0x112, 0xF993FAC9
_DIAMETER = 27 * 2 / math.sqrt(math.pi)
"""Of the disk that has the area of the objects it was trained on, in pixels; the package gives the
root of this area."""
_MODULES = (
    (r"\.down\.(\d)", r".down.res_down_\1"),
    (r"\.up\.(\d)", r".up.res_up_\1"),
    (r"\.conv\.(\d)\.", r".conv.conv_\1."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


def write_cyto(source: Path, target: Path) -> None:
    """Write weights of MXNet as cellpose 3 reads them, which has to be the one that is imported.

    Both networks consist of the same layers; only the names of modules differ.

    Args:
        source: ``cellpose/models/cyto_0`` of the package.
        target: the new file.
    """
    from cellpose.resnet_torch import CPnet

    state = {}
    for name, array in _read_mxnet(source).items():
        for pattern, replacement in _MODULES:
            name = re.sub(pattern, replacement, name)
        state[name] = torch.from_numpy(array)
    network = CPnet([2, 32, 64, 128, 256], 3, sz=3, diam_mean=_DIAMETER)
    unset = network.load_state_dict(state, strict=False)
    rest = re.compile(r"diam_(mean|labels)|.*\.num_batches_tracked")
    if unset.unexpected_keys or not all(map(rest.fullmatch, unset.missing_keys)):
        message = f"{source} is another network: {unset}"
        raise ValueError(message)
    torch.save(network.state_dict(), target)


def _read_mxnet(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the arrays of a file of ``Block.save_parameters`` by name."""
    with path.open("rb") as stream:
        magic, _, count = struct.unpack("<3Q", stream.read(24))
        if magic != _LIST:
            message = f"{path} is no list of MXNet's arrays"
            raise ValueError(message)
        arrays = [_read_array(stream) for _ in range(count)]
        (names,) = struct.unpack("<Q", stream.read(8))
        return {_read_name(stream): array for array, _ in zip(arrays, range(names), strict=True)}


def _read_array(stream: BinaryIO) -> NDArray[np.float32]:
    magic, storage, dimensions = struct.unpack("<IiI", stream.read(12))
    shape = struct.unpack(f"<{dimensions}q", stream.read(8 * dimensions))
    _, _, kind = struct.unpack("<3i", stream.read(12))
    if (magic, storage, kind) != (_ARRAY, 0, 0):
        message = f"expected a dense array of float32, got {magic:x}, {storage}, {kind}"
        raise ValueError(message)
    data = stream.read(4 * math.prod(shape))
    return np.frombuffer(data, "<f4").reshape(shape).copy()


def _read_name(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", stream.read(8))
    return stream.read(length).decode()
