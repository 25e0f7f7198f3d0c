"""The gateway's own limit, shown and changed while it runs (docs/protocol.md)."""

from __future__ import annotations

from ..errors import InvalidField
from ..transfer.control import limit_of
from .request import Answer, Request


async def state(request: Request) -> Answer:
    """GET /limits"""
    limit = await request.services.plane.limit_bytes_per_s() or None
    return Answer({"limits": {"limit_bytes_per_s": limit}}, headers=(("cache-control", "no-store"),))


async def change(request: Request) -> Answer:
    """PATCH /limits: until the next start, or until the configuration is read again."""
    body = request.json()
    if body.keys() != {"limit_bytes_per_s"}:
        raise InvalidField("Expected limit_bytes_per_s, and nothing else")
    await request.services.plane.limit(limit_of(body))
    return await state(request)
