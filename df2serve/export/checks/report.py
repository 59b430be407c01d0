"""What a check has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["CheckReport", "Finding", "Gain", "Partner", "Run", "Severity", "Status", "ZooScore"]


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The package does not work, or is not accepted."""
    WARNING = "warning"
    """It works worse than it could, or not everywhere."""
    NOTE = "note"
    """A limit that users should be told of."""


class Status(StrEnum):
    """How a run ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that one should know."""

    code: str
    """Stable name of the rule, such as ``FIJI013``."""
    severity: Severity
    place: str
    """Where: a path in the description such as ``inputs[0].axes[2].size``, or a file."""
    message: str
    """What was found there."""
    reason: str
    """What comes of it."""
    remedy: str
    """What to do."""


@dataclass(frozen=True)
class Run:
    """A run of the model, or why there was none."""

    name: str
    """Weight format, and the engine where it is not the current one."""
    status: Status
    detail: str
    reproduced: bool | None = None
    """Whether the test outputs were reproduced, whatever else failed; None if not tried."""


@dataclass(frozen=True)
class Gain:
    """Something that would raise the Zoo's score."""

    what: str
    gain: float
    """Points of the collection's score, which is in [0, 1]."""


@dataclass(frozen=True)
class Partner:
    """What the test of a program that the Zoo works with is expected to say."""

    name: str
    passes: bool
    reason: str
    """Why it would not pass; empty if it does."""


@dataclass(frozen=True)
class ZooScore:
    """The scores that the BioImage Model Zoo would compute."""

    completeness: float
    """Share of the fields that are set, in [0, 1]."""
    collection: float
    """Score in the collection, in [0, 1]."""
    website: float
    """Report score of the website, in [0, 8]."""
    is_upper_bound: bool
    """Whether the scores take for granted that the test outputs are reproduced."""
    partners: tuple[Partner, ...]
    gains: tuple[Gain, ...]
    """What would raise the collection's score, largest first."""


@dataclass(frozen=True)
class CheckReport:
    """Everything that a check found out about a package."""

    source: str
    """Name of the package."""
    sha256: str | None
    """Hash of the file; None for a folder."""
    model: str | None
    """Name of the model; None if there is no readable description."""
    format_version: str | None
    findings: tuple[Finding, ...]
    """Errors first, then by code and place."""
    runs: tuple[Run, ...]
    zoo: ZooScore | None
    """None if not asked for, or if the description is not valid."""

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return everything in types that JSON knows."""
        return {"ok": self.ok, **asdict(self)}
