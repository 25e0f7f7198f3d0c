"""What pulls and pushes share: the store, the transfer of a request, and its end in a reset when it is cancelled."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ..errors import InvalidRequest, TransferCancelled
from ..store.contract import Store
from ..transfer.transfer import Kind, Transfer
from .request import Request, Services

T = TypeVar("T")
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def chosen_store(services: Services, name: str | None) -> Store:
    """The configured store of that name. Raises `InvalidRequest` where there is none."""
    store = services.stores.get(name or "")
    if store is None:
        raise InvalidRequest(f"The store '{name}' is not supported")
    return store


def new_transfer(
    request: Request, kind: Kind, image_id: str, store: str, size: int | None, offset: int = 0
) -> Transfer:
    """The transfer that a request asks for, under the id that it chose. Raises `InvalidRequest` for a bad id."""
    transfer = Transfer(
        id=transfer_id(request),
        kind=kind,
        image=image_id,
        store=store,
        client=request.client,
        user=request.caller.access_key,
        size=size,
        offset=offset,
    )
    connection = request.scope["state"].get("connection")
    if kind == "pull" and connection is not None:
        transfer.meter.unacknowledged = connection.unacknowledged
    return transfer


def transfer_id(request: Request) -> str:
    """The client's choice, or a fresh one."""
    chosen = request.header(b"x-transfer-id")
    if chosen is None:
        return str(uuid.uuid4())
    try:
        return str(uuid.UUID(chosen.decode("ascii")))
    except ValueError as exc:
        raise InvalidRequest("X-Transfer-Id must be a UUID") from exc


async def run(request: Request, transfer: Transfer, work: Callable[[Transfer], Awaitable[T]]) -> T:
    """Run a transfer; the peer of one that is cancelled sees a reset, which it can't take for an end."""
    connection = request.scope["state"].get("connection")
    try:
        return await request.services.engine.run(transfer, work, connection)
    except TransferCancelled:
        if connection is not None:
            connection.reset()
        raise
