"""The control plane as seen from a process that is not its center: every question goes over the bus."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager

import trio

from ..errors import InvalidRequest
from .bus import Bus, MemberGone
from .control import Change
from .messages import ByeReason
from .plane import Listing, Shown, Watch
from .reports import (
    ASK_SCRUB,
    CANCEL,
    CANCEL_ALL,
    CANCEL_WRITERS,
    CENTER,
    CHANGE,
    CHANGE_ALL,
    DISMISS,
    EXPOSE,
    FIND,
    GET_LIMIT,
    LIST,
    NEXT,
    SAY,
    SCRUB_PROGRESS,
    SET_LIMIT,
    UNWATCH,
    WATCH,
    Chosen,
    Said,
    Texts,
    Watcher,
    Who,
    Writers,
)
from .scrub import Progress
from .sink import Sink
from .view import Filters, Viewer


class RemotePlane:
    """`ControlPlane` over the bus. Every call may raise `MemberGone` too."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._numbers = itertools.count()

    async def list(self, viewer: Viewer, filters: Filters) -> Listing:
        shown = await self._bus.command(CENTER, LIST, Chosen(_who(viewer), filters=filters))
        return Listing(shown.transfers, shown.totals)

    async def find(self, viewer: Viewer, id: str) -> Shown:
        return await self._bus.command(CENTER, FIND, Chosen(_who(viewer), id))

    async def change(self, viewer: Viewer, id: str, change: Change) -> Shown:
        return await self._bus.command(CENTER, CHANGE, Chosen(_who(viewer), id, change=change))

    async def change_all(self, viewer: Viewer, filters: Filters, change: Change) -> Listing:
        chosen = Chosen(_who(viewer), filters=filters, change=change)
        shown = await self._bus.command(CENTER, CHANGE_ALL, chosen)
        return Listing(shown.transfers, shown.totals)

    async def cancel(self, viewer: Viewer, id: str) -> Shown:
        return await self._bus.command(CENTER, CANCEL, Chosen(_who(viewer), id))

    async def cancel_all(self, viewer: Viewer, filters: Filters) -> Listing:
        shown = await self._bus.command(CENTER, CANCEL_ALL, Chosen(_who(viewer), filters=filters))
        return Listing(shown.transfers, shown.totals)

    async def cancel_writers(self, image_id: str, reason: str) -> None:
        await self._bus.command(CENTER, CANCEL_WRITERS, Writers(image_id, reason))

    async def limit_bytes_per_s(self) -> int:
        return await self._bus.command(CENTER, GET_LIMIT, None)

    async def limit(self, bytes_per_s: int) -> None:
        await self._bus.command(CENTER, SET_LIMIT, bytes_per_s)

    @asynccontextmanager
    async def watch(self, viewer: Viewer) -> AsyncGenerator[Watch, None]:
        number = next(self._numbers)
        try:
            await self._bus.command(CENTER, WATCH, Watcher(number, _who(viewer)))
            failure: Exception | None = None
            async with trio.open_nursery() as nursery:
                try:
                    yield _RemoteWatch(self._bus, number, nursery)
                except Exception as exc:
                    # Carried out of the nursery as it is, not wrapped into a group.
                    failure = exc
                nursery.cancel_scope.cancel(reason="nobody watches any more")
            if failure is not None:
                raise failure
        finally:
            self._bus.publish(UNWATCH, number, to=CENTER)

    async def dismiss(self, access_key: str) -> None:
        await self._bus.command(CENTER, DISMISS, access_key)

    async def exposition(self) -> bytes:
        return await self._bus.command(CENTER, EXPOSE, None)

    async def scrub_progress(self) -> Progress:
        return await self._bus.command(CENTER, SCRUB_PROGRESS, None)

    async def ask_scrub(self, image_ids: Iterable[str]) -> None:
        await self._bus.command(CENTER, ASK_SCRUB, [*image_ids])


def _who(viewer: Viewer) -> Who:
    return Who(viewer.access_key, viewer.is_admin, viewer.own_only)


class _RemoteWatch:
    """`Watch` over the bus: asks for more once all that came was fetched, so that the center makes none for a client
    that is slow.

    Attributes:
        farewell: Why the gateway ended it; None while it has not.
    """

    def __init__(self, bus: Bus, number: int, nursery: trio.Nursery) -> None:
        self.farewell: ByeReason | None = None
        self._bus = bus
        self._number = number
        self._nursery = nursery
        self._asked = False
        self._arrived: deque[str | None] = deque()
        self._wakeup = trio.Event()

    def attach(self, sink: Sink) -> None:
        """Nothing: messages are fetched."""

    async def next_text(self) -> str | None:
        while not self._arrived:
            if not self._asked:
                # In a task of its own: cancelling the caller must not lose what is on its way.
                self._asked = True
                self._nursery.start_soon(self._ask)
            await self._wakeup.wait()
        text = self._arrived[0]
        if text is not None:  # the end stays
            self._arrived.popleft()
        return text

    def further_texts(self) -> Sequence[str]:
        texts = [text for text in self._arrived if text is not None]
        self._arrived = deque(text for text in self._arrived if text is None)
        return texts

    async def _ask(self) -> None:
        try:
            arrived = await self._bus.command(CENTER, NEXT, self._number)
        except MemberGone:
            arrived = Texts([], "drain")
        self.farewell = arrived.farewell
        self._arrived.extend(arrived.texts or [None])
        self._asked = False
        self._wakeup.set()
        self._wakeup = trio.Event()

    def hear(self, text: str) -> None:
        self._bus.publish(SAY, Said(self._number, text=text), to=CENTER)

    def complain(self, error: InvalidRequest) -> None:
        self._bus.publish(SAY, Said(self._number, complaint=error.message), to=CENTER)
