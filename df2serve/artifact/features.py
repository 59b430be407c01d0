"""``features.safetensors``: what the members see in the reference images of an ensemble.

A tensor per member, named as its folder, holds one vector per image; the metadata say which images
these are, which weights saw them, and how they were cut into tiles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal

import numpy as np
import safetensors.numpy
from jaxtyping import Float32
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError

from df2serve.artifact.manifest import Manifest, ReferenceKind
from df2serve.config import Frozen, Grid, InferenceConfig, describe_validation_error
from df2serve.core.features import nearest_distance
from df2serve.errors import IntegrityError, ManifestError

__all__ = ["FEATURES", "FEWEST", "BankImage", "BankMember", "FeatureBank", "FeatureBankFacts"]

FEATURES = "features.safetensors"
"""Path in an ensemble."""

_FACTS = "df2serve"
"""Key of the metadata."""
FEWEST = 2
"""Images per member: each of them needs another one to be compared with."""
_HASH = r"^[0-9a-f]{64}$"

Vectors = Float32[np.ndarray, "image channels"]


class BankImage(Frozen):
    """An image whose vector is in the bank."""

    name: str
    image_sha256: Annotated[str, Field(pattern=_HASH)]
    kind: ReferenceKind


class BankMember(Frozen):
    """The bank of one member."""

    folder: str
    """That of the manifest; the tensor has the same name."""
    weights_sha256: Annotated[str, Field(pattern=_HASH)]
    """Hash of the member's ``model.safetensors``."""
    images: tuple[BankImage, ...]
    """Images that the member was not trained on, in the order of the vectors."""

    @model_validator(mode="after")
    def _enough(self) -> BankMember:
        different = len({image.image_sha256 for image in self.images})
        if different < FEWEST:
            message = f"{self.folder} has {different} images, expected {FEWEST} or more"
            raise ValueError(message)
        return self


class FeatureBankFacts(Frozen):
    """The metadata of the file, as JSON."""

    schema_version: Literal[1] = 1
    tile_shape: tuple[int, int]
    """Settings under which the images were predicted; vectors of others do not compare."""
    grid: Grid
    zoom_out: float
    members: tuple[BankMember, ...]

    @model_validator(mode="after")
    def _different(self) -> FeatureBankFacts:
        if len({member.folder for member in self.members}) < len(self.members):
            message = "two members have the same folder"
            raise ValueError(message)
        return self


@dataclass(frozen=True, eq=False)
class FeatureBank:
    """Vectors of the images that the members were not trained on."""

    facts: FeatureBankFacts
    vectors: Mapping[str, Vectors]
    """By member, one row of length 1 per image."""

    def changed(self, config: InferenceConfig) -> str:
        """Name the settings in which a prediction differs so that its vectors do not compare.

        Args:
            config: in effect, so that tile shape and zoom are stated.
        """
        keys = ("tile_shape", "grid", "zoom_out")
        ours, theirs = (
            one.model_dump(mode="json", include={*keys}) for one in (self.facts, config)
        )
        return ", ".join(
            f"{key.replace('_', ' ')} {ours[key]}, here {theirs[key]}"
            for key in keys
            if ours[key] != theirs[key]
        )

    def distance(
        self,
        folders: Sequence[str],
        vectors: Sequence[Float32[np.ndarray, " _"]],
        *,
        without: str | None,
    ) -> float:
        """Return how far an image is from the bank, the mean over members.

        Args:
            folders: of the members that predicted the image.
            vectors: what each of them saw, of length 1.
            without: SHA-256 of the image, which does not count where it is in the bank.

        Returns:
            In [0, 2]; higher is odder. See :func:`df2serve.core.features.nearest_distance`.

        Raises:
            IntegrityError: the bank's vectors are not those of these networks.
        """
        members = {member.folder: member for member in self.facts.members}
        found = []
        for folder, vector in zip(folders, vectors, strict=True):
            bank = self.vectors[folder]
            if bank.shape[1] != len(vector):
                message = (
                    f"{FEATURES} has vectors of {bank.shape[1]} numbers for {folder}, its network "
                    f"gives {len(vector)}; make it again with 'df2serve evaluate --calibrate "
                    "--features'"
                )
                raise IntegrityError(message)
            others = [image.image_sha256 != without for image in members[folder].images]
            found.append(nearest_distance(vector, bank[others]))
        return fmean(found)

    def of_weights(self, manifest: Manifest) -> FeatureBank:
        """Return the bank for the same networks in other files, such as those of a package.

        Args:
            manifest: with the same folders of members.
        """
        known = {member.folder: member for member in self.facts.members}
        members = tuple(
            known[member.folder].model_copy(
                update={
                    "weights_sha256": manifest.files[f"{member.folder}/model.safetensors"].sha256
                }
            )
            for member in manifest.members
        )
        facts = self.facts.model_copy(update={"members": members})
        return FeatureBank(facts, {one.folder: self.vectors[one.folder] for one in members})

    def to_bytes(self) -> bytes:
        """Return the bytes of the file; equal banks give equal bytes."""
        return safetensors.numpy.save(
            dict(self.vectors), metadata={_FACTS: self.facts.model_dump_json()}
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> FeatureBank:
        """Read the file.

        Raises:
            IntegrityError: it is no safetensors file, or vectors and metadata contradict each
                other.
            ManifestError: the metadata do not follow the schema.
        """
        try:
            tensors = safetensors.numpy.load(content)
        except (SafetensorError, ValueError, KeyError, AttributeError) as error:
            message = f"{FEATURES} cannot be read: {error}; fetch or make it again"
            raise IntegrityError(message) from error
        facts = _facts(content)
        for member in facts.members:
            _require_vectors(member, tensors.get(member.folder))
        return cls(facts, {member.folder: tensors[member.folder] for member in facts.members})


def _facts(content: bytes) -> FeatureBankFacts:
    """Return the metadata of a file that is known to be safetensors."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        return FeatureBankFacts.model_validate_json(header.get("__metadata__", {}).get(_FACTS, ""))
    except ValidationError as error:
        message = describe_validation_error(f"the metadata of {FEATURES}", error)
        raise ManifestError(message) from error


def _require_vectors(member: BankMember, vectors: np.ndarray | None) -> None:
    """Refuse vectors that are not those of the metadata."""
    images = len(member.images)
    if vectors is None or vectors.dtype != np.float32 or vectors.ndim != 2:
        got = "nothing" if vectors is None else f"{vectors.dtype} {vectors.shape}"
        message = f"{FEATURES} has {got} for {member.folder}, expected float32 ({images}, channels)"
        raise IntegrityError(message)
    if len(vectors) != images or not np.isfinite(vectors).all():
        message = (
            f"{FEATURES} has {len(vectors)} vectors for {member.folder}, expected {images} of "
            "finite numbers"
        )
        raise IntegrityError(message)
