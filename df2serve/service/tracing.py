"""Traces from the request to the batches of tiles, told to an OpenTelemetry collector.

They are on where the environment names a collector by the variables that OpenTelemetry defines,
``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``; both the HTTP process and
the workers read them. Without one, spans are those of the API alone, which cost next to nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, StatusCode

from df2serve.errors import ConfigError

__all__ = ["current_trace", "request_span", "span", "start_tracing", "stop_tracing", "tell"]

_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADER = "traceparent"
_tracer = trace.get_tracer("df2serve")


def start_tracing() -> None:
    """Send the spans of this process to the collector of the environment, if it names one.

    Raises:
        ConfigError: it names one, and what sends spans is not installed.
    """
    if not any(os.environ.get(name) for name in _VARIABLES) or _flush() is not None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        message = (
            f"{' or '.join(_VARIABLES)} asks for traces, and {error.name} is not installed; "
            "install df2serve[traces], or unset the variable"
        )
        raise ConfigError(message) from error
    name = os.environ.get("OTEL_SERVICE_NAME", "df2serve")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def stop_tracing() -> None:
    """Send what was not sent yet."""
    flush = _flush()
    if flush is not None:
        flush()


def current_trace() -> str | None:
    """Return the place in the trace of whoever calls, in W3C's form, if there is one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get(_HEADER)


@contextmanager
def request_span(method: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """Give the span of a request, which belongs to the trace that the client names, if it does."""
    with _current(method, headers.get(_HEADER), SpanKind.SERVER) as found:
        yield found


@contextmanager
def span(name: str, parent: str | None) -> Iterator[str | None]:
    """Give a span below another process's, as the parent of further ones."""
    with _current(name, parent, SpanKind.INTERNAL):
        yield current_trace()


def tell(name: str, parent: str | None, seconds: float, **attributes: int) -> None:
    """Tell of something that has just ended."""
    start = time.time_ns() - int(1e9 * seconds)
    _tracer.start_span(
        name, context=_context_of(parent), attributes=attributes, start_time=start
    ).end()


@contextmanager
def _current(name: str, parent: str | None, kind: SpanKind) -> Iterator[Span]:
    """Give a span; of an error it tells the class alone, because messages name files."""
    with _tracer.start_as_current_span(
        name,
        context=_context_of(parent),
        kind=kind,
        record_exception=False,
        set_status_on_exception=False,
    ) as found:
        try:
            yield found
        except BaseException as error:
            found.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def _context_of(header: str | None) -> context.Context:
    """Return the context of a header, and nothing of whoever calls."""
    return propagate.extract({_HEADER: header} if header else {}, context.Context())


def _flush() -> Callable[[], bool] | None:
    """Return what sends the spans that were not sent yet, once tracing was started."""
    flush: Callable[[], bool] | None = getattr(trace.get_tracer_provider(), "force_flush", None)
    return flush
