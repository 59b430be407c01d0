"""Objects on disk: the labels are those of the mask, the table is that of the labels."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy.ndimage import label

from df2serve import Image, Predictor
from df2serve.config import CellposeConfig, InstanceConfig
from df2serve.core.instances import find_instances, measure_instances
from df2serve.errors import ConfigError
from df2serve.inference import Band, PredictionStream
from df2serve.io import PixelSize, read_image
from df2serve.testing import random_ensemble
from df2serve.writers import ResultFolder, RunInfo, read_results, write_instance_table
from df2serve.writers.instances import InstanceWriter

PIXELS = np.random.default_rng(0).integers(0, 255, (150, 90), dtype=np.uint8)
CONFIG = InstanceConfig(min_size=5)


def result_folder(
    predictor: Predictor, target: Path, config: InstanceConfig | None, *, resume: bool = False
) -> ResultFolder:
    return ResultFolder(
        target, predictor.ensemble, predictor.config, resume=resume, instances=config
    )


@pytest.mark.parametrize("distance", [False, True])
def test_labels_and_table(tmp_path: Path, distance: bool) -> None:
    ensemble = random_ensemble(
        tmp_path / "ens", members=1, channels=1, classes=3, tile=64, distance=distance
    )
    image = Image.from_array(PIXELS, source="a.tif", pixel_size_um=PixelSize(y_um=0.5, x_um=0.25))
    with Predictor(ensemble) as predictor:
        expected = predictor.predict(image)
        results = result_folder(predictor, tmp_path / "out", CONFIG)
        record = results.write(predictor.stream(image)).record
    found = find_instances(expected.mask, config=CONFIG, distance=expected.distance)
    assert len(found) > 3
    assert found.removed > 0
    labels = read_image(tmp_path / "out/labels/a.tif")
    assert labels.dtype == np.uint16
    assert labels.pixel_size_um == image.pixel_size_um
    assert np.array_equal(labels.data[0], found.labels)
    assert record.instances is not None
    assert record.instances.model_dump() == {
        "kept": len(found), "removed": found.removed, "removed_px": found.removed_px
    }  # fmt: skip
    table = pd.read_csv(tmp_path / "out/instances/a.csv")
    measured = measure_instances(
        found,
        image=image.data,
        probability=expected.probs.max(axis=0),
        total=expected.total,
        epistemic=expected.epistemic,
        pixel_area_um2=0.125,
    )
    assert table["class"].tolist() == [f"class {item.class_index}" for item in measured]
    for column in ("label", "area_px", "area_um2", "row", "top", "right", "u", "probability"):
        values = [getattr(item, column) for item in measured]
        assert table[column].tolist() == pytest.approx(values, rel=1e-6)
    assert table["intensity channel 0"].tolist() == pytest.approx(
        [item.intensities[0] for item in measured], rel=1e-6
    )


def test_a_network_gets_the_probability_of_each_class(tmp_path: Path) -> None:
    """Whatever divides, it is asked for each class but the background, with its own pixels."""
    asked: list[tuple[np.ndarray, np.ndarray]] = []

    class Watching:
        config = CellposeConfig(version="4.0", weights="w", weights_sha256="0" * 64)

        def divide(self, probability: np.ndarray, inside: np.ndarray) -> np.ndarray:
            asked.append((probability, inside))
            return label(inside)[0]

    network = Watching()
    chosen = InstanceConfig(method="cellpose", cellpose=network.config)
    ensemble = random_ensemble(tmp_path / "ens", members=1, channels=1, classes=3, tile=64)
    with Predictor(ensemble) as predictor:
        expected = predictor.predict(PIXELS)
        results = ResultFolder(
            tmp_path / "out", ensemble, predictor.config, instances=chosen, cellpose=network
        )
        results.write(predictor.stream(Image.from_array(PIXELS, source="a.tif")))
    present = [k for k in (1, 2) if (expected.mask == k).any()]
    assert len(asked) == len(present) > 0
    for class_index, (probability, inside) in zip(present, asked, strict=True):
        assert np.array_equal(probability, expected.probs[class_index])
        assert np.array_equal(inside, expected.mask == class_index)
    labels = read_image(tmp_path / "out/labels/a.tif").data[0]
    assert np.array_equal(labels > 0, expected.mask > 0)


def test_tables_of_a_run_stand_below_each_other(predictor: Predictor, tmp_path: Path) -> None:
    results = result_folder(predictor, tmp_path, CONFIG)
    for name, pixels in (("a", PIXELS), ("b", PIXELS[:70]), ("c, d", PIXELS[:40])):
        results.write(predictor.stream(Image.from_array(pixels, source=f"{name}.tif")))
    _, records = read_results(tmp_path)
    table = pd.read_csv(write_instance_table(tmp_path, records))
    counts = table["name"].value_counts().to_dict()
    assert counts == {r.name: r.instances.kept for r in records if r.instances}
    assert table["area_um2"].isna().all()


def test_going_on_with_objects(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    """They may be added later; those of other settings are not mixed."""
    target = tmp_path / "out"

    def stream() -> PredictionStream:
        return predictor.stream(read_image(images / "1.tif"))

    result_folder(predictor, target, None).write(stream())
    again = result_folder(predictor, target, CONFIG, resume=True)
    assert not again.write(stream()).reused
    same = result_folder(predictor, target, CONFIG, resume=True)
    assert same.write(stream()).reused
    without = result_folder(predictor, target, None, resume=True)
    assert without.run.instances == CONFIG
    assert without.write(stream()).reused
    with pytest.raises(ConfigError, match=r"objects of other settings \(watershed, min_size 5"):
        result_folder(predictor, target, InstanceConfig(), resume=True)


def test_more_objects_than_16_bits_hold(tmp_path: Path) -> None:
    """A checkerboard of single pixels, as labels that a viewer still shows exactly."""
    ensemble = random_ensemble(tmp_path / "ens", members=1, channels=1, classes=2, tile=64)
    with Predictor(ensemble) as predictor:
        run = RunInfo.of(ensemble, predictor.config)
    mask = (np.indices((370, 370)).sum(axis=0) % 2).astype(np.uint8)
    zeros = np.zeros(mask.shape, np.float32)
    image = Image.from_array(mask)
    writer = InstanceWriter(image, run, InstanceConfig(method="components"))
    writer.append(Band(top=0, probs=zeros[None], mask=mask, total=zeros, epistemic=zeros))
    count = writer.save("a", labels=tmp_path / "a.tif", table=tmp_path / "a.csv")
    labels = tifffile.imread(tmp_path / "a.tif")
    assert labels.dtype.newbyteorder("=") == np.float32
    assert labels.max() == count.kept == mask.sum() > 65535
    assert len(np.unique(labels)) == count.kept + 1
