"""What only people know about an ensemble: a YAML file, or options of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from df2serve.artifact import Ensemble
from df2serve.config import Frozen, describe_validation_error
from df2serve.errors import ConfigError, ExportError, SourceNotFoundError

__all__ = ["Card", "Citation", "Dataset", "Environment", "Person", "Uploader", "load_card"]

Text = Annotated[str, Field(min_length=1)]


class Person(Frozen):
    """An author, maintainer or packager."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^/\\]+$")]
    affiliation: Text | None = None
    email: Text | None = None
    orcid: Annotated[str, Field(pattern=r"^\d{4}-\d{4}-\d{4}-\d{3}[\dX]$")] | None = None
    github_user: Text | None = None
    """Name at GitHub, which validators look up there."""


class Uploader(Frozen):
    """Who uploads the package."""

    email: Text
    name: Text | None = None


class Citation(Frozen):
    """What to cite, besides the paper of the method."""

    text: Text
    doi: Annotated[str, Field(pattern=r"^10\.\S+/\S+$")] | None = None
    url: Text | None = None

    @model_validator(mode="after")
    def _findable(self) -> Citation:
        if self.doi is None and self.url is None:
            message = "needs doi or url"
            raise ValueError(message)
        return self


class Dataset(Frozen):
    """Where images come from."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9_./-]+$")]
    """Identifier of the data set in the BioImage Model Zoo."""
    source: Text | None = None
    """Address of the data set; evaluations need one."""


class Environment(Frozen):
    """What the training cost."""

    hardware_type: Text | None = None
    hours_used: Annotated[float, Field(ge=0)] | None = None
    cloud_provider: Text | None = None
    compute_region: Text | None = None
    co2_emitted: Annotated[float, Field(ge=0)] | None = None
    """Kilograms of CO2 or its equivalent."""


class Card(Frozen):
    """What people say about an ensemble. Nothing is ever filled in for them."""

    title: ClassVar[str] = "card"
    name: Text | None = None
    """Title; the ensemble's own when absent."""
    authors: tuple[Person, ...] = ()
    """Who made the ensemble; needed."""
    license: Text | None = None
    """SPDX identifier; needed unless the ensemble states one."""
    description: Text | None = None
    """What it segments, in which images; needed unless the ensemble says so."""
    maintainers: tuple[Person, ...] = ()
    """Who answers questions; each with ``github_user``."""
    packaged_by: tuple[Person, ...] = ()
    uploader: Uploader | None = None
    cite: tuple[Citation, ...] = ()
    """Publications of the ensemble or its data; the paper of the method comes first in any case."""
    tags: tuple[Text, ...] = ()
    """Such as ``fluorescence-light-microscopy`` and ``nuclei``; technical ones are added."""
    git_repo: Text | None = None
    links: tuple[Text, ...] = ()
    version: Text | None = None
    version_comment: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    id_emoji: Text | None = None
    intended_use: Text | None = None
    out_of_scope_use: Text | None = None
    funded_by: Text | None = None
    modality: Text | None = None
    target_structure: tuple[Text, ...] = ()
    known_biases: Text | None = None
    risks: Text | None = None
    limitations: Text | None = None
    recommendations: Text | None = None
    training_data: Dataset | None = None
    evaluation_data: Dataset | None = None
    """Data set of the calibration's reference images; evaluations are written if it has an
    address."""
    evaluation_role: Literal["test", "validation", "independent", "unknown"] = "unknown"
    """What that data set was to the training."""
    memory_requirements_training: Text | None = None
    environmental_impact: Environment | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Card:
        if any(person.github_user is None for person in self.maintainers):
            message = "every maintainer needs github_user"
            raise ValueError(message)
        return self

    def complete(self, ensemble: Ensemble) -> Card:
        """Return the card with what the ensemble states itself.

        Raises:
            ExportError: something that a package needs is stated nowhere; all of it is listed.
        """
        manifest = ensemble.manifest
        card = self.updated(
            license=self.license or manifest.license,
            description=self.description or manifest.description or None,
        )
        needed = {
            "authors (--author NAME, or the card)": card.authors,
            "license (--license SPDX, the card, or the ensemble)": card.license,
            "description (--description TEXT, the card, or the ensemble)": card.description,
        }
        missing = [name for name, value in needed.items() if not value]
        if missing:
            message = f"a package needs facts that are stated nowhere: {'; '.join(missing)}"
            raise ExportError(message)
        return card


def load_card(
    path: Path | None,
    *,
    authors: Sequence[str] = (),
    license_id: str | None = None,
    description: str | None = None,
) -> Card:
    """Read a card, and let options win over it.

    Args:
        path: YAML file; an empty card when absent.
        authors: names.
        license_id: SPDX identifier.
        description: what the ensemble segments, in which images.

    Raises:
        SourceNotFoundError: there is no such file.
        ConfigError: it is no YAML, or a field is unknown or malformed; all are listed.
    """
    content: Any = {} if path is None else _read(path)
    if authors:
        content = content | {"authors": [{"name": name} for name in authors]}
    if license_id:
        content = content | {"license": license_id}
    if description:
        content = content | {"description": description}
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        raise ConfigError(describe_validation_error("card", error)) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        message = f"no card at {path}; expected a YAML file"
        raise SourceNotFoundError(message)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{path} is not YAML: {error}"
        raise ConfigError(message) from error
    if not isinstance(content, dict):
        message = f"{path} holds a {type(content).__name__}; expected fields, such as authors"
        raise ConfigError(message)
    return content
