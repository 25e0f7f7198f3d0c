"""The control plane as seen from a process that is not its center: every question goes over the bus."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import trio

from .bus import Bus
from .control import Change
from .plane import Listing, Shown, Watch
from .remote_watch import RemoteWatches
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
    SCRUB_PROGRESS,
    SET_LIMIT,
    UNWATCH,
    WATCH,
    Chosen,
    Watcher,
    Who,
    Writers,
)
from .scrub import Progress
from .view import Filters, Viewer


class RemotePlane:
    """`ControlPlane` over the bus. Every call may raise `MemberGone` too."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._numbers = itertools.count()
        self._watches = RemoteWatches(bus)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send watchers what comes for them, until cancelled. Without it their own tasks do."""
        task_status.started()
        await self._watches.serve()

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
                watch = self._watches.add(number)
                nursery.start_soon(watch.end_with_center)
                try:
                    yield watch
                except Exception as exc:
                    # Carried out of the nursery as it is, not wrapped into a group.
                    failure = exc
                nursery.cancel_scope.cancel(reason="nobody watches any more")
            if failure is not None:
                raise failure
        finally:
            self._watches.forget(number)
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
    return Who(viewer.access_key, viewer.is_admin, viewer.own_only, viewer.rights)
