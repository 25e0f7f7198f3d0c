"""The control plane's end of the bus: answers what members ask on behalf of their clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..errors import GatewayError
from ..metrics import Metrics, MetricsSum
from .bus import Bus
from .control import Change
from .engine import Engine
from .hub import Hub
from .plane import ControlPlane, HubPlane, Listing, LocalPlane, Shown
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
    FAMILIES,
    FIND,
    GET_LIMIT,
    LIST,
    SCRUB_PROGRESS,
    SET_LIMIT,
    Chosen,
    Writers,
)
from .reports import Shown as Listed
from .scrub import Progress, Scrub
from .shares import RateShares
from .watchers import Watchers

COUNT_SECONDS: Final = 2.0  # a member that does not tell its counts by then is shown as it was


class PlaneHost:
    """Puts the plane of a hub on the bus, with what else is one for the gateway."""

    def __init__(
        self,
        bus: Bus,
        hub: Hub,
        metrics: Metrics,
        scrub: Scrub,
        shares: RateShares,
        sums: MetricsSum,
        *,
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        """To be made before members are attached to `bus`. `refresh` brings shared metrics up to now."""
        self._bus = bus
        self._hub = hub
        self._plane: HubPlane | ControlPlane = HubPlane(hub)
        self._metrics = metrics
        self._scrub = scrub
        self._shares = shares
        self._sums = sums
        self._refresh = refresh
        self._watchers = Watchers(bus, hub)
        bus.serve(LIST, self._list)
        bus.serve(FIND, self._find)
        bus.serve(CHANGE, self._change)
        bus.serve(CHANGE_ALL, self._change_all)
        bus.serve(CANCEL, self._cancel)
        bus.serve(CANCEL_ALL, self._cancel_all)
        bus.serve(CANCEL_WRITERS, self._cancel_writers)
        bus.answer(GET_LIMIT, self._get_limit)
        bus.answer(SET_LIMIT, self._set_limit)
        bus.serve(DISMISS, self._dismiss)
        bus.serve(EXPOSE, self._expose)
        bus.answer(SCRUB_PROGRESS, self._scrub_progress)
        bus.answer(ASK_SCRUB, self._ask_scrub)

    def follow(self, plane: ControlPlane | None) -> None:
        """Answer by the plane of another process, that of a younger generation; None for the own hub again."""
        self._plane = HubPlane(self._hub) if plane is None else plane

    def forget(self, member: str) -> None:
        """A member is gone, and with it those who watched through it."""
        self._watchers.forget(member)
        self._sums.end(member)

    # --- transfers -------------------------------------------------------------------------------

    async def _list(self, member: str, chosen: Chosen) -> Listed:
        return _listed(await self._plane.list(chosen.viewer, chosen.filters))

    async def _find(self, member: str, chosen: Chosen) -> Shown:
        return await self._plane.find(chosen.viewer, chosen.id)

    async def _change(self, member: str, chosen: Chosen) -> Shown:
        return await self._plane.change(chosen.viewer, chosen.id, chosen.change or Change())

    async def _change_all(self, member: str, chosen: Chosen) -> Listed:
        return _listed(await self._plane.change_all(chosen.viewer, chosen.filters, chosen.change or Change()))

    async def _cancel(self, member: str, chosen: Chosen) -> Shown:
        return await self._plane.cancel(chosen.viewer, chosen.id)

    async def _cancel_all(self, member: str, chosen: Chosen) -> Listed:
        return _listed(await self._plane.cancel_all(chosen.viewer, chosen.filters))

    async def _cancel_writers(self, member: str, writers: Writers) -> None:
        await self._plane.cancel_writers(writers.image_id, writers.reason)

    async def _dismiss(self, member: str, access_key: str) -> None:
        await self._plane.dismiss(access_key)

    # --- the gateway -----------------------------------------------------------------------------

    def _get_limit(self, member: str, _: None) -> int:
        return self._shares.bytes_per_s

    def _set_limit(self, member: str, bytes_per_s: int) -> None:
        self._shares.limit(bytes_per_s)

    def _scrub_progress(self, member: str, _: None) -> Progress:
        return self._scrub.progress

    def _ask_scrub(self, member: str, image_ids: list[str]) -> None:
        self._scrub.ask(image_ids)

    async def _expose(self, member: str, _: None) -> bytes:
        return await self.exposition()

    async def exposition(self) -> bytes:
        """What all processes have counted, as text."""
        async with trio.open_nursery() as nursery:
            for name in self._bus.members:
                nursery.start_soon(self._count, name)
        await self._refresh()
        self._sums.take(CENTER, self._metrics.families(shared=True))
        return self._sums.exposition()

    async def _count(self, member: str) -> None:
        try:
            with trio.fail_after(COUNT_SECONDS):
                families = await self._bus.command(member, FAMILIES, None)
        except (GatewayError, trio.TooSlowError):
            return
        if member in self._bus.members:
            self._sums.take(member, families)


class CenterPlane(LocalPlane):
    """`ControlPlane` of a process that serves clients and is the center of others, too."""

    def __init__(
        self, hub: Hub, engine: Engine, metrics: Metrics, scrub: Scrub, shares: RateShares, host: PlaneHost
    ) -> None:
        super().__init__(hub, engine, metrics, scrub)
        self._shares = shares
        self._host = host

    async def limit_bytes_per_s(self) -> int:
        return self._shares.bytes_per_s

    async def limit(self, bytes_per_s: int) -> None:
        self._shares.limit(bytes_per_s)

    async def exposition(self) -> bytes:
        return await self._host.exposition()


def _listed(listing: Listing) -> Listed:
    return Listed([*listing.transfers], listing.totals)
