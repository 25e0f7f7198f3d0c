"""Parts of an object that is written in parts: their sizes, and where their bytes wait until they are stored."""

from __future__ import annotations

import hashlib
import mmap
from contextlib import suppress
from typing import Final, Protocol

import trio

from ..errors import StoreError
from ..outbound import BytesBody, RequestBody
from .spool import Spool, SpoolBody, SpoolFile

MIB: Final = 1024 * 1024
FIRST_BYTES: Final = 8 * MIB  # the smallest part; S3 demands 5 MiB of all but the last
MEMORY_BYTES: Final = 16 * MIB  # the largest part that waits in memory
LARGEST_BYTES: Final = 5 * 1024 * MIB  # S3's limit
MAX_PARTS: Final = 10_000  # S3's limit
_STEADY: Final = 0.09  # the share of the parts before they begin to grow

_hashing = trio.CapacityLimiter(4)


class PartSizes:
    """How many bytes each part gets, so that `max_parts` of them are never too few.

    Of a known size all parts are equal. Of an unknown one the first are as small as can be, and each further one is
    larger than the one before by a step that lets the largest image end with the last part.

    Args:
        size: Bytes of the object, None where unknown.
        max_size: Bytes that no object exceeds.
        max_parts: How many parts the service takes.
    """

    def __init__(self, size: int | None, max_size: int, max_parts: int = MAX_PARTS) -> None:
        self._max_parts = max_parts
        if size is not None:
            self._first, self._step, self._steady = max(FIRST_BYTES, _whole_mib(-(-size // max_parts))), 0, max_parts
            return
        self._first = FIRST_BYTES
        self._steady = int(max_parts * _STEADY)
        growing = max_parts - self._steady
        missing = max(0, max_size - max_parts * FIRST_BYTES)
        self._step = -(-missing // (growing * (growing + 1) // 2))

    def of(self, number: int) -> int:
        """Bytes of part `number`, counted from 1.

        Raises:
            StoreError: The object has more parts than the service takes.
        """
        if number > self._max_parts:
            raise StoreError("The image is larger than it was announced, and has too many parts")
        return min(self._first + max(0, number - self._steady) * self._step, LARGEST_BYTES)


def _sha256(content: memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _whole_mib(count: int) -> int:
    return -(-count // MIB) * MIB


class Part(Protocol):
    """Bytes that wait.

    Attributes:
        length: Bytes so far.
        room: How many more it takes.
    """

    length: int
    room: int

    async def append(self, data: memoryview) -> None:
        """Copy `data`, of at most `room` bytes. Raises StoreError."""
        ...

    def body(self) -> RequestBody:
        """All of it as a request's body, a new one for each call."""
        ...

    async def digest(self) -> str:
        """Hex SHA-256."""
        ...

    async def aclose(self) -> None:
        """Give the space back. Safe twice."""
        ...


class MemoryPart:
    """A part in memory, of `capacity` bytes. Pages are taken as bytes come, and given back to the system at once: from
    the allocator's heap, parts that come and go would take several times their size."""

    def __init__(self, capacity: int) -> None:
        self.length = 0
        self.room = capacity
        self._memory: mmap.mmap | None = mmap.mmap(-1, capacity)

    async def append(self, data: memoryview) -> None:
        if self._memory is None:
            raise StoreError("The part was given back")
        self._memory[self.length : self.length + len(data)] = data
        self.length += len(data)
        self.room -= len(data)
        await trio.lowlevel.checkpoint()

    def body(self) -> RequestBody:
        return BytesBody(self._content())

    async def digest(self) -> str:
        # The bytes stay where they are until the thread has ended, even if nobody waits for it.
        return await trio.to_thread.run_sync(_sha256, self._content(), limiter=_hashing, abandon_on_cancel=True)

    async def aclose(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            # Where somebody still looks at it, it goes when they have done.
            with suppress(BufferError):
                memory.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _content(self) -> memoryview:
        if self._memory is None:
            raise StoreError("The part was given back")
        return memoryview(self._memory)[: self.length]


class SpooledPart:
    """A part on disk, of `capacity` bytes."""

    def __init__(self, file: SpoolFile, capacity: int) -> None:
        self.length = 0
        self.room = capacity
        self._file = file

    async def append(self, data: memoryview) -> None:
        await self._file.append(data)
        self.length += len(data)
        self.room -= len(data)

    def body(self) -> RequestBody:
        return SpoolBody(self._file)

    async def digest(self) -> str:
        return self._file.digest

    async def aclose(self) -> None:
        await self._file.aclose()


async def open_part(spool: Spool, capacity: int) -> Part:
    """A part of that capacity, in memory if it is small enough. The caller closes it."""
    if capacity <= MEMORY_BYTES:
        return MemoryPart(capacity)
    return SpooledPart(await spool.open(), capacity)
