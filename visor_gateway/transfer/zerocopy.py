"""Files to sockets without copies: `os.sendfile` in threads of its own, away from the event loop.

The Trio task that asks for a range sleeps until a pump (`sendpump.py`) says that it is done with it, so a slow client
costs nothing while it is slow, a fast one can't starve the others, and a cold disk stops neither a pump nor the event
loop. A cancellation is a message to the pump, too: only when it has let go of the descriptors does the task go on. For
a disk that hangs nobody waits: the thread is left behind, and others go on in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import trio

from .growth import Growth
from .hanging import LOOK_SECONDS
from .limits import Pace, Rates
from .meter import Meter
from .sendjob import SendJob
from .sendpump import Pump

QUANTUM: Final = 4 << 20  # bytes of one turn: large enough for few system calls, small enough to be fair
PUMPS: Final = 1  # a second one fights for the interpreter's lock: no faster, less fair (docs/performance.md)
#: The event loop comes first, where both want the core that they share: a pull that has begun can wait for those that
#: begin, and for what an admin asks (docs/performance.md).
NICE: Final = 10
PATIENCE: Final = 60.0  # seconds after which a read that hangs is given up
JOIN_SECONDS: Final = 5.0  # a thread that hangs in a dead disk longer than this is left behind


class ZeroCopy:
    """The pumps of one daemon. `close` it when no job runs any more; as a context manager it does so itself."""

    def __init__(
        self,
        *,
        pumps: int = PUMPS,
        quantum: int = QUANTUM,
        nice: int = NICE,
        notsent_lowat: int = 0,
        patience: float = PATIENCE,
    ) -> None:
        """
        Args:
            pumps: Threads that send.
            quantum: Bytes of one turn.
            nice: How much these threads stand back behind others.
            notsent_lowat: TCP_NOTSENT_LOWAT of clients that have shown that they are fast; 0 to leave it alone.
            patience: Seconds after which a job is failed that a disk does not answer.
        """
        self._pumps = [
            Pump(f"pump-{number}", quantum, nice=nice, notsent_lowat=notsent_lowat) for number in range(pumps)
        ]
        self._patience = patience
        self._next = 0
        self._running: dict[SendJob, Pump] = {}
        self._stuck: dict[SendJob, int] = {}

    def __enter__(self) -> ZeroCopy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def serve(self) -> None:
        """Look after threads that hang, until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Replace threads that hang, and fail what has hung for too long. To be called every `LOOK_SECONDS`."""
        for pump in self._pumps:
            pump.look()
        self._stuck = {job: self._stuck.get(job, 0) + 1 for job in self._running if job.stuck}
        for job, looks in self._stuck.items():
            if looks * LOOK_SECONDS >= self._patience:
                self._running[job].submit("give up", job)

    async def send_file(
        self, sock: int, file: int, offset: int, length: int, meter: Meter, pace: Pace | None = None
    ) -> None:
        """Send `length` bytes of `file` from `offset` to the non-blocking socket `sock`.

        `pace` says how fast it may go, None for no limit. The caller owns both descriptors, keeps them open until
        this returns or raises, and writes nothing to the socket meanwhile. Cancelled, it returns once the pump has let
        go, or when it is clear that the disk hangs: part of the range is sent then, and the connection is good for
        nothing but a reset.

        Raises:
            OSError: The client is gone, or there are no descriptors left.
            ObjectChanged: The file ends before the range does.
            StoreUnreachable: The disk does not answer. Whatever it still sends goes to the same socket.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if length:
            job = SendJob(sock, file, offset, length, meter, pace or Rates().pace())
            await self._run(job, self._next_pump())

    async def send_growing(
        self, sock: int, file: int, offset: int, length: int, growth: Growth, meter: Meter, pace: Pace | None = None
    ) -> None:
        """Send `length` bytes of a file that grows, each as soon as it is released, or as many as there will ever be.

        As `send_file`, which tells all else. The caller learns from `meter.moved` how many bytes were sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not length:
            return
        pump = self._next_pump()
        with growth.heard(pump.grown):
            await self._run(SendJob(sock, file, offset, length, meter, pace or Rates().pace(), growth), pump)

    def _next_pump(self) -> Pump:
        pump = self._pumps[self._next]
        self._next = (self._next + 1) % len(self._pumps)
        return pump

    async def _run(self, job: SendJob, pump: Pump) -> None:
        raise_cancel: Callable[[], NoReturn] | None = None

        def abort(raise_it: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raise_it
            pump.submit("cancel", job)
            return trio.lowlevel.Abort.FAILED

        self._running[job] = pump
        try:
            pump.submit("new", job)
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            del self._running[job]
        if job.left and raise_cancel is not None:
            raise_cancel()
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """End the threads. Blocks for at most `JOIN_SECONDS` each; one that hangs is left to the kernel."""
        for pump in self._pumps:
            pump.close(JOIN_SECONDS)
