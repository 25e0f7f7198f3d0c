"""The body of one answer as a receive stream that knows when it is whole.

A body of known length is read past the HTTP parser once the parser has handed over what came with the head:
exactly `length` bytes are asked of the socket, never one more, so the connection stays usable and the count is
exact. Chunked bodies and those that end with the connection go through h11.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import h11
import trio

from .errors import BodyBroken

BLOCK: Final = 1024 * 1024  # bytes asked of the socket at once; 64 KiB cost a third of the throughput


class Body:
    """Bytes of one answer's body, in order.

    Attributes:
        length: Bytes of the whole body; None where the head does not tell.
        framed: Whether the end of the body is marked. False where it ends with the connection, so that a cut
            body looks like a whole one (RFC 9112, 8).
        received: Bytes handed out so far.
        complete: Whether the end was seen.
        stall_timeout: Seconds of silence after which the peer is given up.

    Resource handling: the opener closes it, or the answer it belongs to, which is the same. A whole body leaves its
    connection to the pool, any other closes it. After an error or a cancelled `receive_some` only `aclose` may follow.
    """

    def __init__(
        self,
        stream: trio.abc.ReceiveStream,
        parser: h11.Connection,
        *,
        length: int | None,
        framed: bool,
        stall_timeout: float,
    ) -> None:
        self.length = length
        self.framed = framed
        self.received = 0
        self.complete = length == 0
        self._stream = stream
        self._parser = parser
        self.stall_timeout = stall_timeout
        self._close: Callable[[], Awaitable[None]] | None = None

    async def receive_some(self) -> bytes:
        """Up to a block of bytes; b"" at the end.

        Raises:
            BodyBroken: The peer sent fewer bytes than the head promised, broke the framing, or kept silent for
                `stall_timeout` seconds.
        """
        try:
            while not self.complete:
                data = self._parsed() or await self._received()
                if data:
                    self._count(len(data))
                    return data
        except h11.RemoteProtocolError as exc:
            raise BodyBroken(f"the body broke after {self.received} bytes: {exc}") from exc
        return b""

    @property
    def socket(self) -> int | None:
        """The socket's descriptor, if the next bytes of the body can be taken from it past this object.

        None under TLS, where the length is not known, where nothing is left, and while bytes are left that came with
        the head: `receive_some` hands them out first.
        """
        if self.complete or self.length is None or self._parser.trailing_data[0]:
            return None
        return self._stream.socket.fileno() if isinstance(self._stream, trio.SocketStream) else None

    def advance(self, count: int) -> None:
        """Book `count` bytes that somebody else took from `socket`, never more than the body has."""
        self._count(count)

    async def aclose(self) -> None:
        """Give the connection back or close it. Safe at any time and twice."""
        if self._close is not None:
            await self._close()

    def closed_by(self, close: Callable[[], Awaitable[None]]) -> None:
        """Tell how the answer is closed; the answer calls it once."""
        self._close = close

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        data = await self.receive_some()
        if not data:
            raise StopAsyncIteration
        return data

    def _parsed(self) -> bytes:
        """What the parser holds."""
        event = self._parser.next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            self.complete = True
        return b""

    async def _received(self) -> bytes:
        """What the socket brings, where it need not be parsed; b"" where the parser took it."""
        if self.complete:
            return b""
        if self.length is None:
            self._parser.receive_data(await self._read(BLOCK))
            return b""
        data = await self._read(min(BLOCK, self.length - self.received))
        if not data:
            raise BodyBroken(f"the body ended after {self.received} of {self.length} bytes")
        return data

    async def _read(self, limit: int) -> bytes:
        try:
            with trio.fail_after(self.stall_timeout):
                return bytes(await self._stream.receive_some(limit))
        except trio.TooSlowError as exc:
            raise BodyBroken(f"the body stalled after {self.received} bytes") from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise BodyBroken(f"the connection broke after {self.received} bytes of the body") from exc

    def _count(self, count: int) -> None:
        self.received += count
        if self.received == self.length:
            self.complete = True
