"""The live channel's WebSocket under Trio, by trio-websocket.

trio-websocket reads in a task of its own, in a nursery that is open as long as the socket. Errors leave that nursery in
groups; `_told` takes the one out that matters, so that callers see `VisorError`s and their own exceptions as they are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

import h11
import httpcore2
import trio
import trio_websocket
from wsproto.utilities import ProtocolError

from .errors import ConnectionBroken, ProtocolViolation, VisorError, refusal
from .network import broken, dial
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
    check_goodbye,
    check_subprotocol,
    upgrade_headers,
)

_ABNORMAL: Final = 1006  # never sent: trio-websocket's word for a connection that ended without a close frame


class TrioSocket:
    """A `Socket` on trio-websocket's connection."""

    def __init__(self, connection: trio_websocket.WebSocketConnection, line: _Line) -> None:
        self._connection = connection
        self._line = line

    async def send(self, text: str) -> None:
        try:
            await self._connection.send_message(text)
        except (trio_websocket.ConnectionClosed, ProtocolError) as exc:
            raise self._line.end or ConnectionBroken("The gateway closed the live channel") from exc

    async def ping(self) -> None:
        """Ask for a sign of life, and wait for it. Raises `ConnectionBroken`."""
        try:
            await self._connection.ping()
        except (trio_websocket.ConnectionClosed, ProtocolError) as exc:
            raise self._line.end or ConnectionBroken("The gateway closed the live channel") from exc

    async def receive(self) -> str | None:
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            if exc.reason is None or exc.reason.code == _ABNORMAL:
                raise self._line.end or ConnectionBroken(NO_GOODBYE) from exc
            check_goodbye(exc.reason.code)
            return None
        if isinstance(message, bytes):
            raise ProtocolViolation(NO_TEXT)
        return message

    async def aclose(self) -> None:
        with trio.move_on_after(GOODBYE_SECONDS, shield=True), self._line.goodbye:
            await self._connection.aclose()


@asynccontextmanager
async def connected(
    session: Session, *, path: str = PATH, message_limit: int = MESSAGE_LIMIT
) -> AsyncGenerator[TrioSocket]:
    """Open the WebSocket of the live channel. Leaving closes it.

    Args:
        path: Where it is.
        message_limit: Bytes of the longest message that is taken.

    Raises:
        VisorError: As its classes say; a refusal before the upgrade as what it is.
    """
    line = _Line(await dial(session.origin, session.tls, session.timing.connect))
    own: BaseException | None = None
    failures: BaseExceptionGroup[BaseException] | None = None
    try:
        async with trio.open_nursery() as readers:
            try:
                connection = await _upgraded(session, line, readers, path, message_limit)
                async with aclosing(TrioSocket(connection, line)) as socket:
                    yield socket
            except BaseException as exc:
                own = exc
                raise
            finally:
                readers.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failures = group
    finally:
        await line.aclose()
    # Raised out here, because the group that holds the error would else become its context.
    if failures is not None and (told := _told(failures, own)) is not None:
        raise told


async def _upgraded(
    session: Session, line: _Line, readers: trio.Nursery, path: str, message_limit: int
) -> trio_websocket.WebSocketConnection:
    connection = None
    with trio.move_on_after(session.timing.answer), line.handshake:
        # Not `connect_websocket`: it writes an IPv6 host without brackets, and waits for ever where TLS fails.
        connection = await trio_websocket.wrap_client_stream(
            readers,
            line,  # type: ignore[arg-type]  # any stream will do
            session.origin.netloc,
            session.target(path).decode("ascii"),
            subprotocols=[SUBPROTOCOL],
            extra_headers=upgrade_headers(session, path),
            max_message_size=message_limit,
            receive_buffer_size=READ_BYTES,
        )
    if connection is None:
        raise line.end or ConnectionBroken(NO_ANSWER)
    check_subprotocol(connection.subprotocol)
    return connection


def _told(group: BaseExceptionGroup[BaseException], own: BaseException | None) -> BaseException | None:
    """What callers see of what left the nursery.

    Args:
        own: What ended the block; None where it ended well, so that no failure of the reader matters any more.
    """
    if own is not None and not isinstance(own, trio.Cancelled):
        return own
    cancelled = own
    for exc in _leaves(group):
        if isinstance(exc, trio.Cancelled):
            cancelled = cancelled or exc
        elif not isinstance(exc, Exception):
            return exc
        elif own is not None:
            return _translated(exc)
    return cancelled


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            yield from _leaves(each)
    else:
        yield exc


def _translated(exc: Exception) -> Exception:
    match exc:
        case trio_websocket.ConnectionRejected():
            named = {name.decode("ascii"): value.decode("utf-8", "replace") for name, value in exc.headers}
            return refusal(exc.status_code, named, exc.body or b"")
        case ProtocolError() | h11.ProtocolError():
            # It answers what it can't understand, and fails where its own state does not admit that answer.
            return ProtocolViolation(NO_WEBSOCKET)
    return exc


class _Line(trio.abc.Stream):
    """A connection to the gateway as trio-websocket wants it.

    It notes when reading ends. trio-websocket waits for the gateway's part of a handshake and of a goodbye also when
    nothing is there any more that could bring it.

    Attributes:
        handshake, goodbye: Cancelled when nothing is read any more.
        end: Why the connection ended; None as long as it did not, or where the reader was cancelled.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self.handshake = trio.CancelScope()
        self.goodbye = trio.CancelScope()
        self.end: VisorError | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.write(bytes(data))
        except httpcore2.WriteError as exc:
            self._ended(ConnectionBroken(broken(exc)))
            raise trio.BrokenResourceError from exc

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            data = await self._stream.read(max_bytes or READ_BYTES)
        except httpcore2.ReadError as exc:
            self._ended(ConnectionBroken(broken(exc)))
            raise trio.BrokenResourceError from exc
        except trio.Cancelled:
            self._unheard()
            raise
        if not data:
            self._ended(ConnectionBroken(NO_GOODBYE))
        return data

    async def aclose(self) -> None:
        # Before the end of the socket trio-websocket closes a connection only where it can't understand what came.
        self._ended(ProtocolViolation(NO_WEBSOCKET))
        await self._stream.aclose()

    def _ended(self, end: VisorError) -> None:
        self.end = self.end or end
        self._unheard()

    def _unheard(self) -> None:
        self.handshake.cancel()
        self.goodbye.cancel()
