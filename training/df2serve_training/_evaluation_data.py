"""The labeled images of an evaluation: which there are, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from df2serve.errors import InputError
from df2serve.io import ClassMask, Image
from df2serve.types import ValidMap
from df2serve_training._annotations import Annotation
from df2serve_training._expert_files import find_expert_files, read_annotation
from df2serve_training._gt_settings import GroundTruthSettings
from df2serve_training.dataset import label_image, read_pair_image, read_pair_mask
from df2serve_training.pairing import FilePair, image_name, pair_files
from df2serve_training.settings import DataSettings
from df2serve_training.targets import IGNORED, zoom_out_mask

__all__ = ["LabeledFiles", "Specimen", "find_labeled_files"]


@dataclass(frozen=True, eq=False)
class Specimen:
    """One labeled image at the resolution of the training."""

    image: Image
    """With all pixels in memory."""
    truth: Annotation
    valid: ValidMap | None
    """Pixels that count, axes (Y, X); all when absent."""
    experts: Mapping[str, Annotation]


@dataclass(frozen=True)
class LabeledFiles:
    """Images with one mask each, and experts' masks of some of them."""

    pairs: tuple[FilePair, ...]
    settings: DataSettings
    experts: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    """Masks by image and expert."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """What images share with similar ones, such as the animal, by their names."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the images' files, by their names."""

    def load(self, pair: FilePair) -> Specimen:
        """Read one of the images.

        Raises:
            InputError: a file cannot be used, or masks differ in size from the image.
        """
        image, mask = read_pair_image(pair, self.settings), read_pair_mask(pair, self.settings)
        plane = mask.classes if isinstance(mask, ClassMask) else mask.labels
        experts = {
            name: read_annotation(path, self.expert_settings)[0]
            for name, path in self.experts.get(pair.name, {}).items()
        }
        shapes = {"the mask": plane.shape} | {
            f"the mask of {name}": expert.classes.shape for name, expert in experts.items()
        }
        wrong = [f"{what} {shape}" for what, shape in shapes.items() if shape != image.shape[1:]]
        if wrong:
            message = (
                f"{pair.name} has {image.shape[1:]} rows and columns, but {', '.join(wrong)}; "
                "masks have the size of their image"
            )
            raise InputError(message)
        labeled = label_image(image, mask, self.settings.zoom_out)
        valid = labeled.target != IGNORED
        return Specimen(
            image=replace(image, data=labeled.pixels),
            truth=Annotation.of_classes(np.where(valid, labeled.target, 0).astype(np.uint8))
            if labeled.labels is None
            else Annotation.of_instances(labeled.labels),
            valid=None if valid.all() else valid,
            experts={name: self._coarse(expert) for name, expert in experts.items()},
        )

    @property
    def expert_settings(self) -> GroundTruthSettings:
        """How experts' masks are read."""
        return GroundTruthSettings(masks=self.settings.masks, num_classes=self.settings.num_classes)

    def _coarse(self, annotation: Annotation) -> Annotation:
        """Return what an expert says at the resolution of the training."""
        factor = self.settings.zoom_out
        if factor == 1:
            return annotation
        if self.settings.masks == "instances":
            return Annotation.of_instances(zoom_out_mask(annotation.labels, factor))
        return Annotation.of_classes(zoom_out_mask(annotation.classes, factor))


def find_labeled_files(
    images: str | Path,
    masks: str | Path,
    *,
    settings: DataSettings,
    experts: str | Path | None = None,
    ignore: str | Path | None = None,
    groups: Mapping[str, str] | None = None,
) -> LabeledFiles:
    """Pair images with masks, and read all of them once, so that nothing fails later.

    Args:
        images: folder of images.
        masks: folder of masks, named after the images.
        settings: how files are read.
        experts: folder with a folder of masks for each expert; images may lack some or all.
        ignore: folder of masks of pixels that do not count; images may be without one.
        groups: what images share with similar ones, such as the animal, by their names.

    Raises:
        SourceNotFoundError: a folder does not exist or holds no images.
        InputError: names every problem and all files that have it.
    """
    pairing = pair_files(images, masks, ignore=ignore, mask_suffix=settings.mask_suffix)
    found = LabeledFiles(pairing.pairs, settings, groups=groups or {})
    problems = list(pairing.problems)
    if experts is not None:
        drawn = find_expert_files(Path(experts), found.expert_settings).paths
        found = replace(found, experts=dict(_experts_of(pairing.pairs, drawn)))
        if not found.experts:
            problems.append(
                f"no mask in {experts} is named after an image; expected EXPERT/"
                f"{pairing.pairs[0].name if pairing.pairs else 'NAME'}.png or the like"
            )
    hashes = {}
    for pair in pairing.pairs:
        try:
            hashes[pair.name] = found.load(pair).image.sha256 or ""
        except InputError as error:
            problems.append(str(error))
    if problems:
        message = f"{images} and {masks} cannot be evaluated:"
        raise InputError("\n- ".join([message, *problems]))
    return replace(found, hashes=hashes)


def _experts_of(
    pairs: tuple[FilePair, ...], drawn: Mapping[str, Mapping[str, Path]]
) -> Iterator[tuple[str, Mapping[str, Path]]]:
    """Yield the experts' masks of every image, named like the image or like its mask."""
    for pair in pairs:
        for name in (pair.name, image_name(pair.mask)):
            if name in drawn:
                yield pair.name, drawn[name]
                break
