"""Steering transfers while they run: what may be asked of them, and by whom. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from ..errors import Conflict, Forbidden, InvalidField
from .hub import Hub
from .transfer import ENDED, Transfer
from .view import Viewer

FASTEST: Final = 2**63 - 1  # bytes per second


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a transfer; None where nothing is.

    Attributes:
        paused: Whether it is to be paused, or to go on.
        limit_bytes_per_s: Its own limit from now on, 0 for the one that the gateway gives to all.
    """

    paused: bool | None = None
    limit_bytes_per_s: int | None = None


def change_of(body: Mapping[str, Any]) -> Change:
    """The change that a client's JSON object asks for.

    Raises:
        InvalidField: A field is unknown or has a value that it can't have, or there is none.
    """
    unknown = body.keys() - {"paused", "limit_bytes_per_s"}
    if unknown:
        raise InvalidField(f"Unknown field '{min(unknown)[:64]}', available fields: limit_bytes_per_s, paused")
    if not body:
        raise InvalidField("Nothing to change: send paused or limit_bytes_per_s")
    paused = body.get("paused")
    if "paused" in body and not isinstance(paused, bool):
        raise InvalidField("Invalid paused: expected true or false")
    return Change(paused=paused, limit_bytes_per_s=limit_of(body) if "limit_bytes_per_s" in body else None)


def limit_of(body: Mapping[str, Any]) -> int:
    """The limit that a client's JSON object names, in bytes per second; 0 for none, which null says too.

    Raises:
        InvalidField: It is not a whole number of bytes per second.
    """
    limit = body["limit_bytes_per_s"]
    if limit is None:
        return 0
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= FASTEST:
        raise InvalidField("Invalid limit_bytes_per_s: expected a whole number of bytes per second, or null for none")
    return limit


def steer(hub: Hub, viewer: Viewer, transfers: Iterable[Transfer], change: Change) -> None:
    """Make a change to transfers that `viewer` may see: to all of them or, where it is refused, to none.

    Raises:
        Conflict: One has ended.
        Forbidden: One would go faster than the gateway lets transfers go, which only admins may ask for.
    """
    transfers = list(transfers)
    for transfer in transfers:
        _check(viewer, transfer, change)
    for transfer in transfers:
        if change.limit_bytes_per_s is not None:
            transfer.pace.limit(change.limit_bytes_per_s or transfer.pace.default)
        if change.paused is not None and (transfer.pause() if change.paused else transfer.resume()):
            hub.publish("paused" if change.paused else "resumed", transfer)


def _check(viewer: Viewer, transfer: Transfer, change: Change) -> None:
    if transfer.state in ENDED:
        raise Conflict(f"Transfer '{transfer.id}' has ended already: {transfer.state}")
    most = transfer.pace.default
    if change.limit_bytes_per_s and most and change.limit_bytes_per_s > most and not viewer.is_admin:
        raise Forbidden(f"Only admins may let a transfer go faster than the gateway's {most} bytes per second")
