"""One call that asks everybody."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

from df2serve.config import CheckLimits
from df2serve.errors import BackendUnavailableError
from df2serve.export.checks.engines import ENGINES, run_engines
from df2serve.export.checks.fiji import Subject, lint
from df2serve.export.checks.package import Package, open_package
from df2serve.export.checks.report import CheckReport, Finding, Run, Severity, Status, ZooScore
from df2serve.export.checks.validation import ENGINE_FAILED, validate
from df2serve.export.checks.zoo import score

__all__ = ["Part", "check_package"]

Part: TypeAlias = Literal["fiji", "validation", "zoo"]

_PACKAGES = ("bioimageio", "onnx", "yaml")
_RANK = {severity: rank for rank, severity in enumerate(Severity)}


def check_package(
    path: str | Path,
    *,
    only: Part | None = None,
    trust: Collection[str] = (),
    engines: Path | None = None,
    limits: CheckLimits = CheckLimits(),  # noqa: B008 - frozen
) -> CheckReport:
    """Find out whether a bioimage.io package runs in Fiji, and what the Zoo would say of it.

    Nothing is fetched, nothing is written beside the package, and no code of the package runs
    unless its hash is among ``trust``. Weights that need no code run in a process of their own.

    Args:
        path: a package as a zip file or a folder, or an ``rdf.yaml`` among its files.
        only: ``fiji`` for the static rules, ``validation`` for bioimageio.core, ``zoo`` for the
            scores, which then take for granted that the model passes its tests.
        trust: SHA-256 hashes of code that may run.
        engines: folder for environments of Fiji's own engines, in which the weights run as well;
            the environments are made there from the package registries if they are not there yet.
        limits: how much the package may ask for.

    Returns:
        The report, errors first.

    Raises:
        SourceNotFoundError: nothing is there.
        BackendUnavailableError: the packages that checks need are not installed.
    """
    source = Path(path)
    require_packages()
    with open_package(source, limits) as (package, refused):
        if package is None:
            return _report(source, None, refused, ())
        subject = Subject(package)
        linted = tuple(lint(subject))
        validation = None
        if only != "fiji":
            validation = validate(subject, run=only != "zoo", trust=trust)
        foreign = run_engines(subject, ENGINES, engines) if engines else ()
        zoo = None
        if validation is not None and validation.valid and only != "validation":
            zoo = score(subject, validation, linted)
        findings = (
            *(linted if only in {None, "fiji"} else ()),
            *(validation.findings if validation else ()),
            *_failures(foreign),
        )
        runs = (*(validation.runs if validation else ()), *foreign)
        return _report(source, package, findings, runs, zoo)


def require_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        message = (
            f"checks need {', '.join(missing)}; install them with: pip install 'df2serve[export]'"
        )
        raise BackendUnavailableError(message)


def _failures(runs: Iterable[Run]) -> Iterator[Finding]:
    for run in runs:
        if run.status is Status.FAILED:
            yield ENGINE_FAILED.at(run.name, run.detail)


def _report(
    source: Path,
    package: Package | None,
    findings: Iterable[Finding],
    runs: tuple[Run, ...],
    zoo: ZooScore | None = None,
) -> CheckReport:
    rdf = package.rdf if package else {}
    return CheckReport(
        source=source.name,
        sha256=_sha256(source) if source.is_file() else None,
        model=str(rdf["name"]) if "name" in rdf else None,
        format_version=str(rdf["format_version"]) if "format_version" in rdf else None,
        findings=tuple(sorted(findings, key=lambda item: (_RANK[item.severity], item.code))),
        runs=runs,
        zoo=zoo,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
