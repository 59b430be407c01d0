"""Ground truth from the masks of several experts.

Three methods: STAPLE and majority voting decide pixel by pixel, ``instance`` matches objects across
experts and decides object by object. A folder of estimates holds ``masks/`` to train on, shares in
[0, 1] in ``votes/`` and, from STAPLE, ``posteriors/``; objects in ``labels/`` where these were
fused; tables of agreement and of warnings; and ``report.json``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from df2serve import __version__
from df2serve.errors import ConfigError
from df2serve.files import new_folder
from df2serve.io import read_mask
from df2serve_training._annotations import Annotation
from df2serve_training._estimate import Estimate, estimate
from df2serve_training._expert_files import ExpertFiles, find_expert_files, read_annotation
from df2serve_training._fusion import Fusion, majority_vote, staple
from df2serve_training._gt_checks import GroundTruthWarning, find_mix_ups
from df2serve_training._gt_files import write_tables
from df2serve_training._gt_image import ImageResult, Scores, estimate_image
from df2serve_training._gt_report import GroundTruthReport, ImageReport, ObjectRow
from df2serve_training._gt_settings import GroundTruthSettings
from df2serve_training._objects import FusedObject, ObjectFusion, fuse_instances
from df2serve_training.agreement import AgreementRow, summarize

__all__ = [
    "Annotation",
    "Estimate",
    "FusedObject",
    "Fusion",
    "GroundTruthReport",
    "GroundTruthSettings",
    "GroundTruthWarning",
    "ImageReport",
    "ObjectFusion",
    "ObjectRow",
    "Progress",
    "estimate",
    "estimate_folder",
    "fuse_instances",
    "majority_vote",
    "staple",
]

_MAX_WORKERS: Final = 4
"""Images at a time; each takes some 160 bytes per pixel, with five experts and two classes."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many images are done."""

    source: str
    """Name of the image that was done last."""
    done: int
    total: int


def estimate_folder(
    experts: str | Path,
    target: str | Path,
    *,
    settings: GroundTruthSettings,
    listener: Callable[[Progress], None] | None = None,
) -> GroundTruthReport:
    """Estimate the ground truth of every image that experts annotated.

    Args:
        experts: folder with a folder of masks for each expert; masks of one image have the same
            name, and an expert may lack some.
        target: folder to create; it appears when everything is done, and not before.
        settings: method, kind of the masks, and what is worth a warning.
        listener: called after each image, in their order.

    Raises:
        InputError: masks cannot be used; the message lists all that is wrong.
        ConfigError: the target lies in the experts' folder.
        OutputError: the target exists, or cannot be written.
    """
    source, goal = Path(experts), Path(target)
    if goal.resolve().is_relative_to(source.resolve()):
        message = f"{goal} lies in {source}, where folders are experts; choose another target"
        raise ConfigError(message)
    with new_folder(goal, empty_ok=True) as folder:
        files = find_expert_files(source, settings)
        results = _estimate_images(files, folder, settings, listener)
        report = _report(files, folder, results, settings)
        objects = [row for result in results for row in result.objects]
        _write_report(folder, report, objects)
    return report


def _estimate_images(
    files: ExpertFiles,
    folder: Path,
    settings: GroundTruthSettings,
    listener: Callable[[Progress], None] | None,
) -> list[ImageResult]:
    """Estimate several images at a time; results come in the images' order."""
    results: list[ImageResult] = []
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_WORKERS))
    try:
        for result in pool.map(
            lambda name: estimate_image(name, files.paths[name], folder, settings), files.paths
        ):
            results.append(result)
            if listener is not None:
                listener(Progress(result.report.file, len(results), len(files.paths)))
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _report(
    files: ExpertFiles,
    folder: Path,
    results: Sequence[ImageResult],
    settings: GroundTruthSettings,
) -> GroundTruthReport:
    suspects = [suspect for result in results for suspect in result.suspects]
    wanted = {suspect.expert for suspect in suspects}
    mix_ups = find_mix_ups(
        suspects,
        _foregrounds(files, folder, settings, wanted) if suspects else (),
        mixed_up=settings.mixed_up,
    )
    warnings: list[GroundTruthWarning] = []
    for result in results:
        name = result.report.file
        warnings += [*result.warnings, *(warning for warning in mix_ups if warning.file == name)]
    rows = tuple(
        _row(result.report.file, scores, warnings, settings)
        for result in results
        for scores in result.scores
    )
    return GroundTruthReport(
        settings=settings,
        versions={"df2serve": __version__, "SimpleITK": version("SimpleITK")},
        experts=files.experts,
        images=tuple(result.report for result in results),
        agreement=rows,
        summary=summarize(rows),
        warnings=tuple(warnings),
    )


def _row(
    name: str,
    scores: Scores,
    warnings: Sequence[GroundTruthWarning],
    settings: GroundTruthSettings,
) -> AgreementRow:
    kinds = [w.kind for w in warnings if (w.file, w.expert) == (name, scores.expert)]
    others = asdict(scores.others) if scores.others else dict.fromkeys(asdict(scores.own))
    return AgreementRow(
        method=settings.method,
        file=name,
        expert=scores.expert,
        **asdict(scores.own),
        **{f"loo_{title}": value for title, value in others.items()},
        remarks="; ".join(kinds),
    )


def _foregrounds(
    files: ExpertFiles, folder: Path, settings: GroundTruthSettings, experts: set[str]
) -> Iterator[tuple[str, Mapping[str | None, np.ndarray]]]:
    """Yield the foreground of every estimate, and that of some experts' masks."""
    for name, paths in files.paths.items():
        mask = folder / "masks" / f"{name}.png"
        estimated = read_mask(mask, kind="classes", num_classes=settings.num_classes)
        foregrounds: dict[str | None, np.ndarray] = {None: estimated.classes > 0}
        for expert in experts.intersection(paths):
            foregrounds[expert] = read_annotation(paths[expert], settings)[0].classes > 0
        yield name, foregrounds


def _write_report(folder: Path, report: GroundTruthReport, objects: Sequence[ObjectRow]) -> None:
    write_tables(
        folder,
        "agreement",
        {
            "agreement": report.agreement,
            "experts": report.summary,
            "warnings": report.warnings,
            "objects": objects,
        },
    )
    content = report.model_dump_json(indent=2) + "\n"
    (folder / "report.json").write_text(content, encoding="utf-8")
