"""Weights in the engines of Fiji, in environments of their own."""

from pathlib import Path

import numpy as np
import pytest

from df2serve.config import CheckLimits
from df2serve.export.checks.engines import (
    ENGINES,
    Engine,
    EngineUnavailableError,
    Recipe,
    _build_first,
    _compare,
    _other_images,
    run_engines,
)
from df2serve.export.checks.fiji import Subject
from df2serve.export.checks.package import open_package
from df2serve.export.checks.report import Run, Status


def run(path: Path, engines: tuple[Engine, ...], cache: Path) -> tuple[Run, ...]:
    with open_package(path, CheckLimits()) as (package, _):
        assert package is not None
        return run_engines(Subject(package), engines, cache)


def test_an_environment_that_cannot_be_made_is_told(good: Path, tmp_path: Path) -> None:
    recipes = (
        Recipe("ancient 1.0", ("onnxruntime==0.0.1",), "2.1"),
        Recipe("unknown 2.0", ("onnxruntime==0.0.1",), "1.0"),
    )
    (result,) = run(good, (Engine("onnx", recipes),), tmp_path)
    assert result.name == "onnx in ancient 1.0"
    assert result.status is Status.SKIPPED
    assert result.detail == (
        "ancient 1.0: there is no Python 2.1; unknown 2.0: there is no Python 1.0"
    )
    with pytest.raises(EngineUnavailableError, match=r"no Python 2\.1"):
        _build_first(recipes, tmp_path)


def test_differences_are_measured() -> None:
    image = [np.zeros((1, 1, 4, 4), np.float32)]
    expected = [[np.full((1, 1, 4, 4), 0.5, np.float32)]]
    near = [[expected[0][0] + np.float32(1e-5)]]
    far = [[expected[0][0] + np.float32(1e-3)]]
    nothing = [[np.full((1, 1, 4, 4), np.nan, np.float32)]]
    small = [[np.zeros((1, 1, 2, 2), np.float32)]]
    assert _compare("x", image, expected, near).status is Status.PASSED
    assert "1.0e-05 on 1x1x4x4" in _compare("x", image, expected, near).detail
    assert "16 values differ" in _compare("x", image, expected, far).detail
    assert _compare("x", image, expected, nothing).status is Status.FAILED
    assert "shape (1, 1, 2, 2)" in _compare("x", image, expected, small).detail


def test_another_size_shows_what_the_test_image_shows(good: Path) -> None:
    with open_package(good, CheckLimits()) as (package, _):
        assert package is not None
        (tensor,) = Subject(package).inputs
    test = np.zeros((1, 1, 64, 64), np.float32)
    test[..., 10:30, 5:9] = 7
    (image,) = _other_images(tensor, test)
    assert image.shape == (2, 1, 67, 74)
    np.testing.assert_array_equal(image[:1, :, :64, :64], test)
    np.testing.assert_array_equal(image[1], image[0, :, ::-1, ::-1])
    assert list(_other_images(tensor, test[0])) == []


@pytest.mark.slow
def test_the_engines_of_fiji(good: Path, engine_cache: Path) -> None:
    runs = run(good, ENGINES, engine_cache)
    assert {item.name.split()[0] for item in runs} == {"onnx", "torchscript"}
    unavailable = [f"{item.name}: {item.detail}" for item in runs if item.status is Status.SKIPPED]
    assert [item for item in runs if item.status is Status.FAILED] == []
    assert all("and 2x1x67x74" in item.detail for item in runs if item.status is Status.PASSED)
    if unavailable:
        pytest.skip("; ".join(unavailable))
