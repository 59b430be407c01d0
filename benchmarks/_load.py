"""Requests that arrive at their times, whatever became of those before, and as fast as may be."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx2
from _servers import Server

__all__ = ["Request", "at_once", "open_loop", "quantile"]


@dataclass(frozen=True)
class Request:
    """One request that was answered."""

    size: int
    """Bytes of the image."""
    due: float
    """When it was to be sent, in seconds from the first moment."""
    seconds: float
    """From then to the end of the answer: that it was sent late counts."""


def open_loop(server: Server, images: Sequence[bytes], gaps: Sequence[float]) -> list[Request]:
    """Send images after gaps, without waiting for answers.

    Args:
        server: whom to ask.
        images: one per request.
        gaps: seconds from each request to the next, and before the first.
    """

    async def run(send: Callable[[bytes, float], Awaitable[Request]]) -> list[Request]:
        started, due, sent = time.perf_counter(), 0.0, []
        for image, gap in zip(images, gaps, strict=True):
            due += gap
            await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
            sent.append(asyncio.ensure_future(send(image, started + due)))
        return [
            Request(each.size, each.due - started, each.seconds)
            for each in await asyncio.gather(*sent)
        ]

    return asyncio.run(_with_client(server, run))


def at_once(server: Server, images: Sequence[bytes], *, count: int) -> list[Request]:
    """Send images so that some of them are always under way.

    Args:
        server: whom to ask.
        images: one per request.
        count: how many are under way.
    """

    async def run(send: Callable[[bytes, float], Awaitable[Request]]) -> list[Request]:
        places = asyncio.Semaphore(count)

        async def one(image: bytes) -> Request:
            async with places:
                return await send(image, time.perf_counter())

        return await asyncio.gather(*map(one, images))

    return asyncio.run(_with_client(server, run))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is not exceeded by a share of the values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def _with_client(
    server: Server,
    run: Callable[[Callable[[bytes, float], Awaitable[Request]]], Awaitable[list[Request]]],
) -> list[Request]:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.url, timeout=None, limits=limits) as client:

        async def send(image: bytes, due: float) -> Request:
            answer = await client.post(**server.contender.request(image))
            answer.raise_for_status()
            return Request(len(image), due, time.perf_counter() - due)

        return await run(send)
