"""From a store into a file of the cache: every byte is read once, hashed and written, then committed."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec
import trio

from ..errors import GatewayError, ObjectChanged, StoreError
from ..store.contract import Block, Direct, ReadStream
from ..store.partial import Partial
from .copier import Copier
from .digest import Digests
from .fillfile import FillFile
from .pump import hand_on
from .relay import DirectSource
from .telling import Telling
from .transfer import Transfer

PIECE: Final = 64 * 1024 * 1024  # bytes that a thread moves at a time: to begin and end one costs a few milliseconds
#: Twice what other bodies have: readers of the file are served by the same cores between two of them.
BUFFER_SIZE: Final = 1024 * 1024
CLOSE_SECONDS: Final = 5.0

#: Opens a range of an image at its store: transfer, offset, length (None for the rest), and whether the reader
#: compares a digest of the whole. The caller closes the stream.
Open: TypeAlias = Callable[[Transfer, int, int | None, bool], Awaitable[ReadStream]]


class CacheFailed(GatewayError):
    """The cache's disk failed under a fill. No client is told: each goes on from the store."""


class Filling:
    """The copying of one fill.

    Args:
        size: Bytes of the image.
        file: The file. What is in it already is hashed first. The caller closes it.
        partial: The same, open.
        read: How the store is read.
        telling: Told when bytes were committed.
        nice: How much the threads that move bytes stand back behind others.
    """

    def __init__(
        self, size: int, file: FillFile, partial: Partial, read: Open, telling: Telling, *, nice: int = 0
    ) -> None:
        self._digests = Digests(("sha256",))
        self._is_known = False  # whether they are those of what is committed
        self._size = size
        self._file = file
        self._files = file.files
        self._partial = partial
        self._read = read
        self._telling = telling
        self._copier = Copier(buffer_size=BUFFER_SIZE, nice=nice)
        self._committed = partial.written
        self._live: Callable[[], int] | None = None

    @property
    def committed(self) -> int:
        """Bytes of the image that are in the file, in the order of the image."""
        return self._committed + (self._live() if self._live is not None else 0)

    @property
    def digests(self) -> Digests | None:
        """SHA-256 of what is committed; None where that is not known, such as while a block is on its way."""
        return self._digests if self._is_known else None

    async def run(self, transfer: Transfer, opened: Callable[[], None]) -> str:
        """Copy the whole. `opened` is called once the store gives bytes.

        Returns:
            The hex SHA-256.

        Raises:
            StoreError: The store failed, or has more or fewer bytes than it should.
            CacheFailed: The disk failed, or somebody else has changed the file.
        """
        await self._hash(Digests(("sha256",)), 0)
        stream = await self._read(transfer, self.committed, self._size - self.committed, True)
        try:
            opened()
            while True:
                await self._copy_directly(stream, transfer)
                with transfer.meter.waiting("store"):
                    block = await stream.receive_some()
                if not block:
                    break
                await hand_on(block, self._take, transfer.meter, "disk", transfer.pace)
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await stream.aclose()
        if self.committed != self._size:
            raise ObjectChanged("The bytes in the store are fewer than the record describes")
        await self._seal()
        return self._digests.hex("sha256")

    async def _seal(self) -> None:
        try:
            await self._file.seal()
        except OSError as error:
            self._is_known = False  # they are of what came, and not of what is in the file
            raise _failed(error) from error

    async def _hash(self, digests: Digests, first: int) -> None:
        """Go on with `digests`, which have had the file's bytes before `first`, once they have what is behind them."""
        try:
            inner = self._files.growing(self._partial)
        except OSError as error:
            raise _failed(error) from error
        try:
            inner.narrow(first, self.committed - first)
            while block := await inner.receive_some():
                await digests.update(block)
        except StoreError as error:
            raise CacheFailed("The cache failed: what is in its file can't be read") from error
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await inner.aclose()
        self._digests, self._is_known = digests, True

    async def _take(self, block: Block) -> None:
        """Hash and write a block at the same time, then commit it."""
        self._demand_room(len(block))
        before, self._is_known = self._digests.copy(), False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._digests.update, block)
            failure = await self._files.append(self._partial, block)
        self._is_known = True
        if failure is not None:
            self._digests = before
            raise _failed(failure)
        self._committed += len(block)
        self._telling.grown()

    async def _copy_directly(self, stream: ReadStream, transfer: Transfer) -> None:
        """Have threads move what comes by a plain socket into the file, and hash it, as far as that goes."""
        while isinstance(stream, DirectSource) and (offered := stream.direct()) is not None:
            self._demand_room(offered.length)
            piece = msgspec.structs.replace(offered, length=min(offered.length, PIECE))
            before = self._committed
            try:
                if not await self._copy_piece(piece, transfer, stream.advance):
                    return
            except StoreError as error:
                await stream.heal(error)
            finally:
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await self._files.book(self._partial, self._committed - before)

    async def _copy_piece(self, piece: Direct, transfer: Transfer, advance: Callable[[int], None]) -> bool:
        """One piece. The meter says meanwhile how much of it is in the file."""
        meter, before, first = transfer.meter, transfer.meter.moved, self._committed
        so_far, self._is_known = self._digests.copy(), False
        self._live = lambda: meter.moved - before
        try:
            done = await self._copier.copy(
                self._digests.running(),
                piece,
                self._partial.fd,
                meter,
                transfer.pace,
                advance,
                moved=self._telling.grown_in_thread,
            )
        except OSError as error:
            failure = error
        except StoreError:
            self._is_known = True
            raise
        else:
            self._is_known = True
            return done
        finally:
            self._settle()
        # They have had more than the file has.
        await self._hash(so_far, first)
        raise _failed(failure) from failure

    def _settle(self) -> None:
        """No thread commits any more."""
        self._committed, self._live = self.committed, None

    def _demand_room(self, count: int) -> None:
        if self.committed + count > self._size:
            raise ObjectChanged("The bytes in the store are more than the record describes")


def _failed(failure: OSError) -> CacheFailed:
    return CacheFailed(f"The cache failed: {os.strerror(failure.errno or 0)}")
