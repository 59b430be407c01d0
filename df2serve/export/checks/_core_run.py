"""Validation and test runs of bioimageio.core, in a process without network.

``python -m df2serve.export.checks._core_run REQUEST ANSWER`` reads and writes JSON files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bioimageio.spec import InvalidDescr, ResourceDescr, ValidationSummary

_REPRODUCE = "Reproduce test outputs"
"""Start of the name of the test that compares outputs."""

_FIELD = re.compile(r"[a-z0-9_]+")


def forbid_network(event: str, _: tuple[object, ...]) -> None:
    if event in {"socket.connect", "socket.getaddrinfo"}:
        message = "no network during checks"
        raise TimeoutError(message)


def main() -> None:
    """Do what the request asks for."""
    request, answer = Path(sys.argv[1]), Path(sys.argv[2])
    # bioimageio.spec takes a time-out for "cannot tell", every other failure for an error
    sys.addaudithook(forbid_network)
    answer.write_text(json.dumps(_answer(json.loads(request.read_text(encoding="utf-8")))))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from bioimageio.spec import InvalidDescr, load_description

    description = load_description(request["rdf"], perform_io_checks=True)
    summary = description.validation_summary
    valid = not isinstance(description, InvalidDescr)
    return {
        "valid": valid,
        "errors": [_entry(item) for detail in summary.details for item in detail.errors],
        "warnings": [
            {**_entry(item), "severity": item.severity}
            for detail in summary.details
            for item in detail.warnings
        ],
        "completeness": summary.metadata_completeness,
        "missing": _missing(description) if valid else [],
        "fields": len(set(_flat_keys(_dump(description, set_only=False)))) if valid else 0,
        "runs": {name: _run(request["rdf"], name) for name in request["formats"] if valid},
    }


def _run(rdf: str, weight_format: str) -> dict[str, Any]:
    from bioimageio.core import test_description

    name: Any = weight_format
    try:
        summary = test_description(rdf, weight_format=name, determinism="full")
    except Exception as error:  # noqa: BLE001 - whatever a model does, it is a finding
        return {"passed": 0, "failed": 1, "reproduced": False, "errors": [str(error)]}
    return _outcome(summary)


def _outcome(summary: ValidationSummary) -> dict[str, Any]:
    tests = [item for item in summary.details if "format validation" not in item.name]
    failed = [item for item in tests if item.status != "passed"]
    compared = [item for item in tests if item.name.startswith(_REPRODUCE)]
    return {
        "passed": len(tests) - len(failed),
        "failed": len(failed),
        "reproduced": bool(compared) and all(item.status == "passed" for item in compared),
        "errors": [error.msg for item in failed for error in item.errors],
    }


def _entry(item: Any) -> dict[str, str]:
    """Return place and message; what pydantic adds of types is left out of the place."""
    steps = takewhile(lambda step: _FIELD.fullmatch(str(step)), item.loc)
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return {"place": place.removeprefix("."), "message": item.msg}


# -- completeness, by the definition of bioimageio.spec -----------------------------------------


def _missing(description: ResourceDescr | InvalidDescr) -> list[str]:
    """Return the fields that are not set."""
    given = set(_flat_keys(_dump(description, set_only=True)))
    return sorted(set(_flat_keys(_dump(description, set_only=False))) - given)


def _dump(description: ResourceDescr | InvalidDescr, *, set_only: bool) -> dict[str, Any]:
    return description.model_dump(mode="json", exclude_unset=set_only, exclude_defaults=False)


def _flat_keys(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in fields.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            yield from _flat_keys(value, path)
        yield path


if __name__ == "__main__":
    main()
