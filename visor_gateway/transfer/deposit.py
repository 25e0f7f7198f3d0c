"""Bytes of one attempt on their way into a store: examined, hashed and written.

What another server sends is moved past the event loop where both ends allow it: by threads of `intake`, from a plain
socket to a store that is written in threads. All else comes block by block. Which of the two is asked anew for every
block, as in `relay`.
"""

from __future__ import annotations

import os
from typing import Final

import trio

from ..errors import BodyIncomplete, StoreError, StoreUnreachable, TooLarge
from ..store.contract import Block, Direct, DirectWriteStream, WriteStream
from .contract import LentBody
from .digest import Digests
from .intake import Examiner, Intake
from .pump import Source, hand_on
from .relay import DirectSource
from .transfer import Transfer


class _Unexamined:
    def feed(self, block: Block) -> None:
        """Nothing: the bytes were examined when they came in first."""


UNEXAMINED: Final[Examiner] = _Unexamined()


class Deposit:
    """What takes the bytes of one attempt.

    Args:
        writer: Where they go. The caller opened it, and commits or aborts it.
        digests: Have had exactly the bytes that `transfer.meter` counts, unless something was raised.
        examiner: Sees them in order, and may refuse them.
        max_size: The most bytes that are taken; None for any number.
    """

    def __init__(
        self,
        transfer: Transfer,
        writer: WriteStream,
        digests: Digests,
        intake: Intake,
        *,
        examiner: Examiner = UNEXAMINED,
        max_size: int | None = None,
    ) -> None:
        self._transfer = transfer
        self._writer = writer
        self._digests = digests
        self._intake = intake
        self._examiner = examiner
        self._max_size = max_size

    async def take(self, block: Block) -> None:
        """Hash and write a block at the same time.

        Raises:
            TooLarge: It is one too many.
            StoreError: The store failed.
            GatewayError: What the examiner raises.
        """
        self._demand_room(len(block))
        self._examiner.feed(block)
        failure: StoreError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._digests.update, block)
            try:
                await self._writer.write(block)
            except StoreError as error:
                # Carried out of the nursery as it is, not wrapped into a group.
                failure = error
        if failure is not None:
            raise failure
        self._transfer.resumed()

    async def fetch(self, source: Source) -> None:
        """Take all of `source`, which reads from a store or origin. Raises as `take`, and what `source` raises."""
        meter, pace = self._transfer.meter, self._transfer.pace
        while True:
            await self._take_directly(source)
            with meter.waiting("store"):
                block = await source.receive_some()
            if not block:
                return
            await hand_on(block, self.take, meter, "disk", pace)

    async def _take_directly(self, source: Source) -> None:
        """Have threads move what comes by a plain socket."""
        if not isinstance(source, DirectSource) or not isinstance(self._writer, DirectWriteStream):
            return
        with self._intake.slot() as is_free:
            if is_free and (offered := source.direct()) is not None:
                self._demand_room(offered.length)
                await self._move(offered, source, self._writer)

    async def _move(self, offered: Direct, source: DirectSource, writer: DirectWriteStream) -> None:
        meter, before = self._transfer.meter, self._transfer.meter.moved
        # No close elsewhere lets its number be reused under a read.
        sock = os.dup(offered.sock)
        body = LentBody(sock=sock, lead=b"", left=offered.length, stall_timeout=offered.stall_timeout, min_rate=0)
        failure: StoreUnreachable | None = None
        try:
            await self._intake.move(
                body, writer, self._digests.running(), self._examiner, meter, self._transfer.pace, wait="store"
            )
        except BodyIncomplete as exc:
            failure = StoreUnreachable("The read broke off")
            failure.__cause__ = exc
        finally:
            os.close(sock)
        # What was read and not handed on is read again.
        source.advance(meter.moved - before)
        if failure is not None:
            await source.heal(failure)

    def _demand_room(self, count: int) -> None:
        if self._max_size is not None and self._transfer.meter.moved + count > self._max_size:
            raise TooLarge(f"An image may have {self._max_size} bytes at most")
