"""The same app as a BentoML service; the only module that knows BentoML.

``bentoml serve df2serve.service.bento:Df2Serve`` reads the settings of the service from
``DF2SERVE_*``. There is no ``@bentoml.api``: BentoML never sees a body.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
# in a Bento the package lies beside its bento.yaml, where worker processes would not look for it
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
)

import bentoml
from starlette.applications import Starlette
from starlette.routing import Mount

from df2serve.service.app import create_app
from df2serve.service.settings import load_settings

__all__ = ["Df2Serve", "app"]

_settings = load_settings()
app = create_app(_settings)


@asynccontextmanager
async def _lifespan(_: Starlette) -> AsyncIterator[None]:
    async with app.router.lifespan_context(app):
        yield


# BentoML gives a mounted app only the paths of its routes; one mount has them all, so that
# nobody but the app says what is not there
_whole = Starlette(routes=[Mount("/", app)], lifespan=_lifespan)


@bentoml.service(
    name="df2serve",
    # one HTTP process: models live in the worker processes that it starts
    workers=1,
    # the app has deadlines of its own
    traffic={"timeout": 86400},
    # /metrics is the app's
    metrics={"enabled": False},
    http={"host": _settings.host, "port": _settings.port},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(_whole, path="/")
class Df2Serve:
    """Shell around the app."""

    async def __is_ready__(self) -> bool:
        """Tell BentoML's ``/readyz`` what ours knows."""
        return not app.state.context.pool.reasons_not_ready()
