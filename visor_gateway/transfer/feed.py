"""Progress of one view at one cadence, computed and encoded once for all subscribers that share it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from .eventlog import LoggedEvent
from .messages import Delta, Frame, Row, encode
from .meter import WAITS, WaitKind
from .transfer import Transfer
from .view import View


class Member(Protocol):
    """A subscriber, as its feed sees it. Neither call waits for it."""

    def offer(self, event: LoggedEvent) -> None:
        """Queue an event."""
        ...

    def progress(self, delta: Frame, removed: Collection[str]) -> None:
        """Take the newest delta, in place of one that was not sent yet. `removed` is what it says is gone."""
        ...


class Feed:
    """What its members were told of the transfers of a view.

    Attributes:
        period: Seconds between deltas.
        due: When the next delta is to be made, on Trio's clock.
        members: Who gets the deltas.
        whole: The last delta with every row, and what it says is gone.
    """

    def __init__(self, view: View, period: float, due: float) -> None:
        self.view = view
        self.period = period
        self.due = due
        self.members: dict[Member, None] = {}
        self.whole: tuple[Frame, tuple[str, ...]] | None = None
        self._rows: dict[str, Row] = {}
        self._waited: dict[str, dict[WaitKind, int]] = {}
        self._known: dict[str, None] = {}  # ids that events or deltas told of since and in the last delta

    @property
    def settled(self) -> bool:
        """Whether members know of nothing that a delta would have to remove."""
        return not self._known

    def announce(self, event: LoggedEvent) -> None:
        """Give an event to the members, if it is in the view."""
        if event.seen_by(self.view):
            self._known[event.transfer.id] = None
            for member in self.members:
                member.offer(event)

    def refresh(self, transfers: Iterable[Transfer], next_seq: Callable[[], int]) -> None:
        """Make the next delta from the live transfers and hand it to the members; none if nothing changed."""
        rows = {transfer.id: _row(transfer, self._wait(transfer)) for transfer in self.view.select(transfers)}
        changed = [row for id, row in rows.items() if row != self._rows.get(id)]
        removed = [id for id in self._known if id not in rows]
        self._rows, self._known = rows, dict.fromkeys(rows)
        self._waited = {id: self._waited[id] for id in rows}
        if changed or removed:
            seq = next_seq()
            delta = Frame(seq, encode(Delta(seq, changed, removed)))
            for member in self.members:
                member.progress(delta, removed)

    def rows(self, transfers: Iterable[Transfer]) -> list[Row]:
        """A row as of now for every live transfer in the view: for one member, which missed deltas. Bytes are counted
        anew, because an event that was sent since the last refresh told more."""
        last = self._rows
        return [
            _row(transfer, last[transfer.id][-1] if transfer.id in last else dict(transfer.meter.wait))
            for transfer in self.view.select(transfers)
        ]

    def _wait(self, transfer: Transfer) -> dict[WaitKind, int]:
        """What the transfer waited since the last refresh; one that is new here, since its last sample."""
        before = self._waited.get(transfer.id)
        self._waited[transfer.id] = waited = dict(transfer.meter.waited)
        return dict(transfer.meter.wait) if before is None else {kind: waited[kind] - before[kind] for kind in WAITS}


def _row(transfer: Transfer, wait: dict[WaitKind, int]) -> Row:
    meter = transfer.meter
    return (transfer.id, meter.bytes, round(meter.rate), transfer.eta_s, transfer.state, wait)
