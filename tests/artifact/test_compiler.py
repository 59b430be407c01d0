"""Networks are imported and loaded without PyTorch's compiler, and nothing of it is lost."""

import subprocess
import sys

from df2serve.artifact.network import dump_network
from df2serve.testing import tiny_network

BEFORE = "import sys\nimport df2serve.artifact.network as network\n"


def outcome(tmp_path, code):
    """Run code in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BEFORE + code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_that_loading_needs_no_compiler(tmp_path) -> None:
    config, weights = dump_network(tiny_network(0, channels=1, classes=2))
    (tmp_path / "config").write_bytes(config)
    (tmp_path / "weights").write_bytes(weights)
    code = """
import torch
from pathlib import Path
one = network.load_network(Path("config").read_bytes(), Path("weights").read_bytes())
one(torch.zeros(1, 1, 64, 64))
print("torch._dynamo" in sys.modules)
"""
    assert outcome(tmp_path, code) == "False"


def test_functions_that_asked_for_the_compiler(tmp_path) -> None:
    """Torchvision asks whether there is one; timm excludes an iterator from compilation."""
    code = """
import torch
from timm.models.naflexvit import NaFlexRopeIterator
from torchvision.ops.roi_align import is_compile_supported
empty = NaFlexRopeIterator.__new__(NaFlexRopeIterator)
empty.depth = empty._depth_idx = 0
double = torch.compile(lambda x: 2 * x, backend="eager")
print(list(empty), is_compile_supported("meta"), double(torch.ones(1)).item())
"""
    assert outcome(tmp_path, code) == "[] False 2.0"


def test_names_that_have_no_stand_in(tmp_path) -> None:
    code = """
from df2serve.artifact._compiler import compiler_deferred
names = ("torch._dynamo", "torch._dynamo.utils")
with compiler_deferred():
    stood = [type(sys.modules[name]).__name__ for name in names]
    from torch._dynamo.utils import same
    import torch._dynamo.config
print(*stood, same.__module__, type(sys.modules["torch._dynamo"]).__name__)
"""
    assert outcome(tmp_path, code) == "_StandIn _StandIn torch._dynamo.utils module"
