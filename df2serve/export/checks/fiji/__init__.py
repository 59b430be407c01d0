"""Will it run in Fiji? Rules that are answered without running anything."""

from __future__ import annotations

from collections.abc import Iterator

from df2serve.export.checks.fiji import data, description, files, geometry, processing, weights
from df2serve.export.checks.fiji.rule import Rule, Subject
from df2serve.export.checks.report import Finding

__all__ = ["RULES", "Rule", "Subject", "lint"]

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            *description.RULES,
            *geometry.RULES,
            *data.RULES,
            *processing.RULES,
            *weights.RULES,
            *files.RULES,
        ),
        key=lambda rule: rule.code,
    )
)
"""Every rule, by code."""


def lint(subject: Subject) -> Iterator[Finding]:
    """Yield what the rules find."""
    for rule in RULES:
        yield from rule.findings(subject)
