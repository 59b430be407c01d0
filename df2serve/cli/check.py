"""``df2serve check``."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from df2serve.cli._terminal import AsJson, print_json, print_table

if TYPE_CHECKING:
    from df2serve.export.checks import CheckReport, Finding
    from df2serve.export.checks.report import ZooScore

__all__ = ["check"]

_SHOWN_PLACES = 3
_SHOWN_GAINS = 10


def check(
    package: Annotated[
        Path, typer.Argument(help="A bioimage.io package: zip file, folder or rdf.yaml.")
    ],
    *,
    only: Annotated[
        Literal["fiji", "zoo", "validation"] | None,
        typer.Option(help="One part: Fiji's rules, the Zoo's scores, or validation and test runs."),
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="SHA256", help="Hash of code in the package that may run."),
    ] = None,
    engines: Annotated[
        bool,
        typer.Option("--engines", help="Run the weights in Fiji's engines too; installs them."),
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the engines; the user's cache if absent.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a package runs in Fiji, and what the model zoo will say."""
    from df2serve.export.checks import check_package

    report = check_package(
        package,
        only=only,
        trust=trust or (),
        engines=(cache or _cache_folder()) if engines else None,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(1)


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("df2serve") / "engines"


def _show(report: CheckReport) -> None:
    from df2serve.export.checks import Severity

    facts = (report.source, report.model or "no model", report.format_version or "no format")
    print_table([dict(zip(("package", "model", "format"), facts, strict=True))])
    if report.findings:
        print_table(_rows(report))
    if report.runs:
        print_table(
            [{"weights": run.name, "run": run.status.value, "": run.detail} for run in report.runs]
        )
    if report.zoo is not None:
        _show_scores(report.zoo)
    counts = [f"{report.count(severity)} {severity.value}s" for severity in Severity]
    typer.echo(", ".join(counts))


def _rows(report: CheckReport) -> list[dict[str, str]]:
    """Return one row per rule, with the places where it is not met."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        groups[finding.code].append(finding)
    return [
        {
            "code": code,
            "": findings[0].severity.value,
            "found": _places(findings),
            "what comes of it, and what to do": f"{findings[0].reason} {findings[0].remedy}",
        }
        for code, findings in groups.items()
    ]


def _places(findings: list[Finding]) -> str:
    shown = [
        f"{finding.place}: {finding.message}" if finding.place else finding.message
        for finding in findings[:_SHOWN_PLACES]
    ]
    more = len(findings) - _SHOWN_PLACES
    return "\n".join([*shown, f"and {more} more"] if more > 0 else shown)


def _show_scores(zoo: ZooScore) -> None:
    bound = " at most" if zoo.is_upper_bound else ""
    typer.echo(
        f"zoo: collection{bound} {zoo.collection:.2f} of 1, website{bound} {zoo.website:.2f} of 8, "
        f"completeness {zoo.completeness:.2f}"
    )
    passing = [partner.name for partner in zoo.partners if partner.passes]
    typer.echo(f"partners expected to pass: {', '.join(passing) or 'none'}")
    if zoo.gains:
        rows = [
            {"gain": f"+{gain.gain:.3f}", "what would raise the collection's score": gain.what}
            for gain in zoo.gains[:_SHOWN_GAINS]
        ]
        print_table(rows)
