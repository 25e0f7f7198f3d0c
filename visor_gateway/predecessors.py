"""The center of a gateway with older generations: who they are, what they still do, how they end.

A supervisor has its bus and its center anyway. A process that serves clients itself gets them when it succeeds another
one: then its hub has its own transfers, and mirrors of those that older generations finish.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
import trio

from .control import send_line
from .metrics import Families, Metrics, MetricsSum
from .transfer.admission import Admission
from .transfer.bus import Bus
from .transfer.center import Center
from .transfer.engine import Engine
from .transfer.history import History
from .transfer.hub import Hub
from .transfer.limits import Rates
from .transfer.plane import ControlPlane
from .transfer.plane_host import CenterPlane, PlaneHost
from .transfer.reports import CENTER, DEPART, FINISH, SETTLED, VERDICT, Settled, Verdict
from .transfer.scrub import Scrub
from .transfer.shares import RateShares

OPEN_SECONDS: Final = 10.0  # for the older generation to tell its transfers; then slots and rates are given without it

_log: Final = structlog.get_logger("visor_gateway.generations")


class Predecessors:
    """Older generations as members of the bus."""

    def __init__(
        self, bus: Bus, center: Center, shares: RateShares, sums: MetricsSum, admission: Admission, *, succeeds: bool
    ) -> None:
        """`succeeds`: there is an older generation, and nothing is given to anybody before it told what it has."""
        self.bus = bus
        self.shares = shares
        self._center = center
        self._sums = sums
        self._admission = admission
        self._host: PlaneHost | None = None
        self._members: dict[str, trio.CancelScope] = {}
        self._released = False
        self._finish_at: float | None = None
        self._settled = trio.Event()
        self._changed = trio.Event()
        if succeeds:
            admission.yield_slots()
        else:
            self._settled.set()
        bus.subscribe(SETTLED, self._settle)
        bus.answer(DEPART, self._hear_last)

    @classmethod
    def of_hub(cls, hub: Hub, admission: Admission, rates: Rates, metrics: Metrics) -> Predecessors:
        """That of a process that serves clients itself and succeeds another one."""
        bus = Bus(relays=True)
        center = Center(bus, hub, admission, rates, metrics)
        shares = RateShares(bus, hub, rates, moves=True, held=True)
        return cls(bus, center, shares, MetricsSum(), admission, succeeds=True)

    def plane(
        self,
        hub: Hub,
        engine: Engine,
        metrics: Metrics,
        scrub: Scrub,
        *,
        history: History,
        refresh: Callable[[], Awaitable[None]],
    ) -> ControlPlane:
        """The gateway as clients of such a process see it."""
        host = self._host = PlaneHost(self.bus, hub, metrics, scrub, self.shares, self._sums, refresh=refresh)
        self._center.record_in(history)
        self.bus.subscribe(VERDICT, lambda member, verdict: scrub.learn(verdict.attempt_id, verdict.good))
        return CenterPlane(hub, engine, metrics, scrub, self.shares, host)

    def answer_by(self, host: PlaneHost) -> None:
        """What answers the members' questions about the gateway."""
        self._host = host

    async def serve(self) -> None:
        """What the center of such a process does, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._center.run)
            nursery.start_soon(self.shares.run)
            nursery.start_soon(self.open)

    async def open(self) -> None:
        """Give slots and rates once the older generation has told what it has of them, or does not."""
        with trio.move_on_after(OPEN_SECONDS):
            await self._settled.wait()
        self._settled.set()
        if not self._released:
            self._admission.resume_slots()
            self.shares.open()

    def families(self, own: Families) -> Families:
        """What this process has counted, `own`, and those that have ended as its members."""
        self._sums.take(CENTER, own)
        return self._sums.families()

    def tell_verdict(self, attempt_id: str, good: bool) -> None:
        """A scrub has found something."""
        self.bus.publish(VERDICT, Verdict(attempt_id, good))

    # --- members ---------------------------------------------------------------------------------

    async def attend(self, request: Mapping[str, Any], stream: trio.SocketStream) -> None:
        """Have an older generation at the other end of `stream`, until it goes."""
        name = f"generation {request.get('instance')}"
        if self._released or name in self.bus.members:
            return
        await send_line(stream, welcome=True)
        _log.info("older generation has joined", pid=request.get("pid"))
        with trio.CancelScope() as scope:
            self._members[name] = scope
            try:
                await self.bus.attach(name, stream)
            finally:
                del self._members[name]
                self._forget(name)
        _log.info("older generation has gone", pid=request.get("pid"))

    def _forget(self, name: str) -> None:
        if self._released:
            self._center.release(name)
            self._sums.drop(name)
        self._center.forget(name)
        self.shares.forget(name)
        if self._host is not None:
            self._host.forget(name)
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _settle(self, member: str, settled: Settled) -> None:
        self.shares.enrol(member, settled.share)
        self._settled.set()
        if self._finish_at is not None:
            self.bus.publish(FINISH, max(0.0, self._finish_at - trio.current_time()), to=member)

    def _hear_last(self, member: str, families: Families) -> None:
        self._sums.take(member, families)

    # --- ends ------------------------------------------------------------------------------------

    def release(self) -> None:
        """This process is succeeded itself: the older ones go to the bus of the new one. Their transfers go on."""
        self._released = True
        for scope in self._members.values():
            scope.cancel(reason="there is a younger generation")

    def finish(self, seconds: float) -> None:
        """Have the older generations end within so many seconds."""
        self._finish_at = trio.current_time() + seconds
        self.bus.publish(FINISH, seconds)

    async def wait_empty(self) -> None:
        """Wait until there is no older generation any more."""
        while self._members:
            await self._changed.wait()
