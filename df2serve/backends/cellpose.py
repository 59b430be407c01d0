"""Networks of cellpose that divide predicted classes into objects, as in the paper.

The network is given the probability of a class in place of an image; its flows lead the pixels of
the class to the middles of their objects. Weights are files that are there already.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32
from packaging.version import Version

from df2serve.backends.torch import choose_device
from df2serve.config import CellposeConfig
from df2serve.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    SourceNotFoundError,
    UnsafeArtifactError,
)
from df2serve.types import AnyLabels, PixelMap

__all__ = ["Cellpose", "divide_by_flows"]

_STEPS = 200
_INSTALL = "pip install 'df2serve[cellpose]'"


class Cellpose:
    """A network of cellpose 3 or 4."""

    def __init__(
        self,
        weights: str | Path,
        *,
        diameter: float | None = None,
        flow_threshold: float = 0.4,
        device: str = "auto",
    ) -> None:
        """Load weights; nothing is ever downloaded.

        Args:
            weights: file of weights that the installed cellpose can use, as cellpose saves it.
            diameter: of the objects in pixels; without it, images are not rescaled.
            flow_threshold: largest error of an object's flows; 0 = any.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

        Raises:
            SourceNotFoundError: there is no such file.
            BackendUnavailableError: cellpose is not installed, too old, or without the device.
            UnsafeArtifactError: the file asks for more than tensors.
            ArtifactError: it holds no network for the installed cellpose.
        """
        path = Path(weights).resolve()
        if not path.is_file():
            message = (
                f"{weights} is no file of cellpose weights; nothing is downloaded, so get weights "
                "for the installed cellpose yourself, and give the path of the file"
            )
            raise SourceNotFoundError(message)
        self._major, number = _installed()
        self._device = choose_device(device)
        _check_weights(path, self._major, number)
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        self.config = CellposeConfig(
            version=number,
            weights=path.name,
            weights_sha256=sha256,
            diameter=diameter,
            flow_threshold=flow_threshold,
        )
        """What is recorded of the network, for :class:`df2serve.config.InstanceConfig`."""
        from cellpose.models import CellposeModel

        try:
            self._model: Any = CellposeModel(pretrained_model=str(path), device=self._device)
        except Exception as error:
            message = f"cellpose {number} cannot load {path.name}: {error}"
            raise ArtifactError(message) from error

    def flows(self, probability: PixelMap) -> Float32[np.ndarray, "axis y x"]:
        """Return where the pixels of a class are led.

        Args:
            probability: of the class, axes (Y, X).

        Returns:
            Steps along Y and X, axes (2, Y, X).
        """
        extra = {"channels": [0, 0]} if self._major == 3 else {}
        try:
            flows: Float32[np.ndarray, "axis y x"] = self._model.eval(
                probability,
                normalize=False,
                augment=True,
                resample=True,
                diameter=self.config.diameter or self._own_diameter(),
                compute_masks=False,
                **extra,
            )[1][1]
        except Exception as error:
            message = f"cellpose {self.config.version} failed: {error}"
            raise BackendError(message) from error
        return flows.reshape(2, *probability.shape)

    def divide(self, probability: PixelMap, inside: Bool[np.ndarray, "y x"]) -> AnyLabels:
        """Return the objects of a class.

        Args:
            probability: of the class, axes (Y, X).
            inside: where it is predicted, axes (Y, X).
        """
        if not inside.any():
            return np.zeros(inside.shape, np.int32)
        return divide_by_flows(
            self.flows(probability),
            inside,
            flow_threshold=self.config.flow_threshold,
            device=str(self._device),
        )

    def _own_diameter(self) -> float | None:
        """Return the diameter at which the network sees images as they are."""
        return float(self._model.diam_mean) if self._major == 3 else None


def divide_by_flows(
    flows: Float32[np.ndarray, "axis y x"],
    inside: Bool[np.ndarray, "y x"],
    *,
    flow_threshold: float = 0.4,
    device: str = "cpu",
) -> AnyLabels:
    """Return what cellpose makes of flows and a mask in place of its own foreground.

    Pixels take 200 steps; objects of any size are kept, and their holes filled.

    Args:
        flows: steps along Y and X, axes (2, Y, X).
        inside: the mask, axes (Y, X).
        flow_threshold: largest error of an object's flows; 0 = any.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Returns:
        Objects, axes (Y, X), 0 = none.

    Source:
        Griebel et al. 2023, "Instance segmentation"; Stringer et al. 2021, "Cellpose".
    """
    _installed()
    from cellpose import dynamics, utils

    objects = dynamics.compute_masks(
        flows,
        np.where(inside, 1.0, -1.0).astype(np.float32),
        niter=_STEPS,
        flow_threshold=flow_threshold,
        min_size=-1,
        max_size_fraction=1.0,
        device=choose_device(device),
    )
    filled: AnyLabels = utils.fill_holes_and_remove_small_masks(objects, min_size=-1)
    return filled


def _installed() -> tuple[int, str]:
    """Return the major version of cellpose, and its version."""
    try:
        number = version("cellpose")
    except PackageNotFoundError as error:
        message = f"the method cellpose needs the package cellpose: {_INSTALL}"
        raise BackendUnavailableError(message) from error
    major = Version(number).major
    if major not in {3, 4}:
        message = f"got cellpose {number}, expected 3 or 4: {_INSTALL}"
        raise BackendUnavailableError(message)
    return major, number


def _check_weights(path: Path, major: int, number: str) -> None:
    """Refuse what is no network of this cellpose before cellpose sees it."""
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = (
            f"{path.name} asks for more than tensors, and nothing of it was run; get weights from "
            "where cellpose publishes them"
        )
        raise UnsafeArtifactError(message) from error
    except Exception as error:
        message = f"{path.name} cannot be read as weights of cellpose: {error}"
        raise ArtifactError(message) from error
    names = {str(name).removeprefix("module.") for name in state} if isinstance(state, dict) else ()
    if "output.2.weight" not in names and "W2" not in names:
        message = f"{path.name} holds no network of cellpose"
        raise ArtifactError(message)
    found = 4 if "W2" in names else 3
    if found != major:
        message = (
            f"{path.name} is a network of cellpose {found}, and cellpose {number} is installed; "
            f"pip install 'cellpose=={found}.*', or give weights of cellpose {major}"
        )
        raise ArtifactError(message)
