"""One movement of bytes, as the engine keeps it and as clients see it (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal

import trio

from ..image import timestamp
from ..metrics import Metrics
from .admission import Place
from .limits import Rates
from .meter import Meter

Kind = Literal["pull", "push", "fill", "import", "copy"]
State = Literal["queued", "running", "paused", "finished", "failed", "cancelled"]
Outcome = Literal["finished", "failed", "cancelled"]
Ended = Literal["finished", "failed", "cancelled"]
Incident = Literal["retrying", "resumed"]
ENDED: Final = frozenset({"finished", "failed", "cancelled"})
UNCOUNTED: Final = frozenset({"fill"})  # kinds that need no slot: what waits for them has one
WRITERS: Final = frozenset({"push", "import", "copy"})  # kinds that write the image that they name


class Transfer:
    """State of one transfer. Only the engine changes it; everything else reads.

    Whoever moves the bytes tells what the engine can't see: `meter` counts them, `retrying` and `resumed` say that a
    store or origin failed and is tried again.

    Attributes:
        id: UUID.
        image: `_id` of the image.
        client: Address of the peer, None for background work.
        user: Access key on whose behalf it runs, None for anonymous pulls.
        size: Bytes to move; None while unknown.
        offset: Where in the image a pull begins.
        attempt: 1, and one more for each time that something which failed was tried again.
        waiters: Readers that wait for a fill.
        place: Its place in the queue or at a slot, None before it has one.
        pace: How fast it may go; without a limit until the engine gives it the gateway's.
        gateway: Name of the gateway that moves the bytes, where several share a view.
        foreign: Whether that is another gateway than this one.
        started_at: When it was admitted.
        cancel_reason: Why it is to end, once somebody asked for that.
        error: Why it failed or was cancelled.
        ended: Set once nothing of the transfer runs any more and its state is final.
    """

    foreign: ClassVar[bool] = False

    def __init__(
        self,
        *,
        id: str,
        kind: Kind,
        image: str,
        store: str | None,
        client: str | None,
        user: str | None,
        size: int | None,
        offset: int = 0,
    ) -> None:
        self.id = id
        self.kind = kind
        self.image = image
        self.store = store
        self.client = client
        self.user = user
        self.size = size
        self.offset = offset
        self.state: State = "queued"
        self.attempt = 1
        self.waiters = 0
        self.place: Place | None = None
        self.pace = Rates().pace()
        self.gateway: str | None = None
        self.error: str | None = None
        self.started_at = datetime.now(UTC)
        self.meter = Meter()
        self.ended = trio.Event()
        self.cancel_reason: str | None = None
        self._scope: trio.CancelScope | None = None
        self._tell: Callable[[Incident], None] | None = None
        self._retrying = False

    def told_by(self, tell: Callable[[Incident], None]) -> None:
        """Called by the engine: how watchers are told of `retrying` and `resumed`."""
        self._tell = tell

    def retrying(self) -> None:
        """Say that a store or origin failed, and is about to be tried again: counts `attempt`, tells watchers.

        To be called once for each try, before its delay. Never waits. After the end it changes nothing.
        """
        if self.state not in ENDED:
            self.attempt += 1
            self._retrying = True
            self._announce("retrying")

    def resumed(self) -> None:
        """Say that bytes move again. Tells watchers once, and nothing where nothing was tried again."""
        if self._retrying and self.state not in ENDED:
            self._retrying = False
            self._announce("resumed")

    def _announce(self, incident: Incident) -> None:
        if self._tell is not None:
            self._tell(incident)

    def enter(self, scope: trio.CancelScope) -> None:
        """Called by the engine when the transfer's nursery is open: from now on a cancellation reaches it."""
        self._scope = scope
        if self.cancel_reason is not None:
            scope.cancel(reason=self.cancel_reason)

    def begin(self, scope: trio.CancelScope) -> None:
        """Called by the engine when the transfer has its slot. Rates count from here, not from the queue."""
        self.enter(scope)
        self.meter.begin()
        if self.cancel_reason is None and self.state == "queued":
            self.state = "paused" if self.pace.paused else "running"

    def cancel(self, reason: str) -> None:
        """End the transfer on purpose. Does not wait: `ended` tells when it is over. A second call changes nothing."""
        if self.cancel_reason is None and not self.ended.is_set():
            self.cancel_reason = reason
            if self._scope is not None:
                self._scope.cancel(reason=reason)

    def pause(self) -> bool:
        """Have it move nothing until `resume`; it keeps its connection and its slot. One that is queued goes on
        waiting, and is paused when its turn has come. Returns whether its state changed."""
        self.pace.paused = True
        changed = self.state == "running"
        if changed:
            self.state = "paused"
        return changed

    def resume(self) -> bool:
        """Undo `pause`. Returns whether its state changed."""
        self.pace.paused = False
        changed = self.state == "paused"
        if changed:
            self.state = "running"
        return changed

    def settle(self, state: Ended, error: str | None = None) -> None:
        """Make the outcome final. Called by the engine before the connection of a broken pull is reset (see
        `Meter.freeze`). The first outcome stands: a second call changes nothing."""
        if self.state not in ENDED:
            self.meter.freeze(whole=state == "finished")
            self.state, self.error = state, error
            # Who asks for an ended transfer needs none of what it ran with.
            self._tell = self._scope = self.place = None

    def book(self, metrics: Metrics) -> None:
        """Count what it has moved since the last call. Called at its end, and whenever metrics are read."""
        moved = self.meter.unbooked()
        if moved:
            metrics.transfer_bytes.labels(self.kind, self.store).inc(moved)

    @property
    def position(self) -> int | None:
        """Its position in the queue, 1 for the one that is served next; None where it does not wait there."""
        return self.place.position if self.place is not None and self.state == "queued" else None

    @property
    def limit_bytes_per_s(self) -> int | None:
        """Its own limit, apart from the gateway's; None without one."""
        return self.pace.bytes_per_s or None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the present rate; None where nobody can tell."""
        if self.size is None or self.meter.rate < 1 or self.state != "running":
            return None
        return round(max(0, self.size - self.meter.bytes) / self.meter.rate, 1)

    def shown(self) -> dict[str, Any]:
        """The transfer object of the contract; `position` is in it only while the transfer is queued, `gateway` where
        gateways share a view."""
        shown = {
            "id": self.id,
            "kind": self.kind,
            "image": self.image,
            "store": self.store,
            "client": self.client,
            "user": self.user,
            "state": self.state,
            "bytes": self.meter.bytes,
            "size": self.size,
            "offset": self.offset,
            "rate": round(self.meter.rate),
            "rate_avg": round(self.meter.rate_avg),
            "eta_s": self.eta_s,
            "started_at": timestamp(self.started_at),
            "wait": dict(self.meter.wait),
            "waiters": self.waiters,
            "attempt": self.attempt,
            "limit_bytes_per_s": self.limit_bytes_per_s,
            "error": self.error,
        }
        if self.gateway is not None:
            shown["gateway"] = self.gateway
        return shown if self.position is None else {**shown, "position": self.position}
