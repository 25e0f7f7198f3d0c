"""The live channel, as WebSocket and as Server-Sent Events: the same messages in two wrappings (docs/protocol.md).

Resource handling: one task sends and one looks at what the client says; both end with the first of them, and with the
client. The connection is closed here, and reset where the client takes nothing.
Error handling: a client that goes while it is served is no error.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import trio

from ..errors import InvalidRequest
from ..transfer.contract import ClientConnection
from ..transfer.messages import PROTOCOL, ByeReason, Resume, Subscribe
from ..transfer.plane import Watch
from .live_sender import Outlet, Sender
from .movement import Receive, Send
from .negotiate import COMMON_HEADERS
from .request import Answer, Caller, Request, Services, Text

PARSE_SECONDS: Final = 0.05  # between two messages of a client: a snapshot costs more than the wish for one

#: RFC 6455, 7.4: going away, policy violation, and one of our own.
CLOSE_CODES: Final[Mapping[ByeReason, int]] = {"drain": 1001, "auth": 1008, "slow": 4008}

_EVENT_STREAM: Final = (
    *COMMON_HEADERS,
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold messages back
)
_EVENT_ID: Final = re.compile(r"([0-9a-f]{1,64}):([0-9]{1,18})")


# --- the WebSocket -------------------------------------------------------------------------------


async def websocket(scope: Mapping[str, Any], receive: Receive, send: Send, caller: Caller, services: Services) -> None:
    """WebSocket /transfers/ws, as raw ASGI; the caller has been let in.

    Raises:
        InvalidRequest: The client offers other subprotocols only. Raised before the upgrade.
        Draining: The gateway is stopping. Raised before the upgrade.
    """
    await receive()  # websocket.connect
    subprotocol = _subprotocol(scope)
    connection: ClientConnection = scope["state"]["connection"]
    async with services.plane.watch(caller) as watch:
        await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
        await _converse(watch, _WebSocket(send, connection), connection, functools.partial(_listen, watch, receive))


def _subprotocol(scope: Mapping[str, Any]) -> str | None:
    """The subprotocol to accept; None where the client offers none, which is accepted too."""
    offered = scope.get("subprotocols") or []
    if offered and PROTOCOL not in offered:
        raise InvalidRequest(f"The only WebSocket subprotocol here is {PROTOCOL}")
    return PROTOCOL if offered else None


async def _listen(watch: Watch, receive: Receive) -> None:
    """Hand on what the client says until it goes."""
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text is None:
            watch.complain(InvalidRequest("Expected a text frame"))
        else:
            watch.hear(text)
        await trio.sleep(PARSE_SECONDS)


class _WebSocket:
    """Messages as text frames."""

    sends_now = True

    def __init__(self, send: Send, connection: ClientConnection) -> None:
        self._send = send
        self._connection = connection

    async def send(self, texts: Sequence[str], *, ping: bool) -> None:
        await self._connection.send_texts(texts, ping=ping)

    @property
    def pinged_at(self) -> float | None:
        return self._connection.pinged_at

    async def close(self, reason: ByeReason) -> None:
        await self._send({"type": "websocket.close", "code": CLOSE_CODES[reason], "reason": reason})


# --- Server-Sent Events --------------------------------------------------------------------------


async def events(request: Request, receive: Receive, send: Send) -> Answer | Text | None:
    """GET /transfers/events, as raw ASGI: filters and `hz` in the query, `Last-Event-ID` to resume.

    Raises:
        InvalidRequest: A filter is unknown, or `hz` is no number. Raised before the answer begins.
        Draining: The gateway is stopping. Raised before the answer begins.
    """
    wishes: list[Subscribe | Resume] = [_wish(request)]
    last = request.header(b"last-event-id")
    if last is not None:
        wishes.append(_position(last))
    connection: ClientConnection = request.scope["state"]["connection"]
    async with request.services.plane.watch(request.caller) as watch:
        for wish in wishes:
            watch.hear(msgspec.json.encode(wish).decode())
        await send({"type": "http.response.start", "status": 200, "headers": list(_EVENT_STREAM)})
        await _converse(
            watch, _EventStream(send, resumes=last is not None), connection, functools.partial(_until_gone, receive)
        )
    return None


def _wish(request: Request) -> Subscribe:
    filters: dict[str, list[str]] = {}
    hz: float | None = None
    for name, value in request.query:
        if name == "hz":
            hz = _number(value)
        else:
            filters.setdefault(name, []).append(value)
    wish = Subscribe(filter={**filters}, hz=hz)
    _ = wish.filters  # refused here, before the answer begins
    return wish


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidRequest("Invalid hz: expected messages per second, 0.2 to 10")
    return number


def _position(last: bytes) -> Resume:
    """What a client saw last. An id that is none of ours is one of another epoch: a gap and a snapshot follow."""
    found = _EVENT_ID.fullmatch(last.decode("latin-1").strip())
    return Resume(found[1], int(found[2])) if found else Resume("", 0)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream:
    """Messages as events of a stream (HTML, 9.2): `event` is the message's type, `data` the message. What has a `seq`
    has an id, `<epoch>:<seq>`; the epoch is that of `hello`, which comes first. Nothing can be asked of its reader.

    Where the reader resumes, `hello` and the snapshot come before what it missed, with later numbers: they have no id,
    or a connection that breaks between them and the rest would be resumed behind it. After a `gap` nothing is missed
    any more.
    """

    pinged_at = None
    sends_now = False

    def __init__(self, send: Send, *, resumes: bool) -> None:
        self._send = send
        self._epoch: str | None = None
        self._is_early = resumes  # whether what comes was not asked for yet

    async def send(self, texts: Sequence[str], *, ping: bool) -> None:
        if not texts:
            return
        if self._epoch is None:
            self._epoch = _decode(texts[0]).epoch
        body = b"".join(map(self._event, texts))
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    def _event(self, text: str) -> bytes:
        if not self._is_early:
            return _as_event(text, self._epoch)
        self._is_early = _decode(text).type == "hello"
        return _as_event(text, None)

    async def close(self, reason: ByeReason) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class _Stamped(msgspec.Struct):
    """What the wrapping needs of a message."""

    type: str
    seq: int | None = None
    epoch: str | None = None


_decode: Final = msgspec.json.Decoder(_Stamped).decode


@functools.lru_cache(maxsize=64)  # many watchers get the same message
def _as_event(text: str, epoch: str | None) -> bytes:
    message = _decode(text)
    id = "" if message.seq is None or epoch is None else f"id: {epoch}:{message.seq}\n"
    return f"event: {message.type}\n{id}data: {text}\n\n".encode()


# --- both ----------------------------------------------------------------------------------------


async def _converse(
    watch: Watch,
    outlet: Outlet,
    connection: ClientConnection,
    until_gone: Callable[[], Awaitable[None]],
) -> None:
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            await until_gone()
            nursery.cancel_scope.cancel(reason="the client is gone")

        nursery.start_soon(listen)
        await Sender(watch, outlet, connection).run()
        nursery.cancel_scope.cancel(reason="all is said")
