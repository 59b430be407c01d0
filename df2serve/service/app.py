"""The HTTP contract as one FastAPI app; runs under uvicorn and inside of a BentoML service."""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from df2serve._version import __version__
from df2serve.errors import ConfigError, Df2ServeError, OutputError
from df2serve.service import problems
from df2serve.service.auth import Gate
from df2serve.service.jobs.runner import JobRunner
from df2serve.service.logs import configure_logs
from df2serve.service.metrics import Metrics
from df2serve.service.pool import Pool
from df2serve.service.routes import aliases, health, models, open_inference, page, predictions
from df2serve.service.routes import jobs as job_routes
from df2serve.service.routes import uploads as upload_routes
from df2serve.service.routes.context import Context
from df2serve.service.settings import Settings, load_settings
from df2serve.service.tracing import request_span, start_tracing, stop_tracing

__all__ = ["create_app"]

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_LOCAL_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the service.

    Args:
        settings: of the environment when absent.

    Raises:
        ConfigError: the settings are not valid, or open the service to everybody.
    """
    settings = settings or load_settings()
    settings.check_exposure()
    configure_logs(settings.log_format)
    metrics = Metrics()
    pool = Pool(settings, metrics)
    app = _App(
        title="df2serve",
        summary="Segmentation of microscopy images with calibrated uncertainty.",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        max_body_size=settings.max_body_bytes,
        middleware=_middleware(settings),
    )
    jobs = JobRunner(settings, pool, metrics)
    app.state.context = Context(settings, pool, metrics, jobs)
    app.state.metrics = metrics
    app.state.gate = Gate(settings)
    app.state.failure = None  # why it could not start
    problems.install(app)

    for part in (models, predictions, job_routes, open_inference, aliases, health, page):
        app.include_router(part.router)
    app.include_router(upload_routes.router, max_body_size=jobs.uploads.largest)
    app.mount("/assets", page.assets)
    return app


class _App(FastAPI):
    """FastAPI with our layers around its own, which answer some requests themselves."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, in which errors are problems and keys are asked for."""
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["schemas"] |= open_inference.COMPONENTS
            for path in document["paths"].values():
                for operation in path.values():
                    problems.describe_problems(operation)
                    if not self.state.gate.has_keys:
                        operation.pop("security", None)
        return super().openapi()

    def build_middleware_stack(self) -> ASGIApp:
        """Return what handles requests."""
        handler = problems.UniformErrors(super().build_middleware_stack())
        return RequestLayer(upload_routes.TusLayer(handler))


def _middleware(settings: Settings) -> list[Middleware]:
    layers = []
    if not settings.keys and not settings.insecure:
        # whatever address a shell listens on, and whatever name a web page resolves to it
        layers.append(Middleware(LocalOnly))
        layers.append(Middleware(TrustedHostMiddleware, allowed_hosts=_LOCAL_HOSTS))
    return layers


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    try:
        start_tracing()
        with _alone(context.settings.state):
            try:
                await asyncio.gather(context.pool.start(), context.jobs.load())
                await context.jobs.start()
                yield
                await context.pool.drain()
            finally:
                await context.pool.stop()
                await context.jobs.stop()
                await asyncio.to_thread(stop_tracing)
    except Df2ServeError as error:
        app.state.failure = error
        raise


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Keep a second service out of the folder.

    Raises:
        ConfigError: there is one already.
        OutputError: the folder cannot be written to.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        file = (state / "lock").open("w")
    except OSError as error:
        message = f"the folder of the service {state} cannot be written to: {error.strerror}"
        raise OutputError(message) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = f"another service uses {state}; give each one a folder of its own"
            raise ConfigError(message) from error
        yield


async def _tell_failure(scope: Scope, send: Send, message: Message) -> None:
    """Pass on a message of the lifespan; of our own errors in one line, without a traceback."""
    if message["type"] == "lifespan.startup.failed" and scope["app"].state.failure is not None:
        message = {**message, "message": str(scope["app"].state.failure)}
    await send(message)


class LocalOnly:
    """ASGI layer that refuses other machines, and web pages of other sites."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what comes from this machine."""
        if scope["type"] == "http" and not self._is_local(scope):
            text = "this service has no API keys, so that only its own machine may use it"
            answer = problems.response_of(
                problems.Problem(problems.Code.FORBIDDEN, text), Request(scope)
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_local(self, scope: Scope) -> bool:
        sites = {value for key, value in scope["headers"] if key == b"sec-fetch-site"}
        if sites - {b"same-origin", b"none"}:
            return False
        client = scope.get("client")
        try:
            return client is None or ipaddress.ip_address(client[0]).is_loopback
        except ValueError:
            return False


class RequestLayer:
    """ASGI layer around everything: request ids, security headers, counts, foreign web pages."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and mark its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, partial(_tell_failure, scope, send))
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()

        async def mark(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = {"X-Request-ID": request_id, **_SECURITY}
                present = {key.lower() for key, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (key.lower().encode(), value.encode())
                        for key, value in extra.items()
                        if key.lower().encode() not in present
                    ),
                ]
                self._count(scope, message["status"], time.perf_counter() - started)
            await send(message)

        with request_span(scope["method"], headers) as span:
            await self._app(scope, receive, mark)
            route = getattr(scope.get("route"), "path", "other")
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("df2serve.request_id", request_id)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        model = scope.get("path_params", {}).get("model", "")
        known = scope["app"].state.context.pool.models if model else ()
        name = model if model in {facts.name for facts in known} else ""
        scope["app"].state.metrics.request(route, status, name)
        _log.info(
            "%s %s %d",
            scope["method"],
            route,
            status,
            extra={"request_id": scope["state"]["request_id"], "seconds": round(seconds, 4)},
        )
