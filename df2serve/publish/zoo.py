"""To the BioImage Model Zoo: a package becomes a draft there, and the draft goes to the reviewers.

Nothing that is public changes: every edit is staged and belongs to a new version, and to commit
one, which publishes it, is up to the reviewers.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self, TypeAlias

import yaml
from pydantic import SecretStr

from df2serve.config import CheckLimits, ZooSettings
from df2serve.errors import ConfigError, Df2ServeError, ExportError, HubError
from df2serve.export.checks import CheckReport, Severity, check_package
from df2serve.export.checks.fiji.files import named_files
from df2serve.export.checks.package import Package, open_package
from df2serve.publish._artifacts import ArtifactService

__all__ = ["Listener", "Sent", "Submission", "UploadPlan", "Zoo", "plan_upload"]

_ALIAS = "{animal_adjective}-{animal}"
"""What the collection makes the name of a new model of."""
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")
"""The collection and Fiji read the first, the website the second; both get the same content."""
_WEIGHTS = (".onnx", ".pt", ".pth", ".safetensors")
_OPEN = {"draft", "in-revision"}
"""States in which the files of a submission are its author's to change."""
_CURATING = {"rw", "rw+"}


@dataclass(frozen=True)
class UploadPlan:
    """A package that was checked, with what an upload sends of it."""

    rdf: Mapping[str, Any]
    """Content of the description, in types that JSON knows."""
    files: Mapping[str, Path]
    """Files that the description names, by their names in the package, without itself."""
    report: CheckReport

    @property
    def size(self) -> int:
        """Bytes of the files, descriptions not counted."""
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class Submission:
    """A model in the Zoo, as it stands there."""

    name: str
    """Its id: an adjective and an animal."""
    status: str
    """``draft``, ``in-review`` or ``in-revision`` of what is staged, else ``published``; ``empty``
    if there is neither."""
    is_staged: bool
    """Whether there is a version that is not public."""
    versions: tuple[str, ...]
    """Public versions, the oldest first."""
    edits_published: bool
    """Whether the stage would change the newest public version instead of adding one."""
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Sent:
    """A file that the Zoo has now, compared byte by byte."""

    name: str
    """Of the model."""
    file: str
    size: int
    """In bytes."""
    was_there: bool
    """Whether an earlier upload had brought it."""


Listener: TypeAlias = Callable[[Submission | Sent], None]
"""Told of the draft as soon as there is one, and of every file."""


@contextmanager
def plan_upload(
    path: str | Path,
    *,
    trust: Collection[str] = (),
    limits: CheckLimits = CheckLimits(),  # noqa: B008 - frozen
) -> Iterator[UploadPlan]:
    """Check a package, and settle what to send, for :meth:`Zoo.upload` within the context.

    Args:
        path: a package as a zip file or a folder.
        trust: SHA-256 hashes of code that may run, see :func:`check_package`.
        limits: how much the package may ask for.

    Raises:
        ConfigError: a description alone was given.
        ExportError: the check found errors.
        SourceNotFoundError: nothing is there.
    """
    with open_package(Path(path), limits) as (package, _):
        if package is not None and package.listing is None:
            message = f"got {path}; expected a package, that is a zip file or a folder"
            raise ConfigError(message)
        report = check_package(path, trust=trust, limits=limits)
        if package is None or not report.ok:
            errors = [item for item in report.findings if item.severity is Severity.ERROR]
            codes = ", ".join(sorted({item.code for item in errors}))
            message = f"{path} fails its check ({codes}); see 'df2serve check', and export it again"
            raise ExportError(message)
        yield UploadPlan(rdf=_plain(package.rdf), files=_files(package), report=report)


class Zoo:
    """A connection to the Zoo with an account's token, to be closed after use."""

    def __init__(
        self,
        token: SecretStr | None,
        *,
        settings: ZooSettings = ZooSettings(),  # noqa: B008 - frozen
    ) -> None:
        """Prepare a connection.

        Args:
            token: from https://bioimage.io/#/api; without one, models can only be looked at.
            settings: where the Zoo is.

        Raises:
            ConfigError: the token would travel unencrypted.
        """
        self._service = ArtifactService(token, settings)
        self._collection = settings.collection

    def __enter__(self) -> Self:
        """Return the connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._service.close()

    def find(self, name: str) -> Submission:
        """Return how a model stands.

        Raises:
            ConfigError: this is no name of a model.
            ArtifactNotFoundError: the Zoo has no such model.
            HubAccessError: the account must not see it.
            HubError: it is something else than a model of the Zoo.
        """
        found = self._service.call("read", artifact_id=self._artifact(name), stage=True)
        if found.get("parent_id") != self._collection or found.get("type") != "model":
            message = f"{name} is no model of {self._collection}; look up its name at the Zoo"
            raise HubError(message)
        return _submission(name, found)

    def upload(
        self,
        plan: UploadPlan,
        *,
        name: str | None = None,
        review: bool = True,
        listener: Listener | None = None,
    ) -> Submission:
        """Stage a package, compare what arrived, and ask for a review.

        Files that are there already are not sent again, so that an interrupted upload goes on
        where it was. A draft stays when something fails, and the error names it.

        Args:
            plan: what to send.
            name: a draft to go on with, or a published model that gets a new version; a new model
                if absent.
            review: hand the draft over to the reviewers; else it stays a draft.
            listener: told of the draft, and of every file.

        Returns:
            The submission as the Zoo tells it afterwards.

        Raises:
            ConfigError: this version is public already.
            HubError: the Zoo cannot be reached, refuses, does not hold what was sent, or the
                submission is with the reviewers.
            HubAccessError: the token does not allow it.
        """
        tell = listener or _ignore
        draft = self._create(plan) if name is None else self._reopen(name, plan)
        try:
            tell(draft)
            with _contents(plan, draft.name) as contents:
                self._send(draft, contents, tell)
            if review and draft.status != "in-review":
                self._stage(draft.name, {**plan.rdf, "id": draft.name, "status": "in-review"})
            return self._confirmed(draft, "in-review" if review else draft.status)
        except Df2ServeError as error:
            error.add_note(f"what has arrived stays in the draft; go on with --id {draft.name}")
            raise

    def delete(self, name: str) -> Submission:
        """Remove what is not public of a model: a new one as a whole, else its staged version.

        Returns:
            What was removed.

        Raises:
            HubError: everything of it is public.
            HubAccessError: the account must not remove it.
        """
        found = self.find(name)
        if found.status == "published":
            message = f"{name} has no draft; what is published stays, or ask the Zoo's reviewers"
            raise HubError(message)
        artifact = self._artifact(name)
        if found.versions:
            self._service.call("discard", artifact_id=artifact)
        else:  # to discard the only version would list it with the public ones, without files
            self._service.call("delete", artifact_id=artifact, delete_files=True)
        return found

    # -- the draft --------------------------------------------------------------------------

    def _artifact(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            message = f"got {name!r}; expected the name of a model in the Zoo, such as kind-otter"
            raise ConfigError(message)
        return f"{self._collection.partition('/')[0]}/{name}"

    def _create(self, plan: UploadPlan) -> Submission:
        collection = self._service.call("read", artifact_id=self._collection)
        # only when an artifact is created can the reviewers be let in
        members = (collection.get("config") or {}).get("permissions") or {}
        permissions = {
            account: "rw+"
            for account, code in members.items()
            if account not in {"*", "@"} and isinstance(code, str) and code in _CURATING
        }
        made = self._service.call(
            "create",
            parent_id=self._collection,
            alias=_ALIAS,
            type="model",
            manifest={**plan.rdf, "status": "draft"},
            config={"permissions": permissions},
            stage=True,
        )
        return _submission(made["id"].rpartition("/")[2], made)

    def _reopen(self, name: str, plan: UploadPlan) -> Submission:
        """Return the draft of a model, after one was added to a published model."""
        found = self.find(name)
        if found.edits_published:
            message = f"{name} has changes of its published version; finish or discard them first"
            raise HubError(message)
        if found.is_staged:
            return found
        version = plan.rdf.get("version")
        if version is not None and version == found.manifest.get("version"):
            message = f"{name} has a version {version} already; state another one in the card"
            raise ConfigError(message)
        self._stage(name, {**plan.rdf, "id": name, "status": "draft"})
        return self.find(name)

    def _stage(self, name: str, manifest: Mapping[str, Any]) -> None:
        # without 'stage' it would be published, without 'new' as a change of what is public
        self._service.call(
            "edit", artifact_id=self._artifact(name), manifest=manifest, stage=True, version="new"
        )

    def _send(self, draft: Submission, contents: Mapping[str, Path], tell: Listener) -> None:
        artifact = self._artifact(draft.name)
        there = self._service.sizes(artifact)
        for file, path in contents.items():
            size, digest = path.stat().st_size, _sha256(path)
            was_there = there.get(file) == size and self._service.sha256(artifact, file) == digest
            if not was_there:
                _require_open(draft)
                is_weights = file.endswith(_WEIGHTS)
                self._service.put_file(artifact, file, path, is_weights=is_weights)
                if self._service.sha256(artifact, file) != digest:
                    message = f"{file} is not what was sent of it; nothing was handed over"
                    raise HubError(message)
            tell(Sent(name=draft.name, file=file, size=size, was_there=was_there))
        for file in sorted(there.keys() - contents.keys()):
            _require_open(draft)
            self._service.call("remove_file", artifact_id=artifact, file_path=file)

    def _confirmed(self, draft: Submission, status: str) -> Submission:
        found = self.find(draft.name)
        as_expected = found.is_staged and not found.edits_published
        if not as_expected or (found.status, found.versions) != (status, draft.versions):
            message = (
                f"{draft.name} is {found.status} now, expected {status}; look at it at the Zoo"
            )
            raise HubError(message)
        return found


def _submission(name: str, found: Mapping[str, Any]) -> Submission:
    staging = found.get("staging")
    versions = tuple(version["version"] for version in found.get("versions") or ())
    is_staged = staging is not None
    manifest = found.get("manifest") or {}
    settled = "published" if versions else "empty"
    intents = [entry["_intent"] for entry in staging or () if "_intent" in entry]
    return Submission(
        name=name,
        status=str(manifest.get("status", "draft")) if is_staged else settled,
        is_staged=is_staged,
        versions=versions,
        edits_published=is_staged and bool(versions) and intents != ["new_version"],
        manifest=manifest,
    )


def _require_open(draft: Submission) -> None:
    if draft.status not in _OPEN:
        message = (
            f"{draft.name} is {draft.status}, so that its files must not change; wait for the "
            "reviewers, or remove the draft first"
        )
        raise HubError(message)


# -- what is sent -------------------------------------------------------------------------------


def _files(package: Package) -> dict[str, Path]:
    """Return the files that the description names, and no others of a folder."""
    found = {file.name: package.find(file.name) for file in named_files(package.rdf)}
    return {
        name: path
        for name, path in sorted(found.items())
        if path is not None and name not in _DESCRIPTIONS
    }


@contextmanager
def _contents(plan: UploadPlan, name: str) -> Iterator[Mapping[str, Path]]:
    """Give all files by name; the descriptions carry the id without which Fiji stops."""
    text = yaml.safe_dump({**plan.rdf, "id": name}, sort_keys=False, allow_unicode=True)
    with tempfile.TemporaryDirectory(prefix="df2serve-upload-") as folder:
        description = Path(folder, "rdf.yaml")
        description.write_text(text, encoding="utf-8")
        yield {**plan.files, **dict.fromkeys(_DESCRIPTIONS, description)}


def _plain(value: Any) -> Any:
    """Return content of YAML in types that JSON knows: dates become text."""
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case date():
            return value.isoformat()
        case _:
            return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ignore(_: Submission | Sent) -> None: ...
