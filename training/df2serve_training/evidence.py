"""Which ranking finds odd images and failures: an ensemble examined on several groups of images.

A folder of an examination holds tables (one spreadsheet, and each as CSV), figures and
``evidence.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from df2serve.artifact import Ensemble
from df2serve.config import InferenceConfig, RuntimeConfig
from df2serve.core.calibration import expected_calibration_error
from df2serve.core.metrics import mean_dice
from df2serve.errors import ConfigError, InputError
from df2serve.files import new_folder
from df2serve.inference import Prediction, Predictor
from df2serve.io import list_images, open_image
from df2serve_training._evaluation_data import LabeledFiles, Specimen, find_labeled_files
from df2serve_training._evidence_figures import draw_evidence
from df2serve_training._evidence_rows import (
    DetectionRow,
    Evidence,
    EvidenceSettings,
    FailureRow,
    GroupRow,
    ImageEvidence,
)
from df2serve_training._evidence_statistics import (
    coverage_rows,
    detection_rows,
    failure_rows,
    with_oddness,
)
from df2serve_training._gt_files import write_tables
from df2serve_training._pixels import PixelSample, sample_pixels
from df2serve_training.evaluate import only_members, seen_by, splits_of
from df2serve_training.folds import Splits
from df2serve_training.ground_truth import Progress
from df2serve_training.pairing import FilePair
from df2serve_training.settings import DataSettings

__all__ = ["Evidence", "EvidenceSettings", "ImageGroup", "examine", "parse_group"]

Listener = Callable[[Progress], None]
_FEWEST = 3
"""Labeled images that say something about failures."""


@dataclass(frozen=True)
class ImageGroup:
    """Images that are alike: of one laboratory, stain or artefact."""

    name: str
    images: Path
    masks: Path | None
    """Folder of masks; without one, only odd images are told, and no failures."""
    settings: DataSettings


def parse_group(text: str, *, num_classes: int) -> ImageGroup:
    """Read ``NAME=IMAGES``, ``NAME=IMAGES,MASKS`` or ``NAME=IMAGES,MASKS,KIND``.

    Args:
        text: as a person writes it; the kind of masks is that of the class count when absent.
        num_classes: K of the ensemble.

    Raises:
        ConfigError: it has another form.

    Example:
        >>> group = parse_group("cfos=images,masks", num_classes=2)
        >>> group.name, str(group.masks), group.settings.masks
        ('cfos', 'masks', 'binary')
    """
    name, found, rest = text.partition("=")
    images, *others = rest.split(",")
    if not (name and found and images) or len(others) > 2 or not all(others):
        message = f"got the group {text!r}; expected NAME=IMAGES or NAME=IMAGES,MASKS[,KIND]"
        raise ConfigError(message)
    kind = others[1] if len(others) == 2 else ("classes" if num_classes > 2 else "binary")
    settings = DataSettings().updated(masks=kind, num_classes=num_classes, cache=False)
    return ImageGroup(name, Path(images), Path(others[0]) if others else None, settings)


def examine(
    ensemble: Ensemble,
    groups: Sequence[ImageGroup],
    *,
    target: str | Path,
    settings: EvidenceSettings,
    config: InferenceConfig | str | None = None,
    runtime: RuntimeConfig | None = None,
    out_of_fold: bool = False,
    listener: Listener | None = None,
) -> Evidence:
    """Predict groups of images, and compare what every score makes of them.

    Args:
        ensemble: to examine.
        groups: at least two; the first one holds ordinary images, all others are odd.
        target: folder to create; it appears when everything is done, and not before.
        settings: what counts as a failure, levels and intervals.
        config: what is computed; the ensemble's recommendation when absent.
        runtime: backend, device and batch size; automatic when absent.
        out_of_fold: let every member alone predict the ordinary images that it was not trained on,
            and all odd ones, and compare within members: the only fair way where the ordinary
            images are those of the training.
        listener: called after each image.

    Raises:
        ConfigError: there are fewer than two groups, or two have the same name.
        InputError: an image or mask cannot be used, or does not fit the ensemble.
        OutputError: the target exists, or cannot be written.
    """
    names = [group.name for group in groups]
    if len(names) < 2 or len(set(names)) < len(names):
        message = f"got the groups {names}; expected two or more with different names"
        raise ConfigError(message)
    with new_folder(Path(target), empty_ok=True) as folder:
        run = _Run(ensemble, settings, config, runtime, out_of_fold=out_of_fold)
        images = run.predict(groups, listener)
        evidence = run.conclude(names, images)
        write_tables(
            folder,
            "evidence",
            {
                "groups": evidence.groups,
                "detection": evidence.detection,
                "failures": evidence.failures,
                "coverage": evidence.coverage,
                "images": evidence.images,
            },
        )
        draw_evidence(evidence, folder)
        content = evidence.model_dump_json(indent=2) + "\n"
        (folder / "evidence.json").write_text(content, encoding="utf-8")
    return evidence


@dataclass(frozen=True)
class _File:
    """One image of a group."""

    group: ImageGroup
    name: str
    load: Callable[[], Specimen | None]
    """Its contents, where there is a mask."""
    path: Path


@dataclass
class _Run:
    """Predicts images, and keeps what is told of them."""

    ensemble: Ensemble
    settings: EvidenceSettings
    config: InferenceConfig | str | None
    runtime: RuntimeConfig | None
    out_of_fold: bool = field(kw_only=True)
    pixels: dict[str, list[PixelSample]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find out what the members were trained on."""
        self.splits: Splits | None = splits_of(self.ensemble)
        self.chosen = Predictor(self.ensemble, config=self.config, runtime=self.runtime).config

    def predict(
        self, groups: Sequence[ImageGroup], listener: Listener | None
    ) -> list[ImageEvidence]:
        """Predict all images of all groups with the whole ensemble, or with each member."""
        files = [file for group in groups for file in _files_of(group)]
        parts: list[int | None] = list(range(len(self.ensemble))) if self.out_of_fold else [None]
        rows = []
        for number, member in enumerate(parts):
            chosen = self.ensemble if member is None else only_members(self.ensemble, (member,))
            with Predictor(chosen, config=self.chosen, runtime=self.runtime) as predictor:
                for done, file in enumerate(files, start=1 + number * len(files)):
                    ordinary = file.group.name == groups[0].name
                    row = self._row(predictor, file, member, fresh=ordinary and self.out_of_fold)
                    if row is not None:
                        rows.append(row)
                    if listener is not None:
                        listener(Progress(file.name, done, len(files) * len(parts)))
        return rows

    def _row(
        self, predictor: Predictor, file: _File, member: int | None, *, fresh: bool
    ) -> ImageEvidence | None:
        """Predict an image, unless only images that are new to the member are wanted."""
        specimen = file.load()
        with open_image(file.path, axes=file.group.settings.axes) as image:
            sha256 = image.sha256 or ""
            trained = seen_by(self.ensemble, self.splits, sha256)
            if fresh and member in trained:
                return None
            prediction = predictor.predict(image if specimen is None else specimen.image)
        return ImageEvidence(
            group=file.group.name,
            file=file.name,
            image_sha256=sha256,
            member=member,
            trained_on=len(trained if member is None else trained & {member}),
            scores=dict(prediction.scores.defined),
            statistics=prediction.summary.statistics,
            dice=None if specimen is None else self._compare(file, specimen, prediction),
        )

    def _compare(self, file: _File, specimen: Specimen, prediction: Prediction) -> float:
        """Return the Dice score, 1 where there is nothing and nothing was found."""
        sample = sample_pixels(
            prediction.probs,
            specimen.truth.classes,
            valid=specimen.valid,
            count=self.settings.pixels_per_image,
            seed=f"{self.settings.seed}/{file.group.name}/{file.name}",
        )
        self.pixels.setdefault(file.group.name, []).append(sample)
        score = mean_dice(
            specimen.truth.classes,
            prediction.mask,
            n_classes=self.ensemble.manifest.num_classes,
            valid=specimen.valid,
        )
        return 1.0 if score is None else score

    def conclude(self, names: Sequence[str], images: Sequence[ImageEvidence]) -> Evidence:
        """Return what all images tell."""
        ordinary = [row for row in images if row.group == names[0]]
        if not ordinary:
            message = f"every member was trained on every image of {names[0]}; give new ones"
            raise InputError(message)
        ordinary, odd = with_oddness(ordinary, [row for row in images if row.group != names[0]])
        rows = [*ordinary, *odd]
        of_group = {name: [row for row in rows if row.group == name] for name in names}
        return Evidence(
            settings=self.settings,
            ensemble_id=self.ensemble.manifest.id,
            ensemble_sha256=self.ensemble.sha256,
            config=self.chosen.model_dump(mode="json"),
            remarks=tuple(self._remarks(ordinary)),
            groups=tuple(self._group_row(name, found) for name, found in of_group.items()),
            detection=tuple(self._detection(ordinary, of_group, names[1:])),
            failures=tuple(self._failures(of_group)),
            coverage=() if self.out_of_fold else tuple(coverage_rows(ordinary, self.settings)),
            images=tuple(rows),
        )

    def _detection(
        self,
        ordinary: Sequence[ImageEvidence],
        of_group: dict[str, list[ImageEvidence]],
        names: Sequence[str],
    ) -> Iterator[DetectionRow]:
        for name in names:
            yield from detection_rows(ordinary, of_group[name], self.settings)

    def _failures(self, of_group: dict[str, list[ImageEvidence]]) -> Iterator[FailureRow]:
        labeled = {
            name: [row for row in rows if row.dice is not None] for name, rows in of_group.items()
        }
        every = [row for rows in labeled.values() for row in rows]
        for name, rows in [*labeled.items(), ("all", every)]:
            if len(rows) >= _FEWEST:
                yield from failure_rows(name, rows, self.settings)

    def _remarks(self, ordinary: Sequence[ImageEvidence]) -> Iterator[str]:
        seen = sum(row.trained_on > 0 for row in ordinary)
        if seen:
            yield (
                f"members were trained on {seen} of the {len(ordinary)} ordinary images: they look "
                "more ordinary than new ones would, and what is said of odd images is too good"
            )
        if self.out_of_fold:
            yield "each member is compared with itself alone; members cannot disagree"

    def _group_row(self, name: str, rows: Sequence[ImageEvidence]) -> GroupRow:
        dice = [row.dice for row in rows if row.dice is not None]
        drawn = self.pixels.get(name)
        return GroupRow(
            group=name,
            images=len(rows),
            labeled=len(dice),
            failing=sum(value < self.settings.required for value in dice),
            trained_on=sum(row.trained_on > 0 for row in rows),
            mean_dice=float(np.mean(dice)) if dice else None,
            calibration_error=_calibration_error(drawn) if drawn else None,
        )


def _calibration_error(samples: Sequence[PixelSample]) -> float | None:
    classes = np.concatenate([classes for _, classes in samples])
    if not classes.size:
        return None
    probs = np.concatenate([probs for probs, _ in samples], axis=1)
    return expected_calibration_error(probs, classes)


def _files_of(group: ImageGroup) -> Iterator[_File]:
    """Yield the images of a group."""
    if group.masks is None:
        for path in list_images(group.images):
            yield _File(group, path.stem, lambda: None, path)
        return
    found = find_labeled_files(group.images, group.masks, settings=group.settings)
    for pair in found.pairs:
        yield _File(group, pair.name, _loader(found, pair), pair.image)


def _loader(files: LabeledFiles, pair: FilePair) -> Callable[[], Specimen]:
    return lambda: files.load(pair)
