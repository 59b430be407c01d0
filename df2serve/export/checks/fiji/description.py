"""Rules on the fields at the top of the description."""

from __future__ import annotations

from collections.abc import Iterator

from df2serve.export.checks.fiji.rule import Problem, Subject, rule
from df2serve.export.checks.report import Severity
from df2serve.export.checks.tensors import list_at, mapping_at

__all__ = ["RULES"]

_NEWEST = (0, 5, 10)
"""Last format version whose files name other files by plain strings."""
_STRINGS = ("description", "documentation", "git_repo", "license", "name", "type")
_SPECIAL_NAMES = ("bestfitting-inceptionv3-single-cell", "cellpose-python", "stardist")
_SHOWN = 60


@rule(
    "FIJI001",
    Severity.ERROR,
    demand="The description is rdf.yaml at the top of the package, in format 0.4 or 0.5 up to "
    "0.5.10, the version written as text.",
    reason="Fiji looks for this file only, and its reader knows these formats; 0.5.11 and later "
    "name files in a way that it cannot read.",
    remedy="Write rdf.yaml in format 0.5.10; bioimageio.core upgrades it when it reads it.",
)
def _format(subject: Subject) -> Iterator[Problem]:
    package, version = subject.package, subject.rdf.get("format_version")
    if package.rdf_name != "rdf.yaml":
        yield Problem(package.rdf_name, "the description has another name than rdf.yaml")
    if package.prefix:
        yield Problem(f"{package.prefix}/{package.rdf_name}", "not at the top of the zip file")
    if not isinstance(version, str):
        yield Problem("format_version", f"got {version!r}, expected text such as '0.5.10'")
    elif package.version[:2] not in {(0, 4), (0, 5)} or package.version > _NEWEST:
        yield Problem("format_version", f"got {version}, expected 0.4.x or 0.5.0 to 0.5.10")


@rule(
    "FIJI002",
    Severity.ERROR,
    demand="documentation, license, name, description, git_repo and type are plain strings.",
    reason="Fiji's reader casts them to strings and stops with a ClassCastException.",
    remedy="Write 'documentation: README.md' rather than a mapping with a source; bioimageio.spec "
    "0.5.12 writes mappings, so write the file yourself in format 0.5.10.",
)
def _strings(subject: Subject) -> Iterator[Problem]:
    for key in _STRINGS:
        value = subject.rdf.get(key)
        if value is not None and not isinstance(value, str):
            yield Problem(key, f"got {value!r:.{_SHOWN}}, expected a string")


@rule(
    "FIJI003",
    Severity.WARNING,
    demand="covers is a list of plain strings.",
    reason="Programs that show the cover expect file names; the model loads all the same.",
    remedy="Write 'covers: [cover.png]' in format 0.5.10.",
)
def _covers(subject: Subject) -> Iterator[Problem]:
    for index, cover in enumerate(list_at(subject.rdf, "covers")):
        if not isinstance(cover, str):
            yield Problem(f"covers[{index}]", f"got {cover!r:.{_SHOWN}}, expected a string")


@rule(
    "FIJI004",
    Severity.ERROR,
    demand="The model has an id, or config.bioimageio.nickname.",
    reason="Fiji stops with a NullPointerException.",
    remedy="Write an id such as 'brave-otter'; the Zoo gives one when a draft is created.",
)
def _identifier(subject: Subject) -> Iterator[Problem]:
    nickname = mapping_at(subject.rdf, "config", "bioimageio").get("nickname")
    if not isinstance(subject.rdf.get("id"), str) and not isinstance(nickname, str):
        yield Problem("id", "neither id nor config.bioimageio.nickname is a string")


@rule(
    "FIJI005",
    Severity.ERROR,
    demand="There is no config.deepimagej, unless it allows tiling.",
    reason="Without 'allow_tiling: true' there, Fiji switches tiling off, and inputs of variable "
    "size fail.",
    remedy="Remove config.deepimagej.",
)
def _deepimagej(subject: Subject) -> Iterator[Problem]:
    config = mapping_at(subject.rdf, "config")
    if config.get("deepimagej") is None:
        return
    if mapping_at(config, "deepimagej").get("allow_tiling") is not True:
        yield Problem("config.deepimagej", "present without 'allow_tiling: true'")


@rule(
    "FIJI006",
    Severity.WARNING,
    demand="The name is not one that Fiji treats in a special way.",
    reason="Fiji runs models of these names by code of its own instead of by their weights.",
    remedy="Choose another name, or remove config.stardist.",
)
def _special_names(subject: Subject) -> Iterator[Problem]:
    name, config = str(subject.rdf.get("name", "")), mapping_at(subject.rdf, "config")
    if name in _SPECIAL_NAMES:
        yield Problem("name", f"{name} is run by code of Fiji's own")
    elif "stardist" in name.lower() and "stardist" in config:
        yield Problem("name", f"{name:.{_SHOWN}} with config.stardist is run as a StarDist model")


RULES = (_format, _strings, _covers, _identifier, _deepimagej, _special_names)
