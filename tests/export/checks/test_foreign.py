"""Packages of others run as they describe themselves, and nothing else of them runs."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from df2serve.config import CheckLimits
from df2serve.errors import BackendError, ConfigError, ImageMismatchError, IntegrityError
from df2serve.export.foreign import open_foreign

Fields = dict[str, Any]
Variant = Callable[[Callable[[Fields, Path], object]], Path]


def maps_of(package: Path, image: np.ndarray) -> np.ndarray:
    """What the package's convolution makes of an image that it sees as a whole."""
    state = torch.load(package / "weights.pt", weights_only=True)
    tiles = torch.from_numpy(image).float()[None]
    p = torch.sigmoid(torch.nn.functional.conv2d(tiles, *state.values(), padding=1))
    return torch.cat([1 - p, p, 4 * p * (1 - p)], dim=1).numpy()


@pytest.mark.parametrize("weights", ["onnx", pytest.param("torchscript", marks=pytest.mark.slow)])
def test_images_of_several_sizes(good: Path, weights: str) -> None:
    """Also of fewer pixels than the description allows."""
    rng = np.random.default_rng(0)
    images = [rng.random((1, *shape)) for shape in ((80, 70), (64, 100), (20, 33))]
    with open_foreign(good, weights=weights) as package:
        results = package.predict(images)
    for image, outputs in zip(images, results, strict=True):
        (maps,) = outputs
        assert (maps.id, maps.axes) == ("maps", "bcyx")
        # away from the rim, where core pads by reflection and the convolution by zeros
        inner = np.s_[:, :, 1:-1, 1:-1]
        np.testing.assert_allclose(maps.data[inner], maps_of(good, image)[inner], atol=1e-6)
        assert maps.data.shape == (1, 3, *image.shape[1:])


@pytest.mark.slow
def test_code_runs_by_its_hash_only(variant: Variant) -> None:
    def keep_state_dict(fields: Fields, folder: Path) -> None:
        fields["weights"] = {"pytorch_state_dict": fields["weights"]["pytorch_state_dict"]}

    folder = variant(keep_state_dict)
    with pytest.raises(ConfigError, match="needs code that is not trusted"), open_foreign(folder):
        pass
    digest = hashlib.sha256((folder / "arch.py").read_bytes()).hexdigest()
    image = np.zeros((1, 64, 64))
    with open_foreign(folder, trust=[digest]) as package:
        assert package.weights == "pytorch_state_dict"
        ((maps,),) = package.predict([image])
    np.testing.assert_allclose(maps.data, maps_of(folder, image), atol=1e-6)


def test_what_cannot_run(good: Path, variant: Variant, tmp_path: Path) -> None:
    with open_foreign(good) as package, pytest.raises(ImageMismatchError, match="with 1 channels"):
        package.predict([np.zeros((3, 64, 64))])
    with pytest.raises(ConfigError, match="got weights keras; the package has"):  # noqa: SIM117
        with open_foreign(good, weights="keras"):
            pass
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match=r"no\.zip"), open_foreign(tmp_path / "no.zip"):
        pass

    def two_inputs(fields: Fields, folder: Path) -> None:
        fields["inputs"].append(fields["inputs"][0] | {"id": "second"})

    with pytest.raises(ConfigError, match="2 inputs"), open_foreign(variant(two_inputs)):
        pass


def test_volumes_are_refused(variant: Variant) -> None:
    def deeper(fields: Fields, folder: Path) -> None:
        fields["inputs"][0]["axes"].insert(2, {"type": "space", "id": "z", "size": 8})

    with pytest.raises(ConfigError, match="bczyx"), open_foreign(variant(deeper)):
        pass


def test_a_model_that_takes_too_long(good: Path) -> None:
    with (
        open_foreign(good, limits=CheckLimits(max_seconds=0.1)) as package,
        pytest.raises(BackendError, match=r"A sketch|did not run: stopped after 0\.1 s"),
    ):
        package.predict([np.zeros((1, 64, 64))])


@pytest.mark.slow
def test_verb(df2serve: Any, good: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 80), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "cells.tif", image)
    result = df2serve("run", good, tmp_path / "cells.tif", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert "cells.tif" in result.out
    maps = tifffile.imread(tmp_path / "out/cells.tif.maps.tif")
    expected = maps_of(good, image[None])[0]
    np.testing.assert_allclose(maps[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-6)
    again = df2serve("run", good, tmp_path / "cells.tif", "-o", tmp_path / "out")
    assert again.code == 2
    assert "out" in again.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "axes"), [("brightfield_nuclei", "bcyx"), ("fluorescence_nuclei_and_cells", "biyx")]
)
def test_instanseg(instanseg: Path, model: str, axes: str) -> None:
    """Its own test tensors come out, by scaled percentiles and without its code."""
    folder = instanseg / model / "0.1.1"
    with open_foreign(folder) as package:
        assert package.inputs[0].order == axes
        ((labels,),) = package.predict([np.load(folder / "test-input.npy")[0]])
    expected = np.load(folder / "test-output_instance_segmentation.npy")
    assert labels.id == "instance_segmentation"
    assert (labels.data == expected).mean() > 0.999
    assert labels.data.max() == expected.max() > 10
