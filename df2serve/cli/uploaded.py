"""``df2serve uploaded``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from df2serve.cli._terminal import AsJson, print_json
from df2serve.cli._zoo import ZooServer, find_token, read_token, zoo_settings

if TYPE_CHECKING:
    from df2serve.publish import Submission

__all__ = ["uploaded"]


def uploaded(
    name: Annotated[str, typer.Argument(help="Name of a model in the Zoo, such as kind-otter.")],
    *,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove its draft, or the version that is not public.")
    ] = False,
    server: ZooServer = None,
    as_json: AsJson = False,
) -> None:
    """Tell how a model stands in the BioImage Model Zoo, or remove its draft."""
    from df2serve.publish import Zoo

    token = read_token() if delete else find_token()
    with Zoo(token, settings=zoo_settings(server)) as zoo:
        found = zoo.delete(name) if delete else zoo.find(name)
    if as_json:
        print_json({"id": name, "deleted": delete} | _facts(found))
    elif delete:
        typer.echo(f"{name}: the {found.status} version was removed")
    else:
        versions = ", ".join(found.versions) or "none"
        typer.echo(f"{name}: {found.status}; public versions: {versions}")


def _facts(found: Submission) -> dict[str, object]:
    return {
        "status": found.status,
        "staged": found.is_staged,
        "versions": list(found.versions),
    }
