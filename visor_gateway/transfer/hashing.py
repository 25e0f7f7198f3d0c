"""Digests of buffers that others use at the same time and that go round: in threads of their own, or inline.

Each holder of a buffer lets go of it when it is done, and the last one makes it free again. So bytes are hashed while
they are written, several digests at once, and what waits for the slowest of them is bounded by the number of buffers.

Threads hash in turns, no more at a time than there are cores: more are no faster, and a thread that holds the
interpreter's lock, for which the event loop waits, would wait for its share of a core behind all of them.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

from .digest import Hash


class Cores:
    """Cores, each for one thread at a time that keeps it busy. Safe to use from several threads."""

    def __init__(self, count: int) -> None:
        # Not a semaphore, which is written in Python.
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> None:
        """Wait for one."""
        self._free.get()

    def __exit__(self, *_: object) -> None:
        self._free.put(None)


CORES: Final = Cores(len(os.sched_getaffinity(0)))


def begin_thread(run: Callable[[], object], name: str, *, nice: int) -> None:
    """Run something in a thread that stands back behind others by `nice`.

    Not in one of Trio's, which somebody else gets next: a thread without privileges can't come forward again.

    Raises:
        RuntimeError: There can be no more threads.
    """

    def stand_back() -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        run()

    threading.Thread(target=stand_back if nice else run, name=name, daemon=True).start()


class Buffer:
    """A piece of memory; `holders` have not let go of it yet."""

    __slots__ = ("holders", "view")

    def __init__(self, size: int) -> None:
        # Its own mapping, which goes back to the system for certain.
        self.view = memoryview(mmap.mmap(-1, size))
        self.holders = 0


class Buffers:
    """A fixed number of buffers that go round. Safe to use from several threads."""

    def __init__(self, count: int, size: int) -> None:
        self._free: SimpleQueue[Buffer] = SimpleQueue()
        self._lock = threading.Lock()
        for _ in range(count):
            self._free.put(Buffer(size))

    def take(self) -> Buffer:
        """A free buffer. Blocks until there is one."""
        return self._free.get()

    def let_go(self, buffer: Buffer) -> None:
        """One holder less; the last one makes it free."""
        with self._lock:
            buffer.holders -= 1
            if buffer.holders:
                return
        self._free.put(buffer)


class InlineHasher:
    """What `Hasher` is, in the caller's thread: where no core is free, to hand over costs more than it gains."""

    def __init__(self, digest: Hash, buffers: Buffers) -> None:
        self._digest = digest
        self._buffers = buffers

    def start(self) -> None:
        """Nothing is to be begun."""

    def put(self, buffer: Buffer, count: int) -> None:
        """Hash the first `count` bytes of a buffer, then let go of it. Raises what the digest does."""
        self._digest.update(buffer.view[:count])
        self._buffers.let_go(buffer)

    def end(self) -> None:
        """Nothing is left."""

    def check(self) -> None:
        """`put` has told."""


class Hasher:
    """One digest's thread. Between `start` and `end` nobody else touches the digest."""

    def __init__(self, digest: Hash, buffers: Buffers, *, nice: int = 0, cores: Cores = CORES) -> None:
        """`nice`: how much the thread stands back behind others; `cores`: those that it shares with others."""
        self._digest = digest
        self._buffers = buffers
        self._nice = nice
        self._cores = cores
        self._queue: SimpleQueue[tuple[Buffer, int] | None] = SimpleQueue()
        self._ended = threading.Event()
        self._started = False
        self._error: Exception | None = None

    def start(self) -> None:
        """Begin. Raises `RuntimeError` if there can be no more threads."""
        begin_thread(self._run, "hash", nice=self._nice)
        self._started = True

    def put(self, buffer: Buffer, count: int) -> None:
        """Give it the first `count` bytes of a buffer, which it lets go of. Does not block."""
        self._queue.put((buffer, count))

    def end(self) -> None:
        """Let it finish what it has, and wait until the thread has ended. Also for one that was never started."""
        if self._started:
            self._queue.put(None)
            self._ended.wait()

    def check(self) -> None:
        """Raise what made the digest fail, if it did."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.set()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            buffer, count = item
            try:
                with self._cores:
                    self._digest.update(buffer.view[:count])
            except Exception as error:
                self._error = error  # and go on: the mover waits for its buffers
            self._buffers.let_go(buffer)
