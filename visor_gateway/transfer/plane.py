"""The control plane: what can be asked of the gateway as a whole, and done to it, whichever of its processes is asked.

Routes speak to a `ControlPlane` alone and do not know how many processes there are. `LocalPlane` answers where one
process is the whole gateway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

import msgspec
import trio

from ..errors import Conflict, InvalidRequest, NotFound
from ..metrics import Metrics
from . import abroad
from .control import Change, steer
from .engine import Engine
from .foreign import ForeignTransfer
from .hub import Hub
from .messages import ByeReason
from .scrub import Progress, Scrub
from .sink import Sink
from .transfer import ENDED, WRITERS, Transfer
from .view import EVERYTHING, Filters, View, Viewer, totals

CANCEL_SECONDS: Final = 10.0  # how long is waited for a cancelled transfer to end
CUT_SECONDS: Final = 30.0  # the same for one that has to remove what it wrote

Shown = dict[str, Any]


class Listing(msgspec.Struct, frozen=True):
    """Transfers as clients see them, and sums over them."""

    transfers: Sequence[Shown]
    totals: dict[str, Any]

    @classmethod
    def of(cls, transfers: Sequence[Transfer]) -> Listing:
        """The listing of these."""
        return cls([transfer.shown() for transfer in transfers], totals(transfers))

    def joined(self, answers: abroad.Answers) -> Listing:
        """This one, and what other gateways have answered. Raises the first refusal."""
        if answers.refusal is not None:
            raise answers.refusal
        sums = dict(self.totals)
        if answers.transfers:
            sums["transfers"] += len(answers.transfers)
            for name in ("rate", "bytes"):
                sums[name] += sum(each[name] for each in answers.transfers)
            for name, field in (("by_state", "state"), ("by_kind", "kind")):
                sums[name] = dict(Counter(sums[name]) + Counter(each[field] for each in answers.transfers))
        return Listing([*self.transfers, *answers.transfers], sums)


class Watch(Protocol):
    """One watcher's messages (docs/protocol.md), fetched by one task."""

    @property
    def farewell(self) -> ByeReason | None:
        """Why the gateway ended it; None while it has not."""
        ...

    def attach(self, sink: Sink) -> None:
        """Have messages put into `sink` while it is ready and the task waits in `next_text`."""
        ...

    async def next_text(self) -> str | None:
        """The next message, encoded; empty where the sink did not take all, and None after `bye`. Cancelling it loses
        no message."""
        ...

    def further_texts(self) -> Sequence[str]:
        """The messages that can be sent together with the one that was fetched, without waiting."""
        ...

    def hear(self, text: str) -> None:
        """Act on a message of the client; one that can't be understood is answered by an `error`."""
        ...

    def complain(self, error: InvalidRequest) -> None:
        """Answer with an `error`."""
        ...


class ControlPlane(Protocol):
    """The gateway as one. `viewer` is who asks: what he may not see does not exist (`NotFound`)."""

    async def list(self, viewer: Viewer, filters: Filters) -> Listing:
        """What is under way; what ended not long ago only where the filters name states."""
        ...

    async def find(self, viewer: Viewer, id: str) -> Shown:
        """A transfer that is under way or ended not long ago. Raises `NotFound`."""
        ...

    async def change(self, viewer: Viewer, id: str, change: Change) -> Shown:
        """Pause, resume or limit a transfer. Raises `NotFound`, `Conflict` and `Forbidden` as `control.steer`."""
        ...

    async def change_all(self, viewer: Viewer, filters: Filters, change: Change) -> Listing:
        """The same for all that are under way and met by the filters, or for none."""
        ...

    async def cancel(self, viewer: Viewer, id: str) -> Shown:
        """Cancel a transfer. Returns once nothing of it runs any more, or after `CANCEL_SECONDS`.

        Raises:
            NotFound: There is none that exists for this viewer.
            Conflict: It has ended already.
        """
        ...

    async def cancel_all(self, viewer: Viewer, filters: Filters) -> Listing:
        """The same for all that are under way and met by the filters."""
        ...

    async def cancel_writers(self, image_id: str, reason: str) -> None:
        """Cancel what writes an image. Returns once it has ended, or after `CUT_SECONDS`."""
        ...

    async def limit_bytes_per_s(self) -> int:
        """What all transfers together may move in a second; 0 for any number."""
        ...

    async def limit(self, bytes_per_s: int) -> None:
        """Change that. Those that run follow at once."""
        ...

    def watch(self, viewer: Viewer) -> AbstractAsyncContextManager[Watch]:
        """Watch all that `viewer` may see, until the block ends. Raises `Draining`."""
        ...

    async def dismiss(self, access_key: str) -> None:
        """Say bye to the watchers of an account that lost its rights."""
        ...

    async def exposition(self) -> bytes:
        """What the gateway has counted, in the Prometheus text format."""
        ...

    async def scrub_progress(self) -> Progress:
        """What the scrub does now."""
        ...

    async def ask_scrub(self, image_ids: Iterable[str]) -> None:
        """Have these images scrubbed next, in this order."""
        ...


class HubPlane:
    """The part of a `ControlPlane` that is about the transfers of a hub, whoever moves their bytes."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def list(self, viewer: Viewer, filters: Filters) -> Listing:
        view = View.of(viewer, filters)
        found = view.select(self._hub.live_for(view))
        if view.states is not None:
            found += view.select(self._hub.ended())
        return Listing.of(found)

    async def find(self, viewer: Viewer, id: str) -> Shown:
        return self._visible(viewer, id).shown()

    async def change(self, viewer: Viewer, id: str, change: Change) -> Shown:
        transfer = self._visible(viewer, id)
        if isinstance(transfer, ForeignTransfer):
            return await abroad.change(transfer, viewer, change)
        steer(self._hub, viewer, [transfer], change)
        return transfer.shown()

    async def change_all(self, viewer: Viewer, filters: Filters, change: Change) -> Listing:
        chosen, elsewhere = abroad.parted(self._chosen(viewer, filters))
        steer(self._hub, viewer, chosen, change)
        return Listing.of(chosen).joined(await abroad.change_all(elsewhere, viewer, filters, change))

    async def cancel(self, viewer: Viewer, id: str) -> Shown:
        transfer = self._visible(viewer, id)
        if isinstance(transfer, ForeignTransfer) and transfer.state not in ENDED:
            return await abroad.cancel(transfer, viewer)
        if transfer.state not in ENDED:
            await _cancelled([transfer], "request", CANCEL_SECONDS)
            # It may have reached its end before the cancellation reached it.
            if transfer.state != "finished":
                return transfer.shown()
        raise Conflict(f"Transfer '{transfer.id}' has ended already: {transfer.state}")

    async def cancel_all(self, viewer: Viewer, filters: Filters) -> Listing:
        chosen, elsewhere = abroad.parted(self._chosen(viewer, filters))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancelled, chosen, "request", CANCEL_SECONDS)
            answers = await abroad.cancel_all(elsewhere, viewer, filters)
        return Listing.of(chosen).joined(answers)

    async def cancel_writers(self, image_id: str, reason: str) -> None:
        live = self._hub.live_for(EVERYTHING)
        writing, elsewhere = abroad.parted([e for e in live if e.image == image_id and e.kind in WRITERS])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancelled, writing, reason, CUT_SECONDS)
            for transfer in elsewhere:
                nursery.start_soon(abroad.cancel_writer, transfer)

    @asynccontextmanager
    async def watch(self, viewer: Viewer) -> AsyncGenerator[Watch, None]:
        with self._hub.subscribe(viewer) as subscription:
            yield subscription

    async def dismiss(self, access_key: str) -> None:
        self._hub.dismiss(access_key)

    def _visible(self, viewer: Viewer, id: str) -> Transfer:
        transfer = self._hub.find(id)
        if transfer is None or not View.of(viewer).may_see(transfer):
            raise NotFound(f"No transfer found with id '{id}'.")
        return transfer

    def _chosen(self, viewer: Viewer, filters: Filters) -> Sequence[Transfer]:
        view = View.of(viewer, filters)
        return view.select(self._hub.live_for(view))


class LocalPlane(HubPlane):
    """`ControlPlane` of a gateway that is this process."""

    def __init__(self, hub: Hub, engine: Engine, metrics: Metrics, scrub: Scrub) -> None:
        super().__init__(hub)
        self._engine = engine
        self._metrics = metrics
        self._scrub = scrub

    async def limit_bytes_per_s(self) -> int:
        return self._engine.limit_bytes_per_s

    async def limit(self, bytes_per_s: int) -> None:
        self._engine.limit(bytes_per_s)

    async def exposition(self) -> bytes:
        return self._metrics.exposition()

    async def scrub_progress(self) -> Progress:
        return self._scrub.progress

    async def ask_scrub(self, image_ids: Iterable[str]) -> None:
        self._scrub.ask(image_ids)


async def _cancelled(transfers: Sequence[Transfer], reason: str, seconds: float) -> None:
    """Cancel transfers, and wait until nothing of them runs any more, or for so long."""
    for transfer in transfers:
        transfer.cancel(reason)
    with trio.move_on_after(seconds):
        for transfer in transfers:
            await transfer.ended.wait()
