"""Transfers that ended, from the history (docs/protocol.md)."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from ..errors import InvalidRequest
from ..image import timestamp
from ..meta.contract import EndedTransfer, HistoryQuery
from ..transfer.view import ENDED_FILTERS, filters_of
from .request import Answer, Request

PAGE: Final = 100
LIMIT: Final = 1000


async def find(request: Request) -> Answer:
    """GET /transfers/history: users see their own, admins all; the newest first."""
    controls, filters = _sorted_out(request)
    limit = _number("limit", controls.get("limit", str(PAGE)), LIMIT)
    caller = request.caller
    query = HistoryQuery(
        user=None if caller.is_admin else caller.access_key,
        filters=filters_of(filters, ENDED_FILTERS),
        before=_number("before", controls["before"]) if "before" in controls else None,
        limit=limit + 1,  # one more tells whether there is a next page
    )
    found = await request.services.history.find(query)
    headers: tuple[tuple[str, str], ...] = (("cache-control", "no-store"),)
    if len(found) > limit:
        found = found[:limit]
        following = urlencode([*filters, ("limit", limit), ("before", found[-1].number)])
        headers = (*headers, ("link", f'<{request.base_url}/transfers/history?{following}>; rel="next"'))
    return Answer({"transfers": [_shown(each) for each in found]}, headers=headers)


def _sorted_out(request: Request) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """What says which page, and what filters."""
    controls: dict[str, str] = {}
    filters = []
    for name, value in request.query:
        if name not in ("limit", "before"):
            filters.append((name, value))
        elif name in controls:
            raise InvalidRequest(f"The parameter '{name}' is given twice")
        else:
            controls[name] = value
    return controls, filters


def _number(name: str, text: str, most: int = 2**63 - 1) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and 1 <= int(text) <= most):
        raise InvalidRequest(f"Invalid {name}: expected a whole number from 1 to {most}")
    return int(text)


def _shown(ended: EndedTransfer) -> dict[str, Any]:
    return {
        "id": ended.id,
        "kind": ended.kind,
        "image": ended.image,
        "store": ended.store,
        "client": ended.client,
        "user": ended.user,
        "state": ended.state,
        "bytes": ended.bytes,
        "size": ended.size,
        "offset": ended.offset,
        "rate_avg": ended.rate_avg,
        "started_at": timestamp(ended.started_at),
        "ended_at": timestamp(ended.ended_at),
        "duration_s": ended.duration_ms / 1000,
        "wait": {
            "client": ended.wait_client,
            "store": ended.wait_store,
            "limit": ended.wait_limit,
            "disk": ended.wait_disk,
        },
        "attempt": ended.attempt,
        "error": ended.error,
    }
