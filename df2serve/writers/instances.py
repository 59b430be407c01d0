"""Objects of a prediction: label images, one table row per object, and outlines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from df2serve.config import InstanceConfig
from df2serve.core.instances import Instance, Instances, find_instances, measure_instances
from df2serve.inference import Band
from df2serve.io import Image
from df2serve.types import AnyLabels
from df2serve.writers._staging import staging
from df2serve.writers.geojson import geojson
from df2serve.writers.records import InstanceCount, Record, RunInfo
from df2serve.writers.rois import roi_zip
from df2serve.writers.tables import needs_review, write_sheet
from df2serve.writers.tiff import write_labels

if TYPE_CHECKING:
    from df2serve.backends.cellpose import Cellpose

__all__ = ["InstanceWriter", "write_instance_table"]

_SHEET_ROWS = 100_000
"""Rows of the longest spreadsheet; they take long to write."""


class InstanceWriter:
    """Gathers the rows of a prediction; its objects are known when the last one is there.

    Unlike the rest of a result, objects need the whole image in memory: 13 bytes per pixel, 17 with
    a distance channel, 4 per class but the background with cellpose, and some 30 more while they
    are found and measured.
    """

    def __init__(
        self,
        image: Image,
        run: RunInfo,
        config: InstanceConfig,
        cellpose: Cellpose | None = None,
    ) -> None:
        """Start with no rows.

        Args:
            image: what is predicted.
            run: names of classes and channels.
            config: how masks are divided.
            cellpose: network for the method ``cellpose``.
        """
        self._image = image
        self._run = run
        self._config = config
        self._cellpose = cellpose
        self._bands: list[Band] = []
        self._probabilities: list[NDArray[np.float32]] = []

    def append(self, band: Band) -> None:
        """Add the next rows."""
        # no views, which would keep the maps of every class alive
        distance = None if band.distance is None else band.distance.copy()
        largest = band.probs.max(axis=0, keepdims=True)
        self._bands.append(replace(band, probs=largest, distance=distance))
        if self._cellpose is not None:
            self._probabilities.append(band.probs[1:].copy())

    def save(
        self,
        name: str,
        *,
        labels: Path,
        table: Path,
        rois: Path | None = None,
        outlines: Path | None = None,
    ) -> InstanceCount:
        """Find the objects and write them.

        Args:
            name: of the result.
            labels: TIFF file to create.
            table: CSV file to create.
            rois: zip file of regions for ImageJ to create.
            outlines: GeoJSON file to create.
        """
        found = find_instances(
            _joined(band.mask for band in self._bands),
            config=self._config,
            distance=_joined(band.distance for band in self._bands if band.distance is not None),
            divide=None if self._cellpose is None else partial(self._divide, self._cellpose),
        )
        write_labels(labels, found.labels, self._image.pixel_size_um)
        measured = self._measured(found)
        if rois is not None:
            image = self._image
            content = roi_zip(
                found.labels,
                measured,
                classes=self._run.classes,
                axes=image.axes,
                selection=image.selection,
            )
            rois.write_bytes(content)
        if outlines is not None:
            text = geojson(
                found.labels, measured, classes=self._run.classes, channels=self._run.channels
            )
            outlines.write_text(text, encoding="utf-8")
        self._frame(name, measured).to_csv(
            table, index=False, encoding="utf-8", float_format="%.7g", lineterminator="\n"
        )
        return InstanceCount(kept=len(found), removed=found.removed, removed_px=found.removed_px)

    def _divide(self, network: Cellpose, class_index: int, inside: NDArray[np.bool_]) -> AnyLabels:
        """Return the objects of a class."""
        probability = _joined(probs[class_index - 1] for probs in self._probabilities)
        return network.divide(probability, inside)

    def _measured(self, found: Instances) -> tuple[Instance, ...]:
        size = self._image.pixel_size_um
        return measure_instances(
            found,
            image=self._image.data,
            probability=_joined(band.probs[0] for band in self._bands),
            total=_joined(band.total for band in self._bands),
            epistemic=_joined(band.epistemic for band in self._bands),
            pixel_area_um2=None if size is None else size.y_um * size.x_um,
        )

    def _frame(self, name: str, measured: tuple[Instance, ...]) -> pd.DataFrame:
        """Return the table of one result."""
        columns: dict[str, Iterable[Any]] = {
            "name": [name] * len(measured),
            "label": [item.label for item in measured],
            "class": [self._run.classes[item.class_index].name for item in measured],
            "area_px": [item.area_px for item in measured],
            "area_um2": [item.area_um2 for item in measured],
            "row": [item.row for item in measured],
            "column": [item.column for item in measured],
            "top": [item.top for item in measured],
            "left": [item.left for item in measured],
            "bottom": [item.bottom for item in measured],
            "right": [item.right for item in measured],
        }
        for index, channel in enumerate(self._run.channels):
            columns[f"intensity {channel}"] = [item.intensities[index] for item in measured]
        columns["u"] = [item.u for item in measured]
        columns["u_epistemic"] = [item.u_epistemic for item in measured]
        columns["probability"] = [item.probability for item in measured]
        columns["needs_review"] = [needs_review(item.u, self._run) for item in measured]
        return pd.DataFrame(columns)


def write_instance_table(folder: Path, records: Sequence[Record]) -> Path:
    """Write ``instances.csv``, the tables of several results below each other.

    Up to 100 000 objects, ``instances.xlsx`` has the same rows.

    Args:
        folder: of the results.
        records: of results with objects.

    Returns:
        The CSV file.

    Raises:
        OutputError: a file cannot be written, or a table cannot be read.
    """
    target, sheet = folder / "instances.csv", folder / "instances.xlsx"
    with staging() as files:
        with files.path(target).open("w", encoding="utf-8", newline="") as whole:
            for number, record in enumerate(records):
                with (folder / record.files["instances"].path).open(
                    encoding="utf-8", newline=""
                ) as part:
                    header = part.readline()
                    whole.write("" if number else header)
                    whole.writelines(part)
        if sum(record.instances.kept for record in records if record.instances) <= _SHEET_ROWS:
            rows = pd.read_csv(
                files.path(target),
                dtype={"name": str, "class": str},
                keep_default_na=False,
                na_values=[""],
            )
            write_sheet(rows, files.path(sheet), title="instances")
    return target


def _joined(parts: Iterable[NDArray[Any]]) -> Any:
    """Concatenate rows; None without any."""
    present = list(parts)
    return np.concatenate(present) if present else None
