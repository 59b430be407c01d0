"""Both backends against plain torch, through the kit that df2serve ships."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from df2serve.backends import MemberRunner
from df2serve.backends._onnx_graph import onnx_graph
from df2serve.backends.onnx import OnnxMemberRunner
from df2serve.backends.torch import TorchMemberRunner
from df2serve.testing import MemberRunnerContract
from df2serve.testing.ensembles import tiny_network


class Reference(MemberRunnerContract):
    """Softmax of the network in eager float32."""

    def network(self) -> torch.nn.Module:
        return tiny_network(7, channels=self.channels, classes=3, distance=self.distance)

    def reference(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = self.network()(torch.from_numpy(tiles)).numpy()
        powers = np.exp(logits[:, :3])
        probs = powers / powers.sum(axis=1, keepdims=True)
        return np.concatenate([probs, 1 / (1 + np.exp(-logits[:, 3:]))], axis=1)


class TestTorchFp32(Reference):
    def create(self) -> MemberRunner:
        return TorchMemberRunner(self.network(), device="cpu", precision="fp32")


class TestTorchBf16(Reference):
    tolerance = 5e-2

    def create(self) -> MemberRunner:
        return TorchMemberRunner(self.network(), device="cpu", precision="bf16")


class TestTorchFp16(Reference):
    tolerance = 5e-3

    def create(self) -> MemberRunner:
        return TorchMemberRunner(self.network(), device="cpu", precision="fp16")


class TestOnnx(Reference):
    def create(self) -> MemberRunner:
        graph = onnx_graph(self.network(), channels=self.channels, side=64)
        return OnnxMemberRunner(graph, device="cpu")


class TestTorchWithDistance(Reference):
    distance = True

    def create(self) -> MemberRunner:
        return TorchMemberRunner(self.network(), device="cpu", precision="fp32", distance=True)


class TestOnnxWithDistance(Reference):
    distance = True

    def create(self) -> MemberRunner:
        graph = onnx_graph(self.network(), channels=self.channels, side=64, distance=True)
        return OnnxMemberRunner(graph, device="cpu", distance=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestTorchCudaFp32(Reference):
    def create(self) -> MemberRunner:
        return TorchMemberRunner(self.network(), device="cuda", precision="fp32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestTorchCudaBf16(Reference):
    tolerance = 5e-2

    def create(self) -> MemberRunner:
        return TorchMemberRunner(self.network(), device="cuda", precision="bf16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnnxCuda(Reference):
    tolerance = 1e-3

    def create(self) -> MemberRunner:
        graph = onnx_graph(self.network(), channels=self.channels, side=64)
        return OnnxMemberRunner(graph, device="cuda")
