"""TorchScript files."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch

from df2serve.artifact import Ensemble
from df2serve.errors import BackendUnavailableError, ExportError
from df2serve.export import ExportSettings
from df2serve.export.parity import Maps, Reference
from df2serve.export.system import open_source
from df2serve.export.torchscript import EXTRA_FILE, module_runner, torchscript_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


def export(ensemble: Ensemble, **settings: object) -> bytes:
    source = open_source(ensemble, ExportSettings(**settings), None)
    with Reference(source) as reference:
        return torchscript_bytes(source, reference.cases(whole=False), {"name": "x"})[0]


@pytest.fixture(scope="session")
def archive(two_classes: Ensemble) -> bytes:
    return export(two_classes, variant="full")


def test_any_size_and_batch(archive: bytes, two_classes: Ensemble, odd_images: list) -> None:
    """Against the engine with overlapping tiles, at other sizes than the export's own."""
    run = module_runner(torch.jit.load(io.BytesIO(archive)))
    with Reference(open_source(two_classes, ExportSettings(), None)) as reference:
        for image in odd_images:
            maps = Maps.of_outputs(run(np.stack([image, image[:, ::-1]])), "full", classes=2)
            for index, seen in enumerate((image, image[:, ::-1])):
                expected = reference.predict(seen, whole=False)
                np.testing.assert_allclose(maps.probs[index], expected.probs, atol=1e-5)
                np.testing.assert_allclose(maps.total[index], expected.total, atol=1e-5)
                np.testing.assert_allclose(maps.epistemic[index], expected.epistemic, atol=1e-5)
                assert maps.score[index] == pytest.approx(expected.scores.u, abs=1e-5)
                close = np.abs(expected.probs[1] - 0.5) < 1e-4
                assert np.array_equal(maps.mask[index][~close], expected.mask[~close])


def test_file_states_its_deviation(archive: bytes) -> None:
    extra = {EXTRA_FILE: ""}
    torch.jit.load(io.BytesIO(archive), _extra_files=extra)
    stated = json.loads(extra[EXTRA_FILE])
    assert stated["name"] == "x"
    assert 0 < stated["deviation"] <= 1e-5


def test_nothing_of_newer_torch_is_compiled_in(archive: bytes) -> None:
    """Scripted interpolation would bring operators that torch 2.0 does not know."""
    with zipfile.ZipFile(io.BytesIO(archive)) as content:
        code = b"".join(content.read(name) for name in content.namelist() if name.endswith(".py"))
    assert b"torch.upsample_nearest2d" in code
    assert b"lanczos" not in code
    assert b"torch.nn.functional" not in code


def test_half_precision_is_refused(two_classes: Ensemble) -> None:
    with pytest.raises(ExportError, match="hold float32, got precision 'fp16'"):
        export(two_classes, precision="fp16")


def test_torch_without_torchscript_is_told(
    two_classes: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.jit, "trace")
    source = open_source(two_classes, ExportSettings(), None)
    with pytest.raises(BackendUnavailableError, match="no TorchScript any more"):
        torchscript_bytes(source, [], {})
