"""The worker processes of a supervisor: started by exec, watched, asked, replaced.

By exec, since neither Trio nor threads nor open databases survive a fork. A worker inherits the listening sockets and
its end of the bus.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Mapping
from subprocess import DEVNULL  # ruff: ignore[suspicious-subprocess-import]
from typing import Final, Protocol, TypeVar

import structlog
import trio

from .crew import BEAT_SECONDS
from .errors import ConfigError, GatewayError
from .server import systemd
from .transfer.bus import Bus, Command, MemberGone

PREPARE_SECONDS: Final = 30.0  # for a worker to make what changed settings ask for
START_SECONDS: Final = 60.0  # for a worker to serve
SILENT_SECONDS: Final = 30.0  # without a beat a worker hangs; systemd's WatchdogSec takes its place where it is set
ABORT_SECONDS: Final = 5.0  # for a worker that hangs to show where
LAST_WORDS_SECONDS: Final = 1.0  # to hear what an ended worker had said

Q = TypeVar("Q")

_NOT_INHERITED: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})

_log: Final = structlog.get_logger("visor_gateway.supervisor")


class Backoff:
    """How long to wait before a worker is replaced: not at all, unless workers end soon after their start."""

    FIRST: Final = 0.5
    LONGEST: Final = 30.0
    LASTING: Final = 60.0  # who has lived so long was no failed start

    def __init__(self) -> None:
        self._next = 0.0

    def delay(self, lived: float) -> float:
        """Seconds to wait, after one that lived so long."""
        if lived >= self.LASTING:
            self._next = 0.0
        delay = self._next
        self._next = min(max(2 * delay, self.FIRST), self.LONGEST)
        return delay


class Silence:
    """How long nothing was heard of a worker, in looks and not by the clock: a supervisor that was stopped itself must
    not take everybody for dead when it goes on."""

    def __init__(self) -> None:
        self.looks = 0

    def heard(self) -> None:
        """A beat came."""
        self.looks = 0

    async def wait(self, patience: Callable[[], float]) -> None:
        """Return when it has been silent for longer than `patience` says at that moment, in seconds."""
        while self.looks * BEAT_SECONDS <= patience():
            self.looks += 1
            await trio.sleep(BEAT_SECONDS)


class Worker:
    """What is known of one worker.

    Attributes:
        id: Its instance id, and its name on the bus.
        ready: Set when it serves.
        failure: What it said went wrong.
        ending: How its process ended.
    """

    def __init__(self) -> None:
        self.id = str(uuid.uuid4())
        self.pid = 0
        self.ready = trio.Event()
        self.silence = Silence()
        self.failure: str | None = None
        self.ending = "nothing"


class Survivor(Protocol):
    """Who lives on when a worker has ended."""

    def forget(self, id: str) -> None:
        """A worker has ended: its transfers, its share and those who watched through it are gone."""
        ...

    async def clear_up(self, id: str) -> None:
        """Give up what it was writing."""
        ...


class Workers:
    """All workers of a gateway.

    Attributes:
        cancel_scope: In which they run. Cancelled, their processes are killed.
    """

    def __init__(self, bus: Bus, survivor: Survivor, stop: trio.Event) -> None:
        """`stop` is set when none is replaced any more."""
        self.cancel_scope = trio.CancelScope()
        self._bus = bus
        self._survivor = survivor
        self._stop = stop
        self._running: dict[str, Worker] = {}

    def __getitem__(self, id: str) -> Worker:
        return self._running[id]

    async def start(self, nursery: trio.Nursery, count: int, listening: Mapping[int, str]) -> None:
        """Start so many, in a nursery of their own. Returns when they serve.

        Args:
            listening: The listening sockets' descriptors, with names.

        Raises:
            ConfigError: One can't. It comes out of the nursery.
        """
        self.cancel_scope = nursery.cancel_scope
        first = [Worker() for _ in range(count)]
        for worker in first:
            nursery.start_soon(self._keep, worker, listening)
        for worker in first:
            await worker.ready.wait()

    async def ask(self, command: Command[Q, None], question: Q) -> list[GatewayError]:
        """Ask all that serve. Returns what they refused with; who is gone is not waited for."""
        refused: list[GatewayError] = []

        async def ask(worker: str) -> None:
            try:
                with trio.fail_after(PREPARE_SECONDS):
                    await self._bus.command(worker, command, question)
            except MemberGone:
                return  # whoever takes its place begins with what holds then
            except GatewayError as error:
                refused.append(error)
            except trio.TooSlowError:
                refused.append(ConfigError("a worker does not answer"))

        async with trio.open_nursery() as nursery:
            for id, worker in self._running.items():
                if worker.ready.is_set():
                    nursery.start_soon(ask, id)
        return refused

    async def _keep(self, worker: Worker, listening: Mapping[int, str]) -> None:
        """Have a worker run, and another one when it has ended, until cancelled or the drain.

        Raises:
            ConfigError: The first one ended before it served.
        """
        backoff = Backoff()
        has_served = False
        while not self._stop.is_set():
            began = trio.current_time()
            await self._run(worker, listening)
            has_served = has_served or worker.ready.is_set()
            if not has_served:
                raise ConfigError(worker.failure or f"a worker ended with {worker.ending} before it served")
            if not self._stop.is_set():
                delay = backoff.delay(trio.current_time() - began)
                _log.error(
                    "worker replaced", pid=worker.pid, ended_by=worker.ending, error=worker.failure, after_s=delay
                )
                with trio.move_on_after(delay):
                    await self._stop.wait()
                worker = Worker()

    async def _run(self, worker: Worker, listening: Mapping[int, str]) -> None:
        """Run one worker to its end."""
        try:
            process, stream = await _spawn(worker.id, listening)
        except OSError as exc:
            worker.failure = f"a worker can't be started: {exc.strerror}"
            return
        worker.pid = process.pid
        self._running[worker.id] = worker
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(self._bus.attach, worker.id, stream)
                    nursery.start_soon(_watch, worker, process)
                    await process.wait()
                    worker.ending = _ending(process.returncode)
                    with trio.move_on_after(LAST_WORDS_SECONDS):
                        await self._bus.wait_gone(worker.id)
                finally:
                    with trio.CancelScope(shield=True):
                        if process.returncode is None:
                            process.kill()
                        await process.wait()
                nursery.cancel_scope.cancel(reason="the worker has ended")
        finally:
            del self._running[worker.id]
            self._survivor.forget(worker.id)
        await self._survivor.clear_up(worker.id)


async def _watch(worker: Worker, process: trio.Process) -> None:
    """End a worker that hangs."""
    patience = systemd.watchdog_interval() or SILENT_SECONDS
    await worker.silence.wait(lambda: patience if worker.ready.is_set() else START_SECONDS)
    _log.error("worker hangs, it is ended", pid=worker.pid)
    process.send_signal(signal.SIGABRT)
    await trio.sleep(ABORT_SECONDS)
    process.kill()


async def _spawn(id: str, listening: Mapping[int, str]) -> tuple[trio.Process, trio.SocketStream]:
    """Start a worker's process. Returns it, and our end of the bus. Raises `OSError`."""
    ours, theirs = socket.socketpair()
    with theirs:
        safe_path = ["-P"] if sys.flags.safe_path else []
        command = [sys.executable, *safe_path, "-m", "visor_gateway.worker", id, str(theirs.fileno())]
        ours.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        try:
            process = await trio.lowlevel.open_process(
                [*command, *(f"{fd}:{name}" for fd, name in listening.items())],
                stdin=DEVNULL,
                pass_fds=[theirs.fileno(), *listening],
                # The service manager is the supervisor's.
                env={name: value for name, value in os.environ.items() if name not in _NOT_INHERITED},
            )
        except BaseException:
            ours.close()
            raise
        return process, stream


def _ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return signal.Signals(-returncode).name
    return f"exit code {returncode}"
