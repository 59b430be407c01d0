"""``df2serve upload``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from df2serve.cli._terminal import AsJson, print_json, say
from df2serve.cli._zoo import ZooServer, read_token, zoo_settings

if TYPE_CHECKING:
    from df2serve.publish import Sent, Submission, UploadPlan

__all__ = ["upload"]


def upload(
    package: Annotated[Path, typer.Argument(help="Package from 'df2serve export'.")],
    *,
    name: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="Draft to go on with, or published model that gets a new version, by its name in "
            "the Zoo; a new model if absent.",
        ),
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="SHA256", help="Hash of code in the package that the check may run."),
    ] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Leave it a draft; ask for no review yet.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check it, and tell what would be sent.")
    ] = False,
    server: ZooServer = None,
    as_json: AsJson = False,
) -> None:
    """Send a package to the reviewers of the BioImage Model Zoo.

    The token comes from BIOIMAGEIO_HYPHA_UPLOAD_TOKEN, or is asked for.
    """
    from df2serve.errors import SourceNotFoundError
    from df2serve.publish import Zoo, plan_upload

    settings = zoo_settings(server)
    if not package.exists():
        message = f"{package} does not exist; give a package that 'df2serve export' has written"
        raise SourceNotFoundError(message)
    if dry_run:
        with plan_upload(package, trust=trust or ()) as plan:
            _tell_plan(plan, as_json=as_json)
        return
    # the token first, because the check takes its time
    with (
        Zoo(read_token(), settings=settings) as zoo,
        plan_upload(package, trust=trust or ()) as plan,
    ):
        done = zoo.upload(plan, name=name, review=not draft, listener=_tell)
        size = plan.size
    if as_json:
        facts = {"id": done.name, "status": done.status, "versions": list(done.versions)}
        print_json(facts)
    else:
        typer.echo(f"{done.name}: {done.status}, {size / 1e6:.1f} MB compared")


def _tell_plan(plan: UploadPlan, *, as_json: bool) -> None:
    sizes = {name: path.stat().st_size for name, path in plan.files.items()}
    if as_json:
        print_json({"name": plan.rdf["name"], "files": sizes})
        return
    for name, size in sizes.items():
        typer.echo(f"send  {name}  {size / 1e6:.1f} MB")
    typer.echo(
        f"{plan.rdf['name']}: {len(sizes)} files and the description, "
        f"{plan.size / 1e6:.1f} MB to send; the check passed"
    )


def _tell(event: Submission | Sent) -> None:
    from df2serve.publish import Submission

    if isinstance(event, Submission):
        say(f"{event.name}: {event.status}; if this is interrupted, go on with --id {event.name}")
    else:
        done = "there already" if event.was_there else "sent and compared"
        say(f"{event.file}: {event.size / 1e6:.1f} MB {done}")
