"""Exports that deviate are refused, and leave nothing behind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from df2serve.artifact import Ensemble, GoldenTensors, with_files
from df2serve.errors import IntegrityError, OutputError, ParityError
from df2serve.export import ExportSettings, export_ensemble
from df2serve.export.parity import Case, Deviation, Reference, measure
from df2serve.export.system import open_source


@pytest.fixture(scope="session")
def cases(two_classes: Ensemble) -> list[Case]:
    with Reference(open_source(two_classes, ExportSettings(), None)) as reference:
        return reference.cases(whole=False)


def perfect(cases: list[Case], change: Callable[[np.ndarray], None] | None = None) -> Deviation:
    """Give back what is expected, possibly changed."""
    answers = {
        case.images.tobytes(): np.stack(
            [
                np.concatenate([one.probs, one.total[None], one.mask[None]]).astype(np.float32)
                for one in case.expected
            ]
        )
        for case in cases
    }
    if change is not None:
        for answer in answers.values():
            change(answer)
    return measure(lambda images: [answers[images.tobytes()]], cases, "fiji")


def test_equal_maps_deviate_by_nothing(cases: list[Case]) -> None:
    deviation = perfect(cases)
    assert deviation.largest == 0
    assert (deviation.mask_pixels, deviation.undecided_pixels) == (0, 0)
    assert {size[:1] for size in deviation.sizes} == {(1,), (2,)}
    assert all(rows % 2 for _, rows, _ in deviation.sizes[1:])
    deviation.require(1e-5, "the file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda maps: maps[:, 0].__iadd__(2e-5), "probs 2.0.*e-05.*at most 1e-05"),
        (lambda maps: maps[:, 2].__imul__(1.1), "uncertainty 0.[01]"),
        (lambda maps: maps[:, 1].fill(np.nan), "probs inf"),
        (lambda maps: maps[:, 3].__isub__(1), "mask_pixels [1-9]"),
    ],
    ids=["probs", "uncertainty", "nan", "mask"],
)
def test_deviations_are_refused_with_numbers(
    cases: list[Case], change: Callable[[np.ndarray], None], words: str
) -> None:
    with pytest.raises(ParityError, match=words):
        perfect(cases, change).require(1e-5, "the file")


def test_changed_golden_tensors_are_refused(
    make_ensemble: Callable[..., Ensemble], tmp_path: Path
) -> None:
    ensemble = make_ensemble()
    golden = ensemble.golden()
    wrong = GoldenTensors(image=golden.image, probs=golden.probs + 1e-3, total=golden.total)
    changed = with_files(ensemble, wrong.to_files())
    with pytest.raises(ParityError, match=r"golden tensors by 0.001"):
        export_ensemble(changed, tmp_path / "file.onnx", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_damaged_weights_are_refused(
    make_ensemble: Callable[..., Ensemble], tmp_path: Path
) -> None:
    ensemble = make_ensemble()
    weights = ensemble.source / "members/fold-0/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    target = tmp_path / "file.onnx"
    with pytest.raises(IntegrityError, match="was changed"):
        export_ensemble(ensemble, target, "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_graph_that_computes_something_else_is_refused(
    make_ensemble: Callable[..., Ensemble], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the exporter had a bug: the graph is made of other weights than the ensemble's."""
    from df2serve.export import exporting

    def opened(*arguments: object) -> object:
        source = open_source(*arguments)
        next(source.networks[0].parameters()).data.mul_(1.5)
        return source

    monkeypatch.setattr(exporting, "open_source", opened)
    target = tmp_path / "file.pt"
    with pytest.raises(ParityError, match=r"TorchScript file deviates .*nothing was written"):
        export_ensemble(make_ensemble(), target, "torchscript")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_existing_target_is_kept(two_classes: Ensemble, tmp_path: Path) -> None:
    target = tmp_path / "file.onnx"
    target.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_ensemble(two_classes, target, "onnx")
    assert target.read_text() == "mine"
