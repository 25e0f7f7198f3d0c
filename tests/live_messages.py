"""The messages of `visor.progress.v1` as a client checks them, written from the contract and not from the product,
and a client that believes what it is told and checks the promises of order."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from canary import canary

State = Literal["queued", "running", "paused", "finished", "failed", "cancelled"]
Count = Annotated[int, msgspec.Meta(ge=0)]
FINAL = ("finished", "failed", "cancelled")


class _Strict(msgspec.Struct, forbid_unknown_fields=True, tag_field="type"):
    pass


class Wait(msgspec.Struct, forbid_unknown_fields=True):
    client: Count
    store: Count
    limit: Count
    disk: Count


class Transfer(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    kind: Literal["pull", "push", "fill", "import", "copy"]
    image: str
    store: str | None
    client: str | None
    user: str | None
    state: State
    bytes: Count
    size: Count | None
    offset: Count
    rate: Count
    rate_avg: Count
    eta_s: float | None
    started_at: str
    wait: Wait
    waiters: Count
    attempt: Annotated[int, msgspec.Meta(ge=1)]
    limit_bytes_per_s: Count | None
    error: str | None
    position: Annotated[int, msgspec.Meta(ge=1)] | msgspec.UnsetType = msgspec.UNSET  # there while it is queued


class Totals(msgspec.Struct, forbid_unknown_fields=True):
    transfers: Count
    rate: Count
    bytes: Count
    by_state: dict[State, Count]
    by_kind: dict[str, Count]


class Hello(_Strict, tag="hello"):
    epoch: str
    seq: int
    hz: float
    heartbeat_s: float


class Snapshot(_Strict, tag="snapshot"):
    seq: int
    transfers: list[Transfer]
    totals: Totals


class Delta(_Strict, tag="delta"):
    seq: int
    u: list[tuple[str, Count, Count, float | None, State, Wait]]
    removed: list[str]


class Event(_Strict, tag="event"):
    seq: int
    kind: Literal["started", "stalled", "resumed", "paused", "retrying", "verified", "finished", "failed", "cancelled"]
    transfer: Transfer


class Gap(_Strict, tag="gap"):
    pass


class Heartbeat(_Strict, tag="heartbeat"):
    seq: int


class Error(_Strict, tag="error"):
    code: int
    message: str


class Bye(_Strict, tag="bye"):
    reason: Literal["drain", "slow", "auth"]


Message = Hello | Snapshot | Delta | Event | Gap | Heartbeat | Error | Bye


def parse(text: str) -> Message:
    """Raises where the text is no message of the contract."""
    message: Message = msgspec.json.decode(text, type=Message)
    return message


class Client:
    """What a client knows after the messages so far. Raises `AssertionError` where a promise is broken.

    Attributes:
        transfers: Id to the newest `(bytes, state)`.
        ended: Id to the bytes of the final event.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.transfers: dict[str, tuple[int, str]] = {}
        self.ended: dict[str, int] = {}
        self._seq = 0

    def hear(self, text: str) -> Message:
        canary.look("a live message", text)
        message = parse(text)
        self._check_place(message)
        self.messages.append(message)
        seq = getattr(message, "seq", None)
        if seq is not None:
            assert seq > self._seq, "seq must rise strictly"
            self._seq = seq
        if isinstance(message, Snapshot):
            self.transfers = {t.id: (t.bytes, t.state) for t in message.transfers}
            assert message.totals.transfers == len(message.transfers)
        elif isinstance(message, Delta):
            self._apply_delta(message)
        elif isinstance(message, Event):
            self._apply_event(message)
        return message

    def _check_place(self, message: Message) -> None:
        before: Any = self.messages[-1] if self.messages else None
        assert isinstance(message, Hello) == (before is None), "hello comes first and once"
        assert isinstance(message, Snapshot) or not isinstance(before, (Hello, Gap)), "a snapshot must follow"
        assert not isinstance(before, Bye), "bye is the last message"

    def _apply_delta(self, delta: Delta) -> None:
        assert delta.u or delta.removed, "an empty delta"
        for id, count, _, _, state, _ in delta.u:
            assert id not in self.ended, "a delta after the final event"
            assert id in self.transfers, "a delta of something unknown"
            assert count >= self.transfers[id][0], "bytes fell"
            self.transfers[id] = (count, state)
        for id in delta.removed:
            self.transfers.pop(id, None)

    def _apply_event(self, event: Event) -> None:
        transfer = event.transfer
        assert transfer.id not in self.ended, "an event after the final one"
        assert transfer.bytes >= self.transfers.get(transfer.id, (0, ""))[0], "bytes fell"
        self.transfers[transfer.id] = (transfer.bytes, transfer.state)
        assert (event.kind in FINAL) == (transfer.state in FINAL)
        if event.kind in FINAL:
            assert event.kind == transfer.state
            self.ended[transfer.id] = transfer.bytes

    def of(self, kind: type[Any]) -> list[Any]:
        """The messages of one type so far."""
        return [message for message in self.messages if isinstance(message, kind)]
