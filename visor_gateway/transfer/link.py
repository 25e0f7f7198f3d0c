"""One connection of the bus: frames out through a bounded queue, frames in one after another.

A frame is its length in four bytes, most significant first, and a MessagePack array that says what it is. Frames
arrive in the order in which they were posted. Posting never waits: a peer that lets more than `QUEUED_BYTES` pile up is
cut off, so that nobody is slowed down by it and nothing grows with its slowness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec
import trio

QUEUED_BYTES: Final = 16 * 1024 * 1024  # what a peer may leave unread beyond what its kernel took
FRAME_BYTES: Final = 16 * 1024 * 1024
RECEIVE_BYTES: Final = 64 * 1024
SENT_AT_ONCE: Final = 256 * 1024  # bytes joined for one system call
_LENGTH_BYTES: Final = 4


class Interest(msgspec.Struct, array_like=True, tag=0, frozen=True):
    """The sender wants what is published on a topic."""

    topic: str


class Publication(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Something for all who want the topic."""

    topic: str
    payload: msgspec.Raw


class Question(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """A command, to be answered by the same number."""

    number: int
    name: str
    payload: msgspec.Raw


class Answer(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """What a command came to."""

    number: int
    payload: msgspec.Raw


class Refusal(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """Why a command failed: an error by its name, and its message."""

    number: int
    error: str
    message: str


class Withdrawal(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """Nobody waits for the answer any more."""

    number: int


Frame: TypeAlias = Interest | Publication | Question | Answer | Refusal | Withdrawal

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Frame]] = msgspec.msgpack.Decoder(Frame)


class BrokenFrame(Exception):
    """The peer sent what is no frame."""


def encode(frame: Frame) -> bytes:
    """A frame as bytes on the wire."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameReader:
    """Cuts received bytes into frames. Sans-IO."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[Frame]:
        """The frames that `data` completes.

        Raises:
            BrokenFrame: What came is too long, or no frame.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if length > FRAME_BYTES:
                raise BrokenFrame
            end = _LENGTH_BYTES + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH_BYTES:end])
            del self._buffer[:end]
            try:
                yield _decoder.decode(body)
            except msgspec.DecodeError as exc:
                raise BrokenFrame from exc


class Link:
    """The two directions of one connection. Whoever runs it closes the stream.

    Attributes:
        topics: What the peer wants to be told of.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.topics: set[str] = set()
        self._stream = stream
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._wake = trio.Event()
        self._overflow = trio.Event()

    def post(self, frame: Frame) -> None:
        """Queue a frame. Never waits; to a peer that takes nothing any more it is lost with the link."""
        if self._overflow.is_set():
            return
        data = encode(frame)
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > QUEUED_BYTES:
            self._queue.clear()
            self._overflow.set()
        self._wake.set()

    async def write(self) -> None:
        """Send what is posted. Returns when the peer is to be cut off.

        Raises:
            trio.BrokenResourceError: The peer is gone.
        """
        broken: trio.BrokenResourceError | trio.ClosedResourceError | None = None
        async with trio.open_nursery() as nursery:

            async def cut() -> None:
                await self._overflow.wait()
                nursery.cancel_scope.cancel(reason="the peer takes nothing")

            nursery.start_soon(cut)
            try:
                await self._write_all()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                # Carried out of the nursery as it is, not wrapped into a group.
                broken = exc
            nursery.cancel_scope.cancel(reason="the peer is gone")
        if broken is not None:
            raise broken

    async def _write_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._queue:
                await self._stream.send_all(self._next_piece())

    def _next_piece(self) -> bytes:
        pieces, size = [], 0
        while self._queue and size < SENT_AT_ONCE:
            pieces.append(self._queue.popleft())
            size += len(pieces[-1])
        self._queued -= size
        return b"".join(pieces)

    async def receive(self, reader: FrameReader) -> list[Frame] | None:
        """The frames of the next bytes that come; None at the end.

        Raises:
            BrokenFrame: What came is no frame.
            trio.BrokenResourceError: The peer is gone.
        """
        data = await self._stream.receive_some(RECEIVE_BYTES)
        return list(reader.feed(data)) if data else None
