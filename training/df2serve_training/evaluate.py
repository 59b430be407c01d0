"""How good an ensemble is: its predictions beside the truth and beside experts.

A folder of an evaluation holds tables (one spreadsheet, and each as CSV), figures, the predicted
``masks/``, and ``evaluation.json``; on request ``features.safetensors``, the bank that was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pydantic import ValidationError

from df2serve.artifact import FEATURES, Ensemble
from df2serve.artifact.features import BankImage
from df2serve.artifact.manifest import ReferenceKind
from df2serve.config import InferenceConfig, RuntimeConfig, describe_validation_error
from df2serve.errors import ConfigError, InputError, ManifestError
from df2serve.files import new_folder
from df2serve.inference import Prediction, Predictor
from df2serve.io import Image
from df2serve_training._annotations import Annotation
from df2serve_training._comparison import Quality
from df2serve_training._evaluation_data import LabeledFiles, find_labeled_files
from df2serve_training._evaluation_files import read_evaluation, write_evaluation
from df2serve_training._evaluation_rows import Evaluation
from df2serve_training._evaluation_settings import METRICS, EvaluationSettings, Metric
from df2serve_training._feature_bank import BankMaker, require_images_of_all_members
from df2serve_training._gt_files import write_mask
from df2serve_training._judge import PredictedImage, evaluate
from df2serve_training.folds import SplitImage, Splits
from df2serve_training.ground_truth import Progress
from df2serve_training.pairing import FilePair

__all__ = [
    "METRICS",
    "Evaluation",
    "EvaluationSettings",
    "Keep",
    "LabeledFiles",
    "Metric",
    "PredictedImage",
    "Progress",
    "Quality",
    "evaluate",
    "evaluate_ensemble",
    "find_labeled_files",
    "member_scores",
    "only_members",
    "read_evaluation",
    "seen_by",
    "splits_of",
]

Listener = Callable[[Progress], None]
Keep = Callable[[Image, Prediction], object]
_SPLITS = "splits.json"


def evaluate_ensemble(
    ensemble: Ensemble,
    data: LabeledFiles,
    *,
    target: str | Path,
    settings: EvaluationSettings,
    config: InferenceConfig | None = None,
    runtime: RuntimeConfig | None = None,
    listener: Listener | None = None,
    keeper: Callable[[Path, InferenceConfig], Keep] | None = None,
) -> Evaluation:
    """Predict labeled images, one at a time, and compare the predictions with their masks.

    An image that the ensemble was trained on, which is told by its hash, is predicted by those
    members alone that did not see it; it is left out if all did.

    Args:
        ensemble: with the ``splits.json`` of its training; without one, images are taken for new.
        data: images with masks, see :func:`find_labeled_files`.
        target: folder to create; it appears when everything is done, and not before.
        settings: smallest objects, intervals and estimates; whether a bank of features is made.
        config: what is computed; the ensemble's recommendation when absent.
        runtime: backend, device and batch size; automatic when absent.
        listener: called after each image.
        keeper: gets the folder and the settings in effect, and returns what is called with each
            image and its prediction.

    Raises:
        ConfigError: classes of ensemble and masks differ.
        InputError: there are no images that a member did not see, or one cannot be predicted; or
            too few that some member did not see for a bank of features.
        BackendError: a bank is to be made, and the backend gives no features.
        OutputError: the target exists, or cannot be written.
    """
    _require_same_classes(ensemble, data)
    splits = splits_of(ensemble)
    data = _with_groups(data, splits)
    parts, remarks = _divide(ensemble, data, splits)
    chosen = Predictor(ensemble, config=config, runtime=runtime).config
    maker = None
    if settings.features:
        unseen = [(part.members, [pair.name for pair in part.pairs]) for part in parts]
        require_images_of_all_members(ensemble, unseen, data.hashes)
        maker = BankMaker(ensemble, chosen)
    with new_folder(Path(target), empty_ok=True) as folder:
        keep = keeper(folder, chosen) if keeper else None
        run = _Run(ensemble, data, chosen, runtime, folder / "masks", keep, maker)
        evaluation = evaluate(
            _reported(run.predictions(parts), sum(len(part.pairs) for part in parts), listener),
            class_names=[item.name for item in ensemble.manifest.classes],
            settings=settings,
        ).model_copy(
            update={
                "ensemble_id": ensemble.manifest.id,
                "ensemble_sha256": ensemble.sha256,
                "config": chosen.model_dump(mode="json"),
                "remarks": tuple(remarks),
            }
        )
        if maker is not None:
            bank = maker.bank()
            evaluation = maker.scored(evaluation, bank)
            (folder / FEATURES).write_bytes(bank.to_bytes())
        write_evaluation(evaluation, folder)
    return evaluation


def member_scores(evaluation: Evaluation, member: int) -> dict[str, float]:
    """Return the mean of every metric over images that this member alone predicted unseen."""
    rows = [
        row for row in evaluation.images if row.kind == "out_of_fold" and row.members == str(member)
    ]
    values = {
        metric: [value for row in rows if (value := row.of(metric)) is not None]
        for metric in METRICS
    }
    return {metric: fmean(found) for metric, found in values.items() if found}


@dataclass(frozen=True)
class _Part:
    """Images that the same members predict."""

    members: tuple[int, ...]
    kind: ReferenceKind
    pairs: tuple[FilePair, ...]


def _divide(
    ensemble: Ensemble, data: LabeledFiles, splits: Splits | None
) -> tuple[list[_Part], list[str]]:
    """Find the members that did not see each image; remark what is left out."""
    remarks = []
    if splits is None:
        remarks.append("the ensemble does not list its training images; all images count as new")
    found: dict[tuple[ReferenceKind, tuple[int, ...]], list[FilePair]] = {}
    seen = []
    for pair in data.pairs:
        names = set(_trained_as(splits, data.hashes[pair.name]))
        unseen = _unseen_by(ensemble, splits, names)
        if unseen:
            kind: ReferenceKind = "out_of_fold" if names else "held_out"
            found.setdefault((kind, unseen), []).append(pair)
        else:
            seen.append(pair.name)
    if seen:
        remarks.append(f"left out, because every member was trained on them: {', '.join(seen)}")
    if len({kind for kind, _ in found}) > 1:
        remarks.append("averages are over held-out and out-of-fold images together")
    if not found:
        message = "every image was trained on by every member; give images that are new to some"
        raise InputError(message)
    return [_Part(unseen, kind, tuple(pairs)) for (kind, unseen), pairs in found.items()], remarks


def _unseen_by(ensemble: Ensemble, splits: Splits | None, names: set[str]) -> tuple[int, ...]:
    """Return the members that were not trained on any of some training images."""
    return tuple(
        number
        for number, member in enumerate(ensemble.manifest.members)
        if splits is None
        or not names
        or (member.fold is not None and not names & set(splits.training_names(member.fold)))
    )


def _with_groups(data: LabeledFiles, splits: Splits | None) -> LabeledFiles:
    """Add the groups that the training kept together; what the caller says wins."""
    if splits is None or splits.folds.method != "grouped":
        return data
    groups = {
        pair.name: image.group
        for pair in data.pairs
        for image in _trained_as(splits, data.hashes[pair.name]).values()
        if image.group is not None
    }
    return replace(data, groups=groups | dict(data.groups))


def splits_of(ensemble: Ensemble) -> Splits | None:
    """Return what the members were trained on, where the ensemble says so."""
    if _SPLITS not in ensemble.manifest.files:
        return None
    try:
        return Splits.model_validate_json(ensemble.read(_SPLITS))
    except ValidationError as error:
        raise ManifestError(describe_validation_error(_SPLITS, error)) from error


def seen_by(ensemble: Ensemble, splits: Splits | None, sha256: str) -> set[int]:
    """Return the members that were trained on an image, by the hash of its file."""
    names = set(_trained_as(splits, sha256))
    unseen = _unseen_by(ensemble, splits, names)
    return set(range(len(ensemble))) - set(unseen)


def _trained_as(splits: Splits | None, sha256: str) -> dict[str, SplitImage]:
    """Return what an image was in the training, by name; nothing for a new one."""
    images = {} if splits is None else splits.images
    return {name: image for name, image in images.items() if image.image_sha256 == sha256}


@dataclass(frozen=True)
class _Run:
    """Predicts labeled images and writes the masks."""

    ensemble: Ensemble
    data: LabeledFiles
    config: InferenceConfig
    runtime: RuntimeConfig | None
    folder: Path
    """For the masks."""
    keep: Keep | None
    maker: BankMaker | None
    """Of the bank, where one is made."""

    def predictions(self, parts: list[_Part]) -> Iterator[PredictedImage]:
        """Yield the predictions of all images, part by part."""
        self.folder.mkdir()
        for part in parts:
            chosen = only_members(self.ensemble, part.members)
            with Predictor(
                chosen,
                config=self.config,
                runtime=self.runtime,
                collect_features=self.maker is not None,
            ) as predictor:
                for pair in part.pairs:
                    yield self._predict(predictor, pair, part)

    def _predict(self, predictor: Predictor, pair: FilePair, part: _Part) -> PredictedImage:
        specimen = self.data.load(pair)
        prediction = predictor.predict(specimen.image)
        if self.keep is not None:
            self.keep(specimen.image, prediction)
        if self.maker is not None:
            image = BankImage(
                name=pair.name, image_sha256=self.data.hashes[pair.name], kind=part.kind
            )
            self.maker.add(image, part.members, prediction.summary.features)
        write_mask(
            self.folder / f"{pair.name}.png",
            prediction.mask,
            n_classes=self.data.settings.num_classes,
        )
        return PredictedImage(
            name=pair.name,
            image_sha256=self.data.hashes[pair.name],
            kind=part.kind,
            truth=specimen.truth,
            prediction=Annotation.of_classes(prediction.mask),
            scores=prediction.scores,
            members=part.members,
            seconds=prediction.summary.seconds,
            valid=specimen.valid,
            experts=specimen.experts,
            uncertainty=prediction.total,
            probs=prediction.probs,
            group=self.data.groups.get(pair.name),
            statistics=prediction.summary.statistics,
        )


def only_members(ensemble: Ensemble, members: tuple[int, ...]) -> Ensemble:
    """Return the ensemble with some of its members."""
    chosen = tuple(ensemble.manifest.members[number] for number in members)
    return replace(ensemble, manifest=ensemble.manifest.model_copy(update={"members": chosen}))


def _reported(
    predictions: Iterator[PredictedImage], total: int, listener: Listener | None
) -> Iterator[PredictedImage]:
    for done, prediction in enumerate(predictions, start=1):
        yield prediction
        if listener is not None:
            listener(Progress(source=prediction.name, done=done, total=total))


def _require_same_classes(ensemble: Ensemble, data: LabeledFiles) -> None:
    if ensemble.manifest.num_classes != data.settings.num_classes:
        names = ", ".join(item.name for item in ensemble.manifest.classes)
        message = (
            f"the ensemble has {ensemble.manifest.num_classes} classes ({names}), the masks "
            f"{data.settings.num_classes}; set num_classes, and masks = 'classes' for more than 2"
        )
        raise ConfigError(message)
