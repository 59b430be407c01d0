"""Networks of other programs become ensemble folders."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from df2serve.artifact import Ensemble, GoldenTensors, save_ensemble
from df2serve.artifact.manifest import colored_classes
from df2serve.config import Normalization
from df2serve.errors import ConfigError, DecodeError, OutputError, ParityError, SourceNotFoundError
from df2serve.importing._found import Found
from df2serve.importing.deepflash2 import read_deepflash2
from df2serve.importing.settings import ImportSettings
from df2serve.importing.smp import read_smp
from df2serve.inference import Predictor

__all__ = ["Imported", "import_ensemble"]

_TOLERANCE = 1e-3
"""Largest deviation from recorded probabilities, which other hardware may have computed."""
_PACKAGES = ("df2serve", "segmentation-models-pytorch", "timm", "torch")


@dataclass(frozen=True)
class Imported:
    """An ensemble, and what people should know of its import."""

    ensemble: Ensemble
    notes: tuple[str, ...]
    deviation: float | None
    """Largest difference to the recorded probabilities, where there are any."""


def import_ensemble(
    sources: Sequence[Path],
    target: str | Path,
    *,
    settings: ImportSettings | None = None,
    recorded: Path | None = None,
) -> Imported:
    """Write an ensemble of networks that another program trained. No code of theirs is run.

    Args:
        sources: one ``.pt`` file of deepflash2, or its ``.pth`` files, one per member; or a folder
            with ``config.json`` and ``model.safetensors`` of segmentation-models-pytorch.
        target: folder to create.
        settings: what the files do not say; it wins over what they say.
        recorded: ``.npz`` file of what the original makes of an image: ``image``, raw intensities,
            axes (Y, X, C), and ``softmax``, axes (K, Y, X). They become golden tensors.

    Raises:
        SourceNotFoundError: a file is missing.
        UnsupportedFormatError: neither of the two wrote it.
        UnsafeArtifactError: a file asks for more than data.
        IntegrityError: a file is damaged.
        ConfigError: the sources do not belong together, or need a setting.
        ParityError: the ensemble does not reproduce what was recorded; nothing is written.
        OutputError: the target exists, or cannot be written.
    """
    chosen, path = settings or ImportSettings(), Path(target)
    if path.exists():
        message = f"{path} exists; remove it or choose another folder"
        raise OutputError(message)
    found = _read(sources, chosen)
    fields = _fields(found, chosen, path.resolve().name)
    files: dict[str, bytes] = {}
    deviation = None
    if recorded is not None:
        with tempfile.TemporaryDirectory() as folder:
            draft = save_ensemble(Path(folder) / "draft", fields, found.members, files={})
            golden, deviation = _compare(draft, _load_recorded(recorded))
            files = golden.to_files()
    ensemble = save_ensemble(path, fields, found.members, files=files)
    return Imported(ensemble=ensemble, notes=_notes(found, chosen), deviation=deviation)


def _read(sources: Sequence[Path], settings: ImportSettings) -> Found:
    if not sources:
        message = "got no file; expected .pt or .pth files of deepflash2, or a folder of smp"
        raise ConfigError(message)
    if not any(path.is_dir() for path in sources):
        return read_deepflash2(sources, encoder=settings.encoder)
    if len(sources) > 1 or settings.encoder is not None:
        message = "a folder is one model, whose config.json names the encoder; give it alone"
        raise ConfigError(message)
    return read_smp(sources[0])


# -- the manifest -------------------------------------------------------------------------------


def _fields(found: Found, settings: ImportSettings, folder: str) -> dict[str, object]:
    """Return the fields of the manifest; settings win over what was found."""
    number = found.num_classes
    standing = ["background", *(f"class {k}" for k in range(1, number))]
    classes = _names("classes", settings.classes, number) or standing
    channels = _names("channels", settings.channels, found.num_channels)
    size = settings.pixel_size_um
    origin = found.encoder_weights
    return {
        "id": re.sub(r"[^a-z0-9._-]+", "-", folder.lower()).strip("._-")[:96] or "imported",
        "name": settings.name or folder,
        "license": settings.license,
        "classes": colored_classes(classes),
        "channels": [
            {"name": name}
            for name in channels or [f"channel {c}" for c in range(found.num_channels)]
        ],
        "pixel_size_um": {"y_um": size, "x_um": size} if size else None,
        "normalization": _normalization(found, settings),
        "tile_shape": settings.tile_shape or found.tile_shape or settings.unstated_tile_shape,
        "zoom_out": settings.zoom_out or found.zoom_out or 1.0,
        "inference": found.inference,
        "members": [
            {"folder": f"members/fold-{index}", "fold": fold}
            for index, fold in enumerate(found.folds)
        ],
        "encoder_weights": {"name": origin} if origin else None,
        "training": found.training,
        "versions": {package: version(package) for package in _PACKAGES},
    }


def _names(what: str, names: Sequence[str] | None, number: int) -> Sequence[str] | None:
    if names is not None and len(names) != number:
        message = f"got {len(names)} names of {what} ({', '.join(names)}); the network has {number}"
        raise ConfigError(message)
    return names


def _normalization(found: Found, settings: ImportSettings) -> Normalization:
    chosen = settings.normalization or found.normalization
    if chosen is None:
        message = (
            "the files do not say how intensities become network input; state it with "
            "--means and --stds, or --normalization image, percentile or none"
        )
        raise ConfigError(message)
    return chosen


def _notes(found: Found, settings: ImportSettings) -> tuple[str, ...]:
    notes = list(found.notes)
    if found.tile_shape is None and settings.tile_shape is None:
        rows, columns = settings.unstated_tile_shape
        notes.append(f"the tile of the training is not stated; {rows} x {columns} px is assumed")
    if settings.classes is None:
        notes.append("the classes have no names; give them with --classes")
    return tuple(notes)


# -- recorded results ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Recorded:
    """What the original made of an image."""

    image: NDArray[np.generic]
    """Raw intensities, axes (C, Y, X)."""
    probs: NDArray[np.generic]
    """Class probabilities, axes (K, Y, X)."""


def _load_recorded(path: Path) -> _Recorded:
    if not path.is_file():
        message = f"no recorded results at {path}; expected an .npz file"
        raise SourceNotFoundError(message)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image, probs = arrays["image"], arrays["softmax"]
    except (OSError, ValueError, KeyError, AttributeError, EOFError) as error:
        message = f"{path} is no .npz file with the arrays image and softmax: {error}"
        raise DecodeError(message) from error
    if image.ndim != 3 or probs.ndim != 3 or image.shape[:2] != probs.shape[1:]:
        message = (
            f"{path.name} has an image of shape {image.shape} and softmax of shape {probs.shape}; "
            "expected (Y, X, C) and (K, Y, X)"
        )
        raise DecodeError(message)
    return _Recorded(image=np.moveaxis(image, -1, 0), probs=probs)


def _compare(ensemble: Ensemble, recorded: _Recorded) -> tuple[GoldenTensors, float]:
    """Return golden tensors, and by how much they deviate from what was recorded."""
    if ensemble.manifest.zoom_out != 1:
        message = "results of networks with another scale than 1 are not comparable; leave them out"
        raise ConfigError(message)
    with Predictor(ensemble) as predictor:
        prediction = predictor.predict(np.ascontiguousarray(recorded.image), axes="CYX")
    if prediction.probs.shape != recorded.probs.shape:
        message = (
            f"{len(recorded.probs)} classes were recorded, the networks have "
            f"{len(prediction.probs)}; give results of the same ensemble"
        )
        raise ConfigError(message)
    deviation = float(np.abs(prediction.probs - recorded.probs).max())
    if not deviation <= _TOLERANCE:
        message = (
            f"the imported networks deviate from what was recorded by {deviation:.2g}, expected at "
            f"most {_TOLERANCE:g}; nothing was written. Was it recorded with these files?"
        )
        raise ParityError(message)
    golden = GoldenTensors(image=recorded.image, probs=prediction.probs, total=prediction.total)
    return golden, deviation
