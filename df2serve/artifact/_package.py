"""Ensembles inside of bioimage.io packages that df2serve wrote.

Such a package holds ``ensemble.zip``, an ensemble without its weights, and the weights of all
members in the one state dict ``weights.pt``. A member's file of weights is made of them again, and
has to be the file that the manifest lists.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from df2serve.artifact.network import create_network, dump_network, load_state
from df2serve.errors import IntegrityError

__all__ = ["ENSEMBLE", "MEMBERS", "WEIGHTS", "PackageStore", "without_weights"]

ENSEMBLE = "ensemble.zip"
WEIGHTS = "weights.pt"
MEMBERS = "moments.pool.members"
"""Prefix of the members' tensors in the state dict; the member's position follows."""

_MANIFEST = "ensemble.json"
_FILE = "model.safetensors"
_INNER_LIMIT = 1 << 30


def without_weights(folder: Path) -> bytes:
    """Return an ensemble folder as a zip file that lacks the members' weights."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != _FILE:
                archive.write(path, path.relative_to(folder).as_posix())
    return buffer.getvalue()


@dataclass
class PackageStore:
    """Files of the ensemble in a package."""

    path: Path
    """The package, a zip file."""
    _made: dict[str, bytes] = field(default_factory=dict)
    """The file of weights that was made last, by its path."""

    def size(self, path: str) -> int | None:
        """Return the size in bytes, or None if there is no such file."""
        if path in self._weights_of:
            return len(self._weights(path))
        try:
            return self._inner.getinfo(path).file_size
        except KeyError:
            return None

    def read(self, path: str, limit: int) -> bytes:
        """Return at most ``limit`` bytes of a file that exists."""
        if path in self._weights_of:
            return self._weights(path)[:limit]
        try:
            with self._inner.open(path) as file:
                return file.read(limit)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            message = f"{path} in {self.path.name} cannot be unpacked: {error}"
            raise IntegrityError(message) from error

    @cached_property
    def _inner(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(self._outer(ENSEMBLE, _INNER_LIMIT)))

    @cached_property
    def _weights_of(self) -> dict[str, tuple[int, str]]:
        """Position and folder of the member that a file of weights belongs to, by its path."""
        try:
            manifest = json.loads(self._inner.read(_MANIFEST))
            folders = [member["folder"] for member in manifest["members"]]
        except (KeyError, TypeError, ValueError):
            return {}  # what is wrong with the manifest is told by who parses it
        found = {f"{folder}/{_FILE}": (index, folder) for index, folder in enumerate(folders)}
        return found | {_FILE: (0, folders[0])} if folders else {}

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        try:
            content = io.BytesIO(self._outer(WEIGHTS, None))
            state: dict[str, Tensor] = torch.load(content, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            message = f"{WEIGHTS} in {self.path.name} is no state dict: {error}"
            raise IntegrityError(message) from error
        return state

    def _outer(self, name: str, limit: int | None) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as package, package.open(name) as file:
                return file.read(-1 if limit is None else limit)
        except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            message = f"{self.path.name} has no readable {name}: {error}"
            raise IntegrityError(message) from error

    def _weights(self, path: str) -> bytes:
        if path not in self._made:
            position, folder = self._weights_of[path]
            prefix = f"{MEMBERS}.{position}."
            tensors = {
                name.removeprefix(prefix): value
                for name, value in self._state.items()
                if name.startswith(prefix)
            }
            network = create_network(json.loads(self._inner.read(f"{folder}/config.json")))
            own = network.state_dict().keys()
            load_state(network, {name: tensors[name] for name in tensors.keys() & own})
            self._made = {path: dump_network(network)[1]}
        return self._made[path]
