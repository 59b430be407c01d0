"""Files of deepflash2: ensembles as TorchScript (``.pt``) and members as pickles (``.pth``).

Nothing in them is run. Tensors and settings are read as data and given to networks of this package.

Source:
    deepflash2 0.2.4 and 0.3.0, ``inference.InferenceEnsemble`` and ``models.save_smp_model``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from torch import nn

from df2serve.artifact import create_network
from df2serve.artifact.network import is_truncated, load_state
from df2serve.config import (
    PRESETS,
    CentreGrid,
    Frozen,
    InferenceConfig,
    TrainingNormalization,
    describe_validation_error,
)
from df2serve.errors import ArtifactError, ConfigError, IntegrityError, UnsupportedFormatError
from df2serve.importing._found import Found, source_facts
from df2serve.importing._pickle import Array, Module, StoredTensor
from df2serve.importing._recognition import network_config, recognize_encoder
from df2serve.importing._torch_file import TorchFile, open_torch_file

__all__ = ["read_deepflash2"]

_FOLD = re.compile(r"-fold(\d+)")
_TILING = ("scale", "border_padding_factor", "max_tile_shift")
_MODULES = 100_000
_EVEN = (
    "the original blends tiles evenly (use_gaussian=False); df2serve blends them under a Gaussian "
    "window, which changes probabilities near the edges of tiles"
)
_COARSE = (
    "the original takes every {:g}th pixel of an image, df2serve averages them; results differ"
)
_CUT = "the encoder lacks its last stage, as in all networks that deepflash2 0.3.0 made of ConvNeXt"


class _ScriptFacts(Frozen):
    """Attributes of ``InferenceEnsemble`` that change its results."""

    num_classes: Annotated[int, Field(ge=2)]
    normalization: TrainingNormalization
    tile_shape: tuple[int, int]
    scale: float
    border_padding_factor: float
    max_tile_shift: float
    use_tta: bool
    use_gaussian: bool
    gaussian_kernel_sigma_scale: float

    @property
    def inference(self) -> InferenceConfig:
        return PRESETS["deepflash2"].updated(
            grid=CentreGrid(
                border_padding_factor=self.border_padding_factor,
                max_tile_shift=self.max_tile_shift,
            ),
            window_sigma=self.gaussian_kernel_sigma_scale,
            views=4 if self.use_tta else 1,
        )


class _MemberFacts(Frozen):
    """What ``save_smp_model`` stores beside the weights."""

    arch: str
    classes: Annotated[int, Field(ge=2)]
    in_channels: Annotated[int, Field(ge=1)]
    normalization: TrainingNormalization | None
    arguments: dict[str, str | int | float | bool | list[int] | None]
    """Of the constructor of smp's class."""


def read_deepflash2(files: Sequence[Path], *, encoder: str | None = None) -> Found:
    """Return the networks of one ``.pt`` file, or of one ``.pth`` file per member.

    Args:
        files: of one ensemble, members in order.
        encoder: smp's name of the encoder in a ``.pt`` file; recognized by its weights when absent.

    Raises:
        SourceNotFoundError: a file is missing.
        UnsupportedFormatError: deepflash2 did not write it.
        UnsafeArtifactError: it asks for more than data.
        IntegrityError: it is damaged.
        ConfigError: the members do not belong together, or the encoder is not recognized.
    """
    parts = [_read(path, encoder) for path in files]
    return parts[0] if len(parts) == 1 else _joined(parts, files)


def _read(path: Path, encoder: str | None) -> Found:
    try:
        with open_torch_file(path) as file:
            return _read_script(file, path, encoder) if file.is_script else _read_member(file, path)
    except (ArtifactError, UnsupportedFormatError) as error:
        error.add_note(path.name)
        raise
    except ValidationError as error:
        message = describe_validation_error(f"settings in {path.name}", error)
        raise IntegrityError(message) from error


def _joined(parts: Sequence[Found], files: Sequence[Path]) -> Found:
    """Return the members of several files as one."""
    first = parts[0]
    for path, part in zip(files, parts, strict=True):
        if part.tile_shape is not None:
            message = f"{path.name} is a whole ensemble; import it alone, or the .pth files"
            raise ConfigError(message)
        for what in ("num_classes", "num_channels", "normalization"):
            if getattr(part, what) != getattr(first, what):
                message = (
                    f"{path.name} has other {what.removeprefix('num_')} than {files[0].name}: got "
                    f"{getattr(part, what)}, expected {getattr(first, what)}; give the members of "
                    "one ensemble"
                )
                raise ConfigError(message)
    return replace(
        first,
        members=[member for part in parts for member in part.members],
        folds=[fold for part in parts for fold in part.folds],
        training=source_facts("deepflash2 .pth", files),
    )


# -- ensembles ----------------------------------------------------------------------------------


def _read_script(file: TorchFile, path: Path, encoder: str | None) -> Found:
    facts = _script_facts(file.root)
    modules = _children(file.root.state["models"])
    channels = len(facts.normalization.means)
    members = [
        _traced_network(file, module, facts.num_classes, channels, encoder=encoder, hint=path.name)
        for _, module in sorted(modules.items(), key=lambda item: int(item[0]))
    ]
    notes = [_COARSE.format(facts.scale)] if facts.scale != 1 else []
    notes += [] if facts.use_gaussian else [_EVEN]
    return Found(
        members=members,
        folds=[None] * len(members),
        num_classes=facts.num_classes,
        num_channels=channels,
        inference=facts.inference,
        training=source_facts("deepflash2 .pt", [path]),
        normalization=facts.normalization,
        tile_shape=facts.tile_shape,
        zoom_out=facts.scale,
        notes=(*notes, *_notes_on(members)),
    )


def _script_facts(root: object) -> _ScriptFacts:
    state = root.state if isinstance(root, Module) else {}
    parts = [state.get(name) for name in ("norm", "tiler", "models")]
    match parts:
        case [Module() as norm, Module() as tiler, Module()]:
            pass
        case _:
            message = "it is TorchScript, but no ensemble of deepflash2 0.2 or 0.3"
            raise UnsupportedFormatError(message)
    own = {name: value for name, value in state.items() if name in _ScriptFacts.model_fields}
    tiling = {name: value for name, value in tiler.state.items() if name in _TILING}
    normalization = {"means": norm.state.get("mean"), "stds": norm.state.get("std")}
    return _ScriptFacts.model_validate({**own, **tiling, "normalization": normalization})


def _children(module: Module) -> dict[str, Module]:
    """Return the numbered parts of a list of modules."""
    found = {
        name: part
        for name, part in module.state.items()
        if name.isdecimal() and isinstance(part, Module)
    }
    if not found:
        message = "it holds no networks"
        raise IntegrityError(message)
    return found


def _traced_network(
    file: TorchFile,
    module: Module,
    num_classes: int,
    channels: int,
    *,
    encoder: str | None,
    hint: str,
) -> nn.Module:
    stored: dict[str, StoredTensor] = {}
    names: set[str] = set()
    for name, part in _walk(module):
        if isinstance(part, Module):
            names.add(part.name)
        else:
            stored[name] = part
    architecture = module.name.rpartition(".")[2]
    arguments: dict[str, Any] = {"in_channels": channels, "classes": num_classes}
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    arguments["encoder_name"] = encoder or recognize_encoder(
        architecture, arguments, shapes, classes=names, hint=hint
    )
    return _network(file, network_config(architecture, arguments, stored), stored)


def _walk(module: Module) -> Iterator[tuple[str, Module | StoredTensor]]:
    """Yield the modules and tensors below a module, with dotted names."""
    pending: list[tuple[str, Module]] = [("", module)]
    for _ in range(_MODULES):
        if not pending:
            return
        prefix, current = pending.pop()
        yield prefix, current
        for name, part in current.state.items():
            if isinstance(part, Module):
                pending.append((f"{prefix}{name}.", part))
            elif isinstance(part, StoredTensor):
                yield f"{prefix}{name}", part
    message = f"it has more than {_MODULES} modules in one network"
    raise IntegrityError(message)


# -- members ------------------------------------------------------------------------------------


def _read_member(file: TorchFile, path: Path) -> Found:
    content = file.root
    if not isinstance(content, dict) or not {"model", "arch", "encoder_name"} <= content.keys():
        message = "it holds no member of deepflash2: model, arch and encoder_name are missing"
        raise UnsupportedFormatError(message)
    facts = _member_facts(content)
    stored = content["model"]
    if not isinstance(stored, dict) or not all(
        isinstance(tensor, StoredTensor) for tensor in stored.values()
    ):
        message = "its weights are no tensors"
        raise IntegrityError(message)
    network = _network(file, network_config(facts.arch, facts.arguments, stored), stored)
    fold = _FOLD.search(path.stem)
    return Found(
        members=[network],
        folds=[int(fold[1]) - 1 if fold and int(fold[1]) else None],
        num_classes=facts.classes,
        num_channels=facts.in_channels,
        inference=PRESETS["deepflash2"],
        training=source_facts("deepflash2 .pth", [path]),
        normalization=facts.normalization,
        encoder_weights=_origin(content),
        notes=_notes_on([network]),
    )


def _member_facts(content: Mapping[str, Any]) -> _MemberFacts:
    stats = content.get("stats")
    arguments = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in content.items()
        if name not in ("model", "arch", "stats", "encoder_weights")
    }
    normalization = None
    if isinstance(stats, dict):
        means, stds = (_values(stats.get(f"channel_{name}")) for name in ("means", "stds"))
        normalization = {"means": means, "stds": stds}
    return _MemberFacts.model_validate(
        {
            "arch": content["arch"],
            "classes": arguments.get("classes"),
            "in_channels": arguments.get("in_channels"),
            "normalization": normalization,
            "arguments": arguments,
        }
    )


def _values(stat: object) -> object:
    return stat.values if isinstance(stat, Array) else stat


def _origin(content: Mapping[str, Any]) -> str | None:
    """Return what the encoder's weights started from."""
    weights = content.get("encoder_weights")
    return f"{content['encoder_name']}, {weights}" if isinstance(weights, str) else None


# -- both ---------------------------------------------------------------------------------------


def _network(
    file: TorchFile, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]
) -> nn.Module:
    network = create_network(config)
    return load_state(network, {name: file.tensor(tensor) for name, tensor in stored.items()})


def _notes_on(members: Sequence[nn.Module]) -> tuple[str, ...]:
    return (_CUT,) if any(is_truncated(member) for member in members) else ()
