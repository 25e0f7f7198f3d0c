"""The center: one view of all transfers, whichever process moves their bytes, and one line before the slots.

It moves no bytes itself. What others move is in its hub as mirrors; what a member had when it went ends as failed.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final, NamedTuple

import trio

from ..metrics import Metrics
from .admission import Admission, Place, turn_of
from .bus import Bus
from .history import History
from .hub import Hub
from .limits import Rates
from .messages import EventKind
from .mirror import Mirror
from .reports import (
    ADMIT,
    ADOPT,
    CADENCE,
    COUNTS,
    FLUSH_HISTORY,
    LEAVE,
    REPORT_SECONDS,
    ROOM,
    STEER,
    STEP,
    TURN,
    Adoption,
    Counts,
    Description,
    Newcomer,
    Step,
)
from .transfer import ENDED, UNCOUNTED, Ended

LOST: Final = "the process that moved the bytes has ended"


class Center:
    """Takes in what members report, and decides who may run."""

    def __init__(self, bus: Bus, hub: Hub, admission: Admission, rates: Rates, metrics: Metrics) -> None:
        """To be made before members are attached to `bus`."""
        self._bus = bus
        self._hub = hub
        self._admission = admission
        self._rates = rates
        self._metrics = metrics
        self._held: dict[str, _Held] = {}
        self._history: History | None = None
        bus.answer(ADMIT, self._admit)
        bus.answer(ROOM, self._check_room)
        bus.serve(TURN, self._wait_for_turn)
        bus.subscribe(STEP, self._take_step)
        bus.subscribe(COUNTS, self._take_counts)
        bus.subscribe(LEAVE, self._leave)
        bus.subscribe(ADOPT, self._adopt)
        metrics.transfers_queued.set_function(lambda: admission.waiting)

    def record_in(self, history: History) -> None:
        """Remember what ended, in the order of the ends."""
        self._history = history

        async def flush(member: str, _: None) -> None:
            await history.flush()

        self._bus.serve(FLUSH_HISTORY, flush)

    def forget(self, member: str) -> None:
        """A member is gone: its transfers have failed, and their slots are free."""
        for held in [each for each in self._held.values() if each.mirror.owner == member]:
            self._end(held, "failed", LOST)

    def release(self, member: str) -> None:
        """A member goes to another center: its transfers go on, and are that one's to show."""
        for held in [each for each in self._held.values() if each.mirror.owner == member]:
            self._hub.drop(held.mirror)
            del self._held[held.mirror.id]
            held.stack.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Have members report as often as those who watch want it, until cancelled."""
        task_status.started()
        told: tuple[float, frozenset[str]] | None = None
        while True:
            wanted = self._hub.tick_seconds, frozenset(self._bus.members)
            if wanted != told:
                self._bus.publish(CADENCE, wanted[0])
                told = wanted
            await trio.sleep(REPORT_SECONDS)

    # --- what members say ------------------------------------------------------------------------

    def _admit(self, member: str, description: Description) -> bool:
        if description.client is not None:
            self._admission.check_room(turn_of(description.user, description.client), description.store or "")
        return not self._hold(member, description).place.waits

    def _hold(self, member: str, description: Description, *, running: bool = False) -> _Held:
        turn, store = turn_of(description.user, description.client), description.store or ""
        counted = description.kind not in UNCOUNTED
        mirror = Mirror(
            description, member, lambda steering: self._bus.publish(STEER, steering, to=member), self._rates
        )
        with ExitStack() as stack:
            place = stack.enter_context(self._admission.place(turn, store, counted=counted, running=running))
            self._hub.add(mirror)
            mirror.place = place
            held = self._held[mirror.id] = _Held(mirror, place, stack.pop_all())
        return held

    def _adopt(self, member: str, adoption: Adoption) -> None:
        """Show a transfer that began under another center. It is not refused: it runs, or was promised its turn."""
        mirror = self._hold(member, adoption.description, running=adoption.placed).mirror
        mirror.adopt(adoption)
        self._hub.publish("started", mirror)

    def _check_room(self, member: str, newcomer: Newcomer) -> None:
        self._admission.check_room(newcomer.turn, newcomer.store)

    async def _wait_for_turn(self, member: str, id: str) -> None:
        held = self._found(member, id)
        if held is not None:
            await held.place.turn()

    def _take_step(self, member: str, step: Step) -> None:
        held = self._found(member, step.counts.id)
        if held is not None:
            held.mirror.take_step(step)
            self._announce(step.kind, held.mirror)

    def _take_counts(self, member: str, news: list[Counts]) -> None:
        for counts in news:
            held = self._found(member, counts.id)
            if held is not None:
                held.mirror.take(counts)

    def _leave(self, member: str, id: str) -> None:
        held = self._found(member, id)
        if held is not None:
            self._end(held, "cancelled", "connection")

    def _announce(self, kind: EventKind, mirror: Mirror) -> None:
        self._hub.publish(kind, mirror)
        if kind in ENDED:
            if self._history is not None:
                self._history.add(mirror)
            mirror.ended.set()

    def _found(self, member: str, id: str) -> _Held | None:
        """What this member holds under that id."""
        held = self._held.get(id)
        return held if held is not None and held.mirror.owner == member else None

    def _end(self, held: _Held, state: Ended, error: str) -> None:
        """Give the place up, and end a transfer that has not ended by itself."""
        mirror = held.mirror
        if mirror.state not in ENDED:
            mirror.settle(state, error)
            self._metrics.transfers.labels(mirror.kind, mirror.store, state).inc()
            self._announce(state, mirror)
        del self._held[mirror.id]
        held.stack.close()


class _Held(NamedTuple):
    """A mirror and its place, which closing the stack gives up."""

    mirror: Mirror
    place: Place
    stack: ExitStack
