"""Sockets to sockets without copies: `os.splice` through a pipe, in a thread away from the event loop.

Theory of operation. One thread has one edge-triggered epoll for the sockets of all its jobs. A job is an upstream
socket, a pipe, a client's socket and a count. A job is in one of four places, and only the thread moves it:

    ready    it may move bytes from now; each job in turn gets one quantum
    dry      the upstream has sent nothing; its edge makes the job ready again, and after too long a silence it fails
    full     the client takes nothing; its edge makes the job ready again
    parked   a limit lets it move nothing now; it is ready again at a given time

The pipe is filled only when it is empty, so what was taken from the upstream is always on its way to the client: when
the upstream ends or breaks, everything before the break has been handed on, and the count says where to go on.

Rules. The thread closes nothing; the upstream's socket is a duplicate, so no close elsewhere lets its number be reused
under a running `splice`. It adds to `meter.moved` and enters `meter.waiting`; nobody else does while the job is its.
Everything else crosses threads by a deque and an eventfd. A cancellation is a message, too: the task goes on only when
the thread has let go.
"""

from __future__ import annotations

import heapq
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Literal, NoReturn

import trio

from ..errors import StoreUnreachable
from ..store.contract import Direct
from .limits import Pace, Rates
from .meter import Meter
from .pipes import Pipe, Pipes
from .sendbuffer import SendBuffer

QUANTUM: Final = 4 << 20  # bytes of one turn: as a pump's
LOOK_SECONDS: Final = 1.0  # how often silent upstreams are looked for
JOIN_SECONDS: Final = 5.0
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_Place = Literal["ready", "dry", "full", "parked"]


class _Job:
    """Bytes on their way; `left` are still to be taken from the upstream, `piped` are in the pipe."""

    __slots__ = (
        "buffer",
        "done",
        "error",
        "left",
        "meter",
        "moved",
        "pace",
        "patience",
        "pipe",
        "piped",
        "place",
        "since",
        "sink",
        "source",
        "task",
        "token",
        "waiting",
    )

    def __init__(
        self,
        source: int,
        sink: int,
        length: int,
        pipe: Pipe,
        patience: float,
        meter: Meter,
        pace: Pace,
        buffer: SendBuffer,
    ) -> None:
        self.source = source
        self.sink = sink
        self.left = length
        self.pipe = pipe
        self.patience = patience  # seconds of silence that the upstream may keep
        self.piped = 0
        self.moved = 0
        self.meter = meter
        self.pace = pace
        self.buffer = buffer
        self.place: _Place = "ready"
        self.since = 0.0  # when it became dry
        self.done = False
        self.error: Exception | None = None
        self.waiting: AbstractContextManager[None] | None = None
        self.task = trio.lowlevel.current_task()
        self.token = trio.lowlevel.current_trio_token()

    def wait(self, meter_wait: AbstractContextManager[None] | None) -> None:
        """Book what the job waits for from now on; None for nothing."""
        if self.waiting is not None:
            self.waiting.__exit__(None, None, None)
        self.waiting = meter_wait
        if meter_wait is not None:
            meter_wait.__enter__()


class Splicer:
    """The splicing of one daemon. `close` it when no job runs any more; as a context manager it does so itself."""

    def __init__(self, *, pipes: Pipes | None = None, quantum: int = QUANTUM, notsent_lowat: int = 0) -> None:
        """`notsent_lowat` is what clients get that have shown that they are fast (`SendBuffer`)."""
        self._pipes = pipes or Pipes()
        self._quantum = quantum
        self._notsent_lowat = notsent_lowat
        self._mover: _Mover | None = None

    def __enter__(self) -> Splicer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def splice(
        self, source: Direct, sink: int, meter: Meter, pace: Pace | None, advance: Callable[[int], None]
    ) -> bool:
        """Move all that `source` offers to the non-blocking socket `sink`.

        `pace` says how fast it may go, None for no limit. `advance` is told, in the caller's thread, how many bytes
        were moved, unless this is cancelled. The caller owns everything and keeps it until this returns or raises.
        Cancelled, it returns once the thread has let go: bytes may have been in the pipe then, and both connections are
        good for nothing but an end.

        Returns:
            Whether it was done; if not, there is no pipe to do it, and nothing was moved.

        Raises:
            StoreUnreachable: The upstream ended, broke or kept silent. The client has every byte that came before.
            OSError: The client is gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        pipe = self._pipes.take()
        if pipe is None:
            return False
        is_empty = True
        try:
            duplicate = os.dup(source.sock)
            try:
                buffer = SendBuffer(0, self._notsent_lowat)
                pace = pace or Rates().pace()
                job = _Job(duplicate, sink, source.length, pipe, source.stall_timeout, meter, pace, buffer)
                is_empty = False
                await self._run(job)
                is_empty = not job.piped
            finally:
                os.close(duplicate)
        finally:
            self._pipes.give_back(pipe, empty=is_empty)
        advance(job.moved)
        if job.error is not None:
            raise job.error
        return True

    async def _run(self, job: _Job) -> None:
        mover = self._mover = self._mover or _Mover(self._quantum)
        raise_cancel: Callable[[], NoReturn] | None = None

        def abort(raise_it: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raise_it
            mover.submit("cancel", job)
            return trio.lowlevel.Abort.FAILED

        mover.submit("new", job)
        await trio.lowlevel.wait_task_rescheduled(abort)
        if raise_cancel is not None and (job.left or job.piped):
            raise_cancel()

    def close(self) -> None:
        """End the thread and close the pipes."""
        if self._mover is not None:
            self._mover.close()
        self._pipes.close()


class _Mover(threading.Thread):
    def __init__(self, quantum: int) -> None:
        super().__init__(name="splice", daemon=True)
        self._quantum = quantum
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._messages: deque[tuple[Literal["new", "cancel"], _Job]] = deque()
        self._ready: deque[_Job] = deque()
        self._parked: list[tuple[float, int, _Job]] = []  # a heap by the time at which they are ready again
        self._parkings = 0
        #: Jobs by their sockets, with the place that the socket's edge takes them out of.
        self._sockets: dict[int, tuple[_Job, _Place]] = {}
        self._look_at = 0.0
        self._closing = False
        self.start()

    def submit(self, message: Literal["new", "cancel"], job: _Job) -> None:
        """Tell of a new job, or of one to let go. From any thread."""
        self._messages.append((message, job))
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        self._closing = True
        os.eventfd_write(self._bell, 1)
        self.join(JOIN_SECONDS)
        if not self.is_alive():
            self._epoll.close()
            os.close(self._bell)

    def run(self) -> None:
        while not self._closing:
            for fd, _ in self._epoll.poll(self._patience()):
                self._wake(fd)
            while self._messages:
                message, job = self._messages.popleft()
                self._fenced(job, self._admit if message == "new" else self._finish)
            now = time.monotonic()
            self._unpark(now)
            self._give_up_the_silent(now)
            for _ in range(len(self._ready)):
                self._fenced(self._ready.popleft(), self._turn)

    def _patience(self) -> float:
        """Seconds that may be waited for sockets and messages; -1 for any time."""
        if self._ready:
            return 0
        times = [self._parked[0][0]] if self._parked else []
        if self._sockets:
            times.append(self._look_at)
        return max(0.0, min(times) - time.monotonic()) if times else -1

    def _wake(self, fd: int) -> None:
        if fd == self._bell:
            os.eventfd_read(self._bell)
            return
        job, place = self._sockets[fd]
        if job.place == place:
            self._make_ready(job)

    def _unpark(self, now: float) -> None:
        while self._parked and self._parked[0][0] <= now:
            job = heapq.heappop(self._parked)[2]
            if not job.done:
                self._make_ready(job)

    def _give_up_the_silent(self, now: float) -> None:
        if not self._sockets or now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for job in [job for job, place in self._sockets.values() if job.place == place == "dry"]:
            if job.pace.paused:
                job.since = now
            elif now - job.since >= job.patience:
                self._finish(job, StoreUnreachable("The read stalled: nothing came for too long"))

    def _fenced(self, job: _Job, step: Callable[[_Job], None]) -> None:
        """A job's failure ends that job: the thread serves all the others."""
        try:
            step(job)
        except Exception as error:
            self._finish(job, error)

    def _admit(self, job: _Job) -> None:
        self._watch(job.source, select.EPOLLIN, job, "dry")
        self._watch(job.sink, select.EPOLLOUT, job, "full")
        self._make_ready(job)

    def _watch(self, fd: int, event: int, job: _Job, place: _Place) -> None:
        self._epoll.register(fd, event | select.EPOLLET)
        self._sockets[fd] = job, place

    def _make_ready(self, job: _Job) -> None:
        job.wait(None)
        job.place = "ready"
        self._ready.append(job)

    def _turn(self, job: _Job) -> None:
        """Give a job one quantum."""
        if job.done:
            return
        budget = self._quantum
        while budget > 0:
            if not job.piped and not self._take(job):
                return
            sent = self._hand_on(job)
            if not sent or not (job.left or job.piped):
                return
            budget -= sent
        self._make_ready(job)

    def _take(self, job: _Job) -> bool:
        """Fill the pipe. Whether there is something in it now; if not, the job is in another place."""
        granted, seconds = job.pace.claim(min(job.left, job.pipe.size))
        if not granted:
            self._park(job, seconds)
            return False
        try:
            taken = os.splice(job.source, job.pipe.writer, granted, flags=_FLAGS)
        except BlockingIOError:
            job.pace.give_back(granted)
            job.place, job.since = "dry", time.monotonic()
            job.wait(job.meter.waiting("store"))
            return False
        except OSError as error:
            job.pace.give_back(granted)
            raise StoreUnreachable("The read broke off") from error
        job.pace.give_back(granted - taken)
        if not taken:
            raise StoreUnreachable("The read ended before it was whole")
        job.left -= taken
        job.piped = taken
        return True

    def _hand_on(self, job: _Job) -> int:
        """Empty the pipe into the client's socket. Returns how much went; 0 if the job is in another place now."""
        # More follows at once only where the pipe was filled: a segment must not wait for a slow upstream.
        more = os.SPLICE_F_MORE if job.left and job.piped == job.pipe.size else 0
        try:
            sent = os.splice(job.pipe.reader, job.sink, job.piped, flags=_FLAGS | more)
        except BlockingIOError:
            job.place = "full"
            job.wait(job.meter.waiting("client"))
            return 0
        job.piped -= sent
        job.moved += sent
        job.meter.moved += sent
        if job.moved >= job.buffer.milestone:
            job.buffer.look(job.moved, job.sink)
        if not (job.left or job.piped):
            self._finish(job)
        return sent

    def _park(self, job: _Job, seconds: float) -> None:
        job.place = "parked"
        job.wait(None if job.pace.paused else job.meter.waiting("limit"))
        self._parkings += 1  # jobs have no order of their own
        heapq.heappush(self._parked, (time.monotonic() + seconds, self._parkings, job))

    def _finish(self, job: _Job, error: Exception | None = None) -> None:
        """Let go of a job for good and wake its task."""
        if job.done:
            return
        job.done = True
        job.error = error
        job.wait(None)
        job.pace.release()
        for fd in (job.source, job.sink):
            if self._sockets.pop(fd, None) is not None:
                self._epoll.unregister(fd)
        job.token.run_sync_soon(trio.lowlevel.reschedule, job.task)
