"""Files that are being read, for others who come to read the same.

A storm of pulls is one of the same image. Whoever comes while somebody reads a file gets a duplicate of his descriptor,
in the event loop, and whoever comes while it is being opened waits for that: one path is looked up, in one thread.

Only files whose status the kernel has in memory while they are open take part (`FileCalls.is_prompt`). What is looked
at is then the same as after opening: that the file has a name still, its size, inode and times.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

import trio

from .contract import ObjectInfo
from .filecalls import FileCalls
from .filetree import describe
from .objectkey import ObjectKey


class Opened(NamedTuple):
    """A file that was opened.

    Attributes:
        info: What it is now.
        is_prompt: What `FileCalls.is_prompt` says of it.
    """

    file: int
    info: ObjectInfo
    is_prompt: bool


class Reading(Protocol):
    """Who reads a file. `file` is an open descriptor for as long as it is among those that read."""

    @property
    def file(self) -> int: ...


R = TypeVar("R", bound=Reading)


class OpenFiles(Generic[R]):
    """The files of one store that are being read. All of it runs in the thread of the event loop."""

    def __init__(self, calls: FileCalls) -> None:
        self._calls = calls
        self._readers: dict[ObjectKey, dict[R, None]] = {}
        self._opening: dict[ObjectKey, trio.Event] = {}

    async def open(self, key: ObjectKey, open_anew: Callable[[], Awaitable[Opened]]) -> Opened:
        """A descriptor, by way of another reader or of `open_anew`. The caller closes it.

        Raises:
            StoreError: What `open_anew` raises. It fails nobody else: those who waited for it try for themselves.
        """
        await trio.lowlevel.checkpoint()
        while (found := self._duplicate(key)) is None:
            opening = self._opening.get(key)
            if opening is None:
                return await self._open(key, open_anew)
            await opening.wait()
        return found

    async def _open(self, key: ObjectKey, open_anew: Callable[[], Awaitable[Opened]]) -> Opened:
        opening = self._opening[key] = trio.Event()
        try:
            return await open_anew()
        finally:
            # Its reader is added before anybody who waited runs: there is no checkpoint in between.
            del self._opening[key]
            opening.set()

    def _duplicate(self, key: ObjectKey) -> Opened | None:
        for reader in self._readers.get(key, ()):
            status = self._calls.fstat(reader.file)
            if not status.st_nlink:
                return None  # deleted: another file may have the name
            return Opened(os.dup(reader.file), describe(status), is_prompt=True)
        return None

    def add(self, key: ObjectKey, reader: R) -> None:
        """Let others share what `reader` has open, until `leave`."""
        self._readers.setdefault(key, {})[reader] = None

    def leave(self, key: ObjectKey, reader: R) -> bool:
        """Nobody shares the reader's file any more. Whether others have it open still. May be called again."""
        readers = self._readers.get(key)
        if readers is None:
            return False
        readers.pop(reader, None)
        if not readers:
            del self._readers[key]
        return bool(readers)
