"""The macros of a package in a real ImageJ, on the maps that the package's weights give."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from df2serve.artifact import Ensemble, GoldenTensors, with_files
from df2serve.config import InstanceConfig
from df2serve.core.instances import find_instances, inner_distance, measure_instances
from df2serve.export import Card, export_ensemble
from df2serve.export.card import Person
from df2serve.inference import Prediction, predict
from df2serve.testing import (
    FITTED_SCENE,
    fitted_ensemble,
    generate_cells,
    generate_ood,
    random_ensemble,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]

ImageJ = Callable[[str, Path], str]
PIXEL_UM = 0.5


@dataclass(frozen=True, eq=False)
class Package:
    """A package with what is inside of it."""

    path: Path

    def macro(self, name: str, folder: Path) -> Path:
        """Unpack a macro."""
        with zipfile.ZipFile(self.path) as archive:
            return Path(archive.extract(name, folder))

    def run(self, image: np.ndarray) -> np.ndarray:
        """Return the maps that the TorchScript file gives, axes (C, Y, X)."""
        with zipfile.ZipFile(self.path) as archive:
            module = torch.jit.load(io.BytesIO(archive.read("weights_torchscript.pt")))
        with torch.inference_mode():
            return module(torch.from_numpy(image.astype(np.float32))[None])[0].numpy()


def write_package(ensemble: Ensemble, target: Path) -> Package:
    card = Card(authors=(Person(name="Ada Lovelace"),), license="MIT", description="Cells.")
    formats = ("pytorch_state_dict", "torchscript")
    export_ensemble(ensemble, target, "bioimageio", card=card, formats=formats)
    return Package(target)


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("two")
    ensemble = fitted_ensemble(folder / "cells", members=2, images=4, steps=40)
    return write_package(ensemble, folder / "cells.zip")


@pytest.fixture(scope="module")
def four_classes(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("four")
    bare = random_ensemble(folder / "made", members=3, channels=3, classes=4, tile=64)
    image = np.random.default_rng(0).uniform(0, 150, (3, 64, 64)).astype(np.float32)
    prediction = predict(image, ensemble=bare, axes="CYX")
    golden = GoldenTensors(image=image, probs=prediction.probs, total=prediction.total)
    return write_package(with_files(bare, golden.to_files()), folder / "four.zip")


@dataclass(frozen=True, eq=False)
class Case:
    """An image, our prediction of it, and what ImageJ says of the package's maps."""

    image: np.ndarray
    prediction: Prediction
    printed: dict[str, float]
    objects: pd.DataFrame


@pytest.fixture(scope="module")
def cases(
    two_classes: Package,
    four_classes: Package,
    imagej: ImageJ,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("imagej")
    cells = generate_cells(FITTED_SCENE, seed=1).image
    rng = np.random.default_rng(5)
    images = {
        "ordinary": cells,
        "odd": cells[:, 20:101, 30:127],
        "blurred": generate_ood("blurred", FITTED_SCENE, seed=2).image,
        "empty": generate_ood("empty", FITTED_SCENE, seed=3).image,
        "flat": np.zeros((1, 50, 70), cells.dtype),
        "channels": rng.uniform(0, 150, (3, 81, 97)).astype(np.float32),
    }
    packages = {name: four_classes if name == "channels" else two_classes for name in images}
    script = ""
    for name, image in images.items():
        tifffile.imwrite(
            folder / f"{name}.tif",
            packages[name].run(image),
            imagej=True,
            resolution=(1 / PIXEL_UM, 1 / PIXEL_UM),
            metadata={"axes": "CYX", "unit": "um"},
        )
        macro = packages[name].macro("uncertainty_score.ijm", folder / name)
        script += f"""
            print("image\\t{name}");
            open("{folder / name}.tif");
            runMacro("{macro}");
            saveAs("Results", "{folder / name}.csv");
            run("Close All");
        """
    printed = read_printed(imagej(script, folder))
    return {
        name: Case(
            image,
            predict(image, ensemble=packages[name].path, axes="CYX"),
            printed=printed[name],
            objects=read_table(folder / f"{name}.csv"),
        )
        for name, image in images.items()
    }


def read_printed(text: str) -> dict[str, dict[str, float]]:
    """Return the numbers that were printed, by image."""
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        name, _, value = line.partition("\t")
        if name == "image":
            numbers = found[value] = {}
        elif value:
            numbers[name] = float(value)
    return found


def read_table(path: Path) -> pd.DataFrame:
    """Return the saved results; ImageJ writes no file of an empty table."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame({"Object": []})


NAMES = ("ordinary", "odd", "blurred", "empty", "flat", "channels")


@pytest.mark.parametrize("name", NAMES)
def test_score_is_ours(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    assert case.printed["U"] == pytest.approx(case.prediction.scores.u, abs=1e-4)
    assert case.printed["foreground pixels"] == np.count_nonzero(case.prediction.mask)


@pytest.mark.parametrize("name", NAMES)
def test_objects_are_ours(name: str, cases: dict[str, Case]) -> None:
    prediction, found = cases[name].prediction, cases[name].objects
    instances = find_instances(prediction.mask, config=InstanceConfig(method="components"))
    ours = measure_instances(
        instances,
        image=cases[name].image,
        probability=prediction.probs.max(axis=0),
        total=prediction.total,
        epistemic=prediction.epistemic,
        pixel_area_um2=PIXEL_UM**2,
    )
    assert len(found) == len(ours)
    expected = {
        "Object": [one.label for one in ours],
        "Class": [one.class_index for one in ours],
        "Area_px": [one.area_px for one in ours],
        "Area_µm2": [one.area_um2 for one in ours],
        "Column": [one.column for one in ours],
        "Row": [one.row for one in ours],
        "U": [one.u for one in ours],
    }
    for column in expected if ours else ():
        np.testing.assert_allclose(found[column], expected[column], atol=1e-4, err_msg=column)


def test_the_images_differ_in_what_they_show(cases: dict[str, Case]) -> None:
    assert {len(case.objects) > 0 for case in cases.values()} == {True, False}


def split(package: Package, maps: np.ndarray, imagej: ImageJ, folder: Path) -> pd.DataFrame:
    """Return the objects that the macro finds in maps, axes (C, Y, X)."""
    tifffile.imwrite(folder / "maps.tif", maps, imagej=True, metadata={"axes": "CYX"})
    macro = package.macro("split_objects.ijm", folder)
    script = f"""
        open("{folder / "maps.tif"}");
        runMacro("{macro}");
        saveAs("Results", "{folder / "objects.csv"}");
    """
    imagej(script, folder)
    return read_table(folder / "objects.csv")


def test_touching_objects_are_split_by_the_learned_distance(
    imagej: ImageJ, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Two halves of a rectangle, which no distance to the edge tells apart."""
    folder = tmp_path_factory.mktemp("distance")
    ensemble = random_ensemble(
        folder / "ensemble", members=1, channels=1, classes=2, tile=64, distance=True
    )
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 64))
    card = Card(authors=[Person(name="A B")], license="CC-BY-4.0", description="Random weights.")
    exported = export_ensemble(
        ensemble, folder / "p.zip", "bioimageio", card=card, image=image, formats=["torchscript"]
    )
    labels = np.zeros((60, 100), np.uint8)
    labels[20:40, 20:50], labels[20:40, 50:80] = 1, 2
    halves = [inner_distance(labels == label) for label in (1, 2)]
    mask, distance = labels > 0, sum(half / half.max() for half in halves)
    maps = np.stack([~mask, mask, 0 * mask, mask, distance]).astype(np.float32)
    found = split(Package(exported.path), maps, imagej, tmp_path)
    ours = find_instances(
        mask.astype(np.uint8), distance=distance.astype(np.float32), config=InstanceConfig()
    )
    assert len(found) == len(ours) == 2
    np.testing.assert_allclose(found["Area"], 600, rtol=0.06)


def test_touching_objects_are_split_like_ours(
    two_classes: Package, imagej: ImageJ, tmp_path: Path
) -> None:
    row, column = np.mgrid[:120, :160]
    discs = [(40, 40, 20), (40, 72, 18), (85, 110, 25), (85, 70, 16)]
    mask = np.any(
        [(row - r) ** 2 + (column - c) ** 2 <= radius**2 for r, c, radius in discs], axis=0
    )
    ours = find_instances(mask.astype(np.uint8), config=InstanceConfig())
    assert len(ours) == len(discs)
    maps = np.stack([~mask, mask, 0 * mask, mask]).astype(np.float32)
    found = split(two_classes, maps, imagej, tmp_path)
    assert len(found) == len(discs)
    # ImageJ leaves lines of one pixel between the parts
    areas = np.bincount(ours.labels.ravel())[1:]
    np.testing.assert_allclose(sorted(found["Area"]), sorted(areas), rtol=0.05)
    found_at = {(round(y / 4), round(x / 4)) for x, y in zip(found["X"], found["Y"], strict=True)}
    assert len(found_at) == len(discs)
