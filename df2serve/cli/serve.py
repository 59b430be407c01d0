"""``df2serve serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["serve"]


def serve(
    ensembles: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ensembles: folder, zip file, package or hf://org/name[@revision], each also as "
            "NAME=ENSEMBLE. The first one is the default."
        ),
    ] = None,
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for any.")] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="auto, cpu, cuda, cuda:N or mps; several times for several workers."),
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Folder of uploads, results and jobs.")] = None,
    new_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make an API key, print it, and end.")
    ] = None,
) -> None:
    """Answer requests over HTTP; DF2SERVE_* and the file DF2SERVE_CONFIG set everything else."""
    from df2serve.cli._terminal import say

    if new_key is not None:
        _print_key(new_key)
        return
    import signal
    import sys

    import uvicorn

    from df2serve.service import create_app, load_settings

    settings = load_settings(
        models=ensembles or None, host=host, port=port, devices=device or None, state=state
    )
    if not settings.models:
        say("no ensemble is given; the service has no models")
    # uvicorn raises the signal again once everything has ended in good order
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    app = create_app(settings)
    try:
        uvicorn.run(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None if settings.log_format == "json" else uvicorn.config.LOGGING_CONFIG,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
        )
    except SystemExit:
        if app.state.failure is not None:  # uvicorn has told it, and has a code of its own
            raise typer.Exit(app.state.failure.exit_code) from None
        raise


def _print_key(name: str) -> None:
    """Print a new key, and the line that lets the service know it."""
    import json

    from df2serve.cli._terminal import say
    from df2serve.service.auth import hash_key, new_key
    from df2serve.service.settings import KeyEntry

    key = new_key()
    entry = KeyEntry(name=name, sha256=hash_key(key))
    say("give this key to the client; it is stored nowhere:")
    typer.echo(key)
    say("and add this to the setting DF2SERVE_KEYS, a JSON list:")
    say(json.dumps(entry.model_dump(mode="json", exclude_none=True, exclude={"scopes"})))
