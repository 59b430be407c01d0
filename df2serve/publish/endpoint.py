"""An ensemble behind an Inference Endpoint of Hugging Face.

The platform imports ``handler.py`` of a repository, gives ``EndpointHandler`` the folder of the
repository, and calls it with the body of each request.
"""

from __future__ import annotations

import base64
import binascii
import io
from importlib.resources import files
from threading import Lock
from typing import Any, ClassVar, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from pydantic import ValidationError

from df2serve._version import __version__
from df2serve.artifact import Ensemble
from df2serve.config import Frozen, describe_validation_error
from df2serve.errors import ConfigError, DecodeError
from df2serve.inference import Prediction, Predictor
from df2serve.io import Selection, read_image_isolated

__all__ = ["ENDPOINT_FILES", "EndpointHandler", "EndpointParameters", "endpoint_files"]

ENDPOINT_FILES = ("handler.py", "requirements.txt")
"""Files that make a repository deployable."""

MapName = Literal["mask", "total", "epistemic", "probs"]


def endpoint_files() -> dict[str, bytes]:
    """Return the contents of the files that make a repository deployable, by name."""
    handler = files("df2serve.publish").joinpath("templates", "handler.py").read_bytes()
    requirements = f"df2serve[publish]=={__version__}\n".encode()
    return dict(zip(ENDPOINT_FILES, (handler, requirements), strict=True))


class EndpointParameters(Frozen):
    """The ``parameters`` of a request."""

    title: ClassVar[str] = "parameters"
    axes: str | None = None
    """Letters of the image's axes in order, where the file does not state them, as ``YXC``."""
    t: int | None = None
    z: int | None = None
    channels: tuple[int, ...] | None = None
    """Channels to take, in the order of the ensemble's; all of them when absent."""
    maps: tuple[MapName, ...] = ("mask", "total")
    """What is returned as TIFF."""


class EndpointHandler:
    """The ensemble in a repository, loaded once and called for every request."""

    def __init__(self, path: str = "") -> None:
        """Load the ensemble.

        Args:
            path: folder of the repository.

        Raises:
            ArtifactError: there is no usable ensemble.
        """
        self._predictor = Predictor(path or ".").__enter__()
        self._turn = Lock()

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Answer a request.

        Args:
            data: ``inputs``, the file of a TIFF, NPY, PNG or other image in base64; and optional
                ``parameters``, see :class:`EndpointParameters`.

        Returns:
            ``maps``, TIFF files in base64 by name, axes (Y, X), of ``probs`` (K, Y, X); ``scores``,
            with null for what is undefined; ``needs_review``, null without a threshold; ``classes``
            and ``ensemble``.

        Raises:
            InputError: the request or the image in it cannot be used.
        """
        parameters = _parameters(data.get("parameters") or {})
        image = read_image_isolated(
            _decoded(data.get("inputs")),
            axes=parameters.axes,
            selection=Selection(t=parameters.t, z=parameters.z, channels=parameters.channels),
        )
        with self._turn:
            prediction = self._predictor.predict(image)
        ensemble = self._predictor.ensemble
        return {
            "maps": {name: _tiff(getattr(prediction, name)) for name in parameters.maps},
            "scores": _scores(prediction),
            "needs_review": _needs_review(ensemble, prediction.scores.u),
            "classes": [item.name for item in ensemble.manifest.classes],
            "ensemble": {"id": ensemble.manifest.id, "sha256": ensemble.sha256},
        }


def _parameters(given: object) -> EndpointParameters:
    try:
        return EndpointParameters.model_validate(given)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(EndpointParameters.title, error)) from error


def _decoded(inputs: object) -> bytes:
    if not isinstance(inputs, str):
        message = (
            f"got inputs of type {type(inputs).__name__}; expected an image file in base64, in a "
            "body of JSON. Bodies of type image/* would arrive with 8 bits and 3 channels"
        )
        raise DecodeError(message)
    try:
        return base64.b64decode(inputs, validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"inputs is not base64: {error}"
        raise DecodeError(message) from error


def _needs_review(ensemble: Ensemble, u: float | None) -> bool | None:
    threshold = ensemble.calibration.threshold("u")
    return None if threshold is None or u is None else u >= threshold.value


def _tiff(values: NDArray[np.generic]) -> str:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", compression="zlib")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _scores(prediction: Prediction) -> dict[str, Any]:
    scores = prediction.scores
    return {
        "u": scores.u,
        "u_epistemic": scores.u_epistemic,
        "one_minus_expected_dice": scores.one_minus_expected_dice,
        "class_fractions": list(scores.class_fractions),
        "empty_prediction": scores.empty_prediction,
    }
