"""The image that a package is tested with, and the pictures of it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from df2serve.core.uncertainty import maximum_uncertainty
from df2serve.errors import ExportError
from df2serve.export.parity import Reference, cut_window
from df2serve.export.system import ExportSource
from df2serve.inference import Prediction
from df2serve.writers.preview import Preview

__all__ = ["Example", "choose_example"]

_MARGIN = 1e-4
"""Smallest difference of the two largest probabilities that no engine turns round."""
_PLACES = 9
_SIDE = 320
_VISIBLE = 1e-4


@dataclass(frozen=True, eq=False)
class Example:
    """One tile of a real image with foreground."""

    image: NDArray[np.float32]
    """Raw intensities, axes (C, Y, X)."""
    prediction: Prediction
    """What the ensemble says of it."""

    @property
    def margin(self) -> float:
        """Smallest difference between the two largest probabilities of a pixel."""
        ordered = np.sort(self.prediction.probs, axis=0)
        return float((ordered[-1] - ordered[-2]).min())

    @property
    def classes(self) -> int:
        """Number of classes in the mask."""
        return len(np.unique(self.prediction.mask))

    def cover(self, source: ExportSource, folder: Path) -> bytes:
        """Return a picture of twice the width of its height: outlines, and uncertainty."""
        manifest, classes = source.ensemble.manifest, source.ensemble.manifest.num_classes
        preview = Preview(
            self.image,
            colors=[item.color for item in manifest.classes],
            largest=maximum_uncertainty(classes, source.config.uncertainty_scale),
        )
        for band in self.prediction.bands():
            preview.append(band)
        cover = PillowImage.new("RGB", (2 * _SIDE, _SIDE))
        for index, save in enumerate((preview.save_overlay, preview.save_uncertainty)):
            save(folder / "half.png")
            with PillowImage.open(folder / "half.png") as half:
                cover.paste(half.convert("RGB").resize((_SIDE, _SIDE)), (index * _SIDE, 0))
        buffer = io.BytesIO()
        cover.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


def choose_example(source: ExportSource, reference: Reference) -> Example:
    """Return the tile of the golden image that tests an export best.

    Tiles with most classes come first, and among them those where no pixel is nearly undecided,
    which strict comparisons would take for an error.

    Raises:
        ExportError: there is no golden image, or nothing is found in it.
    """
    if not reference.has_image:
        message = (
            "a package needs a test image, and the ensemble has no golden tensors; give an image "
            "with foreground (--image)"
        )
        raise ExportError(message)
    scene = reference.scene
    examples = []
    for image in {
        window.tobytes(): window
        for window in (cut_window(scene, index, source.tile_shape) for index in range(_PLACES))
    }.values():
        example = Example(image, reference.predict(image, whole=False))
        examples.append(example)
        if example.classes == source.ensemble.manifest.num_classes and example.margin >= _MARGIN:
            break
    best = max(examples, key=lambda one: (one.classes, min(one.margin, _MARGIN)))
    if not best.prediction.mask.any() or best.prediction.total.max() <= _VISIBLE:
        message = (
            "the ensemble finds no foreground, or has no doubt, in its golden image; validators "
            "refuse tests like that; give an image with foreground (--image)"
        )
        raise ExportError(message)
    return best
