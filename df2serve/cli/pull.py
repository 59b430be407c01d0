"""``df2serve pull``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from df2serve.cli._terminal import AsJson, print_json

if TYPE_CHECKING:
    from df2serve.publish.hub import Content

__all__ = ["pull"]


def pull(
    address: Annotated[str, typer.Argument(help="hf://org/name or hf://org/name@revision.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    *,
    content: Annotated[
        str, typer.Option(help="ensemble, exports (for other programs), or all.")
    ] = "ensemble",
    as_json: AsJson = False,
) -> None:
    """Copy an ensemble of the Hugging Face Hub into a folder, every file verified."""
    from df2serve.errors import ConfigError

    if content not in ("ensemble", "exports", "all"):
        message = f"got --content {content}; expected ensemble, exports or all"
        raise ConfigError(message)
    from df2serve.publish import pull as pull_from_hub

    pulled = pull_from_hub(address, output, content=cast("Content", content))
    if as_json:
        print_json(
            {
                "output": str(pulled.target),
                "commit": pulled.commit,
                "bytes": pulled.bytes,
                "files": list(pulled.files),
            }
        )
        return
    typer.echo(
        f"{pulled.target}: {len(pulled.files)} files, {pulled.bytes / 1e6:.1f} MB, "
        f"commit {pulled.commit[:12]}"
    )
