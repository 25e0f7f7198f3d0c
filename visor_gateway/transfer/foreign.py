"""A transfer whose bytes another gateway moves: it shows what that gateway tells, and is steered by asking it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Protocol

import msgspec

from ..errors import GatewayError
from .meter import WAITS, WaitKind
from .mirror import ReportedMeter
from .transfer import ENDED, Kind, State, Transfer

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(max_length=255)]
Waits = dict[WaitKind, Count]

#: What of an answer is shown to clients.
_SHOWN: Final = (
    *("id", "kind", "image", "store", "client", "user", "state", "bytes", "size", "offset", "rate", "rate_avg"),
    *("eta_s", "started_at", "wait", "waiters", "attempt", "limit_bytes_per_s", "error", "position"),
)


class Told(msgspec.Struct, frozen=True):
    """A transfer as another gateway tells of it. Its word is held to bounds: it may be wrong, and must not do harm."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    kind: Kind
    image: Name
    store: Name | None
    client: Name | None
    user: Name | None
    state: State
    bytes: Count
    size: Count | None
    offset: Count
    rate: Count
    rate_avg: Count
    started_at: datetime
    wait: Waits
    waiters: Count
    attempt: Count
    limit_bytes_per_s: Count | None
    error: Annotated[str, msgspec.Meta(max_length=1000)] | None


class Wish(msgspec.Struct, frozen=True):
    """What one gateway asks of another on behalf of a client, whose access it has checked.

    Attributes:
        access_key, is_admin: The client.
        id: The transfer; None for all that `filters` name.
        change: What a client would send; None to cancel.
    """

    access_key: str | None
    is_admin: bool
    id: str | None = None
    filters: dict[str, list[str]] = {}
    change: dict[str, Any] | None = None


class PeerUnavailable(GatewayError):
    """Another gateway does not answer, or not as it should."""

    status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True
    retry_after: ClassVar[int | None] = 5

    def __init__(self, gateway: str) -> None:
        super().__init__(f"The gateway '{gateway}' does not answer: nobody knows whether it has done what was asked")


class Peer(Protocol):
    """Another gateway."""

    @property
    def gateway(self) -> str:
        """Its name."""
        ...

    async def ask(self, wish: Wish) -> list[dict[str, Any]]:
        """Have it do something. Returns the transfers that it was done to, as they are now.

        Raises:
            PeerUnavailable: It does not answer in time.
            GatewayError: It refused.
        """
        ...


class ForeignTransfer(Transfer):
    """What this gateway knows of another one's transfer. Nothing here waits for that gateway but its `peer`."""

    foreign: ClassVar[bool] = True

    def __init__(self, told: Told, peer: Peer) -> None:
        super().__init__(
            id=told.id,
            kind=told.kind,
            image=told.image,
            store=told.store,
            client=told.client,
            user=told.user,
            size=told.size,
            offset=told.offset,
        )
        self.peer = peer
        self.gateway = peer.gateway
        self.started_at = told.started_at
        self.counted = _ToldMeter()
        self.meter = self.counted
        self._limit: int | None = None
        self.take(told)

    def take(self, told: Told) -> None:
        """Show it as it is told now. After the end nothing changes any more."""
        if self.state in ENDED:
            return
        self.state, self.error = told.state, told.error
        self.size, self.waiters, self.attempt, self._limit = (
            told.size,
            told.waiters,
            told.attempt,
            told.limit_bytes_per_s,
        )
        self.counted.told(told.bytes, told.rate, told.rate_avg, told.wait)
        if self.state in ENDED:
            self.counted.stop()
            self.ended.set()

    def take_progress(self, bytes: int, rate: int, state: State, wait: Waits) -> None:
        """Show newer counts. An end is told by an event, and by nothing else."""
        if self.state not in ENDED and state not in ENDED:
            self.state = state
            self.counted.progress(bytes, rate, wait)

    def take_limit(self, limit: int | None) -> None:
        """Show the limit that its gateway has answered; no event tells of it."""
        self._limit = limit

    @property
    def limit_bytes_per_s(self) -> int | None:
        return self._limit

    @property
    def position(self) -> int | None:
        """Its place in the queue of another gateway is not told as it changes."""
        return None

    def cancel(self, reason: str) -> None:
        """To be asked of its gateway."""
        raise TypeError("A transfer of another gateway is cancelled by that gateway")


class _ToldMeter(ReportedMeter):
    """Counts that another gateway told."""

    def told(self, bytes: int, rate: int, rate_avg: int, wait: Waits) -> None:
        """Take over what is told of the whole transfer."""
        self._bytes, self.rate, self._rate_avg = bytes, rate, rate_avg
        self.wait = {kind: wait.get(kind, 0) for kind in WAITS}

    def progress(self, bytes: int, rate: int, wait: Waits) -> None:
        """Take over what is told of the time since the last delta."""
        self.told(bytes, rate, round(self._rate_avg), wait)
        self.waited = {kind: self.waited[kind] + self.wait[kind] for kind in WAITS}


def checked_answer(found: object, gateway: str) -> list[dict[str, Any]]:
    """The transfers of a peer's answer as clients may see them. Raises `msgspec.ValidationError`."""
    transfers: list[dict[str, Any]] = msgspec.convert(found, list[dict[str, Any]])
    msgspec.convert(transfers, list[Told], strict=False)
    return [{**{name: each[name] for name in _SHOWN if name in each}, "gateway": gateway} for each in transfers]
