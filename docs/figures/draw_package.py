"""Draw the pictures of docs/fiji.md and docs/zoo.md.

Run in this folder with a package of an ensemble of generated cells, such as docs/zoo.md makes:
``python draw_package.py cells.zip``.
"""

import io
import sys
import zipfile
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image as PillowImage

from df2serve import Predictor
from df2serve.config import InstanceConfig
from df2serve.core.instances import find_instances
from df2serve.inference import Prediction
from df2serve.testing import FITTED_SCENE, generate_cells
from df2serve.writers.preview import UNCERTAINTY_COLORS

FOLDER = Path(__file__).parent
SEED = 5
COLORS = 128


def save(figure: Figure, name: str) -> None:
    """Write a picture with a palette, which keeps it small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    PillowImage.open(buffer).convert("RGB").quantize(COLORS).save(FOLDER / name, optimize=True)


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return square panels in a row, without ticks."""
    figure, axes = plt.subplots(1, count, figsize=(2.4 * count, 2.7), layout="constrained")
    for panel in axes:
        panel.set_axis_off()
    return figure, list(axes)


def draw_stack(image: np.ndarray, prediction: Prediction) -> None:
    """Draw the input and the slices of the result, with the objects that the macro measures."""
    objects = find_instances(prediction.mask, config=InstanceConfig(method="components")).labels
    shuffled = np.random.default_rng(3).permutation(objects.max()) + 1
    colored = np.where(objects > 0, shuffled[objects - 1], 0)
    unit = {"vmin": 0, "vmax": 1}
    shown = [
        ("input", image[0], {"cmap": "gray"}),
        ("slice 1: p_background", prediction.probs[0], {"cmap": "gray", **unit}),
        ("slice 2: p_cell", prediction.probs[1], {"cmap": "gray", **unit}),
        ("slice 3: uncertainty", prediction.total, {"cmap": UNCERTAINTY_COLORS, **unit}),
        ("slice 4: mask", prediction.mask, {"cmap": "gray", "interpolation": "nearest"}),
        ("objects (macro)", colored, {"cmap": "nipy_spectral", "interpolation": "nearest"}),
    ]  # fmt: skip
    figure, axes = panels(len(shown))
    for panel, (title, values, options) in zip(axes, shown, strict=True):
        panel.imshow(values, **options)
        panel.set_title(title, fontsize=9)
    save(figure, "fiji-stack.png")


def draw_tiling(prediction: Prediction) -> None:
    """Draw the uncertainty map with U of the whole image, and of its four quarters."""
    total, inside = prediction.total, prediction.mask > 0
    figure, axes = panels(2)
    for panel in axes:
        panel.imshow(total, cmap=UNCERTAINTY_COLORS, vmin=0, vmax=1)
        panel.contour(inside, [0.5], colors="white", linewidths=0.5)
    axes[0].set_title(f"whole image: U = {total[inside].mean():.3f}", fontsize=9)
    axes[1].set_title("one number per tile", fontsize=9)
    height, width = total.shape
    axes[1].axhline(height / 2, color="white")
    axes[1].axvline(width / 2, color="white")
    for top in (0, height // 2):
        for left in (0, width // 2):
            part = np.s_[top : top + height // 2, left : left + width // 2]
            u = total[part][inside[part]].mean()
            axes[1].text(left + width / 4, top + height / 4, f"{u:.3f}", color="white",
                         ha="center", va="center", fontsize=12, fontweight="bold")  # fmt: skip
    save(figure, "fiji-tiling.png")


def main() -> None:
    """Draw everything."""
    mpl.use("Agg")
    package = Path(sys.argv[1])
    image = generate_cells(FITTED_SCENE, seed=SEED).image
    with Predictor(package) as predictor:
        prediction = predictor.predict(image, axes="CYX")
    draw_stack(image, prediction)
    draw_tiling(prediction)
    with zipfile.ZipFile(package) as archive:
        cover = PillowImage.open(io.BytesIO(archive.read("cover.png")))
        cover.convert("RGB").quantize(COLORS).save(FOLDER / "zoo-cover.png", optimize=True)


if __name__ == "__main__":
    main()
