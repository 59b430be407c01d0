"""The comparison of predictions with the truth and with experts, one image at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from df2serve import __version__
from df2serve.artifact.manifest import ReferenceKind
from df2serve.core.scores import SCORES, ImageScores
from df2serve.errors import InputError
from df2serve.types import PixelMap, ProbMap, ValidMap
from df2serve_training._annotations import Annotation
from df2serve_training._comparison import ClassComparison, compare, mean_quality
from df2serve_training._estimate import estimate
from df2serve_training._evaluation_rows import (
    ClassRow,
    Evaluation,
    ExpertReference,
    ExpertRow,
    ImageRow,
)
from df2serve_training._evaluation_settings import EvaluationSettings
from df2serve_training._evaluation_summary import (
    correlations,
    expert_ranges,
    relative_rows,
    summarize,
)
from df2serve_training._gt_settings import GroundTruthSettings, Method
from df2serve_training._pixels import (
    PixelSample,
    UncertaintyBins,
    measure_temperature,
    sample_pixels,
)
from df2serve_training.pairing import natural_order

__all__ = ["PredictedImage", "evaluate"]


@dataclass(frozen=True, eq=False)
class PredictedImage:
    """A prediction, and what is known about its image; all arrays have its rows and columns."""

    name: str
    """Unique among the images."""
    image_sha256: str
    """Hash of the image's file."""
    kind: ReferenceKind
    """Whether members saw the image."""
    truth: Annotation
    prediction: Annotation
    scores: ImageScores
    members: tuple[int, ...]
    """Numbers of the members that predicted it."""
    seconds: float
    """Of the prediction."""
    valid: ValidMap | None = None
    """Pixels that count, axes (Y, X); all when absent."""
    experts: Mapping[str, Annotation] = field(default_factory=dict)
    """What each expert says."""
    uncertainty: PixelMap | None = None
    """Total uncertainty, axes (Y, X)."""
    probs: ProbMap | None = None
    """Mean class probabilities, axes (K, Y, X)."""
    group: str | None = None
    """What it shares with similar images, such as the animal."""
    statistics: Mapping[str, float] = field(default_factory=dict)
    """What the image looks like, by name."""


def evaluate(
    predictions: Iterable[PredictedImage],
    *,
    class_names: Sequence[str],
    settings: EvaluationSettings,
) -> Evaluation:
    """Compare predictions with the truth and, where there are any, with experts.

    Args:
        predictions: taken one at a time; nothing of the size of an image is kept.
        class_names: of all classes, background first.
        settings: smallest objects, intervals and estimates.

    Returns:
        Qualities, places among the experts, averages with intervals, and whether uncertainty tells
        errors; images in natural order of their names.

    Raises:
        InputError: there are no predictions, two have the same name, or arrays differ in size.
    """
    judge = _Judge(class_names, settings)
    for prediction in predictions:
        judge.add(prediction)
    return judge.conclude()


class _Judge:
    """Gathers the rows of all images."""

    def __init__(self, class_names: Sequence[str], settings: EvaluationSettings) -> None:
        self._class_names = tuple(class_names)
        self._settings = settings
        self._images: dict[str, ImageRow] = {}
        self._classes: dict[str, list[ClassRow]] = {}
        self._experts: dict[str, list[ExpertRow]] = {}
        self._bins = UncertaintyBins()
        self._pixels: defaultdict[ReferenceKind, list[PixelSample]] = defaultdict(list)

    def add(self, image: PredictedImage) -> None:
        """Compare one prediction."""
        _require_same_size(image)
        if image.name in self._images:
            message = f"two predictions are called {image.name}; names must be unique"
            raise InputError(message)
        compared = self._compare(image.truth, image.prediction, image.valid)
        self._images[image.name] = _image_row(image, compared)
        self._classes[image.name] = [self._class_row(image.name, one) for one in compared]
        self._experts[image.name] = list(self._expert_rows(image))
        self._look_at_pixels(image)

    def conclude(self) -> Evaluation:
        """Return the evaluation of all images."""
        if not self._images:
            message = "there are no predictions to evaluate; expected at least one image"
            raise InputError(message)
        names = natural_order(self._images)
        images = [self._images[name] for name in names]
        classes = [row for name in names for row in self._classes[name]]
        experts = [row for name in names for row in self._experts[name]]
        relative = list(relative_rows(images, experts))
        settings, class_names = self._settings, self._class_names
        summary = summarize(images, classes, class_names=class_names, settings=settings)
        return Evaluation(
            settings=settings,
            class_names=class_names,
            versions={"df2serve": __version__, "scipy": version("scipy")},
            images=tuple(images),
            classes=tuple(classes),
            experts=tuple(experts),
            relative=tuple(relative),
            expert_ranges=tuple(expert_ranges(relative)),
            summary=tuple(summary),
            correlations=tuple(correlations(images)),
            uncertainty=self._bins.rows(),
            temperature=measure_temperature(self._pixels),
        )

    def _compare(
        self, truth: Annotation, other: Annotation, valid: ValidMap | None
    ) -> tuple[ClassComparison, ...]:
        return compare(
            truth,
            other,
            n_classes=len(self._class_names),
            min_size=self._settings.min_size,
            valid=valid,
        )

    def _class_row(self, file: str, one: ClassComparison) -> ClassRow:
        return ClassRow(
            file=file,
            class_name=self._class_names[one.class_index],
            **one.quality.model_dump(),
            n_truth=one.n_truth,
            n_predicted=one.n_predicted,
            truth_px=one.truth_px,
            predicted_px=one.predicted_px,
            true_positives=one.panoptic.true_positives,
            iou_sum=one.panoptic.iou_sum,
        )

    def _expert_rows(self, image: PredictedImage) -> Iterator[ExpertRow]:
        """Compare every expert with the truth, and with what the other experts say."""
        for expert, annotation in image.experts.items():
            references: dict[ExpertReference, Annotation] = {"estimate": image.truth}
            others = [other for name, other in image.experts.items() if name != expert]
            method = self._settings.leave_one_out
            if method != "none" and others:
                references["leave_one_out"] = self._estimate(others, method)
            for reference, truth in references.items():
                compared = self._compare(truth, annotation, image.valid)
                quality = mean_quality(one.quality for one in compared)
                yield ExpertRow(
                    file=image.name, expert=expert, reference=reference, **quality.model_dump()
                )

    def _estimate(self, annotations: Sequence[Annotation], method: Method) -> Annotation:
        n_classes = len(self._class_names)
        settings = GroundTruthSettings(
            method=method,
            masks="binary" if n_classes == 2 else "classes",
            num_classes=n_classes,
        )
        return estimate(annotations, settings).annotation

    def _look_at_pixels(self, image: PredictedImage) -> None:
        truth, valid = image.truth.classes, image.valid
        if image.uncertainty is not None:
            self._bins.update(
                image.uncertainty,
                image.prediction.classes,
                truth,
                experts=[expert.classes for expert in image.experts.values()],
                valid=valid,
            )
        count = self._settings.pixels_per_image
        if image.probs is not None and count:
            seed = f"{self._settings.seed}/{image.name}"
            drawn = sample_pixels(image.probs, truth, valid=valid, count=count, seed=seed)
            self._pixels[image.kind].append(drawn)


def _image_row(image: PredictedImage, compared: Sequence[ClassComparison]) -> ImageRow:
    return ImageRow(
        file=image.name,
        **mean_quality(one.quality for one in compared).model_dump(),
        n_truth=sum(one.n_truth for one in compared),
        n_predicted=sum(one.n_predicted for one in compared),
        **{name: getattr(image.scores, name) for name in SCORES},
        foreground_fraction=image.scores.foreground_fraction,
        empty_prediction=image.scores.empty_prediction,
        kind=image.kind,
        members=" ".join(map(str, image.members)),
        group=image.group,
        seconds=round(image.seconds, 3),
        image_sha256=image.image_sha256,
        statistics=dict(image.statistics),
    )


def _require_same_size(image: PredictedImage) -> None:
    shapes = {
        "prediction": image.prediction.classes.shape,
        **{f"expert {name}": expert.classes.shape for name, expert in image.experts.items()},
    }
    expected = image.truth.classes.shape
    wrong = [f"{what} {shape}" for what, shape in shapes.items() if shape != expected]
    if wrong:
        message = (
            f"{image.name} has a truth of {expected} rows and columns, but {', '.join(wrong)}; "
            "masks of one image have the same size"
        )
        raise InputError(message)
