"""Bytes from another server to a client's lent socket: past the interpreter where that can be, else block by block.

Which of the two is asked anew for every block: a body's first bytes came with its head and are copied, the rest can be
spliced; after a break the next connection begins with a copy again.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias, runtime_checkable

import trio

from ..errors import StoreError
from ..store.contract import Block, Direct
from .limits import Pace
from .meter import Meter
from .pump import Source, hand_on

#: `Splicer.splice`, or what has its signature and contract.
Move: TypeAlias = Callable[[Direct, int, Meter, Pace | None, Callable[[int], None]], Awaitable[bool]]


@runtime_checkable
class DirectSource(Source, Protocol):
    """A source that may have a socket behind it; see `store.contract.DirectReadStream`."""

    def direct(self) -> Direct | None:
        """The socket that brings the next bytes, if they may be moved unseen."""
        ...

    def advance(self, count: int) -> None:
        """Book bytes that were taken from the socket."""
        ...

    async def heal(self, error: StoreError) -> None:
        """Make the source go on behind the bytes booked so far, after its socket failed by `error`. Raises it where
        that is pointless."""
        ...


async def relay(source: Source, sock: int, move: Move, meter: Meter, pace: Pace | None = None) -> None:
    """Move all of `source` to the non-blocking socket `sock`, by `move` where the source offers a socket.

    Raises:
        OSError: The client is gone.
        StoreError: What the source raises.

    The caller owns both and closes them. Cancelled or failed, this leaves the client with a part, and its connection
    good for nothing but a reset.
    """

    async def send(block: Block) -> None:
        await _send_all(sock, block)

    while True:
        if isinstance(source, DirectSource):
            await _move(source, sock, move, meter, pace)
        with meter.waiting("store"):
            block = await source.receive_some()
        if not block:
            return
        await hand_on(block, send, meter, "client", pace)


async def _move(source: DirectSource, sock: int, move: Move, meter: Meter, pace: Pace | None) -> None:
    """Move what can be moved past the interpreter now."""
    while (offered := source.direct()) is not None:
        try:
            if not await move(offered, sock, meter, pace, source.advance):
                return  # no pipe or thread is free: the next block takes the ordinary way
        except StoreError as error:
            await source.heal(error)


async def _send_all(sock: int, block: Block) -> None:
    await trio.lowlevel.checkpoint()
    left = memoryview(block)
    while left:
        try:
            left = left[os.write(sock, left) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
