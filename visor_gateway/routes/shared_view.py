"""What other gateways ask of this one on behalf of their clients (docs/protocol.md)."""

from __future__ import annotations

import msgspec

from ..errors import GatewayError, InvalidRequest
from ..transfer.control import change_of
from ..transfer.foreign import Wish
from ..transfer.view import filters_of
from .request import Answer, Caller, Request

_decoder = msgspec.json.Decoder(Wish)


async def steer(request: Request) -> Answer:
    """POST /peers/{name}/transfers: what a client asked for elsewhere, and its refusal as `refused`.

    A refusal is no error of the request: so it can't be taken for one of the other gateway's credentials.
    """
    try:
        wish = _decoder.decode(request.body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise InvalidRequest("Expected a JSON object: access_key, is_admin, id or filters, and change") from exc
    try:
        return Answer({"transfers": await _done(request, wish)})
    except GatewayError as error:
        return Answer({"refused": {"status": error.status, "message": error.message}})


async def _done(request: Request, wish: Wish) -> list[object]:
    plane = request.services.plane
    # Of this gateway's own transfers, those that the client may see: nothing is handed on any further.
    client = Caller(access_key=wish.access_key, is_admin=wish.is_admin, own_only=True)
    change = None if wish.change is None else change_of(wish.change)
    if wish.id is not None:
        found = plane.cancel(client, wish.id) if change is None else plane.change(client, wish.id, change)
        return [await found]
    filters = filters_of(wish.filters.items())
    chosen = plane.cancel_all(client, filters) if change is None else plane.change_all(client, filters, change)
    return [*(await chosen).transfers]
