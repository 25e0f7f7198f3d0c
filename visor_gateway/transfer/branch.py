"""The side of a process that moves bytes: it has its transfers admitted by the center, reports what they do, and
does to them what the center asks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import trio

from ..errors import Conflict
from ..meta.contract import EndedTransfer, HistoryQuery, HistoryRepository
from ..metrics import Families, Metrics
from .admission import Admission, Place, turn_of
from .bus import Bus
from .history import History
from .limits import Rates
from .messages import EventKind
from .reports import (
    ADMIT,
    CADENCE,
    CENTER,
    COUNTS,
    FAMILIES,
    FLUSH_HISTORY,
    LEAVE,
    REPORT_SECONDS,
    ROOM,
    SHARE,
    STEER,
    STEP,
    TURN,
    Counts,
    Description,
    Newcomer,
    Steering,
    Step,
)
from .transfer import ENDED, Transfer


class Branch:
    """`Board` and `Gate` of a process whose center is another one."""

    def __init__(self, bus: Bus, metrics: Metrics, rates: Rates) -> None:
        """To be made before the center is attached to `bus`."""
        self._bus = bus
        self._metrics = metrics
        self._rates = rates
        self._known: dict[str, Transfer] = {}
        self._live: dict[str, Transfer] = {}
        self._reported: dict[str, Counts] = {}
        self._period = REPORT_SECONDS
        bus.subscribe(STEER, self._steer)
        bus.subscribe(CADENCE, self._set_period)
        bus.answer(SHARE, self._share)
        bus.answer(FAMILIES, self._families)

    # --- for the engine and its services ---------------------------------------------------------

    def live(self) -> Sequence[Transfer]:
        """The transfers of this process that are under way, the oldest first."""
        return tuple(self._live.values())

    def publish(self, kind: EventKind, transfer: Transfer) -> None:
        """Report a step in a transfer's life."""
        if transfer.id not in self._live:
            return
        if kind in ENDED:
            del self._live[transfer.id]
            self._reported.pop(transfer.id, None)
        self._bus.publish(STEP, Step(kind, transfer.state, transfer.error, Counts.of(transfer)), to=CENTER)

    @property
    def waiting(self) -> int:
        """None here: the center counts those that wait."""
        return 0

    async def check_room(self, turn: str, store: str) -> None:
        await self._bus.command(CENTER, ROOM, Newcomer(turn, store))

    @asynccontextmanager
    async def admit(self, transfer: Transfer) -> AsyncGenerator[Place, None]:
        if transfer.id in self._known:
            raise Conflict(f"The transfer id '{transfer.id}' is taken")
        # Known before it is admitted: the center may ask something of it with the next frame.
        self._known[transfer.id] = transfer
        admitted = False
        try:
            place = _Place(self._bus, transfer)
            if await self._bus.command(CENTER, ADMIT, Description.of(transfer)):
                place.grant()
            admitted = True
            self._live[transfer.id] = transfer
            yield place
        except trio.Cancelled:
            # Cancelled while it waited for the answer, it may have been admitted all the same.
            admitted = True
            raise
        finally:
            del self._known[transfer.id]
            self._live.pop(transfer.id, None)
            if admitted:
                self._bus.publish(LEAVE, transfer.id, to=CENTER)

    # --- for the center --------------------------------------------------------------------------

    def _steer(self, member: str, steering: Steering) -> None:
        transfer = self._known.get(steering.id)
        if transfer is not None:
            steering.apply(transfer)

    def _set_period(self, member: str, seconds: float) -> None:
        self._period = seconds

    def _share(self, member: str, bytes_per_s: int) -> None:
        self._rates.limit(bytes_per_s)

    def _families(self, member: str, _: None) -> Families:
        return self._metrics.families()

    # --- the service -----------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sample the live transfers and report what has changed, as often as the center wants, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(self._period)
            self.report()

    def report(self) -> None:
        """Report what has changed since the last time."""
        if news := Counts.news(self._live.values(), self._reported):
            self._bus.publish(COUNTS, news, to=CENTER)


class BranchHistory(History):
    """The history, which the center keeps."""

    def __init__(self, bus: Bus, repository: HistoryRepository) -> None:
        super().__init__(repository, keep=0)
        self._bus = bus

    def revise(self, *, keep: int) -> None:
        """Nothing: none of it is kept here."""

    async def find(self, query: HistoryQuery) -> list[EndedTransfer]:
        await self._bus.command(CENTER, FLUSH_HISTORY, None)
        return await super().find(query)


class _Place(Place):
    """A place at the center."""

    def __init__(self, bus: Bus, transfer: Transfer) -> None:
        super().__init__(Admission(), turn_of(transfer.user, transfer.client), transfer.store or "")
        self._bus = bus
        self._id = transfer.id

    @property
    def position(self) -> int | None:
        """Known to the center alone."""
        return None

    async def turn(self) -> None:
        if self.waits:
            await self._bus.command(CENTER, TURN, self._id)
            self.grant()
