"""What monitors ask for: is it alive, does it take work, what has it done."""

from __future__ import annotations

from typing import Final

import trio

from ..errors import GatewayError
from .request import Answer, Request, Services, Text

CHECK_SECONDS: Final = 5.0  # a database that takes longer to answer is not well


async def status(request: Request) -> Text:
    """GET /status"""
    return Text(b"OK", "text/plain; charset=utf-8")


async def ready(request: Request) -> Answer:
    """GET /ready"""
    return await readiness(request.services)


async def readiness(services: Services) -> Answer:
    """Whether the gateway takes work: a failed store is listed; only listeners, metadata and a drain decide."""
    parts = {
        "listeners": "ok" if services.readiness.listening else "closed",
        "metadata": await _metadata(services),
        "draining": services.readiness.draining,
    }
    well = parts["listeners"] == parts["metadata"] == "ok" and not services.readiness.draining
    headers = (("cache-control", "no-store"),)
    return Answer({"ready": well, **parts, "stores": await services.health.told()}, 200 if well else 503, headers)


async def metrics(request: Request) -> Text:
    """GET /metrics"""
    return Text(await request.services.plane.exposition(), "text/plain; version=0.0.4; charset=utf-8")


async def _metadata(services: Services) -> str:
    try:
        with trio.fail_after(CHECK_SECONDS):
            await services.images.check()
            await services.accounts.check()
    except (GatewayError, trio.TooSlowError):
        return "failed"
    return "ok"
