"""The same app as a BentoML service; the only module that knows BentoML.

``bentoml serve df2serve.service.bento:Df2Serve`` reads the settings of the service from
``DF2SERVE_*``. There is no ``@bentoml.api``: BentoML never sees a body.
"""

from __future__ import annotations

import os

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml

from df2serve.service.app import create_app
from df2serve.service.problems import UniformErrors
from df2serve.service.settings import load_settings

__all__ = ["Df2Serve", "app"]

_settings = load_settings()
app = create_app(_settings)


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
@bentoml.asgi_app(app, path="/")
class Df2Serve:
    """Shell around the app."""

    async def __is_ready__(self) -> bool:
        """Tell BentoML's ``/readyz`` what ours knows."""
        return not app.state.context.pool.reasons_not_ready()


# addresses that the app does not know are answered by BentoML
Df2Serve.add_asgi_middleware(UniformErrors)  # type: ignore[attr-defined]  # it is a Service
