"""Members in ONNX Runtime, on processors and CUDA devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import onnxruntime as ort

from df2serve.backends.runner import RunnerInfo, mixture_of_views
from df2serve.core.augment import View
from df2serve.core.mixture import Mixture
from df2serve.errors import BackendError, BackendUnavailableError, OutOfMemoryError
from df2serve.types import TileBatch, TileProbs

__all__ = ["OnnxMemberRunner"]

_PREFERRED_PIXELS = {"cpu": 1 << 17, "cuda": 1 << 22}


class OnnxMemberRunner:
    """An ONNX graph from normalised tiles to class probabilities, in float32."""

    def __init__(self, graph: bytes, *, device: str, distance: bool = False) -> None:
        """Load a graph.

        Args:
            graph: the serialised ONNX model; see :func:`df2serve.backends.onnx_graph`.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            distance: whether the last map that the graph gives is the distance.

        Raises:
            BackendUnavailableError: ONNX Runtime cannot use the device, or falls back to another.
            BackendError: the graph cannot be loaded.
        """
        provider, options = _provider(device)
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        # as PyTorch does; 0 leaves the number to ONNX Runtime
        threads = os.environ.get("OMP_NUM_THREADS", "")
        settings.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
        try:
            session = ort.InferenceSession(
                graph, settings, providers=[provider], provider_options=[options]
            )
        except Exception as error:
            message = f"ONNX Runtime cannot load the member on {device!r}: {error}"
            raise BackendError(message) from error
        session.disable_fallback()
        engaged = session.get_providers()
        if engaged[0] != provider:
            message = f"asked ONNX Runtime for {provider}, it runs on {engaged[0]} instead"
            raise BackendUnavailableError(message)
        kind = "cuda" if options else "cpu"
        self._session: Any = session
        self._distance = distance
        self._info = RunnerInfo(
            backend=f"onnxruntime {ort.__version__}",
            device=f"cuda:{options['device_id']}" if options else "cpu",
            precision="fp32",
            preferred_pixels=_PREFERRED_PIXELS[kind],
        )

    @property
    def info(self) -> RunnerInfo:
        """Where and how it runs."""
        return self._info

    def run(self, tiles: TileBatch, /) -> TileProbs:
        """Return class probabilities; see :class:`~df2serve.backends.MemberRunner`."""
        if self._session is None:
            message = "the member was closed; open the ensemble again"
            raise BackendError(message)
        try:
            (probs,) = self._session.run(None, {"tiles": np.ascontiguousarray(tiles)})
        except Exception as error:
            if "alloc" in str(error).lower():
                message = f"the device's memory is full: {error}"
                raise OutOfMemoryError(message) from error
            raise
        return cast("TileProbs", probs)

    def run_views(self, tiles: TileBatch, views: Sequence[View], /) -> Mixture:
        """Return the mixture over views; see :class:`~df2serve.backends.MemberRunner`."""
        return mixture_of_views(self.run, tiles, views, distance=self._distance)

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the runner."""
        self.close()


def _provider(device: str) -> tuple[str, dict[str, str]]:
    """Return provider and options of a device name."""
    available = ort.get_available_providers()
    usable = "CUDAExecutionProvider" in available and _cuda_devices() > 0
    if device == "cpu" or (device == "auto" and not usable):
        return "CPUExecutionProvider", {}
    name, _, index = device.partition(":")
    if name not in {"auto", "cuda"} or not usable or int(index or 0) >= _cuda_devices():
        message = (
            f"ONNX Runtime cannot use device {device!r} here; its providers are "
            f"{', '.join(available)}, CUDA devices: {_cuda_devices()}; choose 'cpu' or 'auto'"
        )
        raise BackendUnavailableError(message)
    return "CUDAExecutionProvider", {"device_id": index or "0"}


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count()
