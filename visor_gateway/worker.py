"""A worker: one of several processes that serve the clients of one gateway. Started by the supervisor, which hands it
the listening sockets and one end of the bus; without the supervisor it ends.
"""

from __future__ import annotations

from .lean import structlog

# isort: split
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import trio

from . import __version__, config, log
from .crew import (
    BEAT,
    BEAT_SECONDS,
    CONDITION,
    CUT,
    FAILED,
    HEARD,
    JOIN,
    LEAVING,
    PREPARE,
    READY,
    SETTINGS,
    STANDING,
    Condition,
    Welcome,
)
from .daemon import CLOSE_SECONDS, Daemon, Service, only_ours
from .datadir import DataDirectory
from .errors import ConfigError
from .meta.sql import Metadata
from .routes.request import Services
from .server.listener import Endpoint, Inherited
from .server.settings import ServerSettings
from .transfer.branch import Branch, BranchHistory
from .transfer.bus import Bus
from .transfer.engine import Engine
from .transfer.history import History
from .transfer.limits import Rates
from .transfer.plane import ControlPlane
from .transfer.remote_plane import RemotePlane
from .transfer.reports import CENTER, VERDICT, Verdict
from .transfer.scrub import Scrub

ORPHAN_SECONDS: Final = 5.0  # for an event loop to notice by itself that the supervisor is gone

_log: Final = structlog.get_logger("visor_gateway.worker")


class Worker(Daemon):
    """One worker. Transfers are admitted and shown by the center, at the other end of the bus."""

    def __init__(self, bus: Bus, instance_id: str, welcome: Welcome, listening: Sequence[Inherited]) -> None:
        settings = config.taken_over(welcome.settings, data_dir=Path(welcome.data_dir))
        super().__init__(settings, DataDirectory(Path(welcome.data_dir)))
        self._instance_id = instance_id
        self._bus = bus
        self._sockets = list(listening)
        # The least until the supervisor has shared the rate out.
        limits = settings.limits
        self._rates = Rates(min(1, limits.bytes_per_s), limits.bytes_per_s_per_transfer)
        self._board = self._branch = Branch(bus, self._metrics, self._rates)
        self._engine = Engine(self._branch, self._metrics, rates=self._rates, gate=self._branch)
        self._stalls = self._watch_for_stalls()
        self._scrub: Scrub | None = None
        self._remote_plane = RemotePlane(bus)
        bus.subscribe(CONDITION, self._take_condition)
        self._due: trio.Event = trio.Event()
        self._wanted: config.Settings | None = None
        bus.answer(HEARD, lambda member, _: None)
        bus.serve(PREPARE, self._prepare_settings)
        bus.subscribe(SETTINGS, self._take_settings)
        bus.subscribe(CUT, lambda member, _: self._cut.set())
        bus.subscribe(VERDICT, self._learn)

    def _listening(self) -> list[Inherited]:
        return self._sockets

    def _server_settings(self, settings: config.Settings) -> ServerSettings:
        server = super()._server_settings(settings)
        # The limit is the gateway's, and every worker has its part of it.
        part = -(-server.max_connections // settings.server.workers)
        return msgspec.structs.replace(server, max_connections=part)

    def _history(self, metadata: Metadata) -> History:
        return BranchHistory(self._bus, metadata.history)

    def _plane(self, scrub: Scrub, history: History) -> ControlPlane:
        self._scrub = scrub
        return self._remote_plane

    async def _prepare(self, services: Services) -> None:
        """The supervisor has done it: take over how things stand."""
        standing = await self._bus.command(CENTER, STANDING, None)
        self._take_condition(CENTER, standing.condition)
        for attempt_id in standing.condemned:
            services.scrub.learn(attempt_id, good=False)
        if standing.changed is not None:
            await self._change(self._taken_over(standing.changed))

    def _services_of_process(self, services: Services) -> tuple[Service, ...]:
        own = (self._remote_plane.serve, self._branch.run, self._beat, self._catch_up)
        return *super()._services_of_process(services), *own

    def _services_of_gateway(self, services: Services) -> tuple[Service, ...]:
        """The supervisor runs them."""
        return ()

    async def _open(self, services: Services, endpoints: tuple[Endpoint, ...], nursery: trio.Nursery) -> None:
        await trio.lowlevel.checkpoint()
        self._bus.publish(READY, None, to=CENTER)

    async def _beat(self) -> None:
        while True:
            self._bus.publish(BEAT, self._metrics.families(), to=CENTER)
            await trio.sleep(BEAT_SECONDS)

    async def leave(self) -> None:
        """The last words: returns when all that was said before has been heard."""
        with trio.move_on_after(CLOSE_SECONDS):
            await self._bus.command(CENTER, LEAVING, self._metrics.families())

    # --- what the supervisor says ----------------------------------------------------------------

    def _take_condition(self, member: str, condition: Condition) -> None:
        self._readiness.listening, self._readiness.draining = condition.listening, condition.draining
        if condition.listening and self._server is not None:
            self._server.admit()
        if condition.retired:
            self._process.retire()
        elif condition.draining and self._process.retired:
            self._process.finish(condition.seconds)
        elif condition.draining:
            self._stop.set()

    async def _prepare_settings(self, member: str, values: dict[str, object]) -> None:
        await self._reloader.agree(self._taken_over(values))

    def _take_settings(self, member: str, values: dict[str, object]) -> None:
        settings = self._taken_over(values)
        if self._reloader.has_agreed(settings):
            self._reloader.apply(settings)
        else:  # it was not there when the others were asked
            self._wanted = settings
            self._due.set()

    async def _catch_up(self) -> None:
        """Take settings that were not prepared before they were to hold."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            if self._wanted is not None:
                settings, self._wanted = self._wanted, None
                await self._change(settings)

    async def _change(self, settings: config.Settings) -> None:
        await self._reloader.agree(settings)
        self._reloader.apply(settings)

    def _taken_over(self, values: dict[str, object]) -> config.Settings:
        return config.taken_over(values, data_dir=self._directory.path)

    def _limit_rate(self, bytes_per_s: int) -> None:
        """The supervisor shares it out."""

    def _tell_verdict(self, attempt_id: str, good: bool) -> None:
        self._bus.publish(VERDICT, Verdict(attempt_id, good))

    def _learn(self, member: str, verdict: Verdict) -> None:
        if self._scrub is not None:
            self._scrub.learn(verdict.attempt_id, verdict.good)


# --- the process ---------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Serve as a worker until the supervisor says otherwise or is gone. Returns the exit code.

    Args:
        arguments: The instance's id, the descriptor of the bus, and `descriptor:name` of each listening socket.
    """
    instance_id, bus_fd, *listening = arguments
    faulthandler.enable()  # SIGABRT, by which the supervisor ends a worker that hangs, shows where
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's go to the supervisor, and it tells us
    link = socket.socket(fileno=int(bus_fd))
    link.set_inheritable(False)
    link.setblocking(False)
    threading.Thread(target=_end_as_orphan, args=(os.dup(link.fileno()),), name="orphan", daemon=True).start()
    sockets = [_listener(*word.partition(":")[::2]) for word in listening]
    return trio.run(_run, instance_id, link, sockets)


def _listener(fd: str, name: str) -> Inherited:
    sock = socket.socket(fileno=int(fd))
    sock.set_inheritable(False)
    sock.setblocking(False)
    return Inherited(sock, name)


def _end_as_orphan(fd: int) -> NoReturn:
    """End the process some time after the supervisor has gone, whatever the event loop does. Reads nothing."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


async def _run(instance_id: str, link: socket.socket, listening: Sequence[Inherited]) -> int:
    bus = Bus()
    code = 1
    async with trio.open_nursery() as nursery:

        async def end_with_supervisor() -> None:
            await bus.wait_gone(CENTER)
            nursery.cancel_scope.cancel(reason="the supervisor is gone")

        await nursery.start(bus.attach, CENTER, trio.SocketStream(trio.socket.from_stdlib_socket(link)))
        nursery.start_soon(end_with_supervisor)
        try:
            worker = await _joined(bus, instance_id, listening)
            await worker.run()
            await worker.leave()
            code = 0
        except* Exception as group:
            bus.publish(FAILED, _told(group), to=CENTER)
            await trio.sleep(BEAT_SECONDS)  # for the message to leave
        nursery.cancel_scope.cancel(reason="all is done")
    return code


async def _joined(bus: Bus, instance_id: str, listening: Sequence[Inherited]) -> Worker:
    welcome = await bus.command(CENTER, JOIN, None)
    if welcome.version != __version__:
        raise ConfigError(f"version {__version__} is installed, but {welcome.version} runs: restart the gateway")
    worker = Worker(bus, instance_id, welcome, listening)
    settings = worker.settings
    log.configure(settings.log.level, settings.log.format)
    return worker


def _told(group: BaseExceptionGroup[BaseException]) -> str:
    """What the supervisor is told of an end: our own errors are written for that, others go to the log."""
    error = only_ours(group)
    if error is not None:
        return error.message
    _log.critical("the worker ended by an unexpected error", exc_info=group)
    return "unexpected error, see the log"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
