"""What one other gateway tells on its live channel, made part of this gateway's view. Sans-IO.

The other gateway gives its own transfers alone to who asks as a gateway, so nothing is told in a circle. Its messages
have its own numbers; here each step is published anew, with a number of this hub, so that who watches here sees one
order and can resume.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from .foreign import Count, ForeignTransfer, Peer, Told, Waits
from .hub import Hub
from .messages import EventKind
from .transfer import ENDED, State

TRANSFERS: Final = 20_000  # of one gateway; what it tells beyond them is not shown
_Id = Annotated[str, msgspec.Meta(max_length=36)]
_Row: TypeAlias = tuple[_Id, Count, Count, float | None, State, Waits]


class _Snapshot(msgspec.Struct, tag_field="type", tag="snapshot"):
    transfers: list[Told]


class _Delta(msgspec.Struct, tag_field="type", tag="delta"):
    u: list[_Row]
    removed: list[_Id]


class _Event(msgspec.Struct, tag_field="type", tag="event"):
    kind: EventKind
    transfer: Told


class _Kind(msgspec.Struct):
    type: str


_kind: Final = msgspec.json.Decoder(_Kind)
_decoder: Final[msgspec.json.Decoder[_Snapshot | _Delta | _Event]] = msgspec.json.Decoder(_Snapshot | _Delta | _Event)
_MEANT: Final = frozenset({"snapshot", "delta", "event"})
_REST: Final = frozenset({"hello", "gap", "heartbeat", "error", "bye"})


class NotUnderstood(Exception):
    """What a gateway sent is no message of the live channel, or contradicts itself."""


class PeerView:
    """Transfers of one other gateway in this one's hub."""

    def __init__(self, hub: Hub, peer: Peer, *, limit: int = TRANSFERS) -> None:
        self._hub = hub
        self._peer = peer
        self._limit = limit
        self._shown: dict[str, ForeignTransfer] = {}
        self._is_new = True  # the connection on which it is told: no snapshot came yet

    def reconnected(self) -> None:
        """What comes next comes on another connection."""
        self._is_new = True

    def take(self, text: str) -> str:
        """Show what a message tells. Returns its type.

        Raises:
            NotUnderstood: It tells nothing that could be shown; what was told before stays.
        """
        try:
            kind = _kind.decode(text).type
            if kind not in _MEANT:
                if kind not in _REST:
                    raise NotUnderstood("an unknown message")
                return kind
            message = _decoder.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise NotUnderstood("no message of the live channel") from exc
        if isinstance(message, _Snapshot):
            self._take_snapshot(message)
        elif isinstance(message, _Delta):
            self._take_delta(message)
        else:
            self._take_event(message)
        return kind

    def clear(self) -> None:
        """Show nothing of that gateway any more."""
        for transfer in self._shown.values():
            self._hub.drop(transfer)
        self._shown.clear()

    def _take_snapshot(self, snapshot: _Snapshot) -> None:
        told = {each.id: each for each in snapshot.transfers if each.state not in ENDED}
        if not self._is_new:
            # A process that has just succeeded another one may not know yet what that one finishes: the next one tells.
            for id in self._shown.keys() - told.keys():
                self._hub.drop(self._shown.pop(id))
        self._is_new = False
        for each in told.values():
            self._update(each)

    def _take_delta(self, delta: _Delta) -> None:
        for id, bytes, rate, _, state, wait in delta.u:
            if id in self._shown:
                self._shown[id].take_progress(bytes, rate, state, wait)
        for id in delta.removed:
            if id in self._shown:
                self._hub.drop(self._shown.pop(id))

    def _take_event(self, event: _Event) -> None:
        told = event.transfer
        if (event.kind in ENDED or told.state in ENDED) and event.kind != told.state:
            raise NotUnderstood("an event that contradicts itself")
        if event.kind in ENDED:
            transfer = self._shown.pop(told.id, None)
            if transfer is not None:
                transfer.take(told)
                self._hub.publish(event.kind, transfer)
        elif self._update(told):
            self._hub.publish(event.kind, self._shown[told.id])

    def _update(self, told: Told) -> bool:
        """Show a transfer as it is told. True where it was shown before."""
        known = self._shown.get(told.id)
        if known is not None:
            known.take(told)
            return True
        if len(self._shown) < self._limit:
            transfer = ForeignTransfer(told, self._peer)
            if self._hub.show(transfer):
                self._shown[told.id] = transfer
                self._hub.publish("started", transfer)
        return False
