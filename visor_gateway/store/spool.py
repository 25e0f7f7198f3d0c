"""Bytes that wait on this host's disk: too many for memory, and to be sent later, or more than once.

A spool file has no name (`O_TMPFILE`), so nothing is left of it whatever ends the process. The space of all files
together is bounded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

import trio

from ..errors import StoreError, StoreFull
from .contract import Block

READ_PIECE: Final = 1024 * 1024
THREADS: Final = 8
CLOSE_SECONDS: Final = 10.0


class Spool:
    """A directory for spool files, which is made (mode 0700) when the first one is opened.

    Args:
        directory: Where the files are.
        limit: Bytes that all of them together may take; 0 for none at all.

    Attributes:
        used: Bytes that are taken.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.used = 0
        self._directory = directory
        self._limit = limit
        self._threads = trio.CapacityLimiter(THREADS)

    async def open(self) -> SpoolFile:
        """A new file, empty. The caller closes it.

        Raises:
            StoreError: The directory can't be used.
        """
        return SpoolFile(self, await self._run(self._create))

    def take(self, count: int) -> None:
        """Count bytes before they are written. Raises StoreFull where they are too many."""
        if self.used + count > self._limit:
            raise StoreFull("The gateway's spool is full: cache.spool_max_bytes is too small for the uploads under way")
        self.used += count

    async def _run(self, call: object, *arguments: object) -> int:
        try:
            return await trio.to_thread.run_sync(call, *arguments, limiter=self._threads)  # type: ignore[arg-type]
        except OSError as exc:
            full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
            kind = StoreFull if full else StoreError
            raise kind(f"The gateway's spool {'has no room on its disk' if full else 'can not be used'}") from exc

    def _create(self) -> int:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            if exc.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                raise
        # A file system without O_TMPFILE: the name is there for a moment.
        fd, name = tempfile.mkstemp(dir=self._directory)
        os.unlink(name)
        return fd


class SpoolFile:
    """Bytes in order, written once and read any number of times.

    Attributes:
        length: Bytes so far.
    """

    def __init__(self, spool: Spool, fd: int) -> None:
        self.length = 0
        self._spool = spool
        self._fd = fd
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all bytes."""
        return self._sha256.hexdigest()

    async def append(self, data: Block) -> None:
        """Write all of `data`. A cancellation waits for the disk.

        Raises:
            StoreFull: The limit is reached, or the disk is full.
            StoreError: The disk failed.
        """
        self._spool.take(len(data))
        self.length += len(data)
        await self._spool._run(self._append, data)

    async def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`; fewer only at the end."""
        holder: list[bytes] = []
        await self._spool._run(lambda: holder.append(os.pread(self._fd, count, offset)))
        return holder[0]

    async def aclose(self) -> None:
        """Give the space back, cancelled or not. Safe twice."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self._spool.used -= self.length
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            # Freeing the blocks of a large file takes a while.
            await self._spool._run(os.close, fd)

    def _append(self, data: Block) -> None:
        with memoryview(data) as view:
            self._sha256.update(view)
            done = 0
            while done < len(view):
                done += os.write(self._fd, view[done:])


class SpoolBody:
    """A spool file as a request's body; each one reads it from its start."""

    def __init__(self, file: SpoolFile) -> None:
        self.length: int | None = file.length
        self._file = file
        self._position = 0

    async def receive_some(self) -> bytes:
        """The next piece."""
        data = await self._file.read(self._position, min(READ_PIECE, self._file.length - self._position))
        self._position += len(data)
        return data
