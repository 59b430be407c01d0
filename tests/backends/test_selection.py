"""Devices, providers and precisions: chosen, forced, refused, always reported."""

import subprocess
import sys

import pytest
import torch

from df2serve.artifact import Ensemble
from df2serve.backends import open_members
from df2serve.backends.torch import choose_device, choose_precision
from df2serve.config import RuntimeConfig
from df2serve.errors import BackendUnavailableError, ConfigError
from df2serve.testing.ensembles import random_ensemble

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    target = tmp_path_factory.mktemp("ensembles") / "tiny"
    return random_ensemble(target, members=2, channels=1, classes=2, tile=64)


def opened(ensemble: Ensemble, tile: int = 64, precision: str = "fp32", **runtime: str):
    return open_members(
        ensemble,
        runtime=RuntimeConfig(**runtime),
        precision=precision,
        tile_shape=(tile, tile),
    )


@pytest.mark.parametrize("backend", ["auto", "torch", "onnx"])
def test_every_member_reports_where_it_runs(ensemble: Ensemble, backend: str) -> None:
    with opened(ensemble, backend=backend, device="cpu") as members:
        assert len(members) == 2
        for member in members:
            engine = "onnxruntime" if backend == "onnx" else "torch"
            assert member.info.backend.startswith(engine)
            assert member.info.device == "cpu"
            assert member.info.precision == "fp32"


@without_cuda
@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_missing_device_is_an_error_not_a_fallback(
    ensemble: Ensemble, backend: str, device: str
) -> None:
    with (
        pytest.raises(BackendUnavailableError, match=f"{device}'.*choose 'cpu' or 'auto'"),
        opened(ensemble, backend=backend, device=device),
    ):
        pass


@without_cuda
def test_automatic_choice_without_accelerator_is_the_processor() -> None:
    assert choose_device("auto").type in {"cpu", "mps"}


def test_onnx_refuses_reduced_precision(ensemble: Ensemble) -> None:
    with (
        pytest.raises(BackendUnavailableError, match="fp32, got precision 'bf16'"),
        opened(ensemble, backend="onnx", precision="bf16"),
    ):
        pass


def test_automatic_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert choose_precision(cpu, "auto") == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose_precision(cpu, "auto") == "fp32"
    assert choose_precision(cpu, "fp16") == "fp16"


def test_tile_that_the_network_cannot_take_is_refused(ensemble: Ensemble) -> None:
    with (
        pytest.raises(ConfigError, match="72x72 pixels, this network needs multiples of"),
        opened(ensemble, tile=72),
    ):
        pass


@pytest.mark.slow
def test_processor_out_of_memory_is_our_error() -> None:
    """In a process with an address space that holds the network but not the batch."""
    script = """
import resource, numpy as np, torch
from df2serve.backends.torch import TorchMemberRunner
from df2serve.errors import OutOfMemoryError
from df2serve.testing.ensembles import tiny_network
runner = TorchMemberRunner(tiny_network(0, channels=1, classes=2), device="cpu", precision="fp32")
small = np.zeros((1, 1, 64, 64), dtype=np.float32)
runner.run(small)
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + (200 << 20), resource.RLIM_INFINITY))
try:
    runner.run(np.zeros((16, 1, 512, 512), dtype=np.float32))
except OutOfMemoryError as error:
    assert runner.run(small).shape == (1, 2, 64, 64)
    print("ours:", error)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("address-space limits are set the Linux way")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "ours: the memory is full" in done.stdout, done.stderr


@pytest.mark.parametrize(("given", "threads"), [("1", 1), ("3", 3), ("4,2", 0), (None, 0)])
def test_threads_of_onnx_are_those_of_the_environment(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch, given: str | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    with opened(ensemble, backend="onnx", device="cpu") as members:
        options = members[0]._session.get_session_options()
        assert options.intra_op_num_threads == threads
