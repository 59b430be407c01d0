"""From the Hugging Face Hub: ``hf://org/name[@revision]``.

Nothing is executed and no pickle is opened. What is fetched is what ``ensemble.json`` lists, after
its sizes and hashes were compared with those that the Hub states; what is used is compared again,
with the hashes of the bytes on disk.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from pydantic import TypeAdapter, ValidationError

from df2serve.artifact import Ensemble, load_ensemble
from df2serve.artifact.manifest import MANIFEST_LIMIT, Manifest, RelativePath, parse_manifest
from df2serve.config import HubLimits
from df2serve.errors import (
    ArtifactNotFoundError,
    HubError,
    IntegrityError,
    LimitExceededError,
    ManifestError,
    OutputError,
)
from df2serve.files import new_folder
from df2serve.publish._client import UNREACHABLE, Listing, hub_errors, list_files
from df2serve.publish.address import HubAddress

__all__ = [
    "EXPORTS",
    "MANIFEST",
    "PAPERS",
    "Content",
    "Pulled",
    "fetch_model",
    "open_ensemble",
    "pull",
]

Content: TypeAlias = Literal["ensemble", "exports", "all"]

MANIFEST = "ensemble.json"
PAPERS = ("README.md", "LICENSE", "CITATION.cff", "cover.png")
"""Files of people beside an ensemble, which its manifest need not list."""
EXPORTS = ("package/", "onnx/", "torchscript/")
"""Folders of a repository with the ensemble for other programs."""

_MODEL = ("config.json", "model.safetensors")
_PATH: TypeAdapter[str] = TypeAdapter(RelativePath)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pulled:
    """What was copied from the Hub."""

    target: Path
    files: tuple[str, ...]
    """Paths below the target."""
    bytes: int
    """Of all files together."""
    commit: str


def open_ensemble(address: str, *, limits: HubLimits | None = None) -> Ensemble:
    """Open an ensemble of the Hub, and keep it in huggingface_hub's cache.

    Files that are there already are not fetched again. Without a network, or with
    ``HF_HUB_OFFLINE=1``, the commit is used that was fetched last.

    Args:
        address: ``hf://org/name`` or ``hf://org/name@revision``.
        limits: how much is fetched at most; defaults when absent.

    Raises:
        ConfigError: the address has another form.
        ArtifactNotFoundError: no such repository or revision, or no ensemble in it.
        HubAccessError: a login, or consent to the conditions of the repository, is missing.
        HubError: the Hub cannot be reached, and the cache lacks the ensemble.
        ManifestError: ``ensemble.json`` does not follow the schema, names of files included.
        IntegrityError: the repository does not hold the files that ``ensemble.json`` lists.
        LimitExceededError: it is larger than allowed.
    """
    parsed = HubAddress.parse(address)
    with hub_errors(parsed):
        folder = _fetch_ensemble(parsed, limits or HubLimits())
    # what came over xet lies in a store that all repositories of the cache share
    return load_ensemble(folder, cache=folder.parents[2])


def fetch_model(address: str, *, limits: HubLimits | None = None) -> Path:
    """Fetch one plain model of segmentation-models-pytorch, for ``import_ensemble``.

    ``config.json`` and ``model.safetensors`` are fetched and nothing else, above all no pickle.

    Args:
        address: ``hf://org/name`` or ``hf://org/name@revision``.
        limits: how much is fetched at most; defaults when absent.

    Returns:
        The folder in huggingface_hub's cache that holds both.

    Raises:
        ArtifactNotFoundError: no such repository or revision, or one of the files is not in it.
        Df2ServeError: see :func:`open_ensemble`.
    """
    parsed = HubAddress.parse(address)
    with hub_errors(parsed):
        listing = list_files(parsed)
        missing = [name for name in _MODEL if name not in listing.files]
        if missing:
            message = (
                f"{parsed} holds no {missing[0]}; expected a model that smp's save_pretrained "
                "wrote. Files that are pickles (.bin) are not opened"
            )
            raise ArtifactNotFoundError(message)
        _require_limits(parsed, listing, _MODEL, limits or HubLimits())
        folder = _snapshot(parsed, listing, _MODEL)
    for name in _MODEL:
        if not listing.files[name].holds((folder / name).read_bytes()):
            message = f"{name} of {parsed} is not the listed one; remove {folder.parents[1]}"
            raise IntegrityError(message)
    return folder


def pull(
    address: str,
    target: str | Path,
    *,
    content: Content = "ensemble",
    limits: HubLimits | None = None,
) -> Pulled:
    """Copy an ensemble of the Hub into a folder, every file verified on the way.

    Args:
        address: ``hf://org/name`` or ``hf://org/name@revision``.
        target: folder to create; nothing is left there when something fails.
        content: the ensemble with card and license, its exports for other programs, or both.
        limits: how much is fetched at most; defaults when absent.

    Raises:
        OutputError: the target exists, or cannot be written.
        Df2ServeError: see :func:`open_ensemble`.
    """
    parsed, allowed = HubAddress.parse(address), limits or HubLimits()
    written: dict[str, int] = {}
    with new_folder(Path(target)) as folder:
        if content != "exports":
            ensemble = open_ensemble(address, limits=allowed)
            parsed = replace(parsed, revision=ensemble.source.name)
            written |= _copy(folder, _ensemble_files(parsed, ensemble))
        if content != "ensemble":
            with hub_errors(parsed):
                listing = list_files(parsed)
                parsed = replace(parsed, revision=listing.commit)
                written |= _copy(folder, _export_files(parsed, listing, allowed))
    return Pulled(
        target=Path(target),
        files=tuple(written),
        bytes=sum(written.values()),
        commit=str(parsed.revision),
    )


# -- the cache ----------------------------------------------------------------------------------


def _fetch_ensemble(address: HubAddress, limits: HubLimits) -> Path:
    """Return the folder in the cache that holds the ensemble."""
    if address.is_pinned and (found := _cached(address)):
        return found
    try:
        listing = list_files(address)
    except UNREACHABLE as error:
        found = _cached(address)
        if found is None:
            raise
        if not isinstance(error, OfflineModeIsEnabled):
            _log.warning("the Hub cannot be reached; %s is taken from the cache", address)
        return found
    _require_ensemble(address, listing)
    _require_limits(address, listing, [MANIFEST], limits)
    path = hf_hub_download(address.repo, MANIFEST, revision=listing.commit)
    manifest = parse_manifest(Path(path).read_bytes())
    _require_listed(address, manifest, listing)
    papers = [name for name in PAPERS if name in listing.files and name not in manifest.files]
    wanted = [MANIFEST, *manifest.files, *papers]
    _require_limits(address, listing, wanted, limits)
    return _snapshot(address, listing, wanted)


def _cached(address: HubAddress) -> Path | None:
    """Return the folder in the cache, if it has all files of the ensemble."""
    try:
        folder = snapshot_download(
            address.repo,
            revision=address.revision,
            allow_patterns=MANIFEST,
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        return None
    listed = parse_manifest(manifest.read_bytes()).files
    return Path(folder) if all((Path(folder) / name).is_file() for name in listed) else None


def _snapshot(address: HubAddress, listing: Listing, names: Iterable[str]) -> Path:
    """Download files, and return the folder in the cache.

    Raises:
        HubError: the branch moved on since it was listed.
    """
    folder = snapshot_download(
        address.repo,
        revision=address.revision,
        allow_patterns=[glob.escape(name) for name in names],
    )
    if Path(folder).name != listing.commit:
        message = f"{address} was changed while it was fetched; try again"
        raise HubError(message)
    return Path(folder)


# -- what is refused ----------------------------------------------------------------------------


def _require_ensemble(address: HubAddress, listing: Listing) -> None:
    if MANIFEST in listing.files:
        return
    message = f"{address} holds no {MANIFEST}, so that it is not an ensemble"
    raise ArtifactNotFoundError(message)


def _require_listed(address: HubAddress, manifest: Manifest, listing: Listing) -> None:
    """Refuse a repository that does not hold what its manifest lists."""
    for name, entry in manifest.files.items():
        found = listing.files.get(name)
        if found is None:
            message = f"{address} lacks {name}, which its {MANIFEST} lists"
            raise IntegrityError(message)
        if found.size != entry.bytes or found.sha256 not in (None, entry.sha256):
            message = (
                f"{name} of {address} is not the file that its {MANIFEST} lists "
                f"({found.size} bytes, {entry.bytes} expected); the author has to push it again"
            )
            raise IntegrityError(message)


def _require_limits(
    address: HubAddress, listing: Listing, names: Sequence[str], limits: HubLimits
) -> None:
    total = sum(listing.files[name].size for name in names)
    if total > limits.max_bytes or len(names) > limits.max_files:
        message = (
            f"{address} asks for {len(names)} files with {total} bytes; expected at most "
            f"{limits.max_files} with {limits.max_bytes}, raise the limits if you trust it"
        )
        raise LimitExceededError(message)
    if MANIFEST in names and listing.files[MANIFEST].size > MANIFEST_LIMIT:
        message = (
            f"{MANIFEST} of {address} has {listing.files[MANIFEST].size} bytes, expected at most "
            f"{MANIFEST_LIMIT}"
        )
        raise ManifestError(message)


def _is_safe(name: str) -> bool:
    try:
        _PATH.validate_python(name)
    except ValidationError:
        return False
    return True


# -- copies -------------------------------------------------------------------------------------


def _ensemble_files(address: HubAddress, ensemble: Ensemble) -> Iterator[tuple[str, bytes]]:
    """Yield the verified files of an ensemble in the cache, and its papers."""
    yield MANIFEST, ensemble.manifest_content()
    try:
        for name in ensemble.manifest.files:
            yield name, ensemble.read(name)
    except IntegrityError as error:
        error.add_note(f"to fetch it again, first run: hf cache rm model/{address.repo}")
        raise
    for name in PAPERS:
        if name not in ensemble.manifest.files and (ensemble.source / name).is_file():
            yield name, (ensemble.source / name).read_bytes()


def _export_files(
    address: HubAddress, listing: Listing, limits: HubLimits
) -> Iterator[tuple[str, bytes]]:
    """Fetch the exports, and yield them, compared with what the Hub lists."""
    _require_ensemble(address, listing)
    names = [name for name in listing.files if name.startswith(EXPORTS)]
    if not names:
        message = f"{address} has no exports; pull the ensemble and export it"
        raise ArtifactNotFoundError(message)
    if unsafe := [name for name in names if not _is_safe(name)]:
        message = f"{address} holds {unsafe[0]!r}; expected plain relative paths"
        raise IntegrityError(message)
    _require_limits(address, listing, names, limits)
    folder = _snapshot(address, listing, names)
    for name in names:
        content = (folder / name).read_bytes()
        if not listing.files[name].holds(content):
            message = (
                f"{name} of {address} is not the listed one; to fetch it again, first run: hf "
                f"cache rm model/{address.repo}"
            )
            raise IntegrityError(message)
        yield name, content


def _copy(folder: Path, files: Iterable[tuple[str, bytes]]) -> dict[str, int]:
    """Write files into a folder, and return their sizes."""
    sizes = {}
    for name, content in files:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sizes[name] = path.write_bytes(content)
        except OSError as error:
            message = f"cannot write {name}: {error.strerror or error}"
            raise OutputError(message) from error
    return sizes
