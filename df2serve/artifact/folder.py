"""An ensemble on disk: a folder, or the same folder in a zip file."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from df2serve.artifact._package import ENSEMBLE, WEIGHTS, PackageStore
from df2serve.artifact._schemes import open_address, scheme_of
from df2serve.artifact.features import FEATURES, FeatureBank
from df2serve.artifact.manifest import (
    MANIFEST_LIMIT,
    Calibration,
    FileEntry,
    Manifest,
    Member,
    build_manifest,
    parse_calibration,
    parse_manifest,
)
from df2serve.artifact.network import dump_network, load_network
from df2serve.errors import (
    ArtifactNotFoundError,
    IntegrityError,
    ManifestError,
    OutputError,
)
from df2serve.files import new_folder, replace_file, replacing

__all__ = [
    "Ensemble",
    "GoldenTensors",
    "load_ensemble",
    "pack_ensemble",
    "save_ensemble",
    "with_files",
]

_MANIFEST = "ensemble.json"
_CALIBRATION = "calibration.json"
_GOLDEN_INPUT = "test/input.npy"
_GOLDEN_OUTPUT = "test/output.npz"
_CHUNK = 8 << 20


@dataclass(frozen=True, eq=False)
class GoldenTensors:
    """An image and what the ensemble made of it in float32, for checks of other runtimes."""

    image: NDArray[np.generic]
    """Raw intensities, axes (C, Y, X)."""
    probs: NDArray[np.float32]
    """Mean class probabilities, axes (K, Y, X)."""
    total: NDArray[np.float32]
    """Total uncertainty, axes (Y, X)."""
    distance: NDArray[np.float32] | None = None
    """Mean relative distance, axes (Y, X), where the ensemble has a distance channel."""

    def to_files(self) -> dict[str, bytes]:
        """Return the contents of the two files by path."""
        image, output = io.BytesIO(), io.BytesIO()
        np.save(image, self.image, allow_pickle=False)
        maps = {"probs": self.probs, "total": self.total}
        if self.distance is not None:
            maps["distance"] = self.distance
        np.savez_compressed(output, **maps)  # type: ignore[arg-type]  # no name is allow_pickle
        return {_GOLDEN_INPUT: image.getvalue(), _GOLDEN_OUTPUT: output.getvalue()}


class _Store(Protocol):
    """Where the files of an ensemble are."""

    def size(self, path: str) -> int | None:
        """Return the size in bytes, or None if there is no such file."""

    def read(self, path: str, limit: int) -> bytes:
        """Return at most ``limit`` bytes of a file that exists."""


@dataclass(frozen=True)
class _FolderStore:
    root: Path
    cache: Path | None = None
    """Folder of downloads that files may be links into; such an ensemble is only read."""

    def size(self, path: str) -> int | None:
        target = (self.root / path).resolve()
        homes = [home.resolve() for home in (self.root, self.cache) if home]
        if not target.is_file() or not any(target.is_relative_to(home) for home in homes):
            return None
        return target.stat().st_size

    def read(self, path: str, limit: int) -> bytes:
        with (self.root / path).open("rb") as file:
            return file.read(limit)


@dataclass(frozen=True)
class _ZipStore:
    path: Path
    prefix: str
    """Folder inside the zip that holds ``ensemble.json``; empty or ending in a slash."""

    def size(self, path: str) -> int | None:
        with zipfile.ZipFile(self.path) as archive:
            try:
                return archive.getinfo(self.prefix + path).file_size
            except KeyError:
                return None

    def read(self, path: str, limit: int) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.prefix + path) as file:
                return file.read(limit)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            message = f"{path} in {self.path.name} cannot be unpacked: {error}"
            raise IntegrityError(message) from error


@dataclass(frozen=True)
class Ensemble:
    """A k-fold ensemble that was found on disk and whose manifest is valid.

    Weights are read, and compared with their recorded hashes, when a member is loaded.
    """

    manifest: Manifest
    calibration: Calibration
    source: Path
    """Folder, zip file or package."""
    sha256: str
    """Hash of ``ensemble.json``, which holds the hashes of everything else."""
    _store: _Store

    def __len__(self) -> int:
        """Return the number of members, M."""
        return len(self.manifest.members)

    def read(self, path: str) -> bytes:
        """Return the verified content of one file.

        Raises:
            IntegrityError: the file is not listed, missing, or not the one that was recorded.
        """
        entry = self.manifest.files.get(path)
        if entry is None:
            message = f"{path} is not listed in {_MANIFEST}"
            raise IntegrityError(message)
        size = self._store.size(path)
        if size is None:
            message = f"{self.source.name} lacks {path}; fetch or export the ensemble again"
            raise IntegrityError(message)
        if size != entry.bytes:
            message = f"{path} has {size} bytes, {_MANIFEST} says {entry.bytes}; it was changed"
            raise IntegrityError(message)
        content = self._store.read(path, entry.bytes)
        found = hashlib.sha256(content).hexdigest()
        if found != entry.sha256:
            message = (
                f"{path} has sha256 {found[:12]}…, {_MANIFEST} says {entry.sha256[:12]}…; the file "
                "was changed, fetch or export the ensemble again"
            )
            raise IntegrityError(message)
        return content

    def manifest_content(self) -> bytes:
        """Return the bytes of ``ensemble.json``, as they are on disk.

        Raises:
            IntegrityError: they changed since the ensemble was opened.
        """
        content = self._store.read(_MANIFEST, MANIFEST_LIMIT)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            message = (
                f"{_MANIFEST} of {self.source.name} changed since it was opened; open it again"
            )
            raise IntegrityError(message)
        return content

    def verify(self) -> None:
        """Read every file once.

        Raises:
            IntegrityError: see :meth:`read`.
        """
        for path in self.manifest.files:
            self.read(path)

    def load_member(self, index: int) -> nn.Module:
        """Return one member's network in evaluation mode.

        It maps tiles to the manifest's ``num_outputs`` channels; see :func:`activate`.

        Raises:
            IntegrityError: its files are damaged or contradict each other.
            ManifestError: its description is no network with the manifest's channels and outputs.
        """
        folder = self.manifest.members[index].folder
        config = self.read(f"{folder}/config.json")
        try:
            network = load_network(config, self.read(f"{folder}/model.safetensors"))
        except ManifestError as error:
            error.add_note(f"member {index} in {folder}")
            raise
        arguments = cast("Mapping[str, object]", network.config)
        for key, expected in (
            ("in_channels", self.manifest.num_channels),
            ("classes", self.manifest.num_outputs),
        ):
            if arguments.get(key) != expected:
                message = (
                    f"member {index} has {key}={arguments.get(key)}, {_MANIFEST} needs {expected}"
                )
                raise ManifestError(message)
        return network

    def golden(self) -> GoldenTensors | None:
        """Return the golden tensors, if the ensemble has them."""
        if _GOLDEN_INPUT not in self.manifest.files:
            return None
        image = np.load(io.BytesIO(self.read(_GOLDEN_INPUT)), allow_pickle=False)
        with np.load(io.BytesIO(self.read(_GOLDEN_OUTPUT)), allow_pickle=False) as output:
            return GoldenTensors(
                image=image,
                probs=output["probs"],
                total=output["total"],
                distance=output.get("distance"),
            )

    def features(self) -> FeatureBank | None:
        """Return what the members see in the reference images, if the ensemble holds it.

        The file is read once.

        Raises:
            IntegrityError: the file is damaged, or of other networks.
            ManifestError: its metadata do not follow the schema.
        """
        return self._features

    @cached_property
    def _features(self) -> FeatureBank | None:
        if FEATURES not in self.manifest.files:
            return None
        bank = FeatureBank.from_bytes(self.read(FEATURES))
        _require_bank_of(bank, self.manifest)
        return bank


def _require_bank_of(bank: FeatureBank, manifest: Manifest) -> None:
    """Refuse a bank of other networks."""
    hashes = {member.folder: member.weights_sha256 for member in bank.facts.members}
    for member in manifest.members:
        weights = manifest.files[f"{member.folder}/model.safetensors"].sha256
        if hashes.get(member.folder) != weights:
            found = hashes.get(member.folder, "none")[:12]
            message = (
                f"{FEATURES} is of another network than {member.folder} (weights {found}, expected "
                f"{weights[:12]}); make it again with 'df2serve evaluate --calibrate --features'"
            )
            raise IntegrityError(message)


def load_ensemble(source: str | Path, *, cache: Path | None = None) -> Ensemble:
    """Open an ensemble.

    Args:
        source: the folder, a zip file of it, a package that df2serve exported, or an address such
            as ``hf://org/name@1.2.0``.
        cache: folder of downloads around the folder, whose files may be links into it.

    Raises:
        ArtifactNotFoundError: nothing there, or no ``ensemble.json`` in it.
        ManifestError: ``ensemble.json`` or ``calibration.json`` does not follow the schema.
        IntegrityError: ``calibration.json`` is not the recorded one.
        HubError: the hub of an address cannot be used.
    """
    if isinstance(source, str) and scheme_of(source):
        return open_address(source)
    path = Path(source)
    if not path.exists():
        message = f"no ensemble at {path}; expected a folder or a zip file with {_MANIFEST}"
        raise ArtifactNotFoundError(message)
    store: _Store = _FolderStore(path, cache) if path.is_dir() else _zip_store(path)
    size = store.size(_MANIFEST)
    if size is None:
        message = f"{path} holds no {_MANIFEST}, so that it is not an ensemble"
        raise ArtifactNotFoundError(message)
    if size > MANIFEST_LIMIT:
        message = f"{_MANIFEST} has {size} bytes, expected at most {MANIFEST_LIMIT}"
        raise ManifestError(message)
    content = store.read(_MANIFEST, MANIFEST_LIMIT)
    ensemble = Ensemble(
        manifest=parse_manifest(content),
        calibration=Calibration(),
        source=path,
        sha256=hashlib.sha256(content).hexdigest(),
        _store=store,
    )
    if _CALIBRATION not in ensemble.manifest.files:
        return ensemble
    return replace(ensemble, calibration=parse_calibration(ensemble.read(_CALIBRATION)))


def save_ensemble(
    target: str | Path,
    fields: Mapping[str, object],
    members: Sequence[nn.Module],
    *,
    files: Mapping[str, bytes],
) -> Ensemble:
    """Write an ensemble folder; nothing is left at the target when something fails.

    Args:
        target: folder to create.
        fields: of the manifest; ``files`` is filled in here, and so is ``members`` where missing.
        members: the networks, in the manifest's order.
        files: further contents by path, such as ``LICENSE`` or ``calibration.json``.

    Raises:
        OutputError: the target exists, or cannot be written.
        ManifestError: the fields do not make a manifest.
    """
    listed = fields.get("members") or [
        Member(folder=f"members/fold-{fold}", fold=fold) for fold in range(len(members))
    ]
    described = [Member.model_validate(member) for member in cast("Iterable[object]", listed)]
    contents = dict(files)
    for member, network in zip(described, members, strict=True):
        config, weights = dump_network(network)
        contents[f"{member.folder}/config.json"] = config
        contents[f"{member.folder}/model.safetensors"] = weights
    for name in ("config.json", "model.safetensors"):
        contents[name] = contents[f"{described[0].folder}/{name}"]
    with new_folder(Path(target)) as folder:
        _write(folder, {**fields, "members": described}, contents, kept={})
    return load_ensemble(target)


def with_files(ensemble: Ensemble, files: Mapping[str, bytes]) -> Ensemble:
    """Add or replace files of an ensemble folder, and record them in its manifest.

    Raises:
        OutputError: the ensemble is a zip file or a cached download, or cannot be written.
    """
    store = ensemble._store
    if not isinstance(store, _FolderStore) or store.cache:
        kind = (
            "a cached download; pull" if isinstance(store, _FolderStore) else "a zip file; unpack"
        )
        message = f"{ensemble.source} is {kind} it into a folder to change the ensemble"
        raise OutputError(message)
    fields = ensemble.manifest.model_dump()
    _write(ensemble.source, fields, files, kept=ensemble.manifest.files)
    return load_ensemble(ensemble.source)


def pack_ensemble(ensemble: Ensemble, target: str | Path) -> Ensemble:
    """Write an ensemble as one zip file, every file verified on the way.

    Raises:
        OutputError: the target exists, or cannot be written.
        IntegrityError: a file of the ensemble is damaged.
    """
    path = Path(target)
    if path.exists():
        message = f"{path} exists; remove it or choose another name"
        raise OutputError(message)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(_MANIFEST, ensemble.manifest_content())
        for name in ensemble.manifest.files:
            archive.writestr(name, ensemble.read(name))
    return load_ensemble(path)


def _write(
    folder: Path,
    fields: Mapping[str, object],
    contents: Mapping[str, bytes],
    *,
    kept: Mapping[str, FileEntry],
) -> None:
    """Write files and, last, the manifest that lists them."""
    entries = dict(kept)
    for name, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        entries[name] = FileEntry(sha256=digest, bytes=len(content))
    manifest = build_manifest({**fields, "files": dict(sorted(entries.items()))})
    for name, content in [*contents.items(), (_MANIFEST, manifest.to_json())]:
        replace_file(folder / name, content, parents=True)


def _zip_store(path: Path) -> _Store:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        message = f"{path} is neither a folder nor a zip file: {error}"
        raise ArtifactNotFoundError(message) from error
    if ENSEMBLE in names and WEIGHTS in names:
        return PackageStore(path)
    roots = [name for name in names if name.rsplit("/", 1)[-1] == _MANIFEST]
    shallow = min(roots, key=lambda name: name.count("/"), default=_MANIFEST)
    return _ZipStore(path=path, prefix=shallow.removesuffix(_MANIFEST))
