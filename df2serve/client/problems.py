"""From answers that are errors to exceptions, and whether another attempt makes sense."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx2

from df2serve import errors
from df2serve.config import ClientConfig
from df2serve.errors import Df2ServeError, ServiceBusyError

__all__ = ["Patience", "error_of", "retry_after"]

_OF_CODES: dict[str, type[Df2ServeError]] = {
    "axes_mismatch": errors.AxesError,
    "bad_parameter": errors.ConfigError,
    "body_too_large": errors.LimitExceededError,
    "cancelled": errors.CancelledError,
    "channel_mismatch": errors.ImageMismatchError,
    "draining": errors.ServiceBusyError,
    "forbidden": errors.ServiceAccessError,
    "image_too_large": errors.LimitExceededError,
    "insufficient_storage": errors.OutputError,
    "malformed_request": errors.InputError,
    "model_loading": errors.ServiceBusyError,
    "model_not_found": errors.ArtifactNotFoundError,
    "model_unavailable": errors.BackendUnavailableError,
    "offset_conflict": errors.ServiceBusyError,
    "overloaded": errors.ServiceBusyError,
    "quota_exceeded": errors.LimitExceededError,
    "rate_limited": errors.ServiceBusyError,
    "unauthorized": errors.ServiceAccessError,
    "undecodable_image": errors.DecodeError,
    "unsupported_format": errors.UnsupportedFormatError,
    "unsupported_media_type": errors.UnsupportedFormatError,
    "upload_locked": errors.ServiceBusyError,
}
"""Exceptions by the code of a problem; of all others it is ServiceError."""

_OF_STATUSES: dict[int, type[Df2ServeError]] = {
    401: errors.ServiceAccessError,
    403: errors.ServiceAccessError,
    413: errors.LimitExceededError,
    429: errors.ServiceBusyError,
    502: errors.ServiceBusyError,
    503: errors.ServiceBusyError,
    504: errors.ServiceBusyError,
}
"""Exceptions for what stands between us and the service, and knows no codes."""

_BUSY = (
    HTTPStatus.LOCKED,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_HOPELESS = ("worker_lost", "quota_exceeded")
"""Codes of what another attempt would not change: an image that ends workers, too many uploads."""
_FIRST_PAUSE_S = 0.5


def error_of(status: int, problem: Mapping[str, Any]) -> Df2ServeError:
    """Return the exception of a problem.

    Args:
        status: of the answer, or of the problem of a job's image.
        problem: members of the problem; none if the answer was something else.
    """
    code = problem.get("code")
    kind = _OF_CODES.get(str(code)) or (None if code else _OF_STATUSES.get(status))
    text = problem.get("detail") or f"got the status {status}; is this the address of a df2serve?"
    error = (kind or errors.ServiceError)(str(text))
    if code:
        error.add_note(f"code {code}, request {problem.get('request_id', 'unknown')}")
    return error


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a header ``Retry-After``, which holds them or a date.

    Example:
        >>> retry_after("3"), retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after("soon")
        (3.0, 0.0, None)
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class Patience:
    """Decides of every failed attempt of one request whether there is going to be another one."""

    def __init__(self, config: ClientConfig) -> None:
        """Begin."""
        self._config = config
        self._failures = 0

    def renew(self) -> None:
        """Forget the failures; there was progress."""
        self._failures = 0

    def after_answer(self, answer: httpx2.Response) -> float | None:
        """Return how long to wait before the next attempt; None if the answer is good.

        Args:
            answer: with its body where it is an error.

        Raises:
            Df2ServeError: there is no further attempt.
        """
        if answer.is_success:
            return None
        problem = _problem(answer)
        error = error_of(answer.status_code, problem)
        if answer.status_code not in _BUSY or problem.get("code") in _HOPELESS:
            raise error
        return self.after_failure(error, retry_after(answer.headers.get("retry-after")))

    def after_loss(self, error: httpx2.TransportError, *, repeatable: bool = True) -> float:
        """Return how long to wait before the next attempt.

        Args:
            error: of the connection.
            repeatable: whether the request may arrive twice.

        Raises:
            ServiceBusyError: there is no further attempt.
        """
        message = f"the service cannot be reached ({type(error).__name__}: {error})"
        lost = ServiceBusyError(message)
        lost.__cause__ = error
        if not repeatable and not isinstance(error, httpx2.ConnectError):
            raise lost
        return self.after_failure(lost)

    def after_failure(self, error: Df2ServeError, wanted: float | None = None) -> float:
        """Return how long to wait before the next attempt.

        Args:
            error: what came of the last one.
            wanted: how many seconds the service asks for.

        Raises:
            Df2ServeError: there is no further attempt.
        """
        longest = self._config.longest_pause_s
        pause = min(_FIRST_PAUSE_S * 2**self._failures, longest) if wanted is None else wanted
        if self._failures >= self._config.retries or pause > longest:
            raise error
        self._failures += 1
        return pause


def _problem(answer: httpx2.Response) -> Mapping[str, Any]:
    try:
        content = json.loads(answer.content)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
