"""The supervisor: starts the workers of a gateway, replaces those that end, and is what is one for all of them.

It serves no client and moves no image. It holds the data directory, migrates, sweeps, scrubs, keeps the one view of
transfers (`transfer.center`) and speaks to systemd.
"""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

import structlog
import trio

from . import __version__, config, wiring
from .crew import (
    BEAT,
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
    Standing,
    Welcome,
)
from .daemon import CLOSE_SECONDS, Daemon, Reload, Service
from .datadir import DataDirectory
from .generations import Generations
from .greeting import greet
from .metrics import Families, MetricsSum
from .predecessors import Predecessors
from .reloading import Reloader
from .routes.request import Services
from .server.bind import Listeners, held_listeners
from .serving import HubProcess, Parts
from .transfer.bus import Bus
from .transfer.center import Center
from .transfer.plane import ControlPlane
from .transfer.plane_host import PlaneHost
from .transfer.reports import VERDICT, Verdict
from .transfer.scrub import Scrub
from .transfer.shares import RateShares
from .transfer.splice import Splicer
from .transfer.sweep import Sweep
from .transfer.zerocopy import ZeroCopy
from .workers import Workers

END_SECONDS: Final = 3 * CLOSE_SECONDS  # beyond the drain, for a worker to end

_log: Final = structlog.get_logger("visor_gateway.supervisor")


class Supervisor(Daemon):
    """The process that the user started, where the gateway has several workers."""

    def __init__(
        self,
        settings: config.Settings,
        directory: DataDirectory,
        reload: Reload | None = None,
        generations: Generations | None = None,
    ) -> None:
        super().__init__(settings, directory, reload, generations)
        self._ends_at = math.inf
        self._changed: config.Settings | None = None
        self._condition = Condition()
        self._host: PlaneHost | None = None
        self._scrub: Scrub | None = None
        self._sweep: Sweep | None = None

    def _follow(self, settings: config.Settings, reload: Reload | None) -> Reloader:
        return _CrewReloader(self, settings, reload)

    def _serving_process(self) -> HubProcess:
        self._bus = Bus(relays=True)
        self._workers = Workers(self._bus, self, self._stop)
        self._sums = MetricsSum()
        self._center = Center(self._bus, self._hub, self._admission, self._rates, self._metrics)
        self._shares = RateShares(self._bus, self._hub, self._rates, held=self._succeeds)
        predecessors = self._predecessors = Predecessors(
            self._bus, self._center, self._shares, self._sums, self._admission, succeeds=self._succeeds
        )
        return _CrewProcess(self._parts(), predecessors, self)

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
            metadata = await stack.enter_async_context(wiring.metadata(self.settings, self._directory))
            references, servers = await self._ways_out(stack)
            zerocopy = stack.enter_context(ZeroCopy())
            splicer = stack.enter_context(Splicer())
            services = self._services(metadata, references, servers, zerocopy, splicer)
            reviser = self._revise(services, stack)
            listeners = await stack.enter_async_context(
                held_listeners(self._server_settings(self.settings), self._listening())
            )
            self._endpoints = listeners.endpoints
            self._process.serve_with(reviser, listeners)
            await self._prepare(services)
            await self._supervise(services, listeners, signals)

    async def _supervise(self, services: Services, listeners: Listeners, signals: AsyncIterator[int]) -> None:
        self._connect(services)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._stores.serve)
            for service in self._services_of_gateway(services):
                nursery.start_soon(service)
            async with trio.open_nursery() as workers:
                await self._workers.start(workers, self.settings.server.workers, listeners.names)
                await greet(services.accounts, self._directory, self._url)
                await self._take_over(nursery)
                self._tell(Condition(listening=True))
                self._took_over(listeners)
                self._tell_serving()
                self._announcer.ready()
                nursery.start_soon(self._serve_as_youngest, services)
                nursery.start_soon(self._heed, signals)
                await self._stop.wait()
                listeners.close()
                if self._process.retired:
                    self._retire_workers(nursery)
                else:
                    self._drain_workers()
                nursery.start_soon(self._cut_workers)
            if self._process.retired and self._generations is not None:
                await self._generations.depart()
            with trio.move_on_at(self._ends_at):
                # The main process of a service ends last.
                await self._predecessors.wait_empty()
            nursery.cancel_scope.cancel(reason="drained")
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await services.history.flush()

    def _services_of_gateway(self, services: Services) -> tuple[Service, ...]:
        own = services.health.serve, services.history.serve, self._shares.run, self._center.run, self._predecessors.open
        return self._hub.run, *own

    # --- the bus ---------------------------------------------------------------------------------

    def _connect(self, services: Services) -> None:
        scrub = self._scrub = services.scrub
        self._sweep = services.sweep
        self._host = PlaneHost(
            self._bus, self._hub, self._metrics, scrub, self._shares, self._sums, refresh=services.cache.count
        )
        self._predecessors.answer_by(self._host)
        self._center.record_in(services.history)
        self._bus.answer(JOIN, self._welcome)
        self._bus.answer(STANDING, self._standing)
        self._bus.subscribe(READY, self._ready)
        self._bus.subscribe(FAILED, self._failed)
        self._bus.subscribe(BEAT, self._hear_beat)
        self._bus.answer(LEAVING, self._hear_last)
        self._bus.subscribe(VERDICT, lambda member, verdict: scrub.learn(verdict.attempt_id, verdict.good))

    def _welcome(self, member: str, _: None) -> Welcome:
        return Welcome(__version__, config.handed_over(self.settings), str(self._directory.path))

    def _standing(self, member: str, _: None) -> Standing:
        changed = None if self._changed is None else config.handed_over(self._changed)
        return Standing(self._condition, changed, [*self._scrub.condemned] if self._scrub else [])

    def _ready(self, member: str, _: None) -> None:
        self._shares.enrol(member)
        worker = self._workers[member]
        _log.info("worker serves", pid=worker.pid)
        worker.ready.set()

    def _failed(self, member: str, message: str) -> None:
        self._workers[member].failure = message

    def _hear_beat(self, member: str, families: Families) -> None:
        self._workers[member].silence.heard()
        self._sums.take(member, families)

    def _hear_last(self, member: str, families: Families) -> None:
        self._sums.take(member, families)

    def _tell_verdict(self, attempt_id: str, good: bool) -> None:
        self._bus.publish(VERDICT, Verdict(attempt_id, good))

    def _tell(self, condition: Condition) -> None:
        self._condition = condition
        self._readiness.listening, self._readiness.draining = condition.listening, condition.draining
        self._bus.publish(CONDITION, condition)

    def _share_settings(self, settings: config.Settings) -> None:
        """Have all workers serve with these, later ones too."""
        self._changed = settings
        self._bus.publish(SETTINGS, config.handed_over(settings))

    # --- when a worker has ended -----------------------------------------------------------------

    def forget(self, id: str) -> None:
        self._center.forget(id)
        self._shares.forget(id)
        if self._host is not None:
            self._host.forget(id)

    async def clear_up(self, id: str) -> None:
        if self._sweep is not None:
            await self._sweep.after(id)

    # --- stopping --------------------------------------------------------------------------------

    def _drain_workers(self) -> None:
        """Have all workers finish what they do and end, up to the deadline or a second signal."""
        timeout = self.settings.server.drain_timeout
        self._tell(Condition(draining=True))
        self._announcer.stopping()
        self._hub.close("drain", outlast=True)
        self._predecessors.finish(timeout)
        self._end_after(timeout)

    def _end_after(self, seconds: float) -> None:
        self._ends_at = self._workers.cancel_scope.deadline = trio.current_time() + seconds + END_SECONDS

    def _retire_workers(self, nursery: trio.Nursery) -> None:
        """Have all workers finish what they do, however long it takes, while a younger generation is the gateway."""
        _log.info("finishing transfers", transfers=len(self._hub.live()))
        self._hub.close("drain")
        self._tell(Condition(listening=True, draining=False, retired=True))
        nursery.start_soon(self._finish_in_time)
        nursery.start_soon(self._finish_workers)
        if self._generations is not None:
            nursery.start_soon(self._generations.outlive, self._process)

    async def _finish_workers(self) -> None:
        await self._process.due.wait()
        seconds = max(0.0, self._process.finish_at - trio.current_time())
        self._tell(Condition(draining=True, seconds=seconds))
        self._end_after(seconds)

    async def _cut_workers(self) -> None:
        await self._cut.wait()
        self._predecessors.finish(0)
        self._bus.publish(CUT, None)
        self._workers.cancel_scope.deadline = trio.current_time() + END_SECONDS


class _CrewReloader(Reloader):
    """That of a supervisor: settings are those of all workers."""

    def __init__(self, supervisor: Supervisor, settings: config.Settings, reload: Reload | None) -> None:
        super().__init__(settings, reload, supervisor._announcer)
        self._supervisor = supervisor

    async def agree(self, settings: config.Settings) -> None:
        await super().agree(settings)
        refused = await self._supervisor._workers.ask(PREPARE, config.handed_over(settings))
        if refused:
            raise refused[0]

    def apply(self, settings: config.Settings) -> None:
        super().apply(settings)
        self._supervisor._share_settings(settings)

    async def applied(self) -> None:
        await self._supervisor._workers.ask(HEARD, None)


class _CrewProcess(HubProcess):
    """That of a supervisor: the older generation is all of its workers."""

    def __init__(self, parts: Parts, predecessors: Predecessors, supervisor: Supervisor) -> None:
        super().__init__(parts, predecessors)
        self._supervisor = supervisor

    def _ask(self, plane: ControlPlane | None) -> None:
        if self._supervisor._host is not None:
            self._supervisor._host.follow(plane)

    def learn(self, verdict: Verdict) -> None:
        super().learn(verdict)
        self._supervisor._tell_verdict(verdict.attempt_id, verdict.good)
