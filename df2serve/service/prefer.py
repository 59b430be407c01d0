"""The header ``Prefer`` (RFC 7240), as far as it is understood here."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Preference", "parse_prefer"]


@dataclass(frozen=True)
class Preference:
    """How long a client wants to wait."""

    respond_async: bool = False
    """It wants a job at once."""
    wait: float | None = None
    """Seconds after which it wants a job."""


def parse_prefer(header: str | None) -> Preference:
    """Read the header; what is not understood is ignored, as it has to be.

    Example:
        >>> parse_prefer("respond-async, wait=20")
        Preference(respond_async=True, wait=20.0)
        >>> parse_prefer("wait=soon; x=1, handling=strict")
        Preference(respond_async=False, wait=None)
    """
    wait, respond_async = None, False
    for part in (header or "").split(","):
        name, _, value = part.partition(";")[0].partition("=")
        value = value.strip().strip('"')
        if name.strip().lower() == "respond-async":
            respond_async = True
        elif name.strip().lower() == "wait" and value.isascii() and value.isdigit():
            wait = float(value)
    return Preference(respond_async, wait)
