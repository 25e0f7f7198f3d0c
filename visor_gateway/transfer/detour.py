"""The way round the cache: the rest of an image from its store, for a reader whose file of the cache has failed.

Nobody may take a wrong image for a right one on this way either. To the end of the image the last block comes only when
the digest of the whole agrees: of what is in the file up to where the reader is, and of what comes from the store.
Where the file can't be read, these bytes are read from the store once more, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..errors import StoreError
from ..image import Image
from ..store.contract import Block, ReadStream
from ..store.file import FileReadStream
from .digest import Digests
from .filling import Open
from .pump import Source
from .transfer import Transfer
from .verify import Hashed, Verified

CLOSE_SECONDS: Final = 5.0

#: Called with the hex SHA-256 of all bytes of an image; raises `ObjectChanged` where it is not the record's.
Agree = Callable[[Image, str], Awaitable[None]]


class Detour:
    """The rest of one range, from the store. `Source`.

    Args:
        image: The image; its size is known.
        read: How its store is read.
        agree: Compares digests.
        transfer: Of the client that is served.
        position: Offset in the image of the first byte.
        end: Offset at which the range ends.

    Resource handling: the opener closes it; a cancelled call leaves nothing to do but that.
    """

    def __init__(self, image: Image, read: Open, agree: Agree, transfer: Transfer, position: int, end: int) -> None:
        self._image = image
        self._read = read
        self._agree = agree
        self._transfer = transfer
        self._position = position
        self._end = end
        self._skip = 0
        self._stream: ReadStream | None = None
        self._source: Source | None = None

    async def open(self) -> None:
        """Read the range and nothing else. Raises `StoreError`."""
        self._source = await self._opened(self._position, verified=False)

    async def open_verified(self, digests: Digests) -> None:
        """Read on behind bytes of the image of which these are the digests, up to its end. Raises `StoreError`."""
        self._verify(await self._opened(self._position, verified=True), digests, self._position)

    async def open_behind(self, file: FileReadStream) -> None:
        """Read on behind bytes of the image that are in a file, as far as that can be read, up to the image's end.

        Raises:
            StoreError: The store failed.
        """
        digests = Digests(("sha256",))
        with self._transfer.meter.waiting("disk"):
            kept = await _hash_file(file, self._position, digests)
        self._skip = self._position - kept
        self._verify(await self._opened(kept, verified=True), digests, kept)

    async def receive_some(self) -> Block:
        """The next block, valid until the next call. Raises `StoreError`, also where the bytes end before the range."""
        while True:
            block = b"" if self._source is None else await self._source.receive_some()
            if not block:
                raise StoreError("The bytes in the store are fewer than the record describes")
            skipped = min(self._skip, len(block))
            self._skip -= skipped
            if skipped < len(block):
                return memoryview(block)[skipped:] if skipped else block

    async def aclose(self) -> None:
        """Close what is read. Safe at any time and twice."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await stream.aclose()

    async def _opened(self, first: int, *, verified: bool) -> ReadStream:
        self._stream = await self._read(self._transfer, first, self._end - first, verified)
        return self._stream

    def _verify(self, stream: ReadStream, digests: Digests, first: int) -> None:
        hashed = Hashed(stream, digests)

        async def agree() -> None:
            await self._agree(self._image, await hashed.sha256())

        self._source = Verified(hashed, self._end - first, agree)


async def _hash_file(file: FileReadStream, length: int, digests: Digests) -> int:
    """Hash the first `length` bytes of a file. Returns how many could be read."""
    done = 0
    try:
        file.narrow(0, length)
        while block := await file.receive_some():
            await digests.update(block)
            done += len(block)
    except StoreError:
        pass  # the rest is had from the store
    return done
