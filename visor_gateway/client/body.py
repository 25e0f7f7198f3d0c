"""Bytes to upload, as a stream that is read once, with their digest."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from typing import BinaryIO, Final, Protocol

import anyio.to_thread

from .errors import SourceChanged, VisorError

BLOCK: Final = 1024 * 1024  # bytes read, hashed and sent at a time
INLINE: Final = 65536  # bytes that are hashed faster than a thread is asked


class Body(Protocol):
    """A source of bytes.

    Attributes:
        size: Bytes in all; None where it is not known beforehand.
    """

    size: int | None

    async def receive_some(self) -> bytes:
        """The next bytes; empty at the end."""
        ...

    def sha256(self) -> str:
        """Hex digest of what was received so far."""
        ...

    async def aclose(self) -> None:
        """Release the source."""
        ...


class FileBody:
    """A file. Of a regular one the size is known, and a change while it is read is an error.

    Pipes and terminals are read until their end, in a thread that a cancellation leaves behind: nothing else
    interrupts such a read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._taken = 0
        self._status = os.fstat(file.fileno())
        self._regular = stat.S_ISREG(self._status.st_mode)
        self.size = self._status.st_size - file.tell() if self._regular else None

    @classmethod
    async def open(cls, path: str | os.PathLike[str]) -> FileBody:
        """Open the file at `path`. Raises `OSError` as the system says it, `VisorError` for an empty file."""
        body = await anyio.to_thread.run_sync(lambda: cls(open(path, "rb", buffering=0)))  # ruff: ignore[open-file-with-context-handler]
        if body.size == 0:
            await body.aclose()
            raise VisorError(f"{os.fspath(path)}: the file is empty")
        return body

    async def receive_some(self) -> bytes:
        return await anyio.to_thread.run_sync(self._read, abandon_on_cancel=not self._regular)

    def _read(self) -> bytes:
        block = self._file.read(BLOCK if self.size is None else min(BLOCK, self.size - self._taken))
        self._hash.update(block)
        self._taken += len(block)
        if self._regular and (not block or self._taken == self.size):
            self._check_unchanged()
        return block

    def _check_unchanged(self) -> None:
        """Called before the last block is handed out: the gateway must not get it if the file is another one now."""
        now, then = os.fstat(self._file.fileno()), self._status
        if self._taken != self.size or (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise SourceChanged("The file changed while it was uploaded")

    def sha256(self) -> str:
        return self._hash.hexdigest()

    async def aclose(self) -> None:
        self._file.close()


class StreamBody:
    """Bytes of an async iterable, whose length is not known unless the caller says it."""

    def __init__(self, source: AsyncIterable[bytes], size: int | None = None) -> None:
        self._source: AsyncIterator[bytes] = aiter(source)
        self._hash = hashlib.sha256()
        self.size = size

    async def receive_some(self) -> bytes:
        block = b""
        with suppress(StopAsyncIteration):
            while not block:  # an empty block is no end
                block = await anext(self._source)
        if len(block) > INLINE:
            await anyio.to_thread.run_sync(self._hash.update, block)
        else:
            self._hash.update(block)
        return block

    def sha256(self) -> str:
        return self._hash.hexdigest()

    async def aclose(self) -> None:
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()


Source = str | os.PathLike[str] | AsyncIterable[bytes] | FileBody | StreamBody


async def opened(source: Source) -> Body:
    """The body that `source` stands for: a path, an async iterable, or a body already."""
    if isinstance(source, (FileBody, StreamBody)):
        return source
    if isinstance(source, (str, os.PathLike)):
        return await FileBody.open(source)
    return StreamBody(source)
