"""What the verbs for the BioImage Model Zoo share: its address and the token of the account."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic import SecretStr

    from df2serve.config import ZooSettings

__all__ = ["ZooServer", "find_token", "read_token", "zoo_settings"]

_VARIABLE = "BIOIMAGEIO_HYPHA_UPLOAD_TOKEN"
"""The variable that bioimageio.spec reads, too."""

ZooServer = Annotated[
    str | None, typer.Option(metavar="URL", help="Another server than the Zoo's, to try it out.")
]


def zoo_settings(server: str | None) -> ZooSettings:
    """Return the settings, with another server if one is given."""
    from df2serve.config import ZooSettings

    return ZooSettings().updated(server=server.rstrip("/") if server else None)


def find_token() -> SecretStr | None:
    """Return the token of the environment, if there is one."""
    from pydantic import SecretStr

    token = os.environ.get(_VARIABLE, "").strip()
    return SecretStr(token) if token else None


def read_token() -> SecretStr:
    """Return the token of the environment, or ask for it without showing it.

    Raises:
        HubAccessError: there is none, and nobody to ask.
    """
    from pydantic import SecretStr

    from df2serve.errors import HubAccessError

    if token := find_token():
        return token
    if not sys.stdin.isatty():
        message = f"the Zoo wants a token from https://bioimage.io/#/api; set {_VARIABLE} to it"
        raise HubAccessError(message)
    return SecretStr(
        typer.prompt("Token from https://bioimage.io/#/api", hide_input=True, err=True)
    )
