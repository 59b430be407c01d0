"""The page that lists every rule, made from the rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from df2serve.export.checks.fiji import RULES
from df2serve.export.checks.package import PACKAGE_PROBLEMS
from df2serve.export.checks.report import Severity
from df2serve.export.checks.validation import VALIDATION_PROBLEMS

__all__ = ["describe_rules"]


class _Demand(Protocol):
    @property
    def code(self) -> str: ...
    @property
    def demand(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def remedy(self) -> str: ...


def describe_rules() -> str:
    """Return the lists of rules as Markdown."""
    return "\n".join(
        [
            "## Fiji",
            "",
            *_list([(rule, rule.severity) for rule in RULES]),
            "## Validation, runs and engines",
            "",
            *_list([(problem, problem.severity) for problem in VALIDATION_PROBLEMS]),
            "## Packages that are not opened",
            "",
            *_list([(problem, Severity.ERROR) for problem in PACKAGE_PROBLEMS]),
        ]
    )


def _list(demands: Sequence[tuple[_Demand, Severity]]) -> Iterator[str]:
    for demand, severity in demands:
        yield f"- **{demand.code}** ({severity}): {demand.demand}"
        yield f"  *Otherwise:* {demand.reason}"
        yield f"  *Remedy:* {demand.remedy}"
    yield ""
