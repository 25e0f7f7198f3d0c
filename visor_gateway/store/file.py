"""The file store: images as files of this host. The tree of files is `filetree`'s; here is what is asynchronous.

Every call to the file system runs in a worker thread under the store's own limiters. Three kinds:

* what changes or opens something is heeded to its end, so a cancelled method either did nothing or did all;
* what only looks is left to its thread by a cancellation, so a hung disk holds no reader;
* what gives something back runs whether or not it is cancelled.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import trio

from ..errors import ObjectChanged, ObjectMissing, StoreError, StoreUnreachable
from .contract import Block, ObjectInfo
from .filecalls import FileCalls, translated
from .filetree import FileTree, Partial
from .objectkey import ObjectKey
from .openfiles import Opened, OpenFiles

T = TypeVar("T")

BLOCK_SIZE: Final = 512 * 1024  # bytes of one read
THREADS: Final = 16  # calls to the file system at a time
CLOSE_SECONDS: Final = (
    30.0  # after this an abort or close is left to its thread, which finishes it when the disk answers
)

#: Written bytes are given to the disk in steps of this size, so that the fsync of a large image is short.
WRITEBACK_STEP: Final = 16 * 1024 * 1024
#: So many steps may be under way at a time. With one, reading and hashing stand still whenever the disk takes longer
#: for a step than they do; with more, only where it does so for long. The fsync waits for what is left of them.
WRITEBACK_STEPS: Final = 8


class FileStore:
    """Objects as files under a directory, which is made (mode 0700) when it is missing.

    Args:
        name: Its name in the configuration.
        directory: Where the files are. A directory that can't be used is told by `check` and by each call.
        block_size: Bytes of one read; what a reader takes of memory.
        threads: Calls to the file system at a time, of readers and of writers each.
        always_verify: Whether every pull of a whole image is to be hashed on its way.
        calls: The operating system's functions.

    Attributes:
        always_verify: As given.
    """

    writable = True

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        block_size: int = BLOCK_SIZE,
        threads: int = THREADS,
        always_verify: bool = False,
        calls: FileCalls | None = None,
    ) -> None:
        self.name = name
        self.always_verify = always_verify
        self._calls = calls or FileCalls()
        self._tree = FileTree(directory, self._calls)
        self._open: OpenFiles[FileReadStream] = OpenFiles(self._calls)
        self._block_size = block_size
        # Apart, for uploads wait for the disk and must not keep a pull from opening its file.
        self._readers = trio.CapacityLimiter(threads)
        self._writers = trio.CapacityLimiter(threads)
        # Descriptors are given back even when every thread above hangs in a dead disk.
        self._closing = trio.CapacityLimiter(math.inf)

    async def check(self) -> None:
        """Tell whether the directory can be written to and has room; makes it if it is missing."""
        await self._look(self._tree.probe)

    async def stat(self, location: str) -> ObjectInfo:
        """Describe an object. Raises `ObjectMissing` if there is none."""
        return await self._look(self._tree.stat, ObjectKey.from_location(location))

    async def open_read(
        self, location: str, offset: int = 0, length: int | None = None, *, expected: ObjectInfo | None = None
    ) -> FileReadStream:
        """Open `length` bytes from `offset` (all the rest if None). The caller closes the stream.

        Raises:
            ObjectMissing: No such object.
            ObjectChanged: The object does not have that range, or is not the expected one.
        """
        key = ObjectKey.from_location(location)
        with translated(self.name):
            opened = await self._open.open(key, lambda: self._run(self._open_anew, key, limiter=self._readers))
        info = opened.info
        size = info.size or 0
        end = size if length is None else offset + length
        stream = FileReadStream(self, opened.file, info, offset, end)
        if opened.is_prompt:
            stream.share(key)
        if not info.agrees_with(expected):
            await stream.aclose()
            raise ObjectChanged(f"The store '{self.name}' has other bytes now than those that were expected")
        if not 0 <= offset <= end <= size:
            await stream.aclose()
            raise ObjectChanged(f"The range is outside the object, which has {size} bytes")
        return stream

    def _open_anew(self, key: ObjectKey) -> Opened:
        fd, info = self._tree.open(key)
        try:
            return Opened(fd, info, self._calls.is_prompt(fd))
        except BaseException:
            self._tree.close(fd)
            raise

    async def open_write(self, key: str, *, size: int | None = None) -> FileWriteStream:
        """Begin to write the object `key`; room for `size` bytes is reserved. Cancelled, it leaves nothing."""
        partial = await self._run(self._tree.create, ObjectKey.parse(key), size)
        return FileWriteStream(self, partial)

    async def delete(self, location: str) -> None:
        """Remove an object durably. A missing one is a success; so is a location that can't be this store's."""
        try:
            key = ObjectKey.from_location(location)
        except ObjectMissing:
            return
        await self._run(lambda: self._tree.remove(key, partial=False))

    async def abandon(self, key: str) -> None:
        """Remove what a crashed attempt at `key` left, committed or not."""
        parsed = ObjectKey.parse(key)
        await self._run(lambda: self._tree.remove(parsed, partial=True))

    async def leftovers(self, older_than: float) -> Sequence[str]:
        """Keys of objects and partial files, judged by when they were last written to."""
        return await self._look(self._tree.keys, older_than)

    async def _run(self, call: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter | None = None) -> T:
        """Run a blocking call to its end. A cancellation is heeded before the call and not during it."""
        with translated(self.name):
            return await trio.to_thread.run_sync(call, *arguments, limiter=limiter or self._writers)

    async def _look(self, call: Callable[..., T], *arguments: object) -> T:
        """Run a call that changes and keeps nothing; a cancellation leaves it to its thread."""
        with translated(self.name):
            return await trio.to_thread.run_sync(call, *arguments, limiter=self._readers, abandon_on_cancel=True)

    async def _give_back(self, call: Callable[..., object], *arguments: object) -> None:
        """Run a call that frees something, cancelled or not. Its thread always starts, and ends by itself."""
        with translated(self.name):
            await trio.to_thread.run_sync(call, *arguments, limiter=self._closing, abandon_on_cancel=True)


class FileReadStream:
    """A range of one file.

    Attributes:
        info: The file's size and validator when it was opened.
        file: The open descriptor, for zero-copy sending; -1 once closed. The stream owns it.
        position: Offset in the file of the next block.
        end: Offset at which the range ends.
    """

    def __init__(self, store: FileStore, file: int, info: ObjectInfo, position: int, end: int) -> None:
        self.info = info
        self.file = file
        self.position = position
        self.end = end
        self._store = store
        self._calls = store._calls
        self._buffer: memoryview | None = None
        self._once = False
        self._key: ObjectKey | None = None  # of a file whose status and close wait for nothing

    async def receive_some(self) -> Block:
        """The next block, valid until the next call: the buffer is used again. b"" at the end of the range.

        Bytes in the page cache are read at once; for others a thread reads, which a cancellation leaves behind with the
        buffer that it writes to.

        Raises:
            ObjectChanged: The file is shorter than it was.
        """
        await trio.lowlevel.checkpoint()
        if self.file < 0:
            raise StoreError("The stream is closed")
        if self.position >= self.end:
            return b""
        buffer, self._buffer = self._buffer or self._new_buffer(), None
        view = buffer[: self.end - self.position]
        count = self._read_cached(view) or await self._read(view)
        if count == 0:
            raise ObjectChanged("The object is shorter than it was when it was opened")
        self.position += count
        self._buffer = buffer  # not before: a cancelled read still owns it
        return view[:count]

    def share(self, key: ObjectKey) -> None:
        """Let others who open `key` read by way of this descriptor. Only where `FileCalls.is_prompt` says yes."""
        self._key = key
        self._store._open.add(key, self)

    def narrow(self, offset: int, length: int) -> None:
        """Read `length` bytes from `offset` next, of the same open file; they must be inside it."""
        if not 0 <= offset <= offset + length <= (self.info.size or 0):
            raise ObjectChanged("The range is outside the object")
        self.position, self.end = offset, offset + length
        if self._buffer is not None and len(self._buffer) < min(self._store._block_size, length):
            self._buffer = None

    async def length(self) -> int:
        """How many bytes the file has now. Raises `StoreUnreachable`."""
        return (await self._store._look(self._calls.fstat, self.file)).st_size

    def advance(self, count: int) -> None:
        """Book `count` bytes that somebody else has taken from `file`."""
        self.position += count

    def read_once(self) -> None:
        """Leave no more in the page cache than was there: for reads that nobody will soon repeat."""
        self._once = True
        if self._leave():
            return  # others read it now, and what is set here holds for them, too
        with suppress(OSError):
            # What is read ahead would look like what others had read.
            self._calls.fadvise(self.file, 0, 0, os.POSIX_FADV_RANDOM)

    async def check(self) -> None:
        """Raises `ObjectChanged` if somebody has written to the file since it was opened. A delete is no change."""
        if self._key is not None:
            await trio.lowlevel.checkpoint()
            with translated(self._store.name):
                unchanged = self._store._tree.unchanged(self.file, self.info)
        else:
            unchanged = await self._store._look(self._store._tree.unchanged, self.file, self.info)
        if not unchanged:
            raise ObjectChanged("The object was changed while it was read")

    def _new_buffer(self) -> memoryview:
        return memoryview(bytearray(min(self._store._block_size, self.end - self.position)))

    def _read_cached(self, view: memoryview) -> int:
        try:
            return self._calls.preadv(self.file, [view], self.position, os.RWF_NOWAIT)
        except OSError as exc:
            if exc.errno in {errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS}:
                return 0
            with translated(self._store.name):
                raise

    async def _read(self, view: memoryview) -> int:
        read = self._read_and_drop if self._once else self._calls.preadv
        return await self._store._look(read, self.file, [view], self.position)

    def _read_and_drop(self, file: int, views: list[memoryview], position: int) -> int:
        count = self._calls.preadv(file, views, position)
        with suppress(OSError):
            self._calls.fadvise(file, position, count, os.POSIX_FADV_DONTNEED)
        return count

    async def aclose(self) -> None:
        """Close the file, cancelled or not. In a thread where that may last: the last close of a deleted file frees its
        blocks."""
        is_shared = self._leave()
        fd, self.file = self.file, -1
        if fd < 0:
            return
        if self._key is not None and (is_shared or self._has_name(fd)):
            self._store._tree.close(fd)
        else:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._store._give_back(self._store._tree.close, fd)

    def _leave(self) -> bool:
        """Be shared no more. Whether others read the same file."""
        return self._key is not None and self._store._open.leave(self._key, self)

    def _has_name(self, fd: int) -> bool:
        try:
            return self._calls.fstat(fd).st_nlink > 0
        except OSError:
            return False


class FileWriteStream:
    """One attempt at one object, in a partial file until `commit`. Calls wait for one another.

    Attributes:
        location: Where the object will be.
    """

    def __init__(self, store: FileStore, partial: Partial) -> None:
        self.location = partial.key.location
        self._store = store
        self._tree = store._tree
        self._calls = store._calls
        self._partial = partial
        self._length = 0
        self._handed = 0
        self._usable = True
        self._committed = False
        self._busy = trio.Lock()

    async def write(self, data: Block) -> None:
        """Append all of `data`; the caller may use its buffer again when this returns or raises."""
        async with self._busy:
            self._require_usable()
            self._usable = False
            await self._store._run(self._write, data)
            self._usable = True

    def write_now(self, data: Block) -> None:
        """`write` for a thread of the caller's; it must have returned before any other call but `abort`, which may be
        called while it hangs: what it does then is lost."""
        self._require_usable()
        self._usable = False
        with translated(self._store.name), self._partial.used(self._tree.close):
            self._write(data)
        self._usable = True

    async def commit(self) -> ObjectInfo:
        """Make the object durable and visible. Once it has begun, a cancellation waits for its end."""
        async with self._busy:
            self._require_usable()
            self._usable = False
            info = await self._store._run(self._tree.publish, self._partial, self._length)
            self._committed = True
            return info

    async def abort(self) -> None:
        """Remove every trace of the attempt, cancelled or not. Does nothing after a `commit` that returned: by then a
        record may name the object.

        Raises:
            StoreError: Something may be left, for `abandon` to remove; the file is closed.
        """
        with trio.move_on_after(CLOSE_SECONDS, shield=True) as scope:
            async with self._busy:
                self._usable = False
                if not self._committed:
                    await self._store._give_back(self._tree.discard, self._partial)
        if scope.cancelled_caught:
            raise StoreUnreachable(f"The store '{self._store.name}' does not answer")

    def _require_usable(self) -> None:
        if not self._usable:
            raise StoreError("The attempt has failed or ended; nothing can be written to it")

    def _write(self, data: Block) -> None:
        with memoryview(data) as whole, whole.cast("B") as view:
            done = 0
            while done < len(view):
                done += self._calls.write(self._partial.fd, view[done:])
        self._length += done
        self._give_to_disk()

    def _give_to_disk(self) -> None:
        """Start the writing of each full step, and wait for an older one, so that dirty pages stay few."""
        while self._length - self._handed >= WRITEBACK_STEP:
            oldest = self._handed - WRITEBACK_STEPS * WRITEBACK_STEP
            if oldest >= 0:
                self._calls.wait_writeback(self._partial.fd, oldest, WRITEBACK_STEP)
            self._calls.start_writeback(self._partial.fd, self._handed, WRITEBACK_STEP)
            self._handed += WRITEBACK_STEP
