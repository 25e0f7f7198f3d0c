"""Sockets to sockets through user space, past the event loop, with the bytes hashed on the way.

Theory of operation. One thread per body fills a buffer from the upstream's socket, hands it to the hash threads and
sends it to the client at the same time; who is last to let go of a buffer makes it free again. Reading, sending and
hashing all run without the interpreter's lock, so the slowest of them is the pace, not their sum. Where bodies leave
no core to hash threads, each body's thread hashes by itself: the buffer stays in one cache, and nobody is woken.
What is hashed is what is sent, from the same memory: pages that only pass through a pipe, or are looked at in a socket
before they do, may still belong to a file of an origin on this host, and change between the one and the other.

The Trio task that asked sleeps until the thread has ended. A cancellation is a message to the thread, by an eventfd
that it polls beside either socket; the task goes on only when thread and hash threads have let go of everything. The
upstream's socket is a duplicate, so no close elsewhere lets its number be reused under a running read.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Final, NoReturn

import trio

from ..errors import StoreUnreachable
from ..store.contract import Direct
from .digest import Hash
from .hashing import Buffers, Hasher, InlineHasher, begin_thread
from .limits import Pace, Rates
from .meter import Meter

LIMIT: Final = 32  # bodies at a time; further ones take the ordinary way
BUFFER_SIZE: Final = 512 * 1024
BUFFERS: Final = 3  # one that is filled or sent, two that wait for the digest
#: A buffer that has so much is handed on as soon as the upstream's socket is empty; one that has less waits for more.
ENOUGH: Final = 256 * 1024
LINGER_SECONDS: Final = 0.02
LONGEST_POLL: Final = 3600.0  # seconds; the system call takes no more than 24 days


class Copier:
    """The bodies of one daemon that are copied in threads. Holds nothing between bodies: there is nothing to close."""

    def __init__(self, *, limit: int = LIMIT, buffer_size: int = BUFFER_SIZE, nice: int = 0) -> None:
        """`nice`: how much the threads stand back behind others."""
        self._nice = nice
        self._limit = self._free = limit
        self._buffer_size = buffer_size

    async def copy(
        self,
        hashes: Sequence[Hash],
        source: Direct,
        sink: int,
        meter: Meter,
        pace: Pace | None,
        advance: Callable[[int], None],
        moved: Callable[[], None] = lambda: None,
    ) -> bool:
        """Move all that `source` offers to the non-blocking socket `sink`, and give it to `hashes`.

        As `Splicer.splice`, and the caller leaves `hashes` alone meanwhile. Where it is not cancelled they have had
        exactly the bytes that `advance` is told of. `moved` is called by a thread whenever `meter.moved` has grown; it
        must not block.

        Returns:
            Whether it was done; if not, as many bodies as may be are copied already, and nothing was moved.

        Raises:
            StoreUnreachable: The upstream ended, broke or kept silent. The client has every byte that came before.
            OSError: The client is gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._free:
            return False
        self._free -= 1
        mover = None
        try:
            threads = min(len(hashes), self._free_cores())
            # Without hash threads one buffer is enough, and a larger one means fewer turns.
            count, size = (BUFFERS, self._buffer_size) if threads else (1, 2 * self._buffer_size)
            buffers = Buffers(count, min(size, source.length))
            hashers = [
                Hasher(digest, buffers, nice=self._nice) if number < threads else InlineHasher(digest, buffers)
                for number, digest in enumerate(hashes)
            ]
            mover = _Mover(source, sink, buffers, hashers, meter, pace or Rates().pace(), moved)
            await self._run(mover, self._nice)
        finally:
            if mover is not None:
                mover.close()
            self._free += 1
        advance(mover.moved)
        if mover.error is not None:
            raise mover.error
        return True

    def _free_cores(self) -> int:
        """Cores that the threads of bodies, that of the one which begins included, leave to others."""
        return max(0, len(os.sched_getaffinity(0)) - (self._limit - self._free))

    @staticmethod
    async def _run(mover: _Mover, nice: int) -> None:
        raise_cancel: Callable[[], NoReturn] | None = None

        def abort(raise_it: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raise_it
            mover.cancel()
            return trio.lowlevel.Abort.FAILED

        mover.start(trio.lowlevel.current_task(), trio.lowlevel.current_trio_token(), nice)
        await trio.lowlevel.wait_task_rescheduled(abort)
        if raise_cancel is not None and not mover.finished:
            raise_cancel()


class _Mover:
    """The thread of one body.

    Attributes:
        finished: Whether all of the body was moved.
        moved: Bytes that the client's socket has taken.
        error: Why that is not all.
    """

    def __init__(
        self,
        source: Direct,
        sink: int,
        buffers: Buffers,
        hashers: Sequence[Hasher | InlineHasher],
        meter: Meter,
        pace: Pace,
        tell_moved: Callable[[], None],
    ) -> None:
        self._left = self._length = source.length
        self.moved = 0
        self.error: Exception | None = None
        self._patience = source.stall_timeout
        self._sink = sink
        self._buffers = buffers
        self._hashers = hashers
        self._meter = meter
        self._pace = pace
        self._tell_moved = tell_moved
        self._cancelled = False
        self._source = os.dup(source.sock)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._bell_poll = self._polling()
        self._source_poll = self._polling((self._source, select.POLLIN))
        self._sink_poll = self._polling((self._sink, select.POLLOUT))

    def _polling(self, *watched: tuple[int, int]) -> select.poll:
        poll = select.poll()
        for fd, events in ((self._bell, select.POLLIN), *watched):
            poll.register(fd, events)
        return poll

    # --- of the task -----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self.moved == self._length

    def start(self, task: trio.lowlevel.Task, token: trio.lowlevel.TrioToken, nice: int) -> None:
        """Begin; `task` is rescheduled when nothing of the thread is left. Raises `RuntimeError` if there can be no
        more threads."""

        def end(_: object = None) -> None:
            token.run_sync_soon(trio.lowlevel.reschedule, task)

        def run() -> None:
            try:
                self._run()
            finally:
                end()

        if nice:
            begin_thread(run, "copier", nice=nice)
        else:
            trio.lowlevel.start_thread_soon(self._run, end, name="copier")

    def cancel(self) -> None:
        self._cancelled = True
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        os.close(self._source)
        os.close(self._bell)

    # --- of the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for hasher in self._hashers:
                hasher.start()
            self._move()
        except Exception as error:
            self.error = error
        self._pace.release()
        for hasher in self._hashers:
            hasher.end()
        try:
            for hasher in self._hashers:
                hasher.check()
        except Exception as error:
            self.error = error

    def _move(self) -> None:
        while self._left and not self._cancelled:
            buffer = self._buffers.take()
            count, failure = self._filled(buffer.view)
            buffer.holders = len(self._hashers) + 1
            for hasher in self._hashers:
                hasher.put(buffer, count)
            self._send(buffer.view[:count])
            self._buffers.let_go(buffer)
            if failure is not None:
                raise failure

    def _filled(self, view: memoryview) -> tuple[int, StoreUnreachable | None]:
        """Read into a buffer. Returns how many bytes came, and what ended the upstream behind them."""
        count = 0
        try:
            while got := self._fill(view, count):
                count += got
        except StoreUnreachable as error:
            return count, error
        return count, None

    def _fill(self, view: memoryview, count: int) -> int:
        """Read behind the first `count` bytes. Returns how many came; 0 if the buffer is to be handed on now."""
        room = min(len(view) - count, self._left)
        granted = self._granted(room, patient=not count) if room and not self._cancelled else 0
        if not granted:
            return 0
        got = 0
        try:
            # The very first bytes wait for no others: somebody may have waited long for them.
            enough = count >= ENOUGH or (count > 0 and not self.moved)
            got = self._read(view[count : count + granted], patient=not count, enough=enough)
        finally:
            self._pace.give_back(granted - got)
        self._left -= got
        return got

    def _granted(self, want: int, *, patient: bool) -> int:
        """How many of `want` bytes may be read now. Where `patient`, 0 means that it was cancelled."""
        granted, again = self._pace.claim(want)
        while patient and not (granted or self._cancelled):
            # Who is paused waits for nobody.
            with nullcontext() if self._pace.paused else self._meter.waiting("limit"):
                self._bell_poll.poll(math.ceil(again * 1000))
            granted, again = self._pace.claim(want)
        return granted

    def _read(self, view: memoryview, *, patient: bool, enough: bool) -> int:
        """What there is; where there is nothing yet, wait for it: as long as it may take, a moment, or not at all."""
        until = time.monotonic() + (self._patience if patient else LINGER_SECONDS)
        while not self._cancelled:
            try:
                got = os.readv(self._source, [view])
            except BlockingIOError:
                left = until - time.monotonic()
                if patient and left <= 0:
                    raise StoreUnreachable("The read stalled: nothing came for too long") from None
                if enough or left <= 0:
                    return 0
                with self._meter.waiting("store"):
                    self._source_poll.poll(math.ceil(min(left, LONGEST_POLL) * 1000))
            except OSError as error:
                raise StoreUnreachable("The read broke off") from error
            else:
                if not got:
                    raise StoreUnreachable("The read ended before it was whole")
                return got
        return 0

    def _send(self, view: memoryview) -> None:
        while view and not self._cancelled:
            try:
                sent = os.write(self._sink, view)
            except BlockingIOError:
                self._pace.release()  # a claim that was made for the next bytes: others can use it meanwhile
                with self._meter.waiting("client"):
                    self._sink_poll.poll()
            else:
                view = view[sent:]
                self.moved += sent
                self._meter.moved += sent
                self._tell_moved()
