"""The last life-cycle events, for subscribers that come back. Sans-IO."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from .messages import Frame
from .transfer import Kind, State, Transfer
from .view import View

KEPT: Final = 4096


class Subject(NamedTuple):
    """What views ask of the transfer of an event: the transfer itself would be in memory for as long as the event."""

    id: str
    kind: Kind
    image: str
    store: str | None
    user: str | None
    state: State
    gateway: str | None
    foreign: bool

    @classmethod
    def of(cls, transfer: Transfer) -> Subject:
        """Of a transfer as it is now."""
        return cls(
            transfer.id,
            transfer.kind,
            transfer.image,
            transfer.store,
            transfer.user,
            transfer.state,
            transfer.gateway,
            transfer.foreign,
        )


class LoggedEvent(NamedTuple):
    """One event, encoded.

    Attributes:
        states: The transfer's state before and after, so that a view by state sees a transfer leave.
    """

    frame: Frame
    transfer: Subject
    states: tuple[State, State]

    def seen_by(self, view: View) -> bool:
        """Whether the event belongs to a view."""
        return view.covers(self.transfer, *self.states)


class EventLog:
    """Events in order of their `seq`, the oldest forgotten first."""

    def __init__(self, kept: int = KEPT) -> None:
        self._events: deque[LoggedEvent] = deque(maxlen=kept)
        self._forgotten = -1  # seq of the last event that is gone

    def append(self, event: LoggedEvent) -> None:
        """Add the newest event."""
        if len(self._events) == self._events.maxlen:
            self._forgotten = self._events[0].frame.seq
        self._events.append(event)

    def since(self, seq: int) -> list[LoggedEvent] | None:
        """Every event after `seq`; None where some of them are forgotten."""
        if seq < self._forgotten:
            return None
        return [event for event in self._events if event.frame.seq > seq]
