"""Readers of the cache: a range of an image, from an entry, or from a file that grows while it is filled.

What fails in the cache costs a client nothing: its reader goes on from the store where the file ends for it. Only what
can't be mended is an error: bytes that were sent, and may have been wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..errors import GatewayError, ObjectChanged, StoreError
from ..image import Image
from ..store.contract import Block, ObjectInfo
from ..store.file import BLOCK_SIZE, FileReadStream
from .detour import Agree, Detour
from .fill import HELD_BACK, Fill
from .filling import Open
from .growth import Growth
from .transfer import Transfer

CLOSE_SECONDS: Final = 5.0


class CacheReader:
    """`ReadStream` of an image that the cache has, or will have.

    Args:
        image: Its size is known.
        inner: An own descriptor of the file; the reader closes it.
        read: How the image's store is read.
        agree: Compares digests.
        transfer: Of the client that is served.
        lost: Called once the file has failed: it is to be served no more. Must not raise.

    Attributes:
        info: Size of the image.
        file: The descriptor, for zero-copy sending of what `available` tells; -1 once closed.
        position: Offset in the image of the next byte.
        end: Offset at which the range ends.
        served: Bytes that came from the file.
    """

    def __init__(
        self,
        image: Image,
        inner: FileReadStream,
        read: Open,
        agree: Agree,
        transfer: Transfer,
        lost: Callable[[FileReadStream], Awaitable[None]],
    ) -> None:
        self.info: ObjectInfo = inner.info
        self.position = self.end = self.served = 0
        self._first = 0
        self._image = image
        self._size = image.size or 0
        self._inner = inner
        self._read = read
        self._agree = agree
        self._transfer = transfer
        self._lost = lost
        self._is_lost = False
        self._detour: Detour | None = None
        self._closed = False

    @property
    def file(self) -> int:
        return self._inner.file

    def narrow(self, offset: int, length: int) -> None:
        """Read `length` bytes from `offset` next."""
        self._first = self.position = offset
        self.end = offset + length

    async def turn_to(self, offset: int, length: int) -> None:
        """Read another range of the image next. An open file serves them all, so that a delete can't come between.

        Raises:
            StoreError: The store has to be read, and failed.
        """
        await self._close_detour()
        self.narrow(offset, length)
        if self._is_lost:
            await self._go_round()

    def growing(self) -> tuple[Growth, int] | None:
        """How many bytes from `position` a thread may send from `file` without asking, each as soon as it is released,
        and what tells it of that; None where `available` is to be asked."""
        return None

    async def available(self) -> int:
        """How many bytes from `position` can be sent from `file` now; waits for at least one of the range.

        0 at the end of the range, and where the rest is not to be had from the file: `receive_some` brings it then.

        Raises:
            StoreError: The image can't be had.
        """
        if self.position >= self.end or self._detour is not None:
            return 0
        return max(0, min(await self._released(), self.end) - self.position)

    def advance(self, count: int) -> None:
        """Book bytes that somebody has sent from `file`."""
        self.position += count
        self.served += count

    async def receive_some(self) -> Block:
        """The next block, valid until the next call; b"" at the end of the range.

        Raises:
            StoreError: The image can't be had.
        """
        block: Block = b""
        if count := await self.available():
            block = await self._from_file(min(count, BLOCK_SIZE))
        if not block and self.position < self.end:
            detour = self._detour or await self._go_round()
            block = await detour.receive_some()
            self.position += len(block)
        return block

    async def fall_back(self, error: GatewayError | OSError) -> None:
        """Go on from the store at `position`, after the file has failed by `error`.

        Raises:
            ObjectChanged: Bytes that were sent may have been wrong.
            StoreError: The store failed as well.
        """
        if not self._is_lost:
            self._is_lost = True
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._lost(self._inner)
        if isinstance(error, ObjectChanged) and not await self._is_provable():
            raise error
        await self._go_round()

    async def aclose(self) -> None:
        """Close the file, and what is read in its place. Safe at any time and twice."""
        if not self._closed:
            self._closed = True
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._inner.aclose()
            await self._close_detour()

    # --- for those who know what the file is -----------------------------------------------------

    async def _released(self) -> int:
        """Up to where the file may be sent now; `position` where it can't be sent any more."""
        raise NotImplementedError

    async def _go_round(self) -> Detour:
        """Open the detour."""
        detour = self._new_detour()
        if self._is_whole:
            await detour.open_behind(self._inner)
        else:
            await detour.open()
        return detour

    def _new_detour(self) -> Detour:
        self._detour = Detour(self._image, self._read, self._agree, self._transfer, self.position, self.end)
        return self._detour

    @property
    def _is_whole(self) -> bool:
        return self._first == 0 and self.end == self._size

    async def _is_provable(self) -> bool:
        """Whether bytes that were sent from a file that was changed since can be shown to have been right.

        A whole image is hashed once more. But what was sent beyond the end of a file that was cut may still be on its
        way, in pages of which the kernel has cleared a part; those of a file that is empty now are untouched.
        """
        if self.position == self._first:
            return True
        return self._is_whole and not 0 < await self._inner.length() < self.position

    # --- reading ---------------------------------------------------------------------------------

    async def _from_file(self, count: int) -> Block:
        """A block of the file; b"" where it has failed, and the store is to be read."""
        try:
            self._inner.narrow(self.position, count)
            block = await self._inner.receive_some()
        except StoreError as error:
            await self.fall_back(error)
            return b""
        self.advance(len(block))
        return block

    async def _close_detour(self) -> None:
        detour, self._detour = self._detour, None
        if detour is not None:
            await detour.aclose()


class EntryReader(CacheReader):
    """A reader of an entry: the last block of a range comes only after a look at whether the file was left alone."""

    async def _released(self) -> int:
        last = self.end - BLOCK_SIZE
        if self.position < last:
            return last
        try:
            await self._inner.check()
        except StoreError as error:
            await self.fall_back(error)
            return self.position
        return self.end


class FillReader(CacheReader):
    """A reader of a fill, which was joined for it."""

    def __init__(
        self,
        fill: Fill,
        inner: FileReadStream,
        read: Open,
        agree: Agree,
        transfer: Transfer,
        lost: Callable[[FileReadStream], Awaitable[None]],
    ) -> None:
        super().__init__(fill.image, inner, read, agree, transfer, lost)
        self._fill = fill

    def growing(self) -> tuple[Growth, int] | None:
        """The end of the image is waited for with `available`: it is looked at once more."""
        growth, length = self._fill.growth, min(self.end, self._size - HELD_BACK) - self.position
        return (growth, length) if growth is not None and length > 0 and self._detour is None else None

    async def turn_to(self, offset: int, length: int) -> None:
        """A range far ahead of the fill is read from the store."""
        await super().turn_to(offset, length)
        if self._detour is None and self._fill.is_far(offset):
            await self._go_round()

    async def _released(self) -> int:
        """What waited for the digest needs no further look at the file: all before it was sent by then."""
        fill, waited = self._fill, not self._fill.verified
        with self._transfer.meter.waiting("store"):
            released = min(await fill.wait_beyond(self.position), self.end)
        if not fill.verified:
            return released
        if released - self.position > HELD_BACK:
            return released - HELD_BACK
        if not waited:
            try:
                await fill.demand_untouched(self._inner)
            except StoreError as error:
                await self.fall_back(error)
                return self.position
        return released

    async def _go_round(self) -> Detour:
        digests = self._fill.digests_at(self.position) if self.end == self._size else None
        if digests is None:
            return await super()._go_round()
        detour = self._new_detour()
        await detour.open_verified(digests)
        return detour

    async def aclose(self) -> None:
        if self._closed:
            return
        await super().aclose()
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._fill.leave()
