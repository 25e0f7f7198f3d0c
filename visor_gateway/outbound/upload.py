"""A request whose body is pushed: its caller sends block by block, for as long as it likes, then takes the answer.

The other kind of request body, which the exchange pulls (`RequestBody`), needs all of it to come while one call waits.
A store's write stream is called block by block and must be able to leave in between, hence this one. The body is sent
once, chunked (RFC 9112, 7.1), on a connection of its own, and no redirect is followed.
"""

from __future__ import annotations

from typing import Final

import h11
import msgspec
import trio

from ..tls import TlsStream
from .body import Body
from .connection import HEAD_LIMIT, framing_of, receive_head
from .errors import BadResponse, BodyBroken, Unreachable
from .sending import Block

ANSWER_LIMIT: Final = 64 * 1024  # bytes of an answer's body that are kept
EARLY_SECONDS: Final = 2.0  # for an answer of a peer that takes no more


class Answer(msgspec.Struct, frozen=True):
    """The answer to an upload.

    Attributes:
        status: HTTP status.
        content: The body, its first `ANSWER_LIMIT` bytes.
    """

    status: int
    content: bytes


class Upload:
    """A request under way.

    Resource handling: whoever opened it closes it with `aclose`, which only breaks the connection: what the peer makes
    of what it has is not known then. After an error or a cancelled method only `finish_by_cut` and `aclose` may follow.
    """

    def __init__(self, stream: trio.abc.Stream, request: h11.Request, *, stall_timeout: float) -> None:
        self._stream = stream
        self._request = request
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self._stall_timeout = stall_timeout
        self._head: h11.Response | None = None
        self._ended = False

    async def begin(self) -> None:
        """Send the head. From its call on the peer may act on the request, also where it fails or is cancelled.

        Raises:
            Unreachable: The peer takes nothing.
        """
        await self._send_all(self._parser.send(self._request) or b"")

    async def send(self, data: Block) -> None:
        """Send a block. Returns when the kernel has taken it.

        Raises:
            Unreachable: The peer takes no more. It may have answered: `early_answer` tells.
        """
        view = memoryview(data).cast("B")
        if view.nbytes:
            await self._send_all(b"%x\r\n" % view.nbytes)
            await self._send_all(view)
            await self._send_all(b"\r\n")

    async def finish(self) -> Answer:
        """End the body and wait for the answer.

        Raises:
            Unreachable: The peer closed the connection without an answer.
            BadResponse, BodyBroken: The answer is none, is cut, or does not come within `stall_timeout` seconds.
        """
        await self._send_all(b"0\r\n\r\n")
        self._parser.send(h11.EndOfMessage())
        return await self._answer(self._stall_timeout)

    async def answered(self) -> bool:
        """Whether the peer has answered, or closed, before the body was whole. Waits for nothing.

        Interim answers are passed over: the DataNodes of HDFS say `100 Continue` without being asked.
        """
        while self._head is None and not self._ended and self._readable():
            try:
                data = await self._stream.receive_some(HEAD_LIMIT)
                self._parser.receive_data(bytes(data))
                self._ended = not data
                self._take_head()
            except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
                self._ended = True
        return self._head is not None or self._ended

    async def early_answer(self) -> Answer | None:
        """The answer of a peer that did not wait for the end of the body; None if there is none."""
        try:
            return await self._answer(EARLY_SECONDS)
        except (Unreachable, BadResponse, BodyBroken):
            return None

    async def finish_by_cut(self) -> None:
        """Break the body off, and wait until the peer has noticed, which it shows by closing its side.

        What the peer did for the request has begun by then, so that what is undone afterwards stays undone.
        The caller bounds the time; the connection is still to be closed.
        """
        stream = self._transport
        try:
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
            while await stream.receive_some():
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def aclose(self) -> None:
        """Close the socket. Safe at any time and twice."""
        await trio.aclose_forcefully(self._stream)

    def _readable(self) -> bool:
        stream = self._transport
        return isinstance(stream, trio.SocketStream) and stream.socket.is_readable()

    def _take_head(self) -> None:
        while (event := self._parser.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                self._head = event
                return

    @property
    def _transport(self) -> trio.abc.Stream:
        # Under TLS there is no half-close, and after a cancelled send nothing more to be said in it.
        return self._stream.transport if isinstance(self._stream, TlsStream) else self._stream

    async def _send_all(self, data: Block) -> None:
        try:
            with trio.fail_after(self._stall_timeout):
                await self._stream.send_all(data)
        except trio.TooSlowError as exc:
            raise Unreachable(f"the peer took nothing for {self._stall_timeout:g} s") from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise Unreachable("the peer takes no more of the request") from exc

    async def _answer(self, seconds: float) -> Answer:
        try:
            with trio.fail_after(seconds):
                head = self._head or await receive_head(self._stream, self._parser)
                length, framed = framing_of(b"PUT", head)
                body = Body(self._stream, self._parser, length=length, framed=framed, stall_timeout=seconds)
                content = bytearray()
                while len(content) < ANSWER_LIMIT and (data := await body.receive_some()):
                    content += data
        except trio.TooSlowError as exc:
            raise BadResponse(f"no answer within {seconds:g} s") from exc
        except h11.RemoteProtocolError as exc:
            raise BadResponse(f"not HTTP/1.1: {exc}") from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise Unreachable("the peer closed the connection without an answer") from exc
        return Answer(head.status_code, bytes(content[:ANSWER_LIMIT]))
