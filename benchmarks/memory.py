"""Measure the peak memory of predicting strips of growing height, in bands and as a whole.

Each prediction runs in a process of its own, which reads the strip from a tiled TIFF.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tifffile
import torch
from _images import micrographs
from _timing import Machine, describe_machine, markdown_table, peak_mib, write_results
from numpy.typing import NDArray

from df2serve import Predictor, RuntimeConfig
from df2serve.config import preset
from df2serve.io import open_image
from df2serve.testing import random_ensemble

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "memory.svg"
HEIGHTS, QUICK_HEIGHTS = (2_500, 5_000, 10_000, 20_000), (1_000, 2_000)
WIDTH, TILE, FILE_TILE = 512, 256, 256
REPEATS = 3
IN_BANDS, AS_A_WHOLE = "in bands", "as a whole"


@dataclass(frozen=True)
class Peak:
    """The memory of one process, in MiB."""

    height: int
    """Rows of the strip."""
    mode: str
    before: float
    """Largest resident memory before the prediction, with libraries and networks loaded."""
    peak: float
    """Largest resident memory at the end."""
    seconds: float
    """Wall time of the prediction."""

    @property
    def beyond(self) -> float:
        """What the prediction took."""
        return self.peak - self.before


def predict_and_measure(mode: str, ensemble: Path, strip: Path) -> Peak:
    """Predict a strip in this process; the bands are dropped, or else the whole is kept."""
    torch.set_num_threads(1)  # other work on the machine then hardly delays it
    config = preset("accurate").updated(views=1)
    with (
        Predictor(ensemble, config=config, runtime=RuntimeConfig(device="cpu")) as predictor,
        open_image(strip) as image,
    ):
        before = peak_mib()
        stream = predictor.stream(image)
        if mode == IN_BANDS:
            for _ in stream:
                pass
        else:
            stream.collect()
        return Peak(
            height=image.shape[1],
            mode=mode,
            before=before,
            peak=peak_mib(),
            seconds=stream.summary.seconds,
        )


def measure(heights: Sequence[int], repeats: int) -> list[Peak]:
    """Measure both modes for all heights, every time in a fresh process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ensemble = folder / "ensemble"
        random_ensemble(ensemble, members=1, channels=1, classes=2, tile=TILE)
        peaks = []
        for height in heights:
            strip = folder / f"{height}.tif"
            _write_strip(strip, height)
            modes = (IN_BANDS, AS_A_WHOLE) * repeats
            peaks += [_in_child(mode, ensemble, strip) for mode in modes]
        return peaks


def report(peaks: Sequence[Peak], machine: Machine) -> str:
    """Return the table with what it needs to be read."""
    heights = sorted({peak.height for peak in peaks})
    rows = [
        (f"{height:,}", *(_summary(peaks, mode, height) for mode in (IN_BANDS, AS_A_WHOLE)))
        for height in heights
    ]
    header = ("rows", "in bands, MiB", "as a whole, MiB")
    base = statistics.median(peak.before for peak in peaks)
    return f"""\
# Peak memory of tall images

{machine}.

One member, one view, strips {WIDTH} pixels wide (uint8) in a tiled TIFF on disk, tiles of {TILE} x
{TILE}, preset accurate. Largest resident memory of a fresh process, beyond the {base:.0f} MiB that
libraries and network take before; median, and range of repeated runs. In bands:
`Predictor.stream` over `open_image`, every band dropped. As a whole: the same stream collected.

{markdown_table(header, rows)}"""


def _summary(peaks: Sequence[Peak], mode: str, height: int) -> str:
    """Return median and range of what one case took."""
    mib = [peak.beyond for peak in peaks if (peak.mode, peak.height) == (mode, height)]
    return f"{statistics.median(mib):.0f} ({min(mib):.0f} to {max(mib):.0f})"


def draw(peaks: Sequence[Peak]) -> None:
    """Draw the peak of every run over the height."""
    plt.rcParams["svg.hashsalt"] = "memory"  # equal data give equal files
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for mode, color in ((IN_BANDS, "#0072b2"), (AS_A_WHOLE, "#d55e00")):
        points = sorted((peak.height, peak.beyond) for peak in peaks if peak.mode == mode)
        heights, mib = zip(*points, strict=True)
        axes.plot(heights, mib, "o", color=color, alpha=0.7)
        axes.annotate(mode, points[-1], (0, 6), textcoords="offset points", ha="right", color=color)
    axes.set(xlabel="rows of the image", ylabel="memory of the prediction (MiB)", ylim=(0, None))
    axes.set_title(f"Predicting an image {WIDTH} pixels wide", loc="left")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def _write_strip(path: Path, height: int) -> None:
    """Write a strip of repeated cells without holding it in memory."""
    cells = next(micrographs()).image[0, :, :WIDTH]

    def tiles() -> Iterator[NDArray[np.generic]]:
        for top in range(0, height, FILE_TILE):
            for left in range(0, WIDTH, FILE_TILE):
                row = top % len(cells)
                yield cells[row : row + FILE_TILE, left : left + FILE_TILE]

    tifffile.imwrite(
        path, tiles(), shape=(height, WIDTH), dtype=np.uint8, tile=(FILE_TILE, FILE_TILE)
    )


def _in_child(mode: str, ensemble: Path, strip: Path) -> Peak:
    command = [sys.executable, __file__, "--child", mode, str(ensemble), str(strip)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Peak(**json.loads(done.stdout))


def main() -> None:
    """Measure, print and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short strips; write nothing")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        mode, ensemble, strip = arguments.child
        print(json.dumps(asdict(predict_and_measure(mode, Path(ensemble), Path(strip)))))
        return
    peaks = measure(QUICK_HEIGHTS, 1) if arguments.quick else measure(HEIGHTS, REPEATS)
    machine = describe_machine("tifffile")
    text = report(peaks, machine)
    print(text)
    if not arguments.quick:
        data = {"machine": asdict(machine), "peaks": [asdict(peak) for peak in peaks]}
        write_results("memory", text, data)
        draw(peaks)


if __name__ == "__main__":
    main()
