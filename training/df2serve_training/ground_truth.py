"""Ground truth from the masks of several experts.

A folder of estimates holds ``masks/`` to train on, ``votes/`` and, for STAPLE, ``posteriors/`` in
[0, 1], for object-wise fusion also ``labels/``; tables of agreement; and ``report.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import assert_never

import numpy as np

from df2serve import __version__
from df2serve.core.metrics import dice
from df2serve.errors import ConfigError
from df2serve.io import read_mask
from df2serve_training._annotations import Annotation
from df2serve_training._expert_files import ExpertFiles, find_expert_files, read_annotation
from df2serve_training._fusion import Fusion, confusion_matrices, majority_vote, staple
from df2serve_training._gt_checks import GroundTruthWarning, Suspect, check_image, find_mix_ups
from df2serve_training._gt_files import (
    new_folder,
    write_labels,
    write_map,
    write_mask,
    write_tables,
)
from df2serve_training._gt_report import (
    GroundTruthReport,
    ImageReport,
    ObjectRow,
    describe_image,
)
from df2serve_training._gt_settings import GroundTruthSettings
from df2serve_training._objects import FusedObject, fuse_instances
from df2serve_training.agreement import (
    Agreement,
    AgreementRow,
    agreement,
    summarize,
)

__all__ = [
    "Annotation",
    "Estimate",
    "FusedObject",
    "Fusion",
    "GroundTruthReport",
    "GroundTruthSettings",
    "GroundTruthWarning",
    "ImageReport",
    "ObjectRow",
    "Progress",
    "estimate",
    "estimate_folder",
    "fuse_instances",
    "majority_vote",
    "staple",
]


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """The estimated truth of one image."""

    fusion: Fusion
    """Its classes and how they came about."""
    annotation: Annotation
    """The same classes, with the objects."""
    objects: tuple[FusedObject, ...]
    """Votes on every object, where objects were fused."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many images are done."""

    source: str
    """Name of the image that was done last."""
    done: int
    total: int


def estimate(annotations: Sequence[Annotation], settings: GroundTruthSettings) -> Estimate:
    """Fuse annotations of one image by the method of the settings.

    Raises:
        InputError: no annotations, of several sizes, or with classes that do not exist.
    """
    masks, n_classes = [annotation.classes for annotation in annotations], settings.num_classes
    match settings.method:
        case "staple":
            fusion = staple(
                masks,
                n_classes=n_classes,
                max_iterations=settings.max_iterations,
                undecided=settings.undecided,
            )
        case "majority":
            fusion = majority_vote(masks, n_classes=n_classes, undecided=settings.undecided)
        case "instance":
            return _estimate_objects(annotations, settings)
        case _:
            assert_never(settings.method)
    return Estimate(fusion, Annotation.of_classes(fusion.classes), ())


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
        listener: called after each image.

    Raises:
        InputError: masks cannot be used; the message lists all that is wrong.
        ConfigError: the target lies in the experts' folder.
        OutputError: the target exists, or cannot be written.
    """
    source, goal = Path(experts), Path(target)
    if goal.resolve().is_relative_to(source.resolve()):
        message = f"{goal} lies in {source}, where folders are experts; choose another target"
        raise ConfigError(message)
    with new_folder(goal) as folder:
        run = _Run(find_expert_files(source, settings), folder, settings)
        for done, name in enumerate(run.files.paths, start=1):
            run.estimate_image(name)
            if listener is not None:
                listener(Progress(source=name, done=done, total=len(run.files.paths)))
        return run.finish()


def _estimate_objects(annotations: Sequence[Annotation], settings: GroundTruthSettings) -> Estimate:
    """Fuse objects; votes on pixels and the ties among them are those of the majority."""
    masks, n_classes = [annotation.classes for annotation in annotations], settings.num_classes
    voted = majority_vote(masks, n_classes=n_classes)
    fused = fuse_instances(
        annotations,
        match_iou=settings.match_iou,
        min_votes=settings.min_votes,
        min_apart=settings.min_apart,
        tie_breaker=voted.best_rater if settings.undecided == "best_rater" else None,
    )
    everywhere = np.ones(fused.classes.shape, bool)
    fusion = replace(
        voted,
        classes=fused.classes,
        confusion=confusion_matrices(masks, fused.classes, n_classes=n_classes, decided=everywhere),
    )
    return Estimate(fusion, Annotation(fused.classes, fused.labels), fused.objects)


class _Run:
    """Estimates image by image, and collects what the tables and the report say."""

    def __init__(self, files: ExpertFiles, folder: Path, settings: GroundTruthSettings) -> None:
        self.files = files
        self._folder = folder
        self._settings = settings
        self._images: list[ImageReport] = []
        self._scores: list[tuple[str, str, Agreement, Agreement | None]] = []
        self._objects: list[ObjectRow] = []
        self._warnings: list[GroundTruthWarning] = []
        self._suspects: list[Suspect] = []
        for name in ("masks", "votes", *self._further_folders()):
            (folder / name).mkdir()

    def estimate_image(self, name: str) -> None:
        read = {
            expert: read_annotation(path, self._settings)
            for expert, path in self.files.paths[name].items()
        }
        annotations = {expert: annotation for expert, (annotation, _) in read.items()}
        found = estimate(list(annotations.values()), self._settings)
        majority = majority_vote(
            [annotation.classes for annotation in annotations.values()],
            n_classes=self._settings.num_classes,
        )
        majority_px = int(np.count_nonzero(majority.classes))
        self._write(name, found)
        self._images.append(
            describe_image(
                name,
                {expert: digest for expert, (_, digest) in read.items()},
                found.fusion,
                found.annotation.labels,
                majority_px=majority_px,
            )
        )
        self._objects += [ObjectRow(file=name, **asdict(item)) for item in found.objects]
        self._warnings += check_image(
            name, annotations, found.fusion, majority_px=majority_px, settings=self._settings
        )
        self._score(name, annotations, found)

    def finish(self) -> GroundTruthReport:
        """Write tables and report."""
        self._warnings += find_mix_ups(
            self._suspects,
            self._foregrounds() if self._suspects else (),
            mixed_up=self._settings.mixed_up,
        )
        order = list(self.files.paths)
        warnings = sorted(self._warnings, key=lambda warning: order.index(warning.file))
        rows = [self._row(*scores) for scores in self._scores]
        report = GroundTruthReport(
            settings=self._settings,
            versions={"df2serve": __version__, "SimpleITK": version("SimpleITK")},
            experts=self.files.experts,
            images=tuple(self._images),
            agreement=tuple(rows),
            summary=summarize(rows),
            warnings=tuple(warnings),
        )
        write_tables(
            self._folder,
            "agreement",
            {
                "agreement": report.agreement,
                "experts": report.summary,
                "warnings": report.warnings,
                "objects": self._objects,
            },
        )
        content = report.model_dump_json(indent=2) + "\n"
        (self._folder / "report.json").write_text(content, encoding="utf-8")
        return report

    def _further_folders(self) -> tuple[str, ...]:
        match self._settings.method:
            case "staple":
                return ("posteriors",)
            case "instance":
                return ("labels",)
            case "majority":
                return ()

    def _write(self, name: str, found: Estimate) -> None:
        fusion = found.fusion
        write_mask(self._mask(name), fusion.classes, n_classes=self._settings.num_classes)
        write_map(self._folder / "votes" / f"{name}.tif", fusion.votes)
        if fusion.posterior is not None:
            write_map(self._folder / "posteriors" / f"{name}.tif", fusion.posterior)
        if self._settings.method == "instance":
            write_labels(self._folder / "labels" / f"{name}.tif", found.annotation.labels)

    def _mask(self, name: str) -> Path:
        return self._folder / "masks" / f"{name}.png"

    def _score(self, name: str, annotations: Mapping[str, Annotation], found: Estimate) -> None:
        """Compare every expert with the estimate, and with that of the others alone."""
        for expert, annotation in annotations.items():
            others = [other for key, other in annotations.items() if key != expert]
            own, loo = self._compare(found.annotation, annotation), None
            if others:
                rest = estimate(others, self._settings).annotation
                loo = self._compare(rest, annotation)
                self._suspect(name, expert, annotation, rest)
            self._scores.append((name, expert, own, loo))

    def _compare(self, truth: Annotation, annotation: Annotation) -> Agreement:
        return agreement(
            truth,
            annotation,
            n_classes=self._settings.num_classes,
            min_size=self._settings.min_size,
        )

    def _suspect(self, name: str, expert: str, annotation: Annotation, rest: Annotation) -> None:
        """Remember an annotation that agrees little with the other experts."""
        foreground = annotation.classes > 0
        score = dice(rest.classes > 0, foreground)
        if foreground.any() and score is not None and score < self._settings.low_agreement:
            self._suspects.append(Suspect(name, expert, foreground, score))

    def _foregrounds(self) -> Iterator[tuple[str, Mapping[str | None, np.ndarray]]]:
        """Yield the estimate's foreground of every image, and that of the suspects' experts."""
        wanted = {suspect.expert for suspect in self._suspects}
        for name, paths in self.files.paths.items():
            foregrounds: dict[str | None, np.ndarray] = {
                expert: read_annotation(path, self._settings)[0].classes > 0
                for expert, path in paths.items()
                if expert in wanted
            }
            estimated = read_mask(
                self._mask(name), kind="classes", num_classes=self._settings.num_classes
            )
            foregrounds[None] = estimated.classes > 0
            yield name, foregrounds

    def _row(self, name: str, expert: str, own: Agreement, loo: Agreement | None) -> AgreementRow:
        kinds = [w.kind for w in self._warnings if (w.file, w.expert) == (name, expert)]
        return AgreementRow(
            method=self._settings.method,
            file=name,
            expert=expert,
            dice_score=own.dice_score,
            mean_average_precision=own.mean_average_precision,
            average_precision_at_iou_50=own.average_precision_at_iou_50,
            loo_dice_score=loo and loo.dice_score,
            loo_mean_average_precision=loo and loo.mean_average_precision,
            loo_average_precision_at_iou_50=loo and loo.average_precision_at_iou_50,
            remarks="; ".join(kinds),
        )
