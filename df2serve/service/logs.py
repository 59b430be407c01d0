"""Logs as lines of JSON, for machines that collect them."""

from __future__ import annotations

import logging

__all__ = ["configure_logs"]


def configure_logs(form: str) -> None:
    """Write the logs of this process to standard error.

    Args:
        form: ``json``, one object per line with ``request_id`` and the like as members, or
            ``text``, which is left to whoever runs the service.
    """
    if form != "json":
        return
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            # uvicorn's copy of the message for terminals
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
