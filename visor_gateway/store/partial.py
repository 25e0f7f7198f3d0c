"""The file of one fill, as the process that fills it and those that follow it have it open.

    <image id>.<tag>.<size>.partial         the bytes; who fills holds its `flock`, alone
    <image id>.<tag>.<size>.progress        how far it is (`progress.Progress`); who follows holds its `flock`, shared

So each side knows of the other, also when it was killed: a follower that gets the lock of the bytes goes on with them.
Every call blocks; `OSError` escapes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from .filecalls import FileCalls
from .progress import Progress, Stage

SUFFIX: Final = ".partial"
PROGRESS_SUFFIX: Final = ".progress"

#: Written bytes are given to the disk in steps of this size, so that the sync of a large image is short.
WRITEBACK_STEP: Final = 16 * 1024 * 1024
#: Bytes that are written before the disk gets the first step. Where an origin names no digest, clients wait for the
#: last block until the database has the digest that was found: its sync, on the same disk, waits for what the disk was
#: given before. So smaller images leave the disk alone until nobody waits any more.
WRITEBACK_LATE: Final = 16 * WRITEBACK_STEP
#: How far the disk may be behind with what it was given before it is waited for: a fill is to run at the store's pace,
#: and no client waits for its sync.
WRITEBACK_BEHIND: Final = 8 * WRITEBACK_STEP

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLLOW: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class CacheKey(NamedTuple):
    """What an entry or a fill is of.

    Attributes:
        image_id: The image's `_id`, a UUID in lower case.
        tag: 64 hex digits: the SHA-256 of the bytes, or for a fill whose digest nobody knows yet another text that
            changes whenever the bytes may have changed.
    """

    image_id: str
    tag: str


def take(fd: int) -> bool:
    """Whether nobody else holds a file's lock; it is held until every copy of `fd` is closed then."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Partial:
    """One fill's files in the directory `path`, open.

    Attributes:
        fd: The bytes, open for reading and writing; -1 once closed.
        written: Bytes in it.
        progress: What other processes are told.
        sealed: When the whole file was written to last, in nanoseconds, once `seal` has found it as it was written.
    """

    def __init__(self, path: Path, key: CacheKey, size: int, calls: FileCalls) -> None:
        self.key = key
        self.size = size
        self.fd = -1
        self.written = 0
        self.progress: Progress | None = None
        self.sealed: int | None = None
        self._path = path
        self._calls = calls
        self._progress_fd = -1
        self._blocks = 0  # that were reserved, of 512 bytes
        self._handed = 0

    @property
    def name(self) -> str:
        """The name of the bytes in the directory."""
        return f"{self.key.image_id}.{self.key.tag}.{self.size}{SUFFIX}"

    def create(self) -> None:
        """Make the files, and reserve room. Raises `OSError`; nothing is left then but for `close` and `unlink`."""
        self.fd = self._calls.open(self._path / self.name, _CREATE, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._calls.fallocate(self.fd, self.size)
        self._blocks = min(os.fstat(self.fd).st_blocks, self.size // 512)
        self._progress_fd = self._calls.open(self._path / progress_of(self.name), _CREATE, 0o600)
        self.progress = Progress(self._progress_fd)
        self.progress.tell(0)

    def follow(self) -> None:
        """Open the files of a fill of another process. Raises `FileNotFoundError` where there is none."""
        self.fd = self._calls.open(self._path / self.name, _FOLLOW)
        self._progress_fd = self._calls.open(self._path / progress_of(self.name), _FOLLOW)
        # Never held alone for longer than it takes to look.
        fcntl.flock(self._progress_fd, fcntl.LOCK_SH)
        self._blocks = min(os.fstat(self.fd).st_blocks, self.size // 512)
        self.progress = Progress(self._progress_fd)

    def is_followed(self) -> bool:
        """Whether other processes serve readers from it. Asked by the one that fills."""
        if self._progress_fd < 0 or not take(self._progress_fd):
            return self._progress_fd >= 0
        fcntl.flock(self._progress_fd, fcntl.LOCK_UN)
        return False

    def adopt(self) -> bool:
        """Go on with a fill that was followed, if its process is gone. What it committed stays."""
        if self.progress is None or not take(self.fd):
            return False
        told = self.progress.look()
        if told is None or told.stage is not Stage.FILLING:
            fcntl.flock(self.fd, fcntl.LOCK_UN)
            return False
        self.written = told.committed
        self._handed = self.written - self.written % WRITEBACK_STEP
        os.lseek(self.fd, self.written, os.SEEK_SET)
        fcntl.flock(self._progress_fd, fcntl.LOCK_UN)
        return True

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Append a block. Dirty pages stay under `WRITEBACK_LATE`, `WRITEBACK_BEHIND` and a step."""
        with memoryview(block) as whole, whole.cast("B") as view:
            done = 0
            while done < len(view):
                done += self._calls.write(self.fd, view[done:])
        self.book(done)

    def book(self, count: int) -> None:
        """Note that so many bytes more were appended, by `write` or on `fd` itself."""
        self.written += count
        while self.written - self._handed >= WRITEBACK_LATE + WRITEBACK_STEP:
            if self._handed >= WRITEBACK_BEHIND:
                self._calls.wait_writeback(self.fd, self._handed - WRITEBACK_BEHIND, WRITEBACK_STEP)
            self._calls.start_writeback(self.fd, self._handed, WRITEBACK_STEP)
            self._handed += WRITEBACK_STEP

    def seal(self) -> None:
        """Note when the whole file was written to last. Raises `OSError` where it is not as it was written: somebody
        else has cut it meanwhile, perhaps to be written on behind a hole."""
        status = os.fstat(self.fd)
        if status.st_size != self.size or status.st_blocks < self._blocks:
            raise OSError(errno.EIO, "The file was changed by somebody else")
        self.sealed = status.st_mtime_ns

    def share(self) -> None:
        """Hold the lock of the bytes no longer alone: they are an entry now, which others read."""
        fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def leads_here(self) -> bool:
        """Whether the name still is this file's: it may have been purged, and be filled anew by another process."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self._path / self.name, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def unlink(self) -> None:
        """Take the names away."""
        for name in (self.name, progress_of(self.name)):
            with suppress(FileNotFoundError):
                self._calls.unlink(self._path / name)

    def close(self) -> None:
        """Close the files. A second call changes nothing."""
        self.progress = None
        for fd in (self.fd, self._progress_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._progress_fd = -1


def progress_of(name: str) -> str:
    """The name of the progress beside that of the bytes."""
    return name.removesuffix(SUFFIX) + PROGRESS_SUFFIX
