"""ONNX files: what they hold, and what ONNX Runtime makes of them."""

import json

import numpy as np
import onnx
import pytest

from df2serve.artifact import Ensemble
from df2serve.config import InferenceConfig
from df2serve.errors import ExportError
from df2serve.export import ExportSettings
from df2serve.export.onnx import onnx_bytes, onnx_runner
from df2serve.export.parity import Reference
from df2serve.export.system import open_source

ONE_VIEW = InferenceConfig(views=1)


def export(ensemble: Ensemble, config: InferenceConfig | None = None, **settings: object) -> bytes:
    source = open_source(ensemble, ExportSettings(**settings), config)
    with Reference(source) as reference:
        content, _ = onnx_bytes(source, reference, {"name": "x"})
    return content


@pytest.fixture(scope="session")
def graph(two_classes: Ensemble) -> bytes:
    return export(two_classes, member=1)


def test_file_is_one_that_fiji_reads(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 8
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 17)]
    assert [item.name for item in model.graph.input] == ["input"]
    assert [item.name for item in model.graph.output] == ["prediction"]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_file_states_its_deviation(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    stated = json.loads({item.key: item.value for item in model.metadata_props}["df2serve"])
    assert stated["name"] == "x"
    assert 0 < stated["deviation"] <= 1e-5


def test_views_share_weights(graph: bytes, two_classes: Ensemble) -> None:
    network = two_classes.load_member(1)
    own = sum(parameter.nbytes for parameter in network.parameters())
    tensors = onnx.load_from_string(graph).graph.initializer
    assert sum(len(tensor.raw_data) for tensor in tensors) < 1.05 * own


def test_any_size_and_batch(graph: bytes, two_classes: Ensemble, odd_images: list) -> None:
    """Against the engine with the whole image as one tile, at other sizes than the export's own."""
    run = onnx_runner(graph)
    with Reference(open_source(two_classes, ExportSettings(member=1), None)) as reference:
        for image in odd_images:
            (maps,) = run(np.stack([image, image[:, ::-1]]))
            for found, seen in zip(maps, (image, image[:, ::-1]), strict=True):
                expected = reference.predict(seen, whole=True)
                assert found.shape == (4, *image.shape[1:])
                np.testing.assert_allclose(found[:2], expected.probs, atol=1e-5)
                np.testing.assert_allclose(found[2], expected.total, atol=1e-5)
                close = np.abs(expected.probs[1] - 0.5) < 1e-4
                assert np.array_equal(found[3][~close], expected.mask[~close])


def test_half_precision_halves_the_file(graph: bytes, two_classes: Ensemble) -> None:
    half = export(two_classes, ONE_VIEW, member=1, precision="fp16", opset="modern")
    model = onnx.load_from_string(half)
    assert model.opset_import[0].version == 20
    assert len(half) < 0.65 * len(graph)
    (exact,), (rounded,) = (
        onnx_runner(content)(np.full((1, 1, 40, 40), 90, np.float32)) for content in (graph, half)
    )
    assert rounded.dtype == np.float32
    assert 0 < np.abs(exact - rounded)[:, :2].max() < 2e-2


def test_more_than_a_file_holds_is_refused(
    two_classes: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("df2serve.export.onnx._LIMIT", 1000)
    with pytest.raises(ExportError, match="2 GiB; export single members"):
        export(two_classes, ONE_VIEW)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fiji", "full"])
def test_several_members_and_classes(four_classes: Ensemble, variant: str) -> None:
    model = onnx.load_from_string(export(four_classes, variant=variant))
    own = sum(
        parameter.nbytes
        for index in range(len(four_classes))
        for parameter in four_classes.load_member(index).parameters()
    )
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert stored < 1.05 * own
    assert len(model.graph.output) == (1 if variant == "fiji" else 4)
