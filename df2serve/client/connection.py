"""How clients reach a service: address, key, timeouts."""

from __future__ import annotations

import os
from typing import Any

import httpx2

from df2serve._version import __version__
from df2serve.config import ClientConfig
from df2serve.errors import ConfigError

__all__ = ["connection"]


def connection(url: str, api_key: str | None, config: ClientConfig) -> dict[str, Any]:
    """Return the arguments of an HTTP client.

    Args:
        url: address of the service.
        api_key: that of ``DF2SERVE_API_KEY`` when absent; it is sent as a header and kept nowhere
            else.
        config: timeouts.

    Raises:
        ConfigError: the address or the key is none.
    """
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        message = f"got the address {url!r}: {error}"
        raise ConfigError(message) from error
    if address.scheme not in ("http", "https") or not address.host or address.userinfo:
        message = f"expected an address such as http://127.0.0.1:3000, got {address.scheme!r}://…"
        raise ConfigError(message)
    headers = {"User-Agent": f"df2serve/{__version__}"}
    key = os.environ.get("DF2SERVE_API_KEY") if api_key is None else api_key
    if key:
        if not (key.isascii() and key.isprintable()):
            message = "the API key has marks that no key has; check where it was copied from"
            raise ConfigError(message)
        headers["X-API-Key"] = key
    return {
        "base_url": address,
        "headers": headers,
        "timeout": httpx2.Timeout(config.silence_s, connect=config.connect_s),
    }
