"""Bodies of requests: where their bytes come from, and how they reach the socket.

A block is written to the socket as it is, past the HTTP parser, which accounts for it: no byte is copied on the way.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeAlias

import h11
import trio

from .errors import BodyBroken

Block: TypeAlias = bytes | bytearray | memoryview

PIECE: Final = 1024 * 1024  # bytes given to the socket at once; each has `stall_timeout` to leave


class RequestBody(Protocol):
    """Bytes that a request sends, in order.

    Attributes:
        length: Bytes of the whole body; None where nobody knows, which sends it chunked.
    """

    length: int | None

    async def receive_some(self) -> Block:
        """Up to a block of bytes, valid until the next call; b"" at the end. What it raises ends the exchange."""
        ...


class BytesBody:
    """Bytes in memory as a body. It can be sent once; bytes that are sent again take another one."""

    def __init__(self, data: Block) -> None:
        self._left = memoryview(data).cast("B")
        self.length: int | None = len(self._left)

    async def receive_some(self) -> Block:
        """The next piece."""
        await trio.lowlevel.checkpoint()
        piece, self._left = self._left[:PIECE], self._left[PIECE:]
        return piece


def framing(method: str, body: RequestBody | None) -> dict[str, str]:
    """The header that tells the length of a request's body (RFC 9112, 6)."""
    if body is None:
        return {"Content-Length": "0"} if method in {"POST", "PUT"} else {}
    return {"Transfer-Encoding": "chunked"} if body.length is None else {"Content-Length": str(body.length)}


async def send_body(
    stream: trio.abc.SendStream, parser: h11.Connection, body: RequestBody, *, stall_timeout: float
) -> None:
    """Send a body whose head has been sent.

    Raises:
        BodyBroken: The source has another length than it said.
        trio.BrokenResourceError: The peer takes no more, or has taken nothing for `stall_timeout` seconds. It may
            have answered all the same.
    """
    while data := await body.receive_some():
        await _send(stream, parser, h11.Data(data=_Placeholder(len(data))), data, stall_timeout)
    await _send(stream, parser, h11.EndOfMessage(), b"", stall_timeout)


class _Placeholder(bytes):
    """Stands for a block where h11 counts bytes."""

    _length: int

    def __new__(cls, length: int) -> _Placeholder:
        self = super().__new__(cls)
        self._length = length
        return self

    def __len__(self) -> int:
        return self._length


async def _send(
    stream: trio.abc.SendStream, parser: h11.Connection, event: h11.Event, data: Block, stall_timeout: float
) -> None:
    try:
        pieces = parser.send_with_data_passthrough(event) or ()
    except h11.LocalProtocolError as exc:
        raise BodyBroken("the request's body has not the length that was announced") from exc
    try:
        for piece in pieces:
            with trio.fail_after(stall_timeout):
                await stream.send_all(data if isinstance(piece, _Placeholder) else piece)
    except trio.TooSlowError as exc:
        raise trio.BrokenResourceError("the peer takes no more") from exc
