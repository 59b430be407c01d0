"""Which ranking finds odd images and failures? Tables and figures for docs/results/ranking.

Without groups, an ensemble is fitted to synthetic cells and meets new ones and odd ones. With an
ensemble and groups of images as for ``df2serve evidence``, every disturbance of the first group's
images is a group more.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from _timing import markdown_table
from numpy.typing import NDArray
from PIL import Image as PillowImage

from df2serve import InferenceConfig, load_ensemble
from df2serve.artifact import Ensemble
from df2serve.config import PRESETS
from df2serve.io import read_image
from df2serve.testing import (
    DISTURBANCES,
    FITTED_SCENE,
    disturb,
    fitted_ensemble,
    generate_cells,
    generate_ood,
)
from df2serve.testing.cells import OOD_KINDS, CellSample
from df2serve_training.evidence import (
    Evidence,
    EvidenceSettings,
    ImageGroup,
    examine,
    parse_group,
)
from df2serve_training.pairing import pair_files

SCORES = {
    "u": "U (paper)",
    "u_epistemic": "epistemic U",
    "u_class_balanced": "class-balanced U",
    "u_top": "U of the most uncertain",
    "one_minus_expected_dice": "1 - expected Dice",
    "one_minus_pairwise_dice": "1 - pairwise Dice",
    "one_minus_member_dice": "1 - member Dice",
    "feature_distance": "feature distance",
    "looks": "looks of the image",
    "ood": "ood (several and looks)",
}


def save(
    folder: Path, name: str, image: NDArray[np.unsignedinteger], mask: NDArray[np.uint8]
) -> None:
    """Write an image of one channel and its binary mask as PNG."""
    for kind, pixels in (("images", image[0]), ("masks", 255 * (mask > 0).astype(np.uint8))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        PillowImage.fromarray(pixels).save(folder / kind / f"{name}.png")


def synthetic_groups(folder: Path, ordinary: int, odd: int) -> Iterator[ImageGroup]:
    """Draw new cells, and cells of every odd kind."""

    def written(name: str, samples: Iterable[CellSample]) -> ImageGroup:
        for number, sample in enumerate(samples):
            save(folder / name, f"{number:04}", sample.image, sample.mask)
        return group(name, folder / name)

    yield written("new cells", (generate_cells(FITTED_SCENE, seed) for seed in range(ordinary)))
    for kind in OOD_KINDS:
        yield written(kind, (generate_ood(kind, FITTED_SCENE, 1000 + s) for s in range(odd)))


def disturbed_groups(folder: Path, ordinary: ImageGroup, every: int) -> Iterator[ImageGroup]:
    """Disturb every so many images of a group, each in every way."""
    assert ordinary.masks is not None, "the first group needs masks"
    pairs = pair_files(ordinary.images, ordinary.masks).pairs[::every]
    for kind in DISTURBANCES:
        for number, pair in enumerate(pairs):
            image = np.asarray(read_image(pair.image).data[0:1, 0 : 1 << 30, 0 : 1 << 30])
            mask = np.asarray(PillowImage.open(pair.mask).convert("L"))
            save(folder / kind, pair.name, disturb(image, kind, number), mask)
        yield group(kind, folder / kind)


def group(name: str, folder: Path) -> ImageGroup:
    """Describe a folder that :func:`save` has written."""
    return parse_group(f"{name}={folder / 'images'},{folder / 'masks'}", num_classes=2)


def report(found: Evidence) -> str:
    """Return the tables in Markdown."""
    settings = found.settings
    parts = [*(f"*Note: {remark}.*" for remark in found.remarks), "### Groups", _groups(found)]
    parts += ["### Odd images: AUROC against the first group, in brackets its 95 % interval"]
    parts += [
        _detection(found),
        "### Failures: area under the risk-coverage curve, lower is better",
    ]
    parts += [f"A prediction with Dice < {settings.required:g} has failed.", _failures(found)]
    parts += [f"### Failures: images to review to find {settings.recall:.0%} of them"]
    parts += [_to_review(found)]
    if found.coverage:
        parts += ["### Claims, tried on halves of the first group", _coverage(found)]
    return "\n\n".join(parts)


def _groups(found: Evidence) -> str:
    return markdown_table(
        ("group", "images", "failing", "mean Dice", "calibration error"),
        [
            (
                row.group,
                row.images,
                f"{row.failing} of {row.labeled}",
                _number(row.mean_dice),
                _number(row.calibration_error),
            )
            for row in found.groups
        ],
    )


def _detection(found: Evidence) -> str:
    names = list(dict.fromkeys(row.group for row in found.detection))
    of = {(row.score, row.group): row for row in found.detection}
    rows = []
    for score, title in SCORES.items():
        cells = [of.get((score, name)) for name in names]
        if any(cells):
            told = [
                "" if c is None else f"{_better(c.auroc, c.better_low)} ({c.low:.2f}-{c.high:.2f})"
                for c in cells
            ]
            rows.append((title, *told))
    return markdown_table(("score", *names), rows)


def _failures(found: Evidence) -> str:
    names = list(dict.fromkeys(row.group for row in found.failures))
    of = {(row.score, row.group): row for row in found.failures}
    rows = []
    for score, title in SCORES.items():
        cells = [of.get((score, name)) for name in names]
        if any(cells):
            told = [
                "" if c is None else f"{_better(c.aurc, c.less_low)}, rho {_number(c.spearman)}"
                for c in cells
            ]
            rows.append((title, *told))
    return markdown_table(("score", *names), rows)


def _to_review(found: Evidence) -> str:
    names = list(dict.fromkeys(row.group for row in found.failures if row.failing))
    of = {(row.score, row.group): row for row in found.failures}
    rows = []
    for score, title in SCORES.items():
        cells = [of.get((score, name)) for name in names]
        if any(cells):
            rows.append(
                (title, *("" if c is None else f"{c.to_review} of {c.images}" for c in cells))
            )
    return markdown_table(("score", *names), rows)


def _coverage(found: Evidence) -> str:
    return markdown_table(
        ("claim", "score", "references", "stated at most", "found", "95 % interval"),
        [
            (
                row.claim,
                SCORES[row.score],
                row.references,
                f"{row.level:.3f}",
                f"{row.found:.3f}",
                f"{row.low:.2f}-{row.high:.2f}",
            )
            for row in found.coverage
        ],
    )


def _better(value: float, low: float) -> str:
    """Mark what is better than U beyond chance."""
    return f"**{value:.3f}**" if low > 0 else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def run(
    ensemble: Ensemble,
    groups: list[ImageGroup],
    target: Path,
    *,
    config: InferenceConfig,
    settings: EvidenceSettings,
    out_of_fold: bool,
) -> str:
    """Examine, and return the tables."""
    found = examine(
        ensemble, groups, target=target, settings=settings, config=config, out_of_fold=out_of_fold
    )
    return report(found)


def main() -> None:
    """Predict, compare, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ensemble", nargs="?", help="folder; synthetic cells when absent")
    parser.add_argument("groups", nargs="*", help="NAME=IMAGES,MASKS[,KIND]; ordinary ones first")
    parser.add_argument("--output", type=Path, help="folder of tables and figures to create")
    parser.add_argument("--preset", default="accurate", choices=sorted(PRESETS))
    parser.add_argument("--views", type=int, help="test-time views")
    parser.add_argument("--every", type=int, default=1, help="disturb every so many images")
    parser.add_argument("--out-of-fold", action="store_true", help="as of df2serve evidence")
    parser.add_argument("--quick", action="store_true", help="few images; write nothing")
    arguments = parser.parse_args()
    settings = EvidenceSettings().updated(
        **({"resamples": 20, "splits": 3} if arguments.quick else {})
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.ensemble is None:
            steps, ordinary, odd = (10, 4, 2) if arguments.quick else (150, 80, 24)
            ensemble = fitted_ensemble(folder / "ensemble", members=5, steps=steps)
            groups = list(synthetic_groups(folder, ordinary, odd))
        else:
            ensemble = load_ensemble(arguments.ensemble)
            given = [parse_group(text, num_classes=2) for text in arguments.groups]
            groups = [*given, *disturbed_groups(folder, given[0], arguments.every)]
        config = PRESETS[arguments.preset].updated(views=arguments.views)
        text = run(
            ensemble,
            groups,
            folder / "evidence",
            config=config,
            settings=settings,
            out_of_fold=arguments.out_of_fold,
        )
        print(text)
        if arguments.output and not arguments.quick:
            shutil.copytree(folder / "evidence", arguments.output, dirs_exist_ok=True)
            (arguments.output / "tables.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
