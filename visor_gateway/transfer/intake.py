"""Request bodies to stores past the event loop: socket to file in one thread, each digest in another.

Theory of operation. An upload borrows the read side of its connection, as a duplicate of the socket. One thread, the
mover, fills a buffer from it, hands the buffer to the hash threads and writes it to the store at the same time; who
is last to let go of a buffer makes it free again. Reading, writing and hashing all run without the interpreter's lock,
so uploads neither hold up the event loop nor one another. There are `BUFFERS` of them, so an upload's memory is
bounded, and a client can't send faster than the slowest of store and digests takes it.

The Trio task that asked sleeps until the mover has ended. A cancellation is a message to the mover, too, by an eventfd
that it polls beside the socket: only when mover and hash threads have let go of everything does the task go on, so no
descriptor is closed, and its number reused, under a running read or write. A write that hangs in its disk is the
exception: it is left behind, and when it returns its thread ends without touching anything else.

The limits on slow clients are those of the socket edge: only time that the mover waits for the client counts.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from typing import Final, Protocol, runtime_checkable

import trio

from ..errors import BodyIncomplete, StoreUnreachable
from ..store.contract import Block, DirectWriteStream
from .contract import LentBody
from .digest import Hash
from .hanging import LOOK_SECONDS, SILENT_LOOKS, Calls
from .hashing import Buffer, Buffers, Hasher, begin_thread
from .limits import Pace, Rates
from .meter import Meter, WaitKind
from .pump import Source

INTAKE_MIN: Final = 256 * 1024  # bytes; shorter bodies take no more than a block or two of the ordinary way
LIMIT: Final = 32  # uploads at a time; further ones take the ordinary way
BUFFER_SIZE: Final = 1 << 20
BUFFERS: Final = 4
#: A buffer that has so much is handed on as soon as the socket is empty; one that has less waits for more.
ENOUGH: Final = 256 * 1024
LONGEST_POLL: Final = 3600.0  # seconds; the system call takes no more than 24 days
LINGER_SECONDS: Final = 0.1  # for so long, or a slow client's bytes would be counted and stored a megabyte late


@runtime_checkable
class LendingSource(Source, Protocol):
    """A source that may have a socket behind it.

    Attributes:
        lends: Whether `lend` is to be had, and worth it. Not after `receive_some`.
    """

    lends: bool

    def lend(self) -> AbstractAsyncContextManager[LentBody]:
        """The socket, in place of `receive_some`. Raises `ConnectionError` where the client is gone."""
        ...


class Examiner(Protocol):
    """Whoever looks at the bytes in order and may refuse them."""

    def feed(self, block: Block) -> None: ...


class Intake:
    """The uploads of one daemon that run in threads. Holds nothing between uploads, so there is nothing to close."""

    def __init__(
        self, *, limit: int = LIMIT, buffers: int = BUFFERS, buffer_size: int = BUFFER_SIZE, nice: int = 0
    ) -> None:
        """`nice`: how much the threads stand back behind others, the event loop among them."""
        self._free = limit
        self._nice = nice
        self._buffers = buffers
        self._buffer_size = buffer_size

    @contextmanager
    def slot(self) -> Generator[bool, None, None]:
        """Take a place among the uploads for the time of the block; yields whether there is one."""
        taken = self._free > 0
        self._free -= taken
        try:
            yield taken
        finally:
            self._free += taken

    async def move(
        self,
        body: LentBody,
        writer: DirectWriteStream,
        hashes: Sequence[Hash],
        examiner: Examiner,
        meter: Meter,
        pace: Pace | None = None,
        *,
        wait: WaitKind = "client",
    ) -> None:
        """Write all of `body` to `writer`, and give it to `hashes` and, in order, to `examiner`; no faster than `pace`
        allows, and what it holds back stays with the client.

        The caller owns all of them and leaves them alone until this returns or raises, whatever happens. `body.left`
        tells how much was not read, which is less than what was not written where it broke off. What waiting for the
        socket is booked as says `wait`. Cancelled, it raises once the threads have let go, but for a write that hangs
        in its disk: that one is left behind with the buffer, and the writer must bear to be aborted under it.

        Raises:
            BodyIncomplete: The client is gone, or slower than it may be.
            StoreError: The store failed, or did not answer for the stall timeout.
            GatewayError: What `examiner` raises.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        buffers = Buffers(self._buffers, max(1, min(self._buffer_size, len(body.lead) + body.left)))
        hashers = [Hasher(digest, buffers, nice=self._nice) for digest in hashes]
        mover = _Mover(body, writer, hashers, examiner, meter, pace, buffers, wait)
        try:
            mover.start(trio.lowlevel.current_trio_token(), self._nice)
            await _watch(mover, body.stall_timeout)
        finally:
            if not mover.ended.is_set():
                mover.cancel()
                with trio.CancelScope(shield=True):
                    await _let_go(mover)
            mover.close()
        if mover.error is not None:
            raise mover.error


async def _watch(mover: _Mover, patience: float) -> None:
    """Wait until the thread has ended. Raises `StoreUnreachable` when a write is silent for `patience` seconds."""
    looks = 0
    while looks * LOOK_SECONDS < patience:
        with trio.move_on_after(LOOK_SECONDS):
            await mover.ended.wait()
            return
        looks = mover.calls.look()
    raise StoreUnreachable("The store does not answer")


async def _let_go(mover: _Mover) -> None:
    """Wait until a cancelled thread has ended, or is left behind in a write that hangs."""
    while not mover.ended.is_set():
        with trio.move_on_after(LOOK_SECONDS):
            await mover.ended.wait()
        if mover.calls.look() >= SILENT_LOOKS and mover.calls.leave_behind():
            return


class _Mover:
    """The thread of one upload.

    Attributes:
        ended: Set in the event loop when nothing of the thread is left, unless it was left behind.
        calls: Its writes.
        finished: Whether all of the body was taken.
        error: Why it was not.
    """

    def __init__(
        self,
        body: LentBody,
        writer: DirectWriteStream,
        hashers: Sequence[Hasher],
        examiner: Examiner,
        meter: Meter,
        pace: Pace | None,
        buffers: Buffers,
        wait: WaitKind,
    ) -> None:
        self.ended = trio.Event()
        self.calls = Calls()
        self.finished = False
        self.error: BaseException | None = None
        self._body = body
        self._writer = writer
        self._hashers = hashers
        self._examiner = examiner
        self._meter = meter
        self._pace = pace or Rates().pace()
        self._buffers = buffers
        self._wait_kind: WaitKind = wait
        self._cancelled = False
        self._patience = _Patience(body)
        self._poll = select.poll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._bell, select.POLLIN)
        self._bell_poll = select.poll()
        self._bell_poll.register(self._bell, select.POLLIN)
        self._poll.register(body.sock, select.POLLIN)

    # --- of the task -----------------------------------------------------------------------------

    def start(self, token: trio.lowlevel.TrioToken, nice: int) -> None:
        """Begin."""

        def run() -> None:
            self._run()
            with suppress(trio.RunFinishedError):  # one that was left behind may come back after everything else
                token.run_sync_soon(self.ended.set)

        begin_thread(run, "intake", nice=nice)

    def cancel(self) -> None:
        self._cancelled = True
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        os.close(self._bell)

    # --- of the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._move_fenced()
        except Exception as error:
            self.error = error

    def _move_fenced(self) -> None:
        try:
            for hasher in self._hashers:
                hasher.start()
            moved = self._move()
        finally:
            self._pace.release()
            with self._meter.waiting("disk"):
                for hasher in self._hashers:
                    hasher.end()
        for hasher in self._hashers:
            hasher.check()
        self.finished = moved

    def _move(self) -> bool:
        """Whether all of it was moved; if not, it was cancelled."""
        lead: Block = self._body.lead
        while lead or self._body.left:
            with self._meter.waiting("disk"):
                buffer = self._buffers.take()
            count = min(len(lead), len(buffer.view))
            buffer.view[:count], lead = lead[:count], lead[count:]
            count = self._fill(buffer.view, count)
            if self._cancelled:
                return False
            self._hand_on(buffer, count)
        return True

    def _fill(self, view: memoryview, count: int) -> int:
        """Read into `view` behind the first `count` bytes. Returns how many there are then."""
        end = min(len(view), count + self._body.left)
        until = math.inf
        while count < end and not self._cancelled:
            # What a limit holds back is not waited for with bytes in hand.
            granted = self._granted(end - count, patient=count == 0)
            if not granted:
                break
            got = self._read(view[count : count + granted])
            self._pace.give_back(granted - got)
            count += got
            if got:
                continue
            now = time.monotonic()
            if count >= ENOUGH or now >= until:
                break
            if count and until == math.inf:
                until = now + LINGER_SECONDS
            self._wait(until - now)
        return count

    def _granted(self, want: int, *, patient: bool) -> int:
        """How many of `want` bytes may be read now. Where `patient`, 0 means that it was cancelled."""
        granted, again = self._pace.claim(want)
        if granted or not patient:
            return granted
        while not (granted or self._cancelled):
            # Who is paused waits for nobody.
            with nullcontext() if self._pace.paused else self._meter.waiting("limit"):
                self._bell_poll.poll(math.ceil(again * 1000))
            granted, again = self._pace.claim(want)
        return granted

    def _read(self, view: memoryview) -> int:
        """Read what there is; 0 if there is nothing now."""
        try:
            got = os.readv(self._body.sock, [view])
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise BodyIncomplete("The client is gone, and the body is not whole") from exc
        if got == 0:
            raise BodyIncomplete("The client stopped sending before the body was whole")
        self._body.left -= got
        self._patience.reward(got)
        return got

    def _wait(self, at_most: float) -> None:
        began = time.monotonic()
        seconds = min(at_most, self._patience.left)
        with self._meter.waiting(self._wait_kind):
            self._poll.poll(math.ceil(min(seconds, LONGEST_POLL) * 1000))
        self._patience.wait(time.monotonic() - began)

    def _hand_on(self, buffer: Buffer, count: int) -> None:
        view = buffer.view[:count]
        self._examiner.feed(view)
        buffer.holders = len(self._hashers) + 1
        for hasher in self._hashers:
            hasher.put(buffer, count)
        self.calls.begin()
        try:
            with self._meter.waiting("disk"):
                self._writer.write_now(view)
        finally:
            is_ours = self.calls.end()
        if not is_ours:
            raise StoreUnreachable("The store did not answer in time")
        self._meter.moved += count
        self._buffers.let_go(buffer)


class _Patience:
    """How long a client may be waited for: never `stall_timeout` without a byte, and after that much waiting in all it
    must have sent `min_rate` bytes for each second that was waited."""

    def __init__(self, body: LentBody) -> None:
        self._limit = body.stall_timeout
        self._min_rate = body.min_rate
        self._waited = self._silence = 0.0
        self._received = 0

    @property
    def left(self) -> float:
        """Seconds of silence after which it is over."""
        return max(0.0, self._limit - self._silence)

    def reward(self, count: int) -> None:
        self._received += count
        self._silence = 0.0

    def wait(self, seconds: float) -> None:
        """Book a wait.

        Raises:
            BodyIncomplete: It was the last one.
        """
        self._waited += seconds
        self._silence += seconds
        slow = self._waited >= self._limit and self._received < self._waited * self._min_rate
        if slow or self._silence >= self._limit:
            raise BodyIncomplete("The request body did not arrive in time")
