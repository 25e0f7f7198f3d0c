"""The messages of `visor.progress.v1` (docs/protocol.md), one JSON object each. Sans-IO.

What the gateway says is built and encoded here; what a client says is parsed and checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec

from ..errors import InvalidRequest
from .meter import WaitKind
from .transfer import State
from .view import Filters, filters_of

PROTOCOL: Final = "visor.progress.v1"

HEARTBEAT_SECONDS: Final = 10.0
DEFAULT_HZ: Final = 2.0
SLOWEST_HZ: Final = 0.2
FASTEST_HZ: Final = 10.0

EventKind = Literal[
    "started", "stalled", "resumed", "paused", "retrying", "verified", "finished", "failed", "cancelled"
]
ByeReason = Literal["drain", "slow", "auth"]

#: `[id, bytes, rate, eta_s, state, wait]` of a delta; `wait` in ms since the delta before.
Row: TypeAlias = tuple[str, int, int, float | None, State, dict[WaitKind, int]]


class Frame(msgspec.Struct, frozen=True):
    """An encoded message, shared by all who get it."""

    seq: int
    text: str


class Hello(msgspec.Struct, frozen=True, tag_field="type", tag="hello"):
    """The first message: `seq` rises strictly within an `epoch`."""

    epoch: str
    seq: int
    hz: float = DEFAULT_HZ
    heartbeat_s: float = HEARTBEAT_SECONDS


class Snapshot(msgspec.Struct, frozen=True, tag_field="type", tag="snapshot"):
    """All of the view that is under way. Replaces what the client knew."""

    seq: int
    transfers: Sequence[Mapping[str, Any]]
    totals: Mapping[str, Any]


class Delta(msgspec.Struct, frozen=True, tag_field="type", tag="delta"):
    """What changed since the last delta; `removed` names what left the view, by its end or by its state."""

    seq: int
    u: Sequence[Row]
    removed: Sequence[str]


class Event(msgspec.Struct, frozen=True, tag_field="type", tag="event"):
    """A step in a transfer's life."""

    seq: int
    kind: EventKind
    transfer: Mapping[str, Any]


class Gap(msgspec.Struct, frozen=True, tag_field="type", tag="gap"):
    """Events were lost; a snapshot follows."""


class Heartbeat(msgspec.Struct, frozen=True, tag_field="type", tag="heartbeat"):
    """A sign of life."""

    seq: int


class Error(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """A message of the client was not understood; `code` as an HTTP status."""

    code: int
    message: str


class Bye(msgspec.Struct, frozen=True, tag_field="type", tag="bye"):
    """The last message."""

    reason: ByeReason


ServerMessage: TypeAlias = Hello | Snapshot | Delta | Event | Gap | Heartbeat | Error | Bye

_encoder: Final = msgspec.json.Encoder()


def encode(message: ServerMessage) -> str:
    """A message as the text of one frame."""
    return _encoder.encode(message).decode()


class Subscribe(msgspec.Struct, frozen=True, tag_field="type", tag="subscribe"):
    """A client's wish for a part of the transfers, at a cadence of its own."""

    filter: dict[str, str | list[str]] | None = None
    hz: float | None = None

    @property
    def filters(self) -> Filters:
        """The filters, checked. Raises `InvalidRequest` for an unknown one."""
        return filters_of((self.filter or {}).items())

    @property
    def period(self) -> float:
        """Seconds between deltas. The cadence is clamped, and rounded so that subscribers share frames."""
        hz = DEFAULT_HZ if self.hz is None else self.hz
        return 1 / round(min(max(hz, SLOWEST_HZ), FASTEST_HZ), 1)


class Resume(msgspec.Struct, frozen=True, tag_field="type", tag="resume"):
    """A client's wish for the events after `seq`, the last that it saw of `epoch`."""

    epoch: str
    seq: int


_decoder: Final[msgspec.json.Decoder[Subscribe | Resume]] = msgspec.json.Decoder(Subscribe | Resume)


def parse(text: str) -> Subscribe | Resume:
    """A client's message.

    Raises:
        InvalidRequest: It is no JSON, no known message, or a value has the wrong type. What was sent is not repeated.
    """
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise InvalidRequest(
            "Expected a JSON object: subscribe with filter and hz, or resume with epoch and seq"
        ) from exc
