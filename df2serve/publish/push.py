"""To the Hugging Face Hub: an ensemble folder becomes one commit.

What changes is settled before anything is sent: files that the repository has already are left out,
and the commit is refused if somebody else changed the repository meanwhile.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from df2serve.artifact import Ensemble, load_ensemble
from df2serve.artifact.manifest import FileEntry, parse_manifest
from df2serve.errors import ConfigError, ExportError, HubError
from df2serve.publish._client import Listing, create_api, hub_errors, list_files
from df2serve.publish.address import HubAddress
from df2serve.publish.endpoint import endpoint_files
from df2serve.publish.hub import EXPORTS, MANIFEST, PAPERS

__all__ = ["Change", "PushPlan", "Pushed", "plan_push", "push"]

Kind: TypeAlias = Literal["add", "replace", "delete"]

Content: TypeAlias = bytes | Path

_PACKAGE = "package/"
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:[a-z0-9.-]*[a-z0-9])?")


@dataclass(frozen=True)
class Change:
    """What a push does to one file of the repository."""

    kind: Kind
    path: str
    size: int
    """Bytes that are sent; 0 of deletions."""
    content: Content = b""


@dataclass(frozen=True)
class PushPlan:
    """What a push will change."""

    address: HubAddress
    changes: tuple[Change, ...]
    unchanged: int
    """Files that the repository has already."""
    parent: str | None
    """Commit that this was compared with; None where the repository is still to be created."""
    title: str
    """Of the commit."""
    version: str | None
    private: bool
    review: bool
    """Whether a pull request is opened instead of changing ``main``."""

    @property
    def size(self) -> int:
        """Bytes that are sent."""
        return sum(change.size for change in self.changes)

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags that the commit gets: readers ask for either."""
        return () if self.version is None else (self.version, f"v{self.version}")


@dataclass(frozen=True)
class Pushed:
    """What a push made."""

    commit: str
    """The commit of the repository that holds the ensemble."""
    url: str
    """Page of the repository, or of the pull request."""
    tags: tuple[str, ...]


@contextmanager
def plan_push(
    ensemble: Ensemble,
    address: str,
    *,
    version: str | None = None,
    readme: str | None = None,
    package: Path | None = None,
    endpoint: bool = False,
    private: bool = False,
    review: bool = False,
) -> Iterator[PushPlan]:
    """Compare an ensemble folder with its repository, for :func:`push` within the context.

    The repository gets the files of the ensemble, every one verified, and those of ``README.md``,
    ``LICENSE``, ``CITATION.cff`` and ``cover.png`` that lie beside them, and nothing else of it.
    Files of an earlier ensemble that this one lacks are deleted, exports of an earlier one too.

    Args:
        ensemble: a folder.
        address: ``hf://org/name``.
        version: ``1.2.0`` becomes the tags ``1.2.0`` and ``v1.2.0``.
        readme: model card instead of the folder's.
        package: bioimage.io package of this ensemble for the folder ``package/``.
        endpoint: add what an Inference Endpoint needs, ``handler.py`` and ``requirements.txt``.
        private: what a new repository is, and an existing one has to be.
        review: open a pull request instead of changing ``main``.

    Raises:
        ConfigError: the settings do not fit together, or the ensemble is no folder.
        ExportError: the package holds other members.
        IntegrityError: a file of the ensemble is damaged.
        HubError: the version exists, or the repository holds something else.
        HubAccessError: the account must not see it.
    """
    parsed = HubAddress.parse(address)
    _require_settings(ensemble, parsed, version=version, review=review)
    with tempfile.TemporaryDirectory() as folder:
        contents = _ensemble_contents(ensemble, readme)
        if package is not None:
            _require_members(ensemble, package)
            contents |= _unpacked(package, Path(folder))
        if endpoint:
            contents |= endpoint_files()
        with hub_errors(parsed):
            listing = _listing(parsed)
            _require_repository(parsed, listing, version=version, private=private, review=review)
            changes = _changes(parsed, contents, listing)
        yield PushPlan(
            address=parsed,
            changes=changes,
            unchanged=len(contents) - sum(change.kind != "delete" for change in changes),
            parent=listing.commit if listing else None,
            title=f"{ensemble.manifest.name}{f' {version}' if version else ''}",
            version=version,
            private=private,
            review=review,
        )


def push(plan: PushPlan) -> Pushed:
    """Make the planned changes in one commit, and tag it.

    Raises:
        HubError: somebody changed the repository since it was compared; nothing was written.
        HubAccessError: the account must not write there.
    """
    api, repo, parent = create_api(), plan.address.repo, plan.parent
    url = f"{constants.ENDPOINT}/{repo}"
    with hub_errors(plan.address):
        if parent is None:
            api.create_repo(repo, private=plan.private)
            parent = list_files(plan.address).commit
        commit = parent
        if plan.changes:
            made = _commit(plan, parent)
            commit, url = made.oid, made.pr_url or url
        for tag in plan.tags:
            api.create_tag(repo, tag=tag, revision=commit)
    return Pushed(commit=commit, url=url, tags=plan.tags)


def _commit(plan: PushPlan, parent: str) -> CommitInfo:
    try:
        return create_api().create_commit(
            plan.address.repo,
            [_operation(change) for change in plan.changes],
            commit_message=plan.title,
            create_pr=plan.review,
            parent_commit=parent,
        )
    except RuntimeError as error:  # what huggingface_hub raises where an upload breaks off
        cause = str(error.__cause__ or "").partition("\n")[0]
        message = f"nothing was published at {plan.address}: {error} {cause}; push again"
        raise HubError(message) from error


# -- what is refused ----------------------------------------------------------------------------


def _require_settings(
    ensemble: Ensemble, address: HubAddress, *, version: str | None, review: bool
) -> None:
    problem = None
    if not ensemble.source.is_dir():
        problem = f"{ensemble.source} is a zip file; unpack it to push it"
    elif address.revision is not None:
        problem = f"got {address}; push to the repository itself, and name a version beside it"
    elif version is not None and not _VERSION.fullmatch(version):
        problem = f"got the version {version!r}; expected three numbers, such as 1.2.0"
    elif version is not None and review:
        problem = "a pull request has no version before it is merged; leave one of both out"
    if problem:
        raise ConfigError(problem)


def _require_repository(
    address: HubAddress,
    listing: Listing | None,
    *,
    version: str | None,
    private: bool,
    review: bool,
) -> None:
    if listing is None:
        if review:
            message = f"there is no {address} to open a pull request for; push without one first"
            raise HubError(message)
        return
    if private and not listing.private:
        message = f"{address} is public; make it private in its settings before you push to it"
        raise HubError(message)
    if version is not None:
        found = {tag.name for tag in create_api().list_repo_refs(address.repo).tags}
        if found & {version, f"v{version}"}:
            message = f"{address} has a version {version} already; choose another one"
            raise HubError(message)


def _require_members(ensemble: Ensemble, package: Path) -> None:
    """Refuse a package that was exported of another ensemble."""
    packed = load_ensemble(package).manifest
    ours = [_weights_hash(ensemble.manifest.files, m.folder) for m in ensemble.manifest.members]
    theirs = [_weights_hash(packed.files, member.folder) for member in packed.members]
    if ours != theirs:
        message = f"{package} was not exported of {ensemble.source}; export it again"
        raise ExportError(message)


def _weights_hash(files: Mapping[str, FileEntry], folder: str) -> str:
    return files[f"{folder}/model.safetensors"].sha256


# -- what changes -------------------------------------------------------------------------------


def _listing(address: HubAddress) -> Listing | None:
    """Return what the repository holds; None where there is none, or it is hidden."""
    try:
        return list_files(address)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _ensemble_contents(ensemble: Ensemble, readme: str | None) -> dict[str, Content]:
    """Return the files to publish by their paths; those of the ensemble are verified."""
    ensemble.verify()
    listed = [MANIFEST, *ensemble.manifest.files]
    papers = [name for name in PAPERS if (ensemble.source / name).is_file()]
    contents: dict[str, Content] = {name: ensemble.source / name for name in [*listed, *papers]}
    if readme is not None and "README.md" not in ensemble.manifest.files:
        contents["README.md"] = readme.encode()
    return contents


def _unpacked(package: Path, folder: Path) -> dict[str, Content]:
    """Unpack a package, its description under the name that bioimageio.spec asks the Hub for."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    (folder / "rdf.yaml").rename(folder / "bioimageio.yaml")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {f"{_PACKAGE}{path.relative_to(folder).as_posix()}": path for path in files}


def _changes(
    address: HubAddress, contents: Mapping[str, Content], listing: Listing | None
) -> tuple[Change, ...]:
    remote = listing.files if listing else {}
    changes = []
    for path, content in sorted(contents.items()):
        data = content.read_bytes() if isinstance(content, Path) else content
        found = remote.get(path)
        if found is None or not found.holds(data):
            kind: Kind = "replace" if found else "add"
            changes.append(Change(kind=kind, path=path, size=len(data), content=content))
    if listing is not None and MANIFEST not in remote:
        foreign = [c.path for c in changes if c.kind == "replace" and c.path not in PAPERS]
        if foreign:
            message = f"{address} holds another model ({foreign[0]}); choose a new repository"
            raise HubError(message)
    gone = _outdated(address, listing, {change.path for change in changes}) - contents.keys()
    return (*changes, *(Change(kind="delete", path=path, size=0) for path in sorted(gone)))


def _outdated(address: HubAddress, listing: Listing | None, changed: set[str]) -> set[str]:
    """Return the files of the earlier ensemble, and the exports that were made of it."""
    if listing is None or MANIFEST not in listing.files:
        return set()
    path = hf_hub_download(address.repo, MANIFEST, revision=listing.commit)
    outdated = set(parse_manifest(Path(path).read_bytes()).files)
    if MANIFEST in changed:
        outdated |= {name for name in listing.files if name.startswith(EXPORTS)}
    elif any(name.startswith(_PACKAGE) for name in changed):
        outdated |= {name for name in listing.files if name.startswith(_PACKAGE)}
    return outdated & listing.files.keys()


def _operation(change: Change) -> CommitOperationAdd | CommitOperationDelete:
    if change.kind == "delete":
        return CommitOperationDelete(change.path)
    return CommitOperationAdd(change.path, change.content)
