"""The scores that the BioImage Model Zoo would compute, and what would raise them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from df2serve.export.checks.fiji import Subject
from df2serve.export.checks.report import Finding, Gain, Partner, Severity, Status, ZooScore
from df2serve.export.checks.tensors import list_at
from df2serve.export.checks.validation import Validation

__all__ = ["score"]

_QUARTER = 0.25
"""Weight of each of format, completeness, bioimageio.core and partners."""
_BEST = 3
"""Number of partners that count, the best ones."""
_INFERENCE, _STATUS = 2.0, 4.0
"""Points on the website for a run of the model, and for all tests passed."""
_NOT_ASKED = (
    "dependencies",
    "external_data",
    "new_version",
    "parent",
    "run_mode",
    "icon",
    "version",
)
"""Last parts of fields that a package does without for good reasons."""
_FOREIGN = ("config.stardist", "weights.keras", "weights.tensorflow")
_WRONG_IN_FIJI = "FIJI067"
"""Only a warning, since the maps are right; but the Zoo compares the numbers as well."""
_BIAPY_STEPS = frozenset(
    {
        "clip",
        "ensure_dtype",
        "fixed_zero_mean_unit_variance",
        "scale_linear",
        "scale_range",
        "zero_mean_unit_variance",
    }
)


def score(subject: Subject, validation: Validation, findings: Iterable[Finding]) -> ZooScore:
    """Compute the scores of a valid package.

    Args:
        subject: the package.
        validation: what bioimageio.core said.
        findings: those of the Fiji rules.

    Source:
        bioimage-io/collection: src/backoffice/_summarize.py;
        aicell-lab/bioengine: _compute_report_score in apps/model-runner/entry.py.
    """
    tried = [run for run in validation.runs if run.reproduced is not None]
    reproduced = any(run.reproduced for run in tried) if tried else True
    partners = tuple(_partners(subject, list(findings), reproduced=reproduced))
    counted = min(sum(partner.passes for partner in partners), _BEST) / _BEST
    passed = reproduced and all(run.status is not Status.FAILED for run in validation.runs)
    return ZooScore(
        completeness=validation.completeness,
        # the format counts in full once the newest bioimageio.core accepts it
        collection=_QUARTER * (1 + validation.completeness + reproduced + counted),
        website=1 + _INFERENCE * reproduced + _STATUS * passed + validation.completeness,
        is_upper_bound=any(run.status is Status.SKIPPED for run in validation.runs) or not tried,
        partners=partners,
        gains=tuple(_gains(validation, partners, reproduced=reproduced)),
    )


def _gains(
    validation: Validation, partners: tuple[Partner, ...], *, reproduced: bool
) -> list[Gain]:
    gains = []
    if not reproduced:
        gains.append(Gain("reproduce the test outputs in one weight format", _QUARTER))
    if sum(partner.passes for partner in partners) < _BEST:
        gains += [
            Gain(f"{partner.name}: {partner.reason}", _QUARTER / _BEST)
            for partner in partners
            if not partner.passes
        ]
    for group, names in _askable(validation.missing).items():
        share = len(names) / max(validation.fields, 1)
        gains.append(Gain(f"set {group}: {', '.join(names)}", _QUARTER * share))
    return sorted(gains, key=lambda gain: (-gain.gain, gain.what))


def _askable(missing: Iterable[str]) -> dict[str, list[str]]:
    """Return the fields that are worth setting, by the part of the description they are in."""
    groups: dict[str, list[str]] = defaultdict(list)
    for field in missing:
        group, _, name = field.rpartition(".")
        if name not in _NOT_ASKED and not field.startswith(_FOREIGN):
            groups[group or "at the top"].append(name)
    return groups


# -- partners -----------------------------------------------------------------------------------


def _partners(subject: Subject, findings: list[Finding], *, reproduced: bool) -> Iterator[Partner]:
    errors = sorted(
        {
            item.code
            for item in findings
            if item.severity is Severity.ERROR or item.code == _WRONG_IN_FIJI
        }
    )
    fiji = [f"Fiji rules {', '.join(errors)}"] if errors else []
    single = len(subject.inputs) == len(subject.outputs) == 1
    one = [] if single else ["it takes models with one input and one output"]
    core = [] if reproduced else ["the test outputs are not reproduced"]
    for name, obstacles in {
        "ilastik": [*one, *core],
        "deepimagej": [*one, *fiji],
        "icy": fiji,
        "biapy": [*core, *_biapy(subject, findings)],
        "careamics": _careamics(subject),
    }.items():
        yield Partner(name, passes=not obstacles, reason="; ".join(obstacles))


def _biapy(subject: Subject, findings: list[Finding]) -> list[str]:
    obstacles = [] if len(subject.inputs) == 1 else ["it takes models with one input"]
    found = {item.code for item in findings}
    obstacles += [f"Fiji rule {code}" for code in ("FIJI014", "FIJI060") if code in found]
    steps = {step.id for tensor in subject.inputs for step in tensor.operations}
    if foreign := sorted(steps - _BIAPY_STEPS):
        obstacles.append(f"it does not know {', '.join(foreign)}")
    return obstacles


def _careamics(subject: Subject) -> list[str]:
    tags = {str(tag).lower() for tag in list_at(subject.rdf, "tags")}
    tagged = "careamics" in tags and subject.package.find("careamics.yaml") is not None
    return [] if tagged else ["it takes models of its own: tag careamics, file careamics.yaml"]
