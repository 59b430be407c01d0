"""From what members see in evaluated images to the bank of an ensemble."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from df2serve.artifact import Ensemble, FeatureBank
from df2serve.artifact.features import FEWEST, BankImage, BankMember, FeatureBankFacts
from df2serve.config import InferenceConfig
from df2serve.errors import InputError
from df2serve_training._evaluation_rows import Evaluation
from df2serve_training._evaluation_summary import correlations

__all__ = ["BankMaker", "require_images_of_all_members"]


@dataclass(frozen=True)
class _Seen:
    """What the members that were not trained on an image see in it."""

    image: BankImage
    members: tuple[int, ...]
    vectors: tuple[NDArray[np.float32], ...]


class BankMaker:
    """Gathers the vectors of images, each of the members alone that were not trained on it."""

    def __init__(self, ensemble: Ensemble, config: InferenceConfig) -> None:
        """Start without images.

        Args:
            ensemble: that the bank is for.
            config: in effect, so that tile shape and zoom are stated.
        """
        self._ensemble = ensemble
        self._config = config
        self._seen: list[_Seen] = []

    def add(
        self, image: BankImage, members: tuple[int, ...], vectors: tuple[NDArray[np.float32], ...]
    ) -> None:
        """Add an image.

        Args:
            image: to tell it by.
            members: numbers of those that were not trained on it.
            vectors: what each of them sees.

        Raises:
            InputError: a vector is not finite.
        """
        if not all(np.isfinite(vector).all() for vector in vectors):
            message = (
                f"features of {image.name} are too large for the precision; evaluate in fp32, "
                "or without --features"
            )
            raise InputError(message)
        self._seen.append(_Seen(image, members, vectors))

    def bank(self) -> FeatureBank:
        """Return the bank of all images, in order of their names."""
        rows: defaultdict[int, list[tuple[BankImage, NDArray[np.float32]]]] = defaultdict(list)
        for seen in sorted(self._seen, key=lambda one: one.image.name):
            for number, vector in zip(seen.members, seen.vectors, strict=True):
                rows[number].append((seen.image, vector))
        files = self._ensemble.manifest.files
        numbered = list(enumerate(self._ensemble.manifest.members))
        settings = self._config.model_dump(include={"tile_shape", "grid", "zoom_out"})
        facts = FeatureBankFacts.model_validate(
            {
                **settings,
                "members": [
                    BankMember(
                        folder=member.folder,
                        weights_sha256=files[f"{member.folder}/model.safetensors"].sha256,
                        images=tuple(image for image, _ in rows[number]),
                    )
                    for number, member in numbered
                ],
            }
        )
        return FeatureBank(
            facts,
            {
                member.folder: np.stack([vector for _, vector in rows[number]])
                for number, member in numbered
            },
        )

    def scored(self, evaluation: Evaluation, bank: FeatureBank) -> Evaluation:
        """Return an evaluation of the images with their distances, each without itself."""
        folders = [member.folder for member in self._ensemble.manifest.members]
        distances = {
            seen.image.name: bank.distance(
                [folders[number] for number in seen.members],
                seen.vectors,
                without=seen.image.image_sha256,
            )
            for seen in self._seen
        }
        images = tuple(
            row.model_copy(update={"feature_distance": distances[row.file]})
            for row in evaluation.images
        )
        return evaluation.model_copy(
            update={"images": images, "correlations": tuple(correlations(images))}
        )


def require_images_of_all_members(
    ensemble: Ensemble,
    unseen: Sequence[tuple[tuple[int, ...], Collection[str]]],
    hashes: Mapping[str, str],
) -> None:
    """Refuse images that make no bank, before any of them is predicted.

    Args:
        ensemble: that the bank is for.
        unseen: numbers of members, and names of the images that none of them was trained on.
        hashes: of the images' files, by their names.

    Raises:
        InputError: an image has no hash, or a member has fewer than two images to be compared.
    """
    nameless = [name for _, names in unseen for name in names if not hashes[name]]
    if nameless:
        message = f"{nameless[0]} has no hash to tell it by, which a bank of features needs"
        raise InputError(message)
    for number, member in enumerate(ensemble.manifest.members):
        new = {hashes[name] for members, names in unseen if number in members for name in names}
        if len(new) < FEWEST:
            message = (
                f"{member.folder} was not trained on {len(new)} of the images, a bank of features "
                f"needs {FEWEST} or more for every member; evaluate images of all folds, or new "
                "ones, or leave out --features"
            )
            raise InputError(message)
