"""Hypha's artifact service, in which the BioImage Model Zoo keeps models, over plain HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx2
from pydantic import SecretStr

from df2serve._version import __version__
from df2serve.config import ZooSettings
from df2serve.errors import ArtifactNotFoundError, ConfigError, HubAccessError, HubError

__all__ = ["ArtifactService"]

_SERVICE = "/public/services/artifact-manager/"
_REMOTE = "RemoteException: "
_SHOWN = 300


class ArtifactService:
    """Calls of the service, and files that travel through addresses which it signs.

    The token goes to the server alone. Neither it nor a signed address, which is as good as a
    token for one file, comes into a message.
    """

    def __init__(self, token: SecretStr | None, settings: ZooSettings) -> None:
        """Prepare a connection; without a token, to what anybody may read.

        Raises:
            ConfigError: the token would travel unencrypted.
        """
        url = httpx2.URL(settings.server)
        if url.scheme != "https" and not _is_local(url.host):
            message = f"got {settings.server}; expected https, so that nobody reads the token"
            raise ConfigError(message)
        self._token = token
        self._server = settings.server
        self._client = httpx2.Client(
            timeout=settings.timeout_s, headers={"User-Agent": f"df2serve/{__version__}"}
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the artifact service.

        Raises:
            ArtifactNotFoundError: what the call names does not exist.
            HubAccessError: the token is missing, wrong, or does not allow this.
            HubError: any other refusal, or there is no answer.
        """
        headers = {}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        with self._reaching(method):
            response = self._client.post(
                f"{self._server}{_SERVICE}{method}", json=arguments, headers=headers
            )
        if response.is_success:
            return response.json()
        said = f"{self._server} refuses {method}: {self._reason(response)}"
        match response.status_code:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                message = f"{said}; make a token at https://bioimage.io/#/api"
                raise HubAccessError(message)
            case HTTPStatus.NOT_FOUND:
                raise ArtifactNotFoundError(said)
            case _:
                raise HubError(said)

    def put_file(self, artifact: str, name: str, path: Path, *, is_weights: bool) -> None:
        """Send the bytes of a file into the stage, as they are.

        Raises:
            HubError: the service or its storage refuses.
        """
        counted = {"download_weight": 1} if is_weights else {}
        url = self.call("put_file", artifact_id=artifact, file_path=name, **counted)
        with self._reaching(name), path.open("rb") as file:
            # the signature is that of a request without a type
            response = self._client.put(url, content=file, headers={"Content-Type": ""})
        _require_success(response, f"does not take {name}")

    def sha256(self, artifact: str, name: str) -> str:
        """Return the hash of the bytes that the stage holds.

        Raises:
            HubError: the service or its storage refuses.
        """
        # silent: reading back is no download of the model
        url = self.call("get_file", artifact_id=artifact, file_path=name, stage=True, silent=True)
        digest = hashlib.sha256()
        with self._reaching(name), self._client.stream("GET", url) as response:
            _require_success(response, f"does not give {name} back")
            for block in response.iter_bytes():
                digest.update(block)
        return digest.hexdigest()

    def sizes(self, artifact: str, folder: str = "") -> dict[str, int]:
        """Return the sizes of the staged files in bytes, by their paths."""
        below = {"dir_path": folder} if folder else {}
        found: dict[str, int] = {}
        for entry in self.call("list_files", artifact_id=artifact, stage=True, **below):
            path = f"{folder}/{entry['name']}" if folder else entry["name"]
            if entry["type"] == "directory":
                found |= self.sizes(artifact, path)
            else:
                found[path] = entry["size"]
        return found

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            message = (
                f"{self._server} does not answer ({what}: {type(error).__name__}); try again later"
            )
            # not as its cause, which may show a signed address
            raise HubError(message) from None

    def _reason(self, response: httpx2.Response) -> str:
        """Return what the service says, without what it repeats of our token."""
        try:
            said = str(response.json()["detail"])
        except (ValueError, KeyError, TypeError):
            said = f"HTTP {response.status_code}"
        if self._token is not None:
            said = said.replace(self._token.get_secret_value(), "…")
        said = said.rpartition(_REMOTE)[2].strip()[:_SHOWN]
        return "".join(mark if mark.isprintable() else " " for mark in said)


def _require_success(response: httpx2.Response, what: str) -> None:
    if not response.is_success:
        message = f"the Zoo's storage {what}: HTTP {response.status_code}; try again later"
        raise HubError(message)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
