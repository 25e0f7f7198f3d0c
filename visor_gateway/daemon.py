"""The composition root: builds every part, owns the root nursery, and the order of start and stop.

Start: data directory, metadata, stores, sweep of what a crash left, listeners, then `READY`. Stop: listeners close,
subscribers are told, transfers finish up to the deadline, background work is cancelled, counts are stored. What is
built first is closed last.
"""

from __future__ import annotations

import math
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import structlog
import trio

from . import config, memory, wiring
from .announcer import Announcer
from .datadir import DataDirectory, hold_data_dir
from .errors import ConfigError, GatewayError
from .generations import Generations
from .greeting import greet, url_of
from .meta.access import AccessCounts
from .meta.migrations import apart
from .meta.sql import Metadata
from .metrics import Metrics
from .outbound import CONFIGURED, Outbound
from .reloading import Reloader
from .revision import Reviser
from .routes.app import Application
from .routes.request import Peering, Services
from .routes.role_app import RoleApplication
from .server import systemd
from .server.listen import Server
from .server.listener import Endpoint, Inherited
from .server.settings import ServerSettings
from .serving import HubProcess, Parts, Sockets
from .store.http import HttpStore
from .stores import StoreTable
from .succession import Predecessor
from .transfer.admission import Admission
from .transfer.copier import Copier
from .transfer.copying import Copying
from .transfer.engine import Board, Engine
from .transfer.health import StoreHealth
from .transfer.history import History
from .transfer.hub import Hub
from .transfer.limits import Rates
from .transfer.plane import ControlPlane, LocalPlane
from .transfer.scrub import Scrub
from .transfer.setbacks import Setbacks
from .transfer.splice import Splicer
from .transfer.stalls import Stalls
from .transfer.sweep import Sweep
from .transfer.zerocopy import ZeroCopy

CLOSE_SECONDS: Final = 10.0

_log: Final = structlog.get_logger("visor_gateway.daemon")


Reload = Callable[[], config.Settings]
Service = Callable[[], Awaitable[object]]


def serve(
    settings: config.Settings,
    data_dir: Path,
    *,
    reload: Reload | None = None,
    predecessor: Predecessor | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, drain, and return. Blocks; runs Trio.

    With `[server] workers` above 1 this process serves no clients itself: it is the supervisor of those that do.

    Args:
        reload: Reads the settings anew on SIGHUP; raises ConfigError. They hold at once, but for those of
            `config.NEXT_START`. None: SIGHUP changes nothing.
        predecessor: The process that this one is to succeed.

    Raises:
        ConfigError: The settings, the data directory, the database or a listener's address can't be used.
        MetadataUnavailable: The database failed at the start.
    """
    with hold_data_dir(data_dir.absolute(), None if predecessor is None else predecessor.lock) as held:
        generations = Generations(held, predecessor)
        # Before there is a second thread.
        apart.upgrade(held.directory.database(settings.metadata.url.reveal()))
        # What the daemon's own receiver falls back to: a second signal just after the drain must not look like a crash.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        try:
            trio.run(_daemon(settings, held.directory, reload, generations).run)
        except BaseExceptionGroup as group:
            # What stops the start comes out of the nursery of services as a group.
            first = only_ours(group)
            if first is None:
                raise
            raise first from None
        finally:
            generations.close()


def _daemon(
    settings: config.Settings, directory: DataDirectory, reload: Reload | None, generations: Generations
) -> Daemon:
    if settings.server.workers == 1:
        return Daemon(settings, directory, reload, generations)
    # Imported here: a gateway of one process loads nothing of it.
    from .supervisor import Supervisor

    return Supervisor(settings, directory, reload, generations)


class Readiness:
    """What `/ready` tells of the daemon itself."""

    def __init__(self) -> None:
        self.listening = False
        self.draining = False


class Daemon:
    """A process that serves clients: the whole gateway, or a part of it (`worker`)."""

    def __init__(
        self,
        settings: config.Settings,
        directory: DataDirectory,
        reload: Reload | None = None,
        generations: Generations | None = None,
    ) -> None:
        """`generations` tells of other processes that are, or have been, the same gateway; a worker has none."""
        self._generations = generations
        self._directory = directory
        self._instance_id = str(uuid.uuid4())
        self._readiness = Readiness()
        self._stop = trio.Event()  # drain, and end
        self._cut = trio.Event()  # end now
        self._metrics = Metrics()
        self._hub = Hub(wiring.gateway_name(settings))
        self._rates = Rates(settings.limits.bytes_per_s, settings.limits.bytes_per_s_per_transfer)
        self._admission = Admission(wiring.slots(settings))
        self._endpoints: tuple[Endpoint, ...] = ()
        # A process that is to succeed another one is nobody to the service manager yet.
        self._announcer = Announcer(self._describe, silent=self._succeeds)
        self._reloader = self._follow(settings, reload)
        self._metadata: Metadata | None = None
        self._server: Server | None = None
        self._board: Board = self._hub
        self._engine = Engine(self._hub, self._metrics, admission=self._admission, rates=self._rates)
        self._stalls = self._watch_for_stalls()
        self._process = self._serving_process()

    @property
    def settings(self) -> config.Settings:
        """What it serves with."""
        return self._reloader.settings

    def _follow(self, settings: config.Settings, reload: Reload | None) -> Reloader:
        return Reloader(settings, reload, self._announcer)

    @property
    def _succeeds(self) -> bool:
        """Whether this process takes the place of another one."""
        return self._generations is not None and self._generations.predecessor is not None

    def _serving_process(self) -> HubProcess:
        """This process among the generations."""
        predecessors = None
        if self._succeeds:
            # Imported here: a gateway without older generations loads nothing of it.
            from .predecessors import Predecessors

            predecessors = Predecessors.of_hub(self._hub, self._admission, self._rates, self._metrics)
        return HubProcess(self._parts(), predecessors)

    def _parts(self) -> Parts:
        return Parts(
            self._hub,
            self._admission,
            self._rates,
            self._metrics,
            self._stop,
            self._announcer,
            complain=self._reloader.complain,
        )

    def _watch_for_stalls(self) -> Stalls:
        settings = self.settings
        return Stalls(
            self._board,
            stall_timeout=settings.server.stall_timeout,
            min_bytes_per_s=settings.limits.min_bytes_per_s,
        )

    async def run(self) -> None:
        """Run to the end of the drain.

        Raises:
            BaseExceptionGroup: It could not start (of ConfigError or MetadataUnavailable), or has failed.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announcer.serve)
            await self._run()
            nursery.cancel_scope.cancel(reason="all is done")

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            # First of all: a stop that comes during the start is heeded after it.
            signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
            metadata = await stack.enter_async_context(wiring.metadata(self.settings, self._directory))
            references, servers = await self._ways_out(stack)
            zerocopy = stack.enter_context(wiring.pumps(self.settings))
            splicer = stack.enter_context(Splicer(notsent_lowat=wiring.fast_lowat(self.settings)))
            services = self._services(metadata, references, servers, zerocopy, splicer)
            reviser = self._revise(services, stack)
            app = Application(services)
            roles = {role: RoleApplication(role, services) for role in self.settings.peer_servers()}
            server = Server(
                app,
                self._server_settings(self.settings),
                self._metrics,
                roles=roles,
                inherited=self._listening(),
                held=True,
            )
            self._server = server
            reviser.serve_with((app, *roles.values()), server)
            self._process.serve_with(reviser, server)
            await self._prepare(services)
            await self._serve(services, server, signals, metadata.serve)

    async def _ways_out(self, stack: AsyncExitStack) -> tuple[Outbound, Outbound]:
        """To what clients name, and to what is configured; `stack` closes them."""
        policy = wiring.location_policy(self.settings)
        references = await stack.enter_async_context(wiring.way_out(self.settings, policy))
        return references, await stack.enter_async_context(wiring.way_out(self.settings, CONFIGURED))

    def _revise(self, services: Services, stack: AsyncExitStack) -> Reviser:
        """Have what serves follow the settings."""
        reviser = Reviser(services, self._stores, stack, self._server_settings)
        self._reloader.serve_with(
            reviser, self._admission, self._rates, self._stalls, limit_rate=self._limit_rate, moved=self._tell_url
        )
        return reviser

    async def _prepare(self, services: Services) -> None:
        """What is done once for the gateway before anybody is served."""
        # Makes what a store needs on its first day. One that can't be used stops nothing.
        await services.health.look()
        await services.cache.prepare()
        if not self._succeeds:
            # What the predecessor writes is no leftover.
            await services.sweep.at_start()

    async def _serve(
        self, services: Services, server: Server, signals: AsyncIterator[int], metadata_service: Service
    ) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._engine.serve)
            await nursery.start(self._stores.serve)
            nursery.start_soon(metadata_service)
            for service in (*self._services_of_process(services), *self._services_of_gateway(services)):
                nursery.start_soon(service)
            await nursery.start(server.serve)
            memory.settle()
            await self._open(services, server.endpoints, nursery)
            nursery.start_soon(self._heed, signals)
            await self._stop.wait()
            await (self._outlive(server) if self._process.retired else self._drain(server))
            nursery.cancel_scope.cancel(reason="drained")
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await services.access_counts.flush()
            await services.history.flush()

    def _services_of_process(self, services: Services) -> tuple[Service, ...]:
        """What runs in every process that serves clients."""
        return (
            services.sweep.renew,
            services.health.serve,
            services.access_counts.serve,
            services.history.serve,
            services.zerocopy.serve,
            self._stalls.serve,
        )

    def _services_of_gateway(self, services: Services) -> tuple[Service, ...]:
        """What runs once in a gateway, however many processes it has."""
        predecessors = self._process.predecessors
        return (self._hub.run,) if predecessors is None else (self._hub.run, predecessors.serve)

    async def _serve_as_youngest(self, services: Services) -> None:
        """Do what the youngest generation alone does, until there is a younger one."""
        with self._process.duties:
            async with trio.open_nursery() as nursery:
                for service in (services.sweep.serve, services.scrub.serve, self._share_view, self._watch_rights):
                    nursery.start_soon(service)

    async def _share_view(self) -> None:
        """Show what other gateways move, and have them show what this one does."""
        name, url = self._hub.gateway, self.settings.peers.url
        if name is None or url is None or self._metadata is None:
            return
        # Imported here: a gateway that is alone loads nothing of it.
        from .meta.gateways import Member
        from .peers import Peers

        async with wiring.way_out(self.settings, CONFIGURED) as servers:
            peers = Peers(
                self._hub,
                self._metadata.gateways,
                self._metadata.peer_keys,
                servers,
                Member(name, self._instance_id, url),
                is_succeeded=lambda: self._process.retired,
            )
            await peers.serve()

    async def _watch_rights(self) -> None:
        """Say bye to watchers whose account another gateway changed."""
        if self._metadata is None or not self._metadata.database.is_shared:
            return
        # Imported here: a gateway that is alone loads nothing of it.
        from .transfer.rights import RightsWatch

        await RightsWatch(self._hub, self._metadata.accounts, self._metadata.database.version).serve()

    async def _take_over(self, nursery: trio.Nursery) -> None:
        """Be the gateway, once the predecessor gives the word."""
        if self._generations is not None:
            await self._generations.become_gateway()
            nursery.start_soon(self._generations.serve, self._process)

    def _took_over(self, sockets: Sockets) -> None:
        """Clients are accepted."""
        if self._generations is not None:
            self._generations.became_gateway()
            if self._generations.predecessor is not None:
                sockets.owns_names = self._generations.predecessor.owns_names

    async def _open(self, services: Services, endpoints: tuple[Endpoint, ...], nursery: trio.Nursery) -> None:
        """Clients can connect: tell everybody."""
        self._endpoints = endpoints
        await greet(services.accounts, self._directory, self._url)
        await self._take_over(nursery)
        if self._server is not None:
            self._server.admit()
            self._took_over(self._server)
        self._tell_serving()
        self._readiness.listening = True
        self._announcer.ready()
        nursery.start_soon(self._serve_as_youngest, services)

    # --- building --------------------------------------------------------------------------------

    @property
    def _url(self) -> str:
        """Where clients find the images."""
        return self.settings.server.public_url or url_of(self._endpoints, self.settings.server)

    def _tell_serving(self) -> None:
        peers = self.settings.peer_servers()
        others = {role: url_of(self._endpoints, peer, role=role) for role, peer in peers.items()}
        _log.info("serving", url=self._url, credentials=str(self._directory.admin), **others)

    def _listening(self) -> list[Inherited]:
        """Sockets to serve in place of the settings' addresses."""
        try:
            return systemd.listen_fds()
        except OSError as exc:
            raise ConfigError(f"LISTEN_FDS: expected listening stream sockets: {exc}") from exc

    def _services(
        self, metadata: Metadata, references: Outbound, servers: Outbound, zerocopy: ZeroCopy, splicer: Splicer
    ) -> Services:
        self._metadata = metadata
        referenced = HttpStore(references)
        stores = self._stores = StoreTable(self.settings, referenced, servers)
        ingest = wiring.ingest(self.settings, metadata, self._instance_id)
        scrub = Scrub(
            metadata.images, wiring.scrub_plans(self.settings, stores), self._metrics, tell=self._tell_verdict
        )
        history = self._history(metadata)
        self._engine.record_in(history)
        return Services(
            settings=self.settings,
            images=metadata.images,
            accounts=metadata.accounts,
            stores=stores,
            references=referenced,
            plane=self._plane(scrub, history),
            hub=self._board,
            engine=self._engine,
            ingest=ingest,
            sweep=Sweep(metadata.images, stores, self._board, self._metrics, ingest, instance_id=self._instance_id),
            scrub=scrub,
            health=StoreHealth(stores, self._metrics),
            metrics=self._metrics,
            access_counts=AccessCounts(metadata.images),
            history=history,
            zerocopy=zerocopy,
            splicer=splicer,
            copier=Copier(),
            cache=wiring.cache(self.settings, metadata, self._engine, self._metrics),
            setbacks=Setbacks(),
            copying=Copying(metadata.images, ingest, instance_id=self._instance_id),
            readiness=self._readiness,
            peering=None if self._hub.gateway is None else Peering(self._hub.gateway, metadata.peer_keys),
        )

    def _history(self, metadata: Metadata) -> History:
        return History(metadata.history, keep=self.settings.metadata.history)

    def _plane(self, scrub: Scrub, history: History) -> ControlPlane:
        if self._process.predecessors is not None:
            return self._process.predecessors.plane(
                self._hub, self._engine, self._metrics, scrub, history=history, refresh=self._count_cache
            )
        return LocalPlane(self._hub, self._engine, self._metrics, scrub)

    async def _count_cache(self) -> None:
        await self._reloader.reviser.services.cache.count()

    def _tell_verdict(self, attempt_id: str, good: bool) -> None:
        """The scrub found something: older generations need to know."""
        if self._process.predecessors is not None:
            self._process.predecessors.tell_verdict(attempt_id, good)

    def _server_settings(self, settings: config.Settings) -> ServerSettings:
        """This process's part of the socket edge."""
        return wiring.server_settings(settings)

    # --- running ---------------------------------------------------------------------------------

    def _describe(self) -> str:
        """The line that `systemctl status` shows."""
        if not (self._readiness.listening or self._readiness.draining):
            return "starting"
        live = self._hub.live()
        rate = sum(transfer.meter.rate for transfer in live)
        return "; ".join([
            "draining" if self._readiness.draining else f"serving on {self._url}",
            f"{len(live)} {'transfer' if len(live) == 1 else 'transfers'}, {rate / 1e6:.1f} MB/s",
            *(f"store {name} failed" for name in self._reloader.reviser.services.health.failed()),
            *([self._reloader.complaint] if self._reloader.complaint else ()),
        ])

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        """SIGHUP reads the configuration again; the first of the others drains, the second cuts what is left."""
        async for number in signals:
            if number == signal.SIGHUP:
                if not self._stop.is_set():
                    await self._reloader.read_again()
            elif not self._stop.is_set():
                _log.info("stopping", signal=signal.Signals(number).name)
                self._stop.set()
            elif self._process.retired and not self._process.due.is_set():
                self._process.finish(self.settings.server.drain_timeout)
            else:
                _log.warning("cutting what is left", signal=signal.Signals(number).name)
                self._cut.set()

    async def _tell_url(self) -> None:
        """Tell clients on this host where the gateway is now."""
        try:
            await greet(self._reloader.reviser.services.accounts, self._directory, self._url)
        except (GatewayError, OSError) as error:
            _log.warning("the address for clients on this host is out of date", error=str(error))

    def _limit_rate(self, bytes_per_s: int) -> None:
        """Change the gateway's rate."""
        self._process.limit_rate(bytes_per_s)

    async def _drain(self, server: Server) -> None:
        """Finish what runs, up to the deadline or a second signal, then cut what is left."""
        timeout = self.settings.server.drain_timeout
        self._readiness.draining = True
        self._announcer.stopping()
        self._hub.close("drain", outlast=True)
        predecessors = self._process.predecessors
        if predecessors is not None:
            predecessors.finish(timeout)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_short, server)
            await server.drain(timeout)
            self._engine.drain()
            unattended = self._engine.cancel_background("drain")
            with trio.move_on_after(CLOSE_SECONDS):
                for transfer in unattended:
                    await transfer.ended.wait()
            if predecessors is not None:
                # The main process of a service ends last.
                with trio.move_on_after(timeout + CLOSE_SECONDS):
                    await predecessors.wait_empty()
            nursery.cancel_scope.cancel(reason="drained")

    async def _cut_short(self, server: Server) -> None:
        await self._cut.wait()
        if self._process.predecessors is not None:
            self._process.predecessors.finish(0)
        await server.drain(0)

    async def _outlive(self, server: Server) -> None:
        """Finish what runs, however long it takes, while a younger generation is the gateway."""
        _log.info("finishing transfers", transfers=len(self._board.live()))
        self._hub.close("drain")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_short, server)
            nursery.start_soon(self._finish_in_time)
            if self._generations is not None:
                nursery.start_soon(self._generations.outlive, self._process)
            await server.drain(math.inf)
            nursery.start_soon(self._end_unattended)
            while live := self._board.live():
                await live[0].ended.wait()
                await trio.lowlevel.checkpoint()
            if self._generations is not None:
                await self._generations.depart()
            nursery.cancel_scope.cancel(reason="all is done")

    async def _finish_in_time(self) -> None:
        """Cut what is left when the whole gateway has to end."""
        await self._process.due.wait()
        if self._generations is not None:
            self._generations.finish()
        await trio.sleep_until(self._process.finish_at)
        self._cut.set()

    async def _end_unattended(self) -> None:
        """Where the whole gateway stops, what serves no connection does not go on."""
        await self._process.due.wait()
        self._engine.drain()
        self._engine.cancel_background("drain")


def only_ours(group: BaseExceptionGroup[BaseException]) -> GatewayError | None:
    """The first error of a group that holds nothing but errors that are told in one line."""
    ours, others = group.split(GatewayError)
    first: BaseException | None = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if others is None and isinstance(first, GatewayError) else None
