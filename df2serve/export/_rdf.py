"""``rdf.yaml``: the description of a package, in the dialect that Fiji reads.

Format 0.5.10 with plain strings for documentation, covers and license: Fiji's reader takes no newer
one, and bioimageio.core upgrades it silently. Only what is known is written, never a null.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from df2serve._version import __version__
from df2serve.artifact._package import ENSEMBLE, WEIGHTS
from df2serve.export._facts import architecture_facts, evaluations, stated, training_facts
from df2serve.export._measured import Cost
from df2serve.export.architecture import Architecture
from df2serve.export.card import Card, Person
from df2serve.export.onnx import OPSETS
from df2serve.export.parity import Deviation
from df2serve.export.system import INPUT, ExportSource

__all__ = ["ARCHITECTURE", "FILES", "PackageFacts", "describe", "sample_of", "tested"]

ARCHITECTURE = "arch.py"
FILES = {
    "pytorch_state_dict": WEIGHTS,
    "torchscript": "weights_torchscript.pt",
    "onnx": "weights.onnx",
}
"""Files of the weights by their name in the description."""
_TORCHSCRIPT_VERSION = "2.0.0"
"""Version of torch that Fiji runs; files are made so that it loads them."""
_PAPER = {
    "text": (
        "Griebel et al. (2023): Deep learning-enabled segmentation of ambiguous bioimages with "
        "deepflash2. Nature Communications 14, 1679 (the method)"
    ),
    "doi": "10.1038/s41467-023-36960-9",
}
_LEAST = 256
_HALO = 32


@dataclass(frozen=True, eq=False)
class PackageFacts:
    """Everything that a description is made of."""

    source: ExportSource
    card: Card
    contents: Mapping[str, bytes]
    """Files of the package by name."""
    architecture: Architecture | None
    deviations: Mapping[str, Deviation]
    """By the name of the weights' format."""
    cost: Cost | None
    ranges: tuple[float, ...]
    """Largest value of each test output."""


def tested(name: str) -> str:
    """Return the file of a tensor's test values."""
    return f"test_{name}.npy"


def sample_of(test_file: str) -> str:
    """Return the picture of a file with test values: the same numbers as a TIFF file."""
    return test_file.replace("test_", "sample_").replace(".npy", ".tif")


def describe(facts: PackageFacts) -> dict[str, Any]:
    """Return the content of ``rdf.yaml``."""
    source, card, manifest = facts.source, facts.card, facts.source.ensemble.manifest
    optional = stated(
        {
            "maintainers": [_person(person) for person in card.maintainers],
            "packaged_by": [_person(person) for person in card.packaged_by],
            "uploader": card.uploader and card.uploader.model_dump(exclude_none=True),
            "git_repo": card.git_repo,
            "links": list(card.links),
            "version": card.version,
            "version_comment": card.version_comment,
            "id_emoji": card.id_emoji,
            "training_data": card.training_data and {"id": card.training_data.id},
        }
    )
    return {
        "type": "model",
        "format_version": "0.5.10",
        "id": manifest.id,
        "name": _name(card.name or manifest.name, source),
        "description": str(card.description)[:1024],
        "documentation": "README.md",
        "covers": ["cover.png"],
        "license": card.license,
        "authors": [_person(person) for person in card.authors],
        "cite": [_PAPER, *(item.model_dump(exclude_none=True) for item in card.cite)],
        "tags": sorted({*card.tags, *_tags(source)}),
        **optional,
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "attachments": [
            _file(facts, name) for name in facts.contents if name.endswith((".ijm", ENSEMBLE))
        ],
        "inputs": [_input(facts)],
        "outputs": [_output(facts, name) for name in source.output_names],
        "weights": _weights(facts),
        "config": {"bioimageio": _bioimageio(facts), "df2serve": _provenance(facts)},
    }


def _person(person: Person) -> dict[str, Any]:
    return person.model_dump(exclude_none=True)


def _name(name: str, source: ExportSource) -> str:
    """Return a title of the characters and the length that the format allows."""
    if source.settings.member is not None:
        name = f"{name} (member {source.settings.member})"
    allowed = "".join(c if c.isascii() and (c.isalnum() or c in "_+- ()") else " " for c in name)
    return " ".join(allowed.split())[:128].ljust(5, "_")


def _tags(source: ExportSource) -> set[str]:
    kinds = {type(network).__name__.lower() for network in source.networks}
    unet = {"unet"} if any("unet" in kind for kind in kinds) else set()
    return {"2d", "pytorch", "semantic-segmentation", "uncertainty", "ensemble", *unet}


def _file(facts: PackageFacts, name: str, **fields: Any) -> dict[str, Any]:
    digest = hashlib.sha256(facts.contents[name]).hexdigest()
    return {"source": name, "sha256": digest, **fields}


def _input(facts: PackageFacts) -> dict[str, Any]:
    names = [channel.name for channel in facts.source.ensemble.manifest.channels]
    rows, columns = facts.source.tile_shape
    return {
        "id": INPUT,
        "description": "raw intensities as the microscope gives them; any size",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "id": "channel", "channel_names": names},
            {"type": "space", "id": "y", "size": {"min": min(rows, _LEAST), "step": 1}},
            {"type": "space", "id": "x", "size": {"min": min(columns, _LEAST), "step": 1}},
        ],
        **_tensors(facts, INPUT),
        "data": {"type": "float32"},
    }


def _output(facts: PackageFacts, name: str) -> dict[str, Any]:
    classes = [
        f"p_{item.name.replace(' ', '_')}" for item in facts.source.ensemble.manifest.classes
    ]
    distance = ["distance"] if facts.source.has_distance else []
    channels, description = {
        "prediction": (
            [*classes, "uncertainty", "mask", *distance],
            "mean class probabilities, total uncertainty (eq. 4), most probable class"
            + (", relative distance to the boundary of objects" if distance else ""),
        ),
        "probabilities": (classes, "mean class probabilities (eq. 1)"),
        "mask": (["mask"], "most probable class (eq. 2), 0 is the background"),
        "uncertainty": (["total", "epistemic"], "total uncertainty (eq. 4) and its epistemic part"),
        "distance": (["distance"], "relative distance to the boundary of objects"),
        "score": (["u"], "U (eq. 5), right only where the image is passed as a whole"),
    }[name]
    axes: list[dict[str, Any]] = [
        {"type": "batch"},
        {"type": "channel", "id": "channel", "channel_names": channels},
    ]
    if name != "score":
        halo = min(_HALO, *(side // 4 for side in facts.source.tile_shape))
        axes += [
            {
                "type": "space",
                "id": axis,
                "size": {"tensor_id": INPUT, "axis_id": axis},
                "halo": halo,
            }
            for axis in "yx"
        ]
    return {
        "id": name,
        "description": description,
        "axes": axes,
        **_tensors(facts, name),
        "data": {"type": "float32"},
    }


def _tensors(facts: PackageFacts, name: str) -> dict[str, Any]:
    """Return the test tensor and, of maps, the sample."""
    test = tested(name)
    sample = sample_of(test)
    samples = {"sample_tensor": _file(facts, sample)} if sample in facts.contents else {}
    return {"test_tensor": _file(facts, test), **samples}


def _weights(facts: PackageFacts) -> dict[str, Any]:
    """Return the entries; all but the first are derived from it."""
    people = [_person(person) for person in facts.card.authors]
    settings = facts.source.settings
    own: dict[str, dict[str, Any]] = {
        "pytorch_state_dict": {
            "pytorch_version": torch.__version__.split("+")[0],
            "comment": "architecture in plain PyTorch, nothing else has to be installed",
        },
        "torchscript": {
            "pytorch_version": _TORCHSCRIPT_VERSION,
            "comment": "overlapping tiles inside: any size in bounded activations",
        },
        "onnx": {
            "opset_version": OPSETS[settings.opset],
            "comment": "the image as one tile: memory grows with it",
        },
    }
    if facts.architecture is not None:
        own["pytorch_state_dict"] |= {
            "architecture": _file(
                facts, ARCHITECTURE, callable="create", kwargs=facts.architecture.arguments
            ),
            "strict": True,
        }
    entries: dict[str, Any] = {}
    for kind in facts.deviations:
        parent = {"parent": next(iter(entries))} if entries else {}
        entries[kind] = _file(facts, FILES[kind], authors=people, **parent, **own[kind])
    return entries


def _bioimageio(facts: PackageFacts) -> dict[str, Any]:
    card, source = facts.card, facts.source
    rows, columns = source.tile_shape
    cost = facts.cost
    biases = {
        "known_biases": card.known_biases,
        "risks": card.risks,
        "limitations": card.limitations,
        "recommendations": card.recommendations,
    }
    environment = card.environmental_impact
    return stated(
        {
            "reproducibility_tolerance": [_tolerance(facts)],
            "funded_by": card.funded_by,
            **architecture_facts(source),
            "modality": card.modality,
            "target_structure": list(card.target_structure),
            "task": "semantic segmentation",
            "out_of_scope_use": card.out_of_scope_use,
            "bias_risks_limitations": stated(biases),
            "training": training_facts(source.ensemble.manifest),
            "inference_time": cost
            and f"{cost.seconds:.3g} s for {rows}x{columns} px on {cost.threads} processor cores",
            "memory_requirements_inference": cost
            and f"{cost.peak_bytes / 1e6:.0f} MB for {rows}x{columns} px, PyTorch included",
            "memory_requirements_training": card.memory_requirements_training,
            "evaluations": evaluations(source.ensemble, card),
            "environmental_impact": environment and environment.model_dump(exclude_none=True),
        }
    )


def _tolerance(facts: PackageFacts) -> dict[str, Any]:
    """Return ten times the tolerance of the export, within what validators accept."""
    allowed = min(10 * facts.source.settings.tolerance, 0.01 * min(facts.ranges))
    return {
        "absolute_tolerance": float(f"{allowed:.2g}"),
        "relative_tolerance": 1e-3,
        "mismatched_elements_per_million": 100,
    }


def _provenance(facts: PackageFacts) -> dict[str, Any]:
    source = facts.source
    ensemble = source.ensemble
    threshold = ensemble.calibration.threshold("u") if source.settings.member is None else None
    return stated(
        {
            "version": __version__,
            "variant": source.settings.variant,
            "ensemble": {
                "id": ensemble.manifest.id,
                "sha256": ensemble.sha256,
                "members": list(source.members),
            },
            "inference": source.config.model_dump(mode="json", exclude_none=True),
            "classes": {item.name: item.color for item in ensemble.manifest.classes},
            "pixel_size_um": ensemble.manifest.pixel_size_um
            and ensemble.manifest.pixel_size_um.model_dump(),
            "review_threshold": threshold and threshold.model_dump(mode="json", exclude_none=True),
            "encoder_weights": ensemble.manifest.encoder_weights
            and ensemble.manifest.encoder_weights.model_dump(exclude_none=True),
            "made_with": dict(ensemble.manifest.versions),
            "deviation": {
                kind: stated({"largest": one.largest, "mask_pixels": one.mask_pixels})
                for kind, one in facts.deviations.items()
            },
        }
    )
