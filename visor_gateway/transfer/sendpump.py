"""The thread that moves files to sockets: one edge-triggered epoll, one `sendfile` after the other.

A job is in one of five places, and only its pump's thread moves it:

    ready    it may be sent from now; the pump gives each job in turn one quantum
    full     the socket takes nothing; its edge makes it ready again
    cold     the window ahead is not in the page cache; a reader brings it there, then hands the job back
    parked   a limit lets it send nothing now; it is ready again at a given time
    dry      its file grows, and all that may be sent of it was; it is ready again when there is more

A call that takes less than it was given has filled the socket. To try again at once would find room for the little
that the client has drained meanwhile, and many small calls cost more CPU than few large ones: the job is full until the
kernel says that there is room for much (docs/performance.md). Being armed anew, epoll tells of room that there is
already, so a file that has become too short is found out by the next turn.

The pump never closes a descriptor of others. It adds to `meter.moved` and books the waits of `meter`; nobody else does
while the job is its. Everything else crosses threads by a deque and an eventfd.
"""

from __future__ import annotations

import heapq
import os
import select
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Final, Literal

import structlog

from ..errors import ObjectChanged, StoreUnreachable
from .coldreads import ColdReads
from .growth import Growth
from .hanging import SILENT_LOOKS, Calls
from .sendbuffer import SendBuffer
from .sendjob import SendJob

#: Bytes of a job's first turn, which comes before all turns of jobs that have begun: nobody's first byte waits behind
#: the megabytes of others.
FIRST: Final = 64 << 10
WINDOW: Final = 4 << 20  # bytes that are read into the page cache at a time
WINDOWS: Final = 4  # so many are looked for in it at a time
#: A socket that had room and took nothing all the same is tried again so much later: the kernel is short of memory.
RETRY_SECONDS: Final = 0.005

Message = Literal["new", "back", "late", "stuck", "cancel", "give up"]
_EDGE: Final = select.EPOLLOUT | select.EPOLLET

_log: Final = structlog.get_logger("visor_gateway.transfer")


class Pump:
    """Jobs and the thread that serves them. A thread that hangs is replaced, and nothing of the rest is lost."""

    def __init__(self, name: str, quantum: int, *, nice: int = 0, notsent_lowat: int = 0) -> None:
        """
        Args:
            quantum: Bytes of one turn.
            nice: How much the thread stands back behind others, those of this process among them.
            notsent_lowat: TCP_NOTSENT_LOWAT of clients that have shown that they are fast; 0 to leave it alone.
        """
        self.reads = ColdReads(lambda job: self.submit("stuck", job))
        self._name = name
        self._quantum = quantum
        self._nice = nice
        self._notsent_lowat = notsent_lowat
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._messages: deque[tuple[Message, SendJob]] = deque()
        self._fresh: deque[SendJob] = deque()  # those of the ready ones that have not begun
        self._ready: deque[SendJob] = deque()
        self._parked: list[tuple[float, int, SendJob]] = []  # a heap by the time at which they are ready again
        self._parkings = 0
        self._dry: dict[Growth, dict[SendJob, None]] = {}  # in the order in which they ran dry
        self._grown: deque[Growth] = deque()
        self._jobs: dict[int, SendJob] = {}
        self._closing = False
        self._probe = [bytearray(1)]
        self._current: SendJob | None = None
        self._lost = 0  # threads that were left behind and have not come back
        self._begin()

    # --- of other threads ------------------------------------------------------------------------

    def submit(self, message: Message, job: SendJob) -> None:
        """Tell of a new job, of one that is handed back, or of one to let go. From any thread."""
        self._messages.append((message, job))
        os.eventfd_write(self._bell, 1)

    def grown(self, growth: Growth) -> None:
        """Tell that there is more of a file that grows, or that there will be none. From any thread."""
        self._grown.append(growth)
        os.eventfd_write(self._bell, 1)

    def look(self) -> None:
        """Replace the thread, and those that read for it, if they hang. To be called every `LOOK_SECONDS`."""
        self.reads.look()
        if self._calls.look() >= SILENT_LOOKS and self._calls.leave_behind(self._leave_current):
            _log.warning("a disk does not answer: its thread is replaced", thread=self._name)
            self._lost += 1
            self._begin()

    def close(self, patience: float) -> None:
        """End the threads; each is waited for at most `patience` seconds, and one that hangs is left to the kernel."""
        self._closing = True
        os.eventfd_write(self._bell, 1)
        self._thread.join(patience)
        self.reads.close(patience)
        if not (self._thread.is_alive() or self._lost or self.reads.hanging):
            # Nobody rings any more.
            self._epoll.close()
            os.close(self._bell)

    def _begin(self) -> None:
        self._calls = Calls()
        self._thread = threading.Thread(target=self._run, args=(self._calls,), name=self._name, daemon=True)
        self._thread.start()

    def _leave_current(self) -> None:
        # At once and not by a message: one that tells of a cancellation may be before it.
        if self._current is not None:
            self._current.held = self._current.stuck = True

    # --- of the thread ---------------------------------------------------------------------------

    def _run(self, calls: Calls) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        epoll, fresh, ready, messages, grown = self._epoll, self._fresh, self._ready, self._messages, self._grown
        while not self._closing:
            for fd, _ in epoll.poll(self._patience()):
                if fd == self._bell:
                    os.eventfd_read(fd)
                elif (job := self._jobs.get(fd)) is not None and not job.busy:
                    self._make_ready(job)
            if self._parked:
                self._unpark()
            while grown:
                self._water(grown.popleft())
            for _ in range(len(fresh) + len(ready)):
                while messages:
                    self._heed(*messages.popleft())
                while grown:
                    self._water(grown.popleft())
                if not self._turn(fresh.popleft() if fresh else ready.popleft(), calls):
                    return  # left behind: all of this is another thread's now
            while messages:
                self._heed(*messages.popleft())

    def _patience(self) -> float:
        """Seconds that may be waited for sockets and messages; -1 for any time."""
        if self._fresh or self._ready:
            return 0
        return max(0.0, self._parked[0][0] - time.monotonic()) if self._parked else -1

    def _park(self, job: SendJob, seconds: float) -> None:
        self._parkings += 1  # jobs have no order of their own
        heapq.heappush(self._parked, (time.monotonic() + seconds, self._parkings, job))

    def _unpark(self) -> None:
        """Make those ready whose time has come."""
        now = time.monotonic()
        while self._parked and self._parked[0][0] <= now:
            job = heapq.heappop(self._parked)[2]
            if not job.done:
                self._make_ready(job)

    def _water(self, growth: Growth) -> None:
        """Make those ready who wait for more of a file."""
        for job in self._dry.pop(growth, ()):
            self._make_ready(job)

    # --- messages --------------------------------------------------------------------------------

    def _heed(self, message: Message, job: SendJob) -> None:
        """A job's failure ends that job: the thread serves all the others."""
        try:
            if message in {"back", "late"}:
                self._take_back(message, job)
            elif not job.done:
                self._heed_live(message, job)
        except Exception as error:
            self._finish(job, error)

    def _heed_live(self, message: Message, job: SendJob) -> None:
        if message == "new":
            self._epoll.register(job.sock, _EDGE)
            self._jobs[job.sock] = job
            job.buffer = SendBuffer(job.offset, self._notsent_lowat)
            if not job.cancelled:
                self._make_ready(job)
        elif message == "stuck":
            job.stuck = True
        elif message == "cancel":
            job.cancelled = True
        if message == "give up" and job.stuck:
            self._finish(job, StoreUnreachable("The disk of the store does not answer"))
        elif job.cancelled and (job.stuck or not job.held):
            # A thread that still works on the file, and does not hang, hands the job back first.
            self._finish(job)

    def _take_back(self, message: Message, job: SendJob) -> None:
        job.held = job.stuck = False
        self._lost -= message == "late"
        if job.done:
            # Perhaps the last descriptor of a deleted file, whose blocks are freed by this.
            threading.Thread(target=job.close, name="close", daemon=True).start()
        elif job.cancelled:
            self._finish(job)
        elif message == "late":
            self._advance(job, job.result)
        else:
            self._make_ready(job)

    # --- turns -----------------------------------------------------------------------------------

    def _make_ready(self, job: SendJob) -> None:
        job.wait_for(None)
        job.busy = True
        (self._ready if job.begun else self._fresh).append(job)

    def _turn(self, job: SendJob, calls: Calls) -> bool:
        """Give a job one quantum or what its limits grant of it, or send for its window where that is cold.

        Returns whether the thread is still the pump's.
        """
        if job.done:
            return True
        try:
            there = job.left
            if job.growth is not None:
                over = job.growth.over  # first: it is set last
                there = min(there, job.growth.released - job.offset)
                if there <= 0:
                    self._run_dry(job, job.growth, over=over)
                    return True
            want = min(there, self._quantum if job.begun else FIRST)
            if job.offset + want > job.warm_until:
                self._look_ahead(job, there)
                want = min(want, job.warm_until - job.offset)
                if not want:
                    self._read_ahead(job, there)
                    return True
            granted, seconds = job.pace.claim(want)
            if not granted:
                job.wait_for(None if job.pace.paused else "limit")  # who is paused waits for nobody
                self._park(job, seconds)
                return True
            job.granted = granted
            result = self._send(job, calls)
            if result is None:
                return False
            self._advance(job, result)
        except Exception as error:
            self._finish(job, error)
        return True

    def _run_dry(self, job: SendJob, growth: Growth, *, over: bool) -> None:
        """Have a job wait for more of its file, or end where there will be none."""
        if over:
            self._finish(job)
        else:
            job.wait_for("store")
            self._dry.setdefault(growth, {})[job] = None

    def _send(self, job: SendJob, calls: Calls) -> int | OSError | None:
        """What the kernel says; None where the thread was left behind meanwhile."""
        self._current = job
        result: int | OSError
        calls.begin()
        try:
            result = os.sendfile(job.sock, job.file, job.offset, job.granted)
        except OSError as error:
            result = error
        if calls.end():
            return result
        job.result = result
        self.submit("late", job)
        return None

    def _advance(self, job: SendJob, result: int | OSError) -> None:
        sent = result if isinstance(result, int) else 0
        unused, job.granted = job.granted - sent, 0
        if unused:
            job.pace.give_back(unused)
        if isinstance(result, BlockingIOError):
            job.wait_for("client")
            self._park(job, RETRY_SECONDS)
            return
        if isinstance(result, OSError):
            raise result
        if not sent:
            raise ObjectChanged("The bytes in the store are fewer than the record describes")
        job.offset += sent
        job.left -= sent
        job.meter.moved += sent
        job.begun = True
        if job.offset >= job.buffer.milestone:
            job.buffer.look(job.offset, job.sock)
        if not job.left:
            self._finish(job)
        elif unused:
            job.busy = False
            job.wait_for("client")
            self._epoll.modify(job.sock, _EDGE)
        else:
            self._ready.append(job)

    def _look_ahead(self, job: SendJob, there: int) -> None:
        """See how far the next `there` bytes are in memory, as far as the first and the last page of each window tell.

        What a growing file lacks yet is not looked for: it is in no memory, and reading it would bring zeros there.
        """
        if not self._is_cached(job.file, job.offset):
            return
        end = job.offset + there
        for begin in range(job.offset, min(end, job.offset + WINDOWS * WINDOW), WINDOW):
            until = min(begin + WINDOW, end)
            if not self._is_cached(job.file, until - 1):
                return
            job.warm_until = max(until, job.warm_until)

    def _read_ahead(self, job: SendJob, there: int) -> None:
        """Send for the next window."""
        job.held = True
        job.wait_for("disk")
        job.warm_until = job.offset + min(there, WINDOW)
        if not self.reads.warm(job, job.warm_until, self._give_back):
            job.held = False
            raise StoreUnreachable("The disk of the store does not answer")

    def _give_back(self, job: SendJob) -> None:
        self.submit("back", job)

    def _is_cached(self, file: int, offset: int) -> bool:
        """Whether a page is in the page cache. Where the file system can't say: yes."""
        try:
            os.preadv(file, self._probe, offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _finish(self, job: SendJob, error: Exception | None = None) -> None:
        """Let go of a job for good and wake its task."""
        if job.done:
            return
        job.done = True
        job.error = error
        if job.growth is not None and (dry := self._dry.get(job.growth)) is not None:
            dry.pop(job, None)
            if not dry:
                del self._dry[job.growth]
        job.wait_for(None)
        job.pace.release()
        if job.granted and not job.stuck:
            job.pace.give_back(job.granted)
        if self._jobs.pop(job.sock, None) is not None:
            self._epoll.unregister(job.sock)
        if job.held:
            job.cut()
        else:
            job.close()
        job.wake()
