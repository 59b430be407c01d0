"""Who may do what, and how often."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from df2serve.errors import ConfigError
from df2serve.service.problems import Code, Problem
from df2serve.service.settings import KeyEntry, Scope, Settings

__all__ = ["ANONYMOUS", "Gate", "Principal", "allowed", "hash_key", "new_key"]

ANONYMOUS = "anonymous"
_WITHOUT_KEYS: frozenset[Scope] = frozenset({"predict", "jobs", "metrics"})
_bearer = HTTPBearer(auto_error=False, description="API key")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="API key")


@dataclass(frozen=True)
class Principal:
    """Whose request it is."""

    name: str
    scopes: frozenset[Scope]
    rate: RateLimitItem


def new_key() -> str:
    """Return a random key of 256 bits."""
    return secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Return what is stored of a key.

    Keys are random and long, so that a plain hash cannot be turned back.
    """
    return hashlib.sha256(key.encode()).hexdigest()


class Gate:
    """Keys and their rates."""

    def __init__(self, settings: Settings) -> None:
        """Take the clients of the settings.

        Raises:
            ConfigError: a rate is none.
        """
        self._keys = settings.keys
        self._rates = {entry.name: _rate(entry.rate or settings.rate) for entry in settings.keys}
        self._anonymous = Principal(ANONYMOUS, _WITHOUT_KEYS, _rate(settings.rate))
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    @property
    def has_keys(self) -> bool:
        """Whether clients have to show keys."""
        return bool(self._keys)

    def identify(self, key: str | None) -> Principal:
        """Return whose key it is.

        Raises:
            Problem: it is nobody's.
        """
        if not self._keys:
            return self._anonymous
        entry = self._find(key) if key else None
        if entry is None:
            text = "send a valid key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            raise Problem(Code.UNAUTHORIZED, text, headers={"WWW-Authenticate": "Bearer"})
        return Principal(entry.name, entry.scopes, self._rates[entry.name])

    def count(self, principal: Principal) -> None:
        """Count a request that computes.

        Raises:
            Problem: there were too many.
        """
        if not self._limiter.hit(principal.rate, principal.name):
            reset, _ = self._limiter.get_window_stats(principal.rate, principal.name)
            text = f"the limit is {principal.rate}; wait before the next request"
            raise Problem(Code.RATE_LIMITED, text, retry_after=max(0.0, reset - time.time()))

    def _find(self, key: str) -> KeyEntry | None:
        digest = hash_key(key)
        found = None
        for entry in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found


def _rate(text: str) -> RateLimitItem:
    try:
        return parse(text)
    except ValueError as error:
        message = f"got the rate {text!r}; expected one such as '60/minute'"
        raise ConfigError(message) from error


def allowed(scope: Scope) -> Callable[..., Awaitable[Principal]]:
    """Return a dependency that gives the client, if it has a scope."""

    async def check(
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
        header: Annotated[str | None, Depends(_header)],
    ) -> Principal:
        gate: Gate = request.app.state.gate
        principal = gate.identify(bearer.credentials if bearer else header)
        if scope not in principal.scopes:
            raise Problem(Code.FORBIDDEN, f"this needs a key with the scope {scope}")
        if scope in ("predict", "jobs") and request.method == "POST":
            gate.count(principal)
        return principal

    return check
