"""The live channel: what a gateway's transfers do, as it happens (docs/protocol.md, `visor.progress.v1`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final

import anyio
import msgspec
import sniffio

from .errors import ConnectionBroken, ProtocolViolation
from .session import Session
from .websocket import Socket

SILENCE_SECONDS: Final = 35.0  # three heartbeats and some

Message = dict[str, Any]


class LiveChannel:
    """An open channel: iterate over it for messages. It ends when the gateway closes it; `bye` tells why.

    Attributes:
        bye: The reason that the gateway gave for its end, None as long as there was none.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self.bye: str | None = None

    async def subscribe(self, *, only: Mapping[str, str] | None = None, hz: float | None = None) -> None:
        """Ask for some transfers only (`image`, `kind`, `state`, `store`, `user`), or for another pace.

        Raises:
            ConnectionBroken: The connection ended, or the gateway does not take the message.
        """
        wanted: Message = {"type": "subscribe"}
        wanted |= {"filter": dict(only)} if only else {}
        wanted |= {"hz": hz} if hz is not None else {}
        with _patience():
            await self._socket.send(msgspec.json.encode(wanted).decode())

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        """The next message.

        Raises:
            ConnectionBroken: The connection ended without a goodbye, or was silent for longer than its heartbeat.
            ProtocolViolation: What came is no message.
        """
        with _patience():
            text = await self._socket.receive()
        if text is None:
            raise StopAsyncIteration
        try:
            message = msgspec.json.decode(text, type=Message)
        except msgspec.DecodeError as exc:
            raise ProtocolViolation("A message on the live channel is no JSON object") from exc
        if message.get("type") == "bye":
            self.bye = str(message.get("reason"))
        return message


@contextmanager
def _patience() -> Generator[None]:
    try:
        with anyio.fail_after(SILENCE_SECONDS):
            yield
    except TimeoutError as exc:
        raise ConnectionBroken(f"The gateway was silent for {SILENCE_SECONDS:g} s") from exc


@asynccontextmanager
async def opened(session: Session) -> AsyncGenerator[LiveChannel]:
    """Open the live channel: by trio-websocket under Trio, by wsproto under asyncio. Leaving closes it.

    Raises:
        Forbidden: Credentials are missing or wrong.
        VisorError: As its classes say.
    """
    async with _connected()(session) as socket:
        yield LiveChannel(socket)


def _connected() -> Callable[[Session], AbstractAsyncContextManager[Socket]]:
    # Imported late: one of them is enough, and most commands watch nothing.
    if sniffio.current_async_library() == "trio":
        from . import websocket_trio

        return websocket_trio.connected
    from . import websocket_anyio

    return websocket_anyio.connected
