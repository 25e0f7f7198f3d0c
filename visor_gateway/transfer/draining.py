"""An older generation: a process that finishes its transfers while a younger one is the gateway.

It is a member of the younger one's bus, as a worker is: its transfers are shown, steered and limited by the center
there, and those that wait have their turn there. Whatever it is, a process that serves clients or the supervisor of
workers that do, its own hub has all of its transfers; so this speaks for a hub.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from ..metrics import Families
from .admission import Admission
from .bus import Bus
from .hub import Hub
from .messages import EventKind
from .reports import (
    ADOPT,
    CADENCE,
    CENTER,
    COUNTS,
    DEPART,
    FAMILIES,
    FINISH,
    LEAVE,
    REPORT_SECONDS,
    SETTLED,
    SHARE,
    STEER,
    STEP,
    TURN,
    VERDICT,
    Adoption,
    Counts,
    Description,
    Settled,
    Steering,
    Step,
    Verdict,
)
from .transfer import ENDED, Transfer


class DrainingProcess(Protocol):
    """What an older generation is, apart from its transfers."""

    @property
    def share(self) -> int:
        """The byte rate by which it moves, 0 for any."""
        ...

    def limit_rate(self, bytes_per_s: int) -> None:
        """Change that."""
        ...

    def families(self) -> Families:
        """What it has counted."""
        ...

    def learn(self, verdict: Verdict) -> None:
        """A scrub has found something."""
        ...

    def finish(self, seconds: float) -> None:
        """End within so many seconds: the gateway stops."""
        ...


class DrainingMember:
    """One stay at the bus of a younger generation, from the first word to the last.

    Attributes:
        bus: The bus, with the center as its one member.
    """

    def __init__(self, hub: Hub, admission: Admission, process: DrainingProcess) -> None:
        self.bus = Bus()
        self._hub = hub
        self._admission = admission
        self._process = process
        self._period = REPORT_SECONDS
        self._reported: dict[str, Counts] = {}
        self._nursery: trio.Nursery | None = None
        self.bus.subscribe(STEER, self._steer)
        self.bus.subscribe(CADENCE, self._set_period)
        self.bus.subscribe(VERDICT, lambda member, verdict: process.learn(verdict))
        self.bus.subscribe(FINISH, lambda member, seconds: process.finish(seconds))
        self.bus.answer(SHARE, lambda member, share: process.limit_rate(share))
        self.bus.answer(FAMILIES, lambda member, _: process.families())

    async def stay(self, stream: trio.abc.Stream, joined: Callable[[DrainingMember], None]) -> None:
        """Be a member at the other end of `stream`, until that is gone or this is cancelled. Closes the stream.

        Args:
            joined: Called when all transfers are known to the center.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.bus.attach, CENTER, stream)
            # The other end says what it listens to before anything else; what is published earlier is lost.
            await self.bus.wait_heard(CENTER, SETTLED)
            self._admission.yield_slots()
            for transfer in self._hub.live():
                self.added(transfer)
            self.bus.publish(SETTLED, Settled(self._process.share), to=CENTER)
            self._hub.scribe = self
            try:
                joined(self)
                nursery.start_soon(self._report)
                await self.bus.wait_gone(CENTER)
                nursery.cancel_scope.cancel(reason="the younger generation is gone")
            finally:
                self._hub.scribe = None

    async def depart(self) -> None:
        """Say the last words. Returns when they have been heard."""
        await self.bus.command(CENTER, DEPART, self._process.families())

    # --- what is told of the hub -----------------------------------------------------------------

    def added(self, transfer: Transfer) -> None:
        """Have the center show a transfer."""
        if self._nursery is not None:
            # It gets its place right after it was added.
            self._nursery.start_soon(self._introduce, transfer) if transfer.place is None else self._tell(transfer)

    async def _introduce(self, transfer: Transfer) -> None:
        await trio.lowlevel.checkpoint()
        if transfer.state not in ENDED:
            self._tell(transfer)

    def _tell(self, transfer: Transfer) -> None:
        waits = transfer.place is not None and transfer.place.waits
        self.bus.publish(
            ADOPT,
            Adoption(
                Description.of(transfer), transfer.state, Counts.of(transfer), not waits, transfer.pace.bytes_per_s
            ),
            to=CENTER,
        )
        if waits and self._nursery is not None:
            self._nursery.start_soon(self._wait_for_turn, transfer)

    async def _wait_for_turn(self, transfer: Transfer) -> None:
        await self.bus.command(CENTER, TURN, transfer.id)
        if transfer.place is not None:
            self._admission.let(transfer.place)

    def told(self, kind: EventKind, transfer: Transfer) -> None:
        """Report a step in a transfer's life."""
        self.bus.publish(STEP, Step(kind, transfer.state, transfer.error, Counts.of(transfer)), to=CENTER)
        if kind in ENDED:
            self._reported.pop(transfer.id, None)
            self.bus.publish(LEAVE, transfer.id, to=CENTER)

    async def _report(self) -> None:
        """Report what has changed, as often as the center wants."""
        while True:
            await trio.sleep(self._period)
            if news := Counts.news(self._hub.live(), self._reported):
                self.bus.publish(COUNTS, news, to=CENTER)

    # --- what the center asks --------------------------------------------------------------------

    def _set_period(self, member: str, seconds: float) -> None:
        self._period = seconds

    def _steer(self, member: str, steering: Steering) -> None:
        transfer = self._hub.find(steering.id)
        if transfer is not None and transfer.state not in ENDED:
            steering.apply(transfer)
