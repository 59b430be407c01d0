"""``df2serve push``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from df2serve.cli._terminal import AsJson, print_json, say

if TYPE_CHECKING:
    from df2serve.publish import Pushed, PushPlan

__all__ = ["push"]


def push(
    ensemble: Annotated[Path, typer.Argument(help="Ensemble: a folder.")],
    address: Annotated[str, typer.Argument(help="hf://org/name")],
    *,
    version: Annotated[
        str | None, typer.Option(help="Such as 1.2.0; becomes the tags 1.2.0 and v1.2.0.")
    ] = None,
    package: Annotated[
        Path | None, typer.Option(help="Package of this ensemble, from 'df2serve export'.")
    ] = None,
    endpoint: Annotated[
        bool, typer.Option("--endpoint", help="Make it deployable as an Inference Endpoint.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Of a new repository.")] = False,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Propose the changes instead of making them.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would change.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish an ensemble on the Hugging Face Hub in one commit."""
    from df2serve.artifact import load_ensemble
    from df2serve.publish import plan_push
    from df2serve.publish import push as push_to_hub

    opened = load_ensemble(ensemble)
    with plan_push(
        opened,
        address,
        version=version,
        package=package,
        endpoint=endpoint,
        private=private,
        review=pull_request,
    ) as plan:
        if not as_json:
            _tell(plan)
        pushed = None if dry_run else push_to_hub(plan)
    if opened.manifest.license is None:
        say("note: the ensemble states no license; without one, nobody may use it")
    if as_json:
        print_json(_facts(plan, pushed))
    elif pushed:
        tags = f", tags {' and '.join(pushed.tags)}" if pushed.tags else ""
        typer.echo(f"{pushed.url}: commit {pushed.commit[:12]}{tags}")


def _tell(plan: PushPlan) -> None:
    for change in plan.changes:
        size = f"  {change.size / 1e6:.1f} MB" if change.size else ""
        typer.echo(f"{change.kind:<7}  {change.path}{size}")
    typer.echo(f"{plan.address}: {plan.unchanged} files stay, {plan.size / 1e6:.1f} MB to send")


def _facts(plan: PushPlan, pushed: Pushed | None) -> dict[str, object]:
    changes = [{"kind": c.kind, "path": c.path, "bytes": c.size} for c in plan.changes]
    done = {"commit": pushed.commit, "url": pushed.url} if pushed else {}
    return {"changes": changes, "unchanged": plan.unchanged, "tags": list(plan.tags), **done}
