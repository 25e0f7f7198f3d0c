"""The only copy loop: source to sink, one block at a time.

Backpressure is the loop itself: the next block is asked for when the sink has taken the last one, so a transfer
holds one block.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Protocol, TypeAlias

import trio

from ..store.contract import Block
from .limits import Pace
from .meter import Meter, WaitKind

Sink: TypeAlias = Callable[[Block], Awaitable[None]]


class Source(Protocol):
    """Blocks in order, b"" at the end. A block is valid until the next one is asked for."""

    async def receive_some(self) -> Block: ...


async def pump(
    source: Source, sink: Sink, meter: Meter, *, waits: tuple[WaitKind, WaitKind], pace: Pace | None = None
) -> None:
    """Move everything from `source` to `sink`.

    Args:
        meter: Counts what the sink has taken.
        waits: What waiting for the source and for the sink is booked as.
        pace: How fast it may go; None for no limit. Under a limit, blocks are handed on in the pieces that it grants.

    Raises:
        Whatever source and sink raise. The caller owns both and closes them; cancelled, it leaves both where they are.
    """
    from_source, to_sink = waits
    while True:
        with meter.waiting(from_source):
            block = await source.receive_some()
        if not block:
            return
        await hand_on(block, sink, meter, to_sink, pace)


async def hand_on(block: Block, sink: Sink, meter: Meter, wait: WaitKind, pace: Pace | None = None) -> None:
    """Give one block to `sink`, as fast as `pace` allows. What waiting for the sink is booked as says `wait`."""
    left = memoryview(block)
    while left:
        granted = len(left) if pace is None else await _granted(len(left), meter, pace)
        with meter.waiting(wait):
            # Without a limit the block itself, as it came.
            await sink(block if granted == len(block) else left[:granted])
        meter.moved += granted
        left = left[granted:]


async def _granted(want: int, meter: Meter, pace: Pace) -> int:
    """How many of `want` bytes may move now, once that is more than none. Cancelled, it gives up its claim."""
    granted, again = pace.claim(want)
    if not granted:
        try:
            while not granted:
                # Who is paused waits for nobody.
                with nullcontext() if pace.paused else meter.waiting("limit"):
                    await trio.sleep(again)
                granted, again = pace.claim(want)
        finally:
            pace.release()
    return granted
