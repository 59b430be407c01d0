"""Ensembles as packages of the BioImage Model Zoo, for Fiji, ilastik, BiaPy and others."""

from __future__ import annotations

import io
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import tifffile
import torch
import yaml
from numpy.typing import NDArray

from df2serve.artifact import FEATURES, save_ensemble, with_files
from df2serve.artifact._package import ENSEMBLE, without_weights
from df2serve.config import InstanceConfig
from df2serve.errors import ExportError
from df2serve.export._example import Example, choose_example
from df2serve.export._measured import Cost, measure_cost
from df2serve.export._rdf import ARCHITECTURE, FILES, PackageFacts, describe, sample_of, tested
from df2serve.export._readme import readme
from df2serve.export.architecture import Architecture, write_architecture
from df2serve.export.card import Card
from df2serve.export.onnx import onnx_bytes
from df2serve.export.parity import Deviation, Reference, measure
from df2serve.export.system import INPUT, ExportSource
from df2serve.export.torchscript import module_runner, torchscript_bytes
from df2serve.inference import Prediction

__all__ = ["WeightsFormat", "package_contents", "write_package"]

WeightsFormat: TypeAlias = Literal["pytorch_state_dict", "torchscript", "onnx"]

_MACROS = ("uncertainty_score.ijm", "split_objects.ijm")


def package_contents(
    source: ExportSource,
    reference: Reference,
    *,
    card: Card,
    formats: Sequence[WeightsFormat],
    facts: dict[str, Any],
) -> tuple[Mapping[str, bytes], Mapping[str, Deviation]]:
    """Return the files of a package, and how far each format deviates from the ensemble.

    Args:
        source: what is exported.
        reference: the ensemble, loaded.
        card: what people say of it, complete.
        formats: weights to put in.
        facts: what TorchScript and ONNX files say about themselves.

    Raises:
        ExportError: there is no image to test with, or the description is not valid.
        ParityError: a format does not compute what the ensemble computes.
    """
    if source.settings.precision != "fp32" or source.settings.opset != "fiji":
        message = (
            "packages run in engines that need float32 and opset 17; got precision "
            f"{source.settings.precision!r} and opset {source.settings.opset!r}"
        )
        raise ExportError(message)
    example = choose_example(source, reference)
    contents = _tests(source, example)
    architecture, deviations = _weights(source, reference, formats, facts, contents)
    with tempfile.TemporaryDirectory() as folder:
        contents |= {
            "cover.png": example.cover(source, Path(folder)),
            ENSEMBLE: _ensemble(source, Path(folder)),
            **{name: _macro(name, source) for name in _MACROS},
        }
        described = PackageFacts(
            source=source,
            card=card,
            contents=contents,
            architecture=architecture,
            deviations=deviations,
            cost=_cost(contents, Path(folder)),
            ranges=tuple(float(one.max()) for one in _outputs(source, example.prediction)),
        )
        contents["README.md"] = readme(described).encode()
        contents["rdf.yaml"] = _yaml(describe(described))
        _validate(contents["rdf.yaml"], Path(folder) / "rdf.yaml")
    return contents, deviations


def write_package(contents: Mapping[str, bytes], path: Path) -> None:
    """Write the files of a package as a zip file, weights without compression."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("rdf.yaml", *(name for name in contents if name != "rdf.yaml")):
            dense = name.endswith((".pt", ".onnx", ".zip", ".png"))
            method = zipfile.ZIP_STORED if dense else zipfile.ZIP_DEFLATED
            archive.writestr(name, contents[name], compress_type=method)


def _tests(source: ExportSource, example: Example) -> dict[str, bytes]:
    """Return test and sample tensors by file."""
    names = (INPUT, *source.output_names)
    values_of = (example.image[None], *_outputs(source, example.prediction))
    arrays = {tested(name): values for name, values in zip(names, values_of, strict=True)}
    contents = {}
    for name, values in arrays.items():
        tensor, buffer = values.astype(np.float32), io.BytesIO()
        np.save(buffer, tensor, allow_pickle=False)
        contents[name] = buffer.getvalue()
        if tensor.ndim == len("NCYX"):
            contents[sample_of(name)] = _tiff(tensor[0])
    return contents


def _tiff(maps: NDArray[np.float32]) -> bytes:
    """Return channels (C, Y, X) as a TIFF file that ImageJ opens, pixels unchanged."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, maps, imagej=True, metadata={"axes": "CYX"})
    return buffer.getvalue()


def _outputs(source: ExportSource, prediction: Prediction) -> list[NDArray[Any]]:
    """Return what the ensemble says in the form of an export's outputs."""
    probs, mask, total = prediction.probs, prediction.mask[None], prediction.total[None]
    if source.settings.variant == "fiji":
        return [np.concatenate([probs, total, mask])[None]]
    uncertainty = np.concatenate([total, prediction.epistemic[None]])
    return [probs[None], mask[None], uncertainty[None], np.array([[prediction.scores.u]])]


def _weights(
    source: ExportSource,
    reference: Reference,
    formats: Sequence[WeightsFormat],
    facts: dict[str, Any],
    contents: dict[str, bytes],
) -> tuple[Architecture | None, dict[str, Deviation]]:
    """Add the files of the weights; return the architecture, and deviations by format."""
    tiled = reference.cases(whole=False)
    architecture = None
    deviations: dict[str, Deviation] = {}
    for kind in [kind for kind in get_args(WeightsFormat) if kind in formats]:
        if kind == "torchscript":
            contents[FILES[kind]], deviations[kind] = torchscript_bytes(source, tiled, facts)
        elif kind == "onnx":
            contents[FILES[kind]], deviations[kind] = onnx_bytes(source, reference, facts)
        else:
            architecture = write_architecture(source)
            buffer = io.BytesIO()
            torch.save(architecture.state, buffer)
            contents[FILES[kind]] = buffer.getvalue()
            contents[ARCHITECTURE] = architecture.source.encode()
            found = measure(module_runner(architecture.module()), tiled, source.settings.variant)
            found.require(source.settings.tolerance, "the state dict")
            deviations[kind] = found
    return architecture, deviations


def _ensemble(source: ExportSource, folder: Path) -> bytes:
    """Return the exported members as an ensemble without weights, which readers add."""
    ensemble = source.ensemble
    fields = ensemble.manifest.model_dump(exclude={"files", "members"})
    fields["members"] = [ensemble.manifest.members[index] for index in source.members]
    kept = {}
    if source.settings.member is None:
        golden = ensemble.golden()
        kept = {} if golden is None else golden.to_files()
        if "calibration.json" in ensemble.manifest.files:
            kept["calibration.json"] = ensemble.read("calibration.json")
    saved = save_ensemble(folder / "ensemble", fields, source.networks, files=kept)
    bank = ensemble.features() if source.settings.member is None else None
    if bank is not None:
        with_files(saved, {FEATURES: bank.of_weights(saved.manifest).to_bytes()})
    return without_weights(folder / "ensemble")


def _macro(name: str, source: ExportSource) -> bytes:
    text = files("df2serve.export").joinpath("macros", name).read_text(encoding="utf-8")
    classes, seeds = source.arguments["classes"], InstanceConfig().learned
    values = {
        "CLASSES": classes,
        "FACTOR": source.arguments["factor"],
        "DISTANCE": classes + 3 if source.has_distance else 0,
        "DEPTH": seeds.h,
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", repr(value))
    return text.encode()


def _cost(contents: Mapping[str, bytes], folder: Path) -> Cost | None:
    """Return what the TorchScript file costs, if there is one."""
    if FILES["torchscript"] not in contents:
        return None
    paths = [folder / name for name in (FILES["torchscript"], tested(INPUT))]
    for path in paths:
        path.write_bytes(contents[path.name])
    return measure_cost(*paths)


def _validate(description: bytes, path: Path) -> None:
    """Let bioimageio.spec read the description, offline.

    Raises:
        ExportError: it is not valid.
    """
    from bioimageio.spec import InvalidDescr, ValidationContext, load_description

    path.write_bytes(description)
    with ValidationContext(perform_io_checks=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_description(path)
    if isinstance(loaded, InvalidDescr):
        problems = [
            f"{'.'.join(map(str, error.loc))}: {error.msg}"
            for detail in loaded.validation_summary.details
            for error in detail.errors
        ]
        message = f"the description is not valid: {'; '.join(problems)}; correct the card"
        raise ExportError(message)


class _PlainDumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml states no types
    """Writes repeated values in full, for readers that know no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeat everything."""
        return True


def _yaml(content: Mapping[str, Any]) -> bytes:
    text: str = yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    return text.encode()
