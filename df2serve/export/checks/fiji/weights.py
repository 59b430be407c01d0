"""Rules on the weights: will an engine of Fiji load the file, and which one?"""

from __future__ import annotations

from collections.abc import Iterator

from df2serve.export.checks.fiji.rule import Problem, Subject, rule
from df2serve.export.checks.onnx_file import OnnxFacts
from df2serve.export.checks.report import Severity
from df2serve.export.checks.torchscript import TorchScriptFacts, operators_of_torch_2_0_0

__all__ = ["RULES"]

_JAVA_FORMATS = ("onnx", "tensorflow_saved_model_bundle", "torchscript")
_TORCH_VERSIONS = frozenset(
    (
        *("1.5.0", "1.5.1", "1.6.0", "1.7.0", "1.7.1", "1.8.0", "1.8.1", "1.9.0", "1.9.1"),
        *("1.10.0", "1.11.0", "1.12.1", "1.13.0", "1.13.1", "2.0.0"),
    )
)
"""Versions that Fiji installs an engine for."""
_OPSETS = range(6, 18)
"""ONNX operator sets that an engine of Fiji runs; 18 has one that refuses it."""
_OPSET_OF_IR_7 = 13
"""Last operator set whose engine reads no file format newer than 7."""
_ONNX_TYPES = frozenset({"double", "float", "int32", "int64", "int8", "uint8"})
_LARGEST_RANK = 5
_HASH_BUCKETS = 16


@rule(
    "FIJI050",
    Severity.ERROR,
    demand="There are TorchScript, ONNX or TensorFlow bundle weights.",
    reason="Java engines run no others; Fiji would have to install Python for the model.",
    remedy="Add TorchScript weights for torch 2.0.0, or ONNX weights with opset 17.",
)
def _java_format(subject: Subject) -> Iterator[Problem]:
    if not set(_JAVA_FORMATS) & set(subject.weights):
        given = ", ".join(sorted(subject.weights)) or "no weights"
        yield Problem("weights", f"got {given:.120}")


@rule(
    "FIJI051",
    Severity.ERROR,
    demand="torchscript.pytorch_version is a version that Fiji has: 2.0.0 is the newest.",
    reason="Fiji installs listed engines only.",
    remedy="Make the archive load in torch 2.0.0, prove it, and write 'pytorch_version: 2.0.0'.",
)
def _torch_version(subject: Subject) -> Iterator[Problem]:
    if "torchscript" in subject.weights:
        version = subject.weights["torchscript"].get("pytorch_version")
        if str(version) not in _TORCH_VERSIONS:
            place = "weights.torchscript.pytorch_version"
            yield Problem(place, f"got {version!r:.40}, expected 2.0.0")


@rule(
    "FIJI052",
    Severity.WARNING,
    demand="Of TorchScript and ONNX, Fiji takes TorchScript.",
    reason="Fiji takes the first format in the order of a Java hash table, which depends on the "
    "versions; ONNX runs on the processor only, and on the whole image at once.",
    remedy="With pytorch_version 2.0.0 and opset 17 TorchScript comes first.",
)
def _preferred(subject: Subject) -> Iterator[Problem]:
    if not {"torchscript", "onnx"} <= set(subject.weights):
        return
    torch = f"torchscript_v{subject.weights['torchscript'].get('pytorch_version')}"
    onnx = f"onnx_v{subject.weights['onnx'].get('opset_version')}"
    if _bucket(onnx) < _bucket(torch):
        yield Problem("weights", f"{onnx:.40} comes before {torch:.40}")


def _bucket(key: str) -> int:
    """Return the bucket of a string in a small ``java.util.HashMap``.

    Example:
        >>> _bucket("torchscript_v2.0.0"), _bucket("onnx_v17"), _bucket("torchscript_v1.13.1")
        (3, 10, 11)
    """
    units = key.encode("utf-16-be", errors="replace")
    value = 0
    for index in range(0, len(units), 2):
        value = (31 * value + int.from_bytes(units[index : index + 2])) & 0xFFFFFFFF
    return (value ^ value >> 16) & (_HASH_BUCKETS - 1)


@rule(
    "FIJI053",
    Severity.ERROR,
    demand="The TorchScript archive can be read and uses only operators that torch 2.0.0 has.",
    reason="Fiji's torch stops with 'Unknown builtin op'.",
    remedy="Trace the network and script only what surrounds it: torch.jit.script compiles "
    "branches of the current torch's own Python code that torch 2.0.0 does not have.",
)
def _operators(subject: Subject) -> Iterator[Problem]:
    match subject.torchscript:
        case str(error):
            yield Problem("weights.torchscript", f"{error:.200}")
        case TorchScriptFacts(operators=operators):
            for name in sorted(set(operators) - operators_of_torch_2_0_0()):
                yield Problem("weights.torchscript", f"{name} in {operators[name]}")


@rule(
    "FIJI054",
    Severity.ERROR,
    demand="The TorchScript model returns one tensor per output.",
    reason="Fiji stops when the numbers differ.",
    remedy="Return a tensor for one output, a tuple of tensors for several.",
)
def _returns(subject: Subject) -> Iterator[Problem]:
    if isinstance(subject.torchscript, TorchScriptFacts):
        returned = subject.torchscript.outputs
        if returned is not None and returned != len(subject.outputs):
            message = f"returns {returned} tensors, outputs lists {len(subject.outputs)}"
            yield Problem("weights.torchscript", message)


@rule(
    "FIJI055",
    Severity.ERROR,
    demand="The ONNX file can be read, has the declared opset, at most 17, and a file format of at "
    "most 8 (7 up to opset 13), no operators of other domains and no external data.",
    reason="The declared opset selects Fiji's engine, which refuses files that are newer than "
    "itself.",
    remedy="Export with torch.onnx.export(..., dynamo=False, opset_version=17).",
)
def _onnx_versions(subject: Subject) -> Iterator[Problem]:
    place = "weights.onnx"
    if isinstance(subject.onnx, str):
        yield Problem(place, f"{subject.onnx:.200}")
    if not isinstance(subject.onnx, OnnxFacts):
        return
    facts, declared = subject.onnx, subject.weights["onnx"].get("opset_version")
    if declared != facts.opset:
        yield Problem(f"{place}.opset_version", f"got {declared!r:.40}, the file has {facts.opset}")
    if facts.opset not in _OPSETS:
        yield Problem(place, f"opset {facts.opset}, expected at most {_OPSETS[-1]}")
    newest = 7 if (facts.opset or 0) <= _OPSET_OF_IR_7 else 8
    if facts.ir_version > newest:
        yield Problem(place, f"file format {facts.ir_version}, expected at most {newest}")
    if facts.domains:
        yield Problem(place, f"operators of other domains: {', '.join(sorted(facts.domains)):.120}")
    if facts.external:
        yield Problem(place, "weights in other files")


@rule(
    "FIJI057",
    Severity.ERROR,
    demand="The ONNX model has one output per described output, of 1 to 5 axes, and of float, "
    "double or an 8, 32 or 64 bit integer.",
    reason="Fiji copies no others, bool among them, into images.",
    remedy="Convert to float32 at the end of the model, and keep the batch axis.",
)
def _onnx_outputs(subject: Subject) -> Iterator[Problem]:
    if not isinstance(subject.onnx, OnnxFacts):
        return
    outputs = subject.onnx.outputs
    if len(outputs) != len(subject.outputs):
        message = f"returns {len(outputs)} tensors, outputs lists {len(subject.outputs)}"
        yield Problem("weights.onnx", message)
    for output in outputs:
        if output.dtype not in _ONNX_TYPES:
            yield Problem("weights.onnx", f"output {output.name:.60} has type {output.dtype}")
        if output.rank is not None and not 0 < output.rank <= _LARGEST_RANK:
            yield Problem("weights.onnx", f"output {output.name:.60} has {output.rank} axes")


@rule(
    "FIJI064",
    Severity.WARNING,
    demand="No device is written into the TorchScript code.",
    reason="Fiji uses a GPU where there is one, and a tensor that was traced on the processor "
    "stays there: the run stops.",
    remedy="Create tensors on the input's device, in scripted code rather than in traced code.",
)
def _devices(subject: Subject) -> Iterator[Problem]:
    if isinstance(subject.torchscript, TorchScriptFacts):
        for device, name in sorted(subject.torchscript.devices.items()):
            yield Problem("weights.torchscript", f"torch.device({device[:20]!r}) in {name}")


@rule(
    "FIJI065",
    Severity.ERROR,
    demand="The TorchScript code only computes.",
    reason="Operators that read or write files, or talk to other machines, have no place in a "
    "model; whoever runs it runs them.",
    remedy="Do not run the package; ask its author.",
)
def _only_computes(subject: Subject) -> Iterator[Problem]:
    if isinstance(subject.torchscript, TorchScriptFacts) and subject.torchscript.unsafe:
        yield Problem("weights.torchscript", subject.torchscript.unsafe)


@rule(
    "FIJI066",
    Severity.WARNING,
    demand="Inputs and outputs of the ONNX model have the ids of the tensors as names.",
    reason="Programs that give tensors by name do not find them.",
    remedy="Export with input_names and output_names.",
)
def _onnx_names(subject: Subject) -> Iterator[Problem]:
    if isinstance(subject.onnx, OnnxFacts):
        sides = ((subject.onnx.inputs, subject.inputs), (subject.onnx.outputs, subject.outputs))
        for values, tensors in sides:
            names, ids = [value.name for value in values], [tensor.id for tensor in tensors]
            if names != ids:
                message = f"named {', '.join(names):.80}, expected {', '.join(ids):.80}"
                yield Problem("weights.onnx", message)


RULES = (
    _java_format,
    _torch_version,
    _preferred,
    _operators,
    _returns,
    _onnx_versions,
    _onnx_outputs,
    _devices,
    _only_computes,
    _onnx_names,
)
