"""The live channel's WebSocket where trio-websocket can't run, that is under asyncio: wsproto over anyio's streams."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress

import anyio
import httpcore2
import wsproto
from wsproto import events
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .errors import ConnectionBroken, ProtocolViolation, refusal
from .network import broken, dial, translated
from .session import Session
from .websocket import (
    GOODBYE_SECONDS,
    MESSAGE_LIMIT,
    NO_ANSWER,
    NO_GOODBYE,
    NO_TEXT,
    NO_WEBSOCKET,
    PATH,
    READ_BYTES,
    SUBPROTOCOL,
    TOO_LONG,
    check_goodbye,
    check_subprotocol,
    upgrade_headers,
)


class AnyioSocket:
    """A `Socket` on wsproto. Nothing runs beside the caller: pings are answered while it receives."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, protocol: wsproto.WSConnection) -> None:
        self._stream = stream
        self._protocol = protocol
        self._texts: deque[str] = deque()
        self._parts: list[str] = []
        self._held = 0
        self._goodbye: int | None = None

    async def send(self, text: str) -> None:
        await self._send(events.TextMessage(data=text))

    async def receive(self) -> str | None:
        # What came with the end of the handshake is there before anything is read.
        await self._take_events()
        while not self._texts:
            if self._goodbye is not None:
                check_goodbye(self._goodbye)
                return None
            await self._read()
            await self._take_events()
        return self._texts.popleft()

    async def aclose(self) -> None:
        with anyio.move_on_after(GOODBYE_SECONDS, shield=True):
            with suppress(ConnectionBroken):
                await self._send(events.CloseConnection(code=1000))
        await self._stream.aclose()

    async def _read(self) -> None:
        try:
            data = await self._stream.read(READ_BYTES)
        except httpcore2.ReadError as exc:
            raise ConnectionBroken(broken(exc)) from exc
        if not data:
            raise ConnectionBroken(NO_GOODBYE)
        self._protocol.receive_data(data)

    async def _take_events(self) -> None:
        try:
            for event in self._protocol.events():
                await self._handle(event)
        except RemoteProtocolError as exc:
            raise ProtocolViolation(NO_WEBSOCKET) from exc

    async def _handle(self, event: events.Event) -> None:
        match event:
            case events.TextMessage():
                self._take(event)
            case events.BytesMessage():
                raise ProtocolViolation(NO_TEXT)
            case events.Ping():
                await self._send(event.response())
            case events.CloseConnection():
                self._goodbye = event.code
                with suppress(ConnectionBroken):
                    await self._send(event.response())

    def _take(self, event: events.TextMessage) -> None:
        self._parts.append(event.data)
        self._held += len(event.data)
        if self._held > MESSAGE_LIMIT:
            raise ProtocolViolation(TOO_LONG)
        if event.message_finished:
            self._texts.append("".join(self._parts))
            self._parts.clear()
            self._held = 0

    async def _send(self, event: events.Event) -> None:
        try:
            await self._stream.write(self._protocol.send(event))
        except httpcore2.WriteError as exc:
            raise ConnectionBroken(broken(exc)) from exc
        except LocalProtocolError as exc:
            raise ConnectionBroken("The gateway closed the live channel") from exc


@asynccontextmanager
async def connected(session: Session) -> AsyncGenerator[AnyioSocket]:
    """Open the WebSocket of the live channel. Leaving closes it.

    Raises:
        VisorError: As its classes say; a refusal before the upgrade as what it is.
    """
    async with aclosing(await dial(session.origin, session.tls, session.timing.connect)) as stream:
        protocol: wsproto.WSConnection | None = None
        with translated(session.origin), anyio.move_on_after(session.timing.answer):
            protocol = await _upgraded(session, stream)
        if protocol is None:
            raise ConnectionBroken(NO_ANSWER)
        async with aclosing(AnyioSocket(stream, protocol)) as socket:
            yield socket


async def _upgraded(session: Session, stream: httpcore2.AsyncNetworkStream) -> wsproto.WSConnection:
    protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    request = events.Request(
        host=session.origin.netloc,
        target=session.target(PATH).decode("ascii"),
        subprotocols=[SUBPROTOCOL],
        extra_headers=upgrade_headers(session),
    )
    await stream.write(protocol.send(request))
    answer = _Answer()
    while not answer.accepted:
        data = await stream.read(READ_BYTES)
        try:
            protocol.receive_data(data or None)
            for event in protocol.events():
                answer.take(event)
                if answer.accepted:
                    # What follows is for the socket.
                    break
        except RemoteProtocolError as exc:
            raise (ProtocolViolation(NO_WEBSOCKET) if data else ConnectionBroken(NO_GOODBYE)) from exc
        if not data:
            raise ConnectionBroken(NO_GOODBYE)
    return protocol


class _Answer:
    """The answer to the upgrade.

    Attributes:
        accepted: Whether the gateway agreed.
    """

    def __init__(self) -> None:
        self.accepted = False
        self._status = 0
        self._named: dict[str, str] = {}
        self._content = bytearray()

    def take(self, event: events.Event) -> None:
        """Take in one event of the handshake. Raises what a refusal stands for once it is whole."""
        match event:
            case events.AcceptConnection():
                check_subprotocol(event.subprotocol)
                self.accepted = True
            case events.RejectConnection():
                self._status = event.status_code
                self._named = {name.decode("ascii"): value.decode("utf-8", "replace") for name, value in event.headers}
                if not event.has_body:
                    raise refusal(self._status, self._named, b"")
            case events.RejectData():
                self._content += event.data
                if event.body_finished:
                    raise refusal(self._status, self._named, bytes(self._content))
