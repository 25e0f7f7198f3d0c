"""Transfers: listed, looked up, steered and cancelled (docs/protocol.md). `live` is where they are watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..errors import InvalidRequest
from ..transfer.control import change_of
from ..transfer.plane import Listing
from ..transfer.view import FILTERS, Filters, filters_of
from .request import Answer, Request

_UNCACHED: Final = (("cache-control", "no-store"),)


async def find(request: Request) -> Answer:
    """GET /transfers: what is under way; what ended not long ago only where a `state` filter names it."""
    return _listed(await request.services.plane.list(request.caller, filters_of(request.query)))


async def get(request: Request) -> Answer:
    """GET /transfers/{id}, also for a while after the transfer ended."""
    return _shown(await request.services.plane.find(request.caller, request.params["id"]))


async def change(request: Request) -> Answer:
    """PATCH /transfers/{id}"""
    wanted = change_of(request.json())
    return _shown(await request.services.plane.change(request.caller, request.params["id"], wanted))


async def change_all(request: Request) -> Answer:
    """PATCH /transfers: of all that the filters name, and that are under way."""
    wanted = change_of(request.json())
    return _listed(await request.services.plane.change_all(request.caller, _choice(request), wanted))


async def cancel(request: Request) -> Answer:
    """DELETE /transfers/{id}: answers once nothing of the transfer runs any more, or after 10 s."""
    return _shown(await request.services.plane.cancel(request.caller, request.params["id"]))


async def cancel_all(request: Request) -> Answer:
    """DELETE /transfers: all that the filters name, and that are under way. Answers as `cancel` does."""
    return _listed(await request.services.plane.cancel_all(request.caller, _choice(request)))


def _choice(request: Request) -> Filters:
    """The filters of the query, of which there must be one."""
    filters = filters_of(request.query)
    if not filters:
        raise InvalidRequest(f"Name the transfers by a filter in the query: {', '.join(FILTERS)}")
    return filters


def _shown(transfer: Mapping[str, Any]) -> Answer:
    return Answer({"transfer": transfer}, headers=_UNCACHED)


def _listed(listing: Listing) -> Answer:
    return Answer(msgspec.structs.asdict(listing), headers=_UNCACHED)
