"""What bioimageio.spec and bioimageio.core say of a package."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from df2serve.export.checks.fiji import Subject
from df2serve.export.checks.onnx_file import OnnxFacts
from df2serve.export.checks.process import run_confined
from df2serve.export.checks.report import Finding, Run, Severity, Status
from df2serve.export.checks.torchscript import TorchScriptFacts

__all__ = [
    "ENGINE_FAILED",
    "VALIDATION_PROBLEMS",
    "Code",
    "Validation",
    "ValidationProblem",
    "codes",
    "obstacle",
    "validate",
]

_ALERT = 35
"""Level of bioimageio.spec from which on a warning is one for everybody."""
_SHOWN = 600


class ValidationProblem(NamedTuple):
    """A kind of finding."""

    code: str
    severity: Severity
    demand: str
    reason: str
    remedy: str

    def at(self, place: str, message: str) -> Finding:
        """Return a finding of this kind."""
        return Finding(self.code, self.severity, place, message, self.reason, self.remedy)


_INVALID = ValidationProblem(
    "SPEC001",
    Severity.ERROR,
    "The description is valid.",
    "bioimageio.core does not load the package, and the Zoo does not accept it.",
    "Correct the field.",
)
_ALERTED = ValidationProblem(
    "SPEC002",
    Severity.WARNING,
    "The validation alerts to nothing.",
    "The Zoo's reviewers see the same alert.",
    "Correct or add the field.",
)
_WARNED = ValidationProblem(
    "SPEC003",
    Severity.NOTE,
    "The validation warns of nothing.",
    "The description could say more.",
    "Add the field if it can be said honestly.",
)
_FAILED = ValidationProblem(
    "CORE001",
    Severity.ERROR,
    "The model reproduces its test outputs, and runs with every size and batch that it declares.",
    "The Zoo's tests fail in the same way.",
    "Repair the weights, the test tensors or the declared sizes.",
)
_CODE = ValidationProblem(
    "CORE002",
    Severity.NOTE,
    "The model runs without code of its own.",
    "Code of strangers is not run, so that these weights were not tested.",
    "Read the code; if you trust it, give its hash with --trust.",
)
_DISTRUSTED = ValidationProblem(
    "CORE003",
    Severity.ERROR,
    "The trusted code is the code of the package.",
    "The code is another one than that which was read, and was not run.",
    "Read the code again.",
)
_CRASHED = ValidationProblem(
    "CORE004",
    Severity.ERROR,
    "The validation comes to an end.",
    "The package stops bioimageio.core, or takes longer than allowed.",
    "See the message; df2serve.config.CheckLimits sets the time.",
)
ENGINE_FAILED = ValidationProblem(
    "ENGINE001",
    Severity.ERROR,
    "The weights run in Fiji's engines, with the current engine's results.",
    "Fiji runs these versions, or ones built from the same sources.",
    "Export for the older engine.",
)
VALIDATION_PROBLEMS = (
    _INVALID,
    _ALERTED,
    _WARNED,
    _FAILED,
    _CODE,
    _DISTRUSTED,
    _CRASHED,
    ENGINE_FAILED,
)


@dataclass(frozen=True)
class Code:
    """Code in a package, or the name of code that is installed."""

    place: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Validation:
    """What the validation and the runs brought."""

    valid: bool
    completeness: float
    missing: tuple[str, ...]
    """Fields that are not set, as bioimageio.spec counts them."""
    fields: int
    """Number of all fields."""
    findings: tuple[Finding, ...]
    runs: tuple[Run, ...]


def codes(subject: Subject, weight_format: str) -> Iterator[Code]:
    """Yield the code that a run of a weight format would execute.

    Code that is only named (``import_from``) has the hash of the description.
    """
    for tensor in subject.tensors:
        for operation in tensor.operations:
            if operation.id == "custom":
                yield _code(subject, operation.place, operation.kwargs.get("source"))
    if weight_format == "pytorch_state_dict":
        given = subject.weights[weight_format].get("architecture")
        source = given.rpartition(":")[0] if isinstance(given, str) else given
        yield _code(subject, f"weights.{weight_format}.architecture", source)


def _code(subject: Subject, place: str, source: object) -> Code:
    package = subject.package
    path = package.find(source) or package.folder / package.rdf_name
    return Code(place, path.name, package.sha256(path))


def validate(subject: Subject, *, run: bool, trust: Iterable[str]) -> Validation:
    """Validate a description, and run the weights that need no code or whose code is trusted.

    Args:
        subject: the package.
        run: whether to run anything.
        trust: SHA-256 hashes of code that may be run.
    """
    trusted = {item.lower() for item in trust}
    skipped: dict[str, str | None] = {}
    if run:
        skipped = {name: obstacle(subject, name, trusted) for name in subject.weights}
    formats = [name for name, reason in skipped.items() if reason is None]
    answer = _ask(subject, formats)
    if isinstance(answer, str):
        return Validation(
            valid=False,
            completeness=0.0,
            missing=(),
            fields=0,
            findings=(_CRASHED.at(subject.package.rdf_name, answer),),
            runs=(),
        )
    if not answer["valid"]:
        skipped = dict.fromkeys(skipped, "the description is not valid")
    runs = [
        *(_outcome(name, outcome) for name, outcome in answer["runs"].items()),
        *(Run(name, Status.SKIPPED, why) for name, why in skipped.items() if why is not None),
    ]
    return Validation(
        valid=answer["valid"],
        completeness=answer["completeness"],
        missing=tuple(answer["missing"]),
        fields=answer["fields"],
        findings=(
            *_of_validation(answer),
            *_of_runs(runs),
            *(_of_code(subject, trusted) if run else ()),
        ),
        runs=tuple(runs),
    )


def obstacle(subject: Subject, name: str, trusted: set[str]) -> str | None:
    """Return why weights are not run; None if they are."""
    if any(code.sha256 not in trusted for code in codes(subject, name)):
        return "needs code that is not trusted"
    match name:
        case "pytorch_state_dict":
            return None
        case "torchscript":
            facts = subject.torchscript
            if isinstance(facts, TorchScriptFacts):
                return facts.unsafe
            return facts or "there is no file"
        case "onnx":
            if isinstance(subject.onnx, OnnxFacts):
                return "weights in other files" if subject.onnx.external else None
            return subject.onnx or "there is no file"
    return "this check does not run the format"


def _ask(subject: Subject, formats: list[str]) -> Mapping[str, Any] | str:
    """Return the answer of a process of its own, or why there is none."""
    package = subject.package
    rdf = (package.folder / package.rdf_name).absolute()
    with tempfile.TemporaryDirectory(prefix="df2serve-core-", ignore_cleanup_errors=True) as home:
        request, answer = Path(home, "request.json"), Path(home, "answer.json")
        request.write_text(json.dumps({"rdf": str(rdf), "formats": formats}), encoding="utf-8")
        # -P: never import from the working directory
        command = [sys.executable, "-P", "-m", f"{__package__}._core_run"]
        ended = run_confined(
            [*command, str(request), str(answer)],
            Path(home),
            seconds=package.limits.max_seconds,
        )
        if not ended.ok or not answer.is_file():
            return ended.note or "the process gave no answer"
        content: Mapping[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return content


def _of_validation(answer: Mapping[str, Any]) -> Iterator[Finding]:
    messages: dict[str, list[str]] = defaultdict(list)
    for item in answer["errors"]:
        messages[item["place"]].append(item["message"])
    for place, texts in messages.items():
        yield _INVALID.at(place, _short("; ".join(dict.fromkeys(texts))))
    for item in answer["warnings"]:
        # a sample tensor is asked for, but makes another test of the Zoo fail: FIJI033
        alert = item["severity"] >= _ALERT and not item["place"].endswith("sample_tensor")
        kind = _ALERTED if alert else _WARNED
        yield kind.at(item["place"], _short(item["message"]))


def _outcome(name: str, outcome: Mapping[str, Any]) -> Run:
    if outcome["failed"]:
        detail = _short("; ".join(outcome["errors"])) or f"{outcome['failed']} tests failed"
        return Run(name, Status.FAILED, detail, outcome["reproduced"])
    return Run(name, Status.PASSED, f"{outcome['passed']} tests", outcome["reproduced"])


def _of_runs(runs: Iterable[Run]) -> Iterator[Finding]:
    for run in runs:
        if run.status is Status.FAILED:
            yield _FAILED.at(f"weights.{run.name}", run.detail)


def _of_code(subject: Subject, trusted: set[str]) -> Iterator[Finding]:
    found = {code for name in subject.weights for code in codes(subject, name)}
    hashes = {code.sha256 for code in found}
    for code in sorted(found, key=lambda item: item.place):
        if code.sha256 not in trusted:
            yield _CODE.at(code.place, f"{code.name} has sha256 {code.sha256}")
    for unknown in sorted(trusted - hashes):
        yield _DISTRUSTED.at("", f"no code of the package has sha256 {unknown:.64}")


def _short(text: str) -> str:
    return " ".join(text.split())[:_SHOWN]
