"""Access to the Hugging Face Hub, its errors in the words of this package.

Account and place of the cache are those of huggingface_hub: ``hf auth login``, ``HF_TOKEN``,
``HF_HOME``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from df2serve._version import __version__
from df2serve.errors import (
    ArtifactNotFoundError,
    ConfigError,
    Df2ServeError,
    HubAccessError,
    HubError,
)
from df2serve.publish.address import HubAddress

__all__ = ["UNREACHABLE", "Listing", "RemoteFile", "create_api", "hub_errors", "list_files"]

UNREACHABLE = (OfflineModeIsEnabled, httpx2.ConnectError, httpx2.TimeoutException)
"""Errors that tell that there is no way to the Hub, or that none may be used."""


_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    size: int
    """In bytes."""
    sha256: str | None
    """Hash of the content, which the Hub knows of large files alone."""
    blob: str
    """Hash that git gives to the content, or to the pointer in place of a large one."""

    def holds(self, content: bytes) -> bool:
        """Return whether it has this content."""
        if len(content) != self.size:
            return False
        if self.sha256 is not None:
            return hashlib.sha256(content).hexdigest() == self.sha256
        header = b"blob %d\0" % len(content)
        return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == self.blob


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    private: bool
    files: Mapping[str, RemoteFile]


def create_api() -> HfApi:
    """Return a client with the user's own account."""
    return HfApi(library_name="df2serve", library_version=__version__)


def list_files(address: HubAddress) -> Listing:
    """Ask the Hub what is in a repository. Errors are those of huggingface_hub."""
    info = create_api().model_info(address.repo, revision=address.revision, files_metadata=True)
    if info.sha is None:
        message = f"the Hub names no commit of {address}"
        raise HubError(message)
    files = {
        found.rfilename: RemoteFile(
            size=found.size or 0,
            sha256=found.lfs.sha256 if found.lfs else None,
            blob=found.blob_id or "",
        )
        for found in info.siblings or ()
    }
    return Listing(commit=info.sha, private=bool(info.private), files=files)


@contextmanager
def hub_errors(address: HubAddress) -> Iterator[None]:
    """Translate what huggingface_hub raises.

    Raises:
        ArtifactNotFoundError: there is no such repository or revision, or it is hidden.
        HubAccessError: the account must not do this.
        HubError: anything else.
    """
    try:
        yield
    except HFValidationError as error:
        message = f"{address} is no address of the Hub: {error}"
        raise ConfigError(message) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.HTTPError, ConnectionError) as error:
        raise _translated(error, address) from error


def _translated(error: Exception, address: HubAddress) -> Df2ServeError:
    page = f"{constants.ENDPOINT}/{address.repo}"
    match error:
        case GatedRepoError():
            return HubAccessError(
                f"{address} is gated: accept its conditions at {page}, and {_LOGIN}"
            )
        case RevisionNotFoundError():
            return ArtifactNotFoundError(
                f"{address.repo} has no revision {address.revision!r}; its branches and tags are "
                f"listed at {page}"
            )
        case RepositoryNotFoundError():
            return ArtifactNotFoundError(
                f"there is no {address}, or it is private and your account may not read it; check "
                f"the name, or {_LOGIN}"
            )
        case HfHubHTTPError():
            return _refused(error, address)
        case _:
            return HubError(
                f"{address} is not in the cache, and the Hub cannot be reached "
                f"({type(error).__name__}); fetch it once while there is a network"
            )


def _refused(error: HfHubHTTPError, address: HubAddress) -> HubError:
    said = error.server_message or str(error).splitlines()[0]
    match error.response.status_code:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return HubAccessError(f"the Hub denies this for {address}: {said}; {_LOGIN}")
        case HTTPStatus.PRECONDITION_FAILED:
            return HubError(
                f"{address} was changed by someone else meanwhile, and nothing was written; look "
                "at it and push again"
            )
        case _:
            return HubError(f"the Hub refuses this for {address}: {said}")
