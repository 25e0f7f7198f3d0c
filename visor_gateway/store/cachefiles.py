"""The cache's files for asynchronous callers: every call of `CacheDirectory` in a worker thread.

What changes something is heeded to its end by a cancellation, what only looks is left to its thread.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

import trio

from ..errors import ObjectChanged
from .cachedir import CacheDirectory, Refusal
from .cacheentries import Entry
from .contract import Block, ObjectInfo
from .file import FileReadStream, FileStore
from .filetree import describe
from .partial import CacheKey, Partial

T = TypeVar("T")

NAME: Final = "cache"  # in messages
THREADS: Final = 16  # calls to the file system at a time, of lookups and of fills each


class CacheFiles:
    """Entries and fills of one cache directory. `OSError` escapes but where a docstring says otherwise."""

    def __init__(self, directory: CacheDirectory, *, threads: int = THREADS) -> None:
        self._directory = directory
        # Reads entries and growing files as it does images: in its threads, within its limits.
        self._reads = FileStore(NAME, directory.path, threads=threads)
        self._lookups = trio.CapacityLimiter(threads)
        self._writes = trio.CapacityLimiter(threads)
        # Descriptors are given back even when every thread above hangs in a dead disk.
        self._closing = trio.CapacityLimiter(math.inf)

    @property
    def max_bytes(self) -> int:
        """Bytes that entries and fills may take together."""
        return self._directory.max_bytes

    async def prepare(self) -> None:
        """Make the directory if it is missing, and remove what a crash left."""
        await self._run(self._directory.prepare)

    async def open(self, key: CacheKey, size: int) -> FileReadStream | None:
        """Open an entry of that size; None where there is none. The caller closes the stream."""
        found = await trio.to_thread.run_sync(self._open, key, size, limiter=self._lookups)
        return None if found is None else FileReadStream(self._reads, *found, 0, size)

    def _open(self, key: CacheKey, size: int) -> tuple[int, ObjectInfo] | None:
        fd = self._directory.open(key, size)
        return None if fd is None else (fd, describe(os.fstat(fd)))

    async def entries(self) -> list[Entry]:
        """What is in the cache, the least recently used first."""
        return await trio.to_thread.run_sync(self._directory.entries, limiter=self._lookups, abandon_on_cancel=True)

    async def remove(self, image_id: str | None = None) -> Sequence[Entry]:
        """Remove an image's entries, or all, and keep its fills from becoming entries."""
        return await self._run(self._directory.remove, image_id)

    async def discard(self, key: CacheKey, stream: FileReadStream) -> bool:
        """Remove the entry that is read by `stream`, if it still is one. Whether it was."""
        return await self._run(self._directory.discard, key, stream.file)

    async def disown(self, partial: Partial) -> None:
        """Take a fill its names, so that it becomes no entry and another one may begin."""
        await self._run(self._directory.disown, partial)

    async def begin(self, key: CacheKey, size: int) -> Partial | Refusal:
        """Begin a fill; "busy" or "full" where that can't be. The caller ends it with `end`."""
        return await self._run(self._directory.begin, key, size)

    async def append(self, partial: Partial, block: Block) -> OSError | None:
        """Write the next block of a fill. Returns, and does not raise, what the disk said."""
        try:
            await self._run(partial.write, block)
        except OSError as exc:
            return exc
        return None

    async def book(self, partial: Partial, count: int) -> None:
        """Note bytes that were appended to `partial.fd` past this class."""
        with suppress(OSError):  # of writing back early; the sync tells what was lost
            await self._run(partial.book, count)

    async def seal(self, partial: Partial) -> None:
        """Note when a whole file was written to last; raises `OSError` where it is not as it was written."""
        await self._run(partial.seal)

    async def demand_sealed(self, stream: FileReadStream, sealed: int) -> None:
        """Raises `ObjectChanged` where somebody has written to the file of a fill since it was sealed."""

        def look() -> bool:
            status = os.fstat(stream.file)
            return status.st_size == stream.info.size and status.st_mtime_ns == sealed

        if not await trio.to_thread.run_sync(look, limiter=self._lookups, abandon_on_cancel=True):
            raise ObjectChanged("The file of the cache was changed by somebody else")

    async def publish(self, partial: Partial, sha256: str) -> bool:
        """Sync a whole file and make an entry of it. False where it was purged meanwhile."""
        return await self._run(self._directory.publish, partial, sha256)

    async def follow(self, key: CacheKey, size: int) -> Partial | None:
        """Open the fill of another process; None where there is none any more. The caller ends it with `end`."""
        return await self._run(self._directory.follow, key, size)

    async def adopt(self, partial: Partial) -> bool:
        """Make a fill that was followed one's own, where its process is gone."""
        return await self._run(self._directory.adopt, partial)

    async def end(self, partial: Partial, *, ours: bool, resumable: bool = False) -> None:
        """Let go of a fill; `CacheDirectory.end` says what stays. Readers have descriptors of their own. To be shielded
        with a deadline."""
        await trio.to_thread.run_sync(
            lambda: self._directory.end(partial, ours=ours, resumable=resumable),
            limiter=self._closing,
            abandon_on_cancel=True,
        )

    def growing(self, partial: Partial) -> FileReadStream:
        """A reader's own descriptor of the file of a fill. The caller closes the stream, and says how far it may be
        read, with `narrow`."""
        return FileReadStream(self._reads, os.dup(partial.fd), ObjectInfo(size=partial.size), 0, 0)

    async def _run(self, call: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(call, *arguments, limiter=self._writes)
