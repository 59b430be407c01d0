"""A small package that every rule accepts, and the means to break it."""

import copy
import hashlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as PillowImage

Change = Callable[[dict[str, Any], Path], object]
Variant = Callable[[Change], Path]

SIZE, HALO = 64, 16
CHANNELS = ("p_background", "p_foreground", "uncertainty")
ARCHITECTURE = """
import torch


class Network(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        p = torch.sigmoid(self.conv(x))
        return torch.cat([1 - p, p, 4 * p * (1 - p)], dim=1)
"""
README = """# A sketch

## Description
One convolution.

## Intended Use
Tests.

## Validation
None.

## Citation
None.
"""


def write_onnx(path: Path, weight: np.ndarray, bias: np.ndarray) -> None:
    """The network as a graph, written node by node."""
    constants = {"w": weight, "b": bias, "one": np.float32(1), "four": np.float32(4)}
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["logit"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["logit"], ["p"]),
        helper.make_node("Sub", ["one", "p"], ["q"]),
        helper.make_node("Mul", ["p", "q"], ["pq"]),
        helper.make_node("Mul", ["four", "pq"], ["u"]),
        helper.make_node("Concat", ["q", "p", "u"], ["maps"], axis=1),
    ]
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "sketch",
        [helper.make_tensor_value_info("input", float32, ["b", 1, "y", "x"])],
        [helper.make_tensor_value_info("maps", float32, ["b", len(CHANNELS), "y", "x"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def trace(path: Path, network: torch.nn.Module, example: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and what Fiji needs
        torch.jit.trace(network, example).save(str(path))


def file(folder: Path, name: str, **fields: Any) -> dict[str, Any]:
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return {"source": name, "sha256": digest, **fields}


def space(axis: str, size: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "space", "id": axis, "size": size, **fields}


def describe(folder: Path) -> dict[str, Any]:
    """The fields of rdf.yaml."""
    variable, people = {"min": SIZE, "step": 1}, [{"name": "A B"}]
    inputs = {
        "id": "input",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": ["raw"]},
            space("y", dict(variable)),
            space("x", dict(variable)),
        ],
        "test_tensor": file(folder, "test_input.npy"),
        "data": {"type": "float32"},
    }
    outputs = {
        "id": "maps",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": list(CHANNELS)},
            space("y", {"tensor_id": "input", "axis_id": "y"}, halo=HALO),
            space("x", {"tensor_id": "input", "axis_id": "x"}, halo=HALO),
        ],
        "test_tensor": file(folder, "test_output.npy"),
        "data": {"type": "float32"},
    }
    architecture = file(folder, "arch.py", callable="Network", kwargs={"classes": 2})
    parent = {"parent": "pytorch_state_dict"}
    return {
        "type": "model",
        "format_version": "0.5.10",
        "id": "brave-otter",
        "name": "a sketch of a model",
        "description": "One convolution",
        "documentation": "README.md",
        "covers": ["cover.png"],
        "license": "MIT",
        "authors": people,
        "maintainers": [{"name": "A B", "github_user": "githubuser2"}],
        "cite": [{"text": "A paper", "doi": "10.1038/s41467-023-36960-9"}],
        "tags": ["2d", "semantic-segmentation", "pytorch", "nuclei", "unet"],
        "inputs": [inputs],
        "outputs": [outputs],
        "weights": {
            "pytorch_state_dict": file(
                folder, "weights.pt", architecture=architecture, pytorch_version="2.6.0"
            ),
            "torchscript": file(folder, "script.pt", pytorch_version="2.0.0", **parent),
            "onnx": file(folder, "weights.onnx", opset_version=17, **parent),
        },
    }


def write(folder: Path, fields: dict[str, Any]) -> None:
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    (folder / "rdf.yaml").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that every rule accepts, as a folder."""
    folder = tmp_path_factory.mktemp("good") / "package"
    folder.mkdir()
    names: dict[str, Any] = {}
    exec(ARCHITECTURE, names)
    torch.manual_seed(0)
    network = names["Network"](classes=2).eval()
    torch.nn.init.constant_(network.conv.bias, 1.5)  # no pixel is close to a tie
    torch.save(network.state_dict(), folder / "weights.pt")
    image = torch.rand(1, 1, SIZE, SIZE)
    trace(folder / "script.pt", network, image)
    weight, bias = (network.state_dict()[name].numpy() for name in ("conv.weight", "conv.bias"))
    write_onnx(folder / "weights.onnx", weight, bias)
    with torch.no_grad():
        np.save(folder / "test_output.npy", network(image).numpy())
    np.save(folder / "test_input.npy", image.numpy())
    (folder / "arch.py").write_text(ARCHITECTURE)
    (folder / "README.md").write_text(README)
    PillowImage.new("RGB", (64, 32)).save(folder / "cover.png")
    write(folder, describe(folder))
    return folder


@pytest.fixture
def variant(good: Path, tmp_path: Path) -> Variant:
    """Copy the good package, change its files or its description, and write it."""

    def make(change: Change) -> Path:
        folder = tmp_path / "variant"
        shutil.copytree(good, folder)
        fields = copy.deepcopy(yaml.safe_load((folder / "rdf.yaml").read_text()))
        change(fields, folder)
        if (folder / "rdf.yaml").exists():
            write(folder, fields)
        return folder

    return make


@pytest.fixture(scope="session")
def instanseg() -> Path:
    """Packages of InstanSeg, as their authors ship them."""
    folder = Path(sys.prefix) / "foreign/instanseg/bioimageio_models"
    if not folder.is_dir():
        pytest.skip("packages of InstanSeg not found; 'make foreign' fetches them")
    return folder


@pytest.fixture(scope="session")
def engine_cache() -> Path:
    """Environments of engines, kept from run to run."""
    cache = Path(os.environ.get("DF2SERVE_CACHE", Path.home() / ".cache" / "df2serve"))
    return cache / "engines"
