"""Steering transfers that other gateways move: each is asked, on behalf of the client, and decides about its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import structlog
import trio

from ..errors import GatewayError
from .control import Change
from .foreign import ForeignTransfer, Peer, PeerUnavailable, Wish
from .transfer import Transfer
from .view import Filters, Viewer

#: For the live channel to tell of what another gateway has answered already, so that who asks again sees it.
SEEN_SECONDS: Final = 2.0

_log: Final = structlog.get_logger("visor_gateway.peers")


class Answers(msgspec.Struct):
    """What several gateways have answered. `refusal` is the first error of one of them, all others done."""

    transfers: list[dict[str, Any]]
    refusal: GatewayError | None = None


def parted(transfers: Sequence[Transfer]) -> tuple[list[Transfer], list[ForeignTransfer]]:
    """This gateway's own, and those of others."""
    elsewhere = [each for each in transfers if isinstance(each, ForeignTransfer)]
    return [each for each in transfers if not each.foreign], elsewhere


async def change(transfer: ForeignTransfer, viewer: Viewer, change: Change) -> dict[str, Any]:
    """Pause, resume or limit one. Raises as `Peer.ask`."""
    return await _one(transfer, Wish(viewer.access_key, viewer.is_admin, transfer.id, change=_sent(change)))


async def cancel(transfer: ForeignTransfer, viewer: Viewer) -> dict[str, Any]:
    """Cancel one. Raises as `Peer.ask`."""
    shown = await _one(transfer, Wish(viewer.access_key, viewer.is_admin, transfer.id))
    with trio.move_on_after(SEEN_SECONDS):
        await transfer.ended.wait()
    return shown


async def cancel_writer(transfer: ForeignTransfer) -> None:
    """Cancel one for the gateway's own sake. Where its gateway can't be asked, the end of its lease is its end."""
    try:
        await _one(transfer, Wish(None, is_admin=True, id=transfer.id))
    except GatewayError as error:
        _log.warning("a writer at another gateway was not cancelled", gateway=transfer.gateway, error=error.message)


async def change_all(transfers: Sequence[ForeignTransfer], viewer: Viewer, filters: Filters, change: Change) -> Answers:
    """Change all that the filters name, at the gateways of `transfers`."""
    return await _all(transfers, _wish(viewer, filters, _sent(change)))


async def cancel_all(transfers: Sequence[ForeignTransfer], viewer: Viewer, filters: Filters) -> Answers:
    """Cancel all that the filters name, at the gateways of `transfers`."""
    answers = await _all(transfers, _wish(viewer, filters, None))
    if answers.refusal is None:
        with trio.move_on_after(SEEN_SECONDS):
            for transfer in transfers:
                await transfer.ended.wait()
    return answers


async def _one(transfer: ForeignTransfer, wish: Wish) -> dict[str, Any]:
    found = await transfer.peer.ask(wish)
    if len(found) != 1 or found[0]["id"] != transfer.id:
        raise PeerUnavailable(transfer.peer.gateway)
    transfer.take_limit(found[0]["limit_bytes_per_s"])
    return found[0]


async def _all(transfers: Sequence[ForeignTransfer], wish: Wish) -> Answers:
    answers = Answers([])
    known = {transfer.id: transfer for transfer in transfers}

    async def ask(peer: Peer) -> None:
        try:
            found = await peer.ask(wish)
        except GatewayError as error:
            answers.refusal = answers.refusal or error
            return
        answers.transfers += found
        for each in found:
            if (transfer := known.get(each["id"])) is not None and transfer.peer is peer:
                transfer.take_limit(each["limit_bytes_per_s"])

    async with trio.open_nursery() as nursery:
        for peer in dict.fromkeys(transfer.peer for transfer in transfers):
            nursery.start_soon(ask, peer)
    return answers


def _wish(viewer: Viewer, filters: Filters, change: dict[str, Any] | None) -> Wish:
    named = {name: sorted(values) for name, values in filters}
    return Wish(viewer.access_key, viewer.is_admin, filters=named, change=change)


def _sent(change: Change) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
