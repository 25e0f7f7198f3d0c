"""Threads that bring cold windows of files into the page cache, a few for each disk.

They copy nothing: the kernel is asked to read ahead, and one byte at the end of each step is waited for. A disk that
does not answer keeps its own threads and those of no other. One that hangs is replaced; where many hang, nothing more
is asked of that disk until one of them comes back.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from .hanging import SILENT_LOOKS, Calls
from .sendjob import SendJob

READERS: Final = 4  # threads for each disk
HANGING: Final = 16  # threads that may be left behind in one disk
STEP: Final = 256 * 1024  # bytes; what is read ahead by one call is bounded in the kernel, at about this much

Return = Callable[[SendJob], None]


class ColdReads:
    """The readers of one daemon. `stuck` and the `back` of a read must not block."""

    def __init__(self, stuck: Callable[[SendJob], None], threads: int = READERS) -> None:
        """`stuck`: called with a job whose reader has been left behind; `back` is called all the same, some day."""
        self._stuck = stuck
        self._threads = threads
        self._disks: dict[int, _Disk] = {}
        self._lock = threading.Lock()

    def warm(self, job: SendJob, end: int, back: Return) -> bool:
        """Read a job's file up to `end`, then call `back` from another thread. False: its disk answers nobody."""
        device = os.fstat(job.file).st_dev
        with self._lock:
            disk = self._disks.get(device)
            if disk is None:
                disk = self._disks[device] = _Disk(self._stuck, self._threads)
        return disk.put(job, end, back)

    def look(self) -> None:
        """Replace threads that hang. To be called every `LOOK_SECONDS`."""
        with self._lock:
            disks = tuple(self._disks.values())
        for disk in disks:
            disk.look()

    @property
    def hanging(self) -> int:
        """How many threads were left behind and have not come back."""
        return sum(disk.hanging for disk in self._disks.values())

    def close(self, patience: float) -> None:
        """End the threads; each is waited for at most `patience` seconds."""
        for disk in self._disks.values():
            disk.close(patience)


class _Disk:
    """One disk. `hanging`: threads that were left behind in it and have not come back."""

    def __init__(self, stuck: Callable[[SendJob], None], limit: int) -> None:
        self._stuck = stuck
        self._limit = limit
        self._lock = threading.Lock()
        self._wanted: deque[tuple[SendJob, int, Return]] = deque()
        self._bell = threading.Semaphore(0)
        self._readers: list[_Reader] = []
        self.hanging = 0
        self._closing = False

    def put(self, job: SendJob, end: int, back: Return) -> bool:
        with self._lock:
            if len(self._readers) < self._limit and self.hanging < HANGING:
                self._begin()
            if not self._readers:
                return False
            self._wanted.append((job, end, back))
        self._bell.release()
        return True

    def _begin(self) -> None:
        reader = _Reader(self)
        self._readers.append(reader)
        reader.start()

    def look(self) -> None:
        for reader in tuple(self._readers):
            if reader.calls.look() >= SILENT_LOOKS:
                reader.calls.leave_behind(lambda reader=reader: self._lose(reader))  # type: ignore[misc]

    def _lose(self, reader: _Reader) -> None:
        with self._lock:
            self._readers.remove(reader)
            self.hanging += 1
            if self.hanging < HANGING:
                self._begin()
            # With nobody left to read, what waits hangs as well.
            unread = [] if self._readers else list(self._wanted)
        for job in (reader.job, *(job for job, _, _ in unread)):
            if job is not None:
                self._stuck(job)

    def found(self) -> None:
        """A thread that was left behind is back, and ends. What waits for a reader gets a new one."""
        with self._lock:
            self.hanging -= 1
            if self._wanted and not self._readers and not self._closing:
                self._begin()

    def next(self) -> tuple[SendJob, int, Return] | None:
        """What to read next; None at the end. Blocks."""
        self._bell.acquire()
        return None if self._closing else self._wanted.popleft()

    def close(self, patience: float) -> None:
        self._closing = True
        with self._lock:
            readers = tuple(self._readers)
        for _ in readers:
            self._bell.release()
        for reader in readers:
            reader.join(patience)


class _Reader(threading.Thread):
    """One thread. `job` is what it works on."""

    def __init__(self, disk: _Disk) -> None:
        super().__init__(name="reader", daemon=True)
        self.calls = Calls()
        self.job: SendJob | None = None
        self._disk = disk
        self._byte = bytearray(1)

    def run(self) -> None:
        while (wanted := self._disk.next()) is not None:
            self.job, end, back = wanted
            keeps_place = self._warm(self.job, end)
            self.job = None
            back(wanted[0])
            if not keeps_place:
                self._disk.found()
                return

    def _warm(self, job: SendJob, end: int) -> bool:
        """Read a window, and begin with the next. Whether the thread was waited for all the time."""
        file, begin = job.file, job.offset
        if not self._call(lambda: _read_ahead(file, begin, end)):
            return False
        for step in range(begin, end, STEP):
            last = min(step + STEP, end) - 1
            if not self._call(lambda last=last: os.preadv(file, [self._byte], last)):  # type: ignore[misc]
                return False
        return self._call(lambda: _read_ahead(file, end, 2 * end - begin))

    def _call(self, call: Callable[[], object]) -> bool:
        self.calls.begin()
        with suppress(OSError):  # the pump's own sendfile meets the same error, and tells it
            call()
        return self.calls.end()


def _read_ahead(file: int, begin: int, end: int) -> None:
    for step in range(begin, end, STEP):
        os.posix_fadvise(file, step, min(STEP, end - step), os.POSIX_FADV_WILLNEED)
