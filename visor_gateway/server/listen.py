"""The server: listeners, the accept policy, the nursery of connections, the watcher, the drain.

`serve` owns everything. Two nurseries, one inside the other: the acceptors end when a drain begins, the connections
when the last of them has ended. A connection's failure is logged and ends that connection alone.
"""

from __future__ import annotations

import errno
import resource
import select
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import structlog
import trio

from ..metrics import Metrics
from .access import AccessLog
from .asgi import Application, stream_config
from .bind import close_listeners, duplicated, open_listeners, remove_unix_sockets, tls_contexts
from .connection import Connection
from .listener import IMAGE, Address, Endpoint, Inherited, Listener
from .refusal import Refusal, encode
from .settings import ServerSettings
from .wire import ClientGone, Wire

__all__ = ["Server", "ServerSettings", "Statistics"]

WATCH_SECONDS: Final = 1.0
#: Few: other workers accept from the same socket, and each new client holds the event loop for some 0.2 ms, with its
#: head, before which nobody else is looked at.
ACCEPTED_TOGETHER: Final = 4
ACCEPT_RETRY_SECONDS: Final = 0.1  # out of descriptors or memory: others have to end first
FDS_PER_CONNECTION: Final = 3  # its socket, the image file, and one to work with
FDS_RESERVED: Final = 128  # database, log, listeners, libraries
REFUSED_LINGERING: Final = (
    64  # refused connections that are given time to read their 503; the others are closed at once
)
WEBSOCKET_DRAIN_SECONDS: Final = 10.0
BUSY: Final = Refusal(503, "Too many connections, try again later", ("Retry-After", "5"))

_log = structlog.get_logger("visor_gateway.server")


class Statistics(NamedTuple):
    """What the server does now.

    Attributes:
        connections: Open client connections.
        limit: How many there may be.
        draining: Whether a drain has begun.
    """

    connections: int
    limit: int
    draining: bool


def connection_limit(wanted: int) -> int:
    """How many connections the process has descriptors for, at most `wanted`.

    Raises the soft limit of descriptors as far as `wanted` needs it and the hard limit admits.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = wanted * FDS_PER_CONNECTION + FDS_RESERVED
    if soft < needed:
        target = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, target), hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, min(wanted, (soft - FDS_RESERVED) // FDS_PER_CONNECTION))


class Server:
    """Serves ASGI applications to many clients, one for each role.

    Attributes:
        endpoints: Where clients reach it, once `serve` has started.
        owns_names: Whether names of Unix sockets are removed at the end.
    """

    def __init__(
        self,
        app: Application,
        settings: ServerSettings,
        metrics: Metrics,
        *,
        roles: Mapping[str, Application] | None = None,
        inherited: Sequence[Inherited] = (),
        held: bool = False,
    ) -> None:
        """`inherited` are listening sockets from the service manager; they take the place of a role's addresses.

        Args:
            app: The role `image`, which is served where there are listeners for it.
            roles: The applications of `settings.roles`.
            held: Nobody is accepted before `admit` is called; who connects waits.
        """
        self.owns_names = not inherited
        self._admitting = trio.Event()
        if not held:
            self._admitting.set()
        self._apps = {IMAGE: app, **(roles or {})}
        self._settings = settings
        self._metrics = metrics
        self._inherited = list(inherited)
        self._config = stream_config(settings)
        self._access = AccessLog(metrics)
        self._tls: Mapping[str, ssl.SSLContext] = tls_contexts(settings)
        self._limit = connection_limit(settings.max_connections)
        self._listeners: list[Listener] = []
        self._accepting = trio.CancelScope()
        self._connections: set[Connection] = set()
        self._refused = 0
        self._draining = False
        self._cutting = False
        self._serving = False
        self._ended = trio.Event()
        self.endpoints: tuple[Endpoint, ...] = ()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """What it listens on: (host, port) or the path of a Unix socket."""
        return tuple(endpoint.address for endpoint in self.endpoints)

    def statistics(self) -> Statistics:
        """A snapshot."""
        return Statistics(len(self._connections), self._limit, self._draining)

    def admit(self) -> None:
        """Begin to accept."""
        self._admitting.set()

    def passed_on(self) -> dict[int, str]:
        """Duplicates of the listening sockets' descriptors, with names. The caller closes them."""
        return duplicated(self._listeners)

    def leave_names(self) -> None:
        """Another process listens on the same sockets, from now on: leave their names to it."""
        self.owns_names = False

    def revise(self, settings: ServerSettings, tls: Mapping[str, ssl.SSLContext]) -> None:
        """Serve connections that are accepted from now on by other settings; `bind` and `backlog` stay."""
        self._settings, self._tls = settings, tls
        self._limit = connection_limit(settings.max_connections)

    # --- serving ---------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, and serve until `drain` is through. `started()` is called when clients can connect.

        Resource handling: everything that is opened here is closed here. When cancelled, every connection
        is reset.

        Raises:
            ConfigError: An address or the certificate can't be used.
        """
        self._listeners = await open_listeners(self._settings, self._inherited)
        self.endpoints = tuple(listener.endpoint for listener in self._listeners)
        self._tell_of_idle_sockets()
        self._serving = True
        try:
            async with trio.open_nursery() as services:
                services.start_soon(self._watch)
                async with trio.open_nursery() as connections:
                    task_status.started()
                    await self._accept_all(connections)
                services.cancel_scope.cancel()
        finally:
            self._stop_listening()
            self._ended.set()

    def _tell_of_idle_sockets(self) -> None:
        for endpoint in self.endpoints:
            if not self._serves(endpoint.role):
                _log.warning(
                    "socket for a role is not served: server.roles does not name it",
                    address=endpoint.address,
                    role=endpoint.role,
                )
            elif endpoint.role not in self._tls and endpoint.speaks_tls(configured=False):
                _log.warning(
                    "socket for TLS is not served: server.tls_certificate is not set", address=endpoint.address
                )

    def _serves(self, role: str) -> bool:
        if role == IMAGE:
            return self._settings.serves_images
        return role in self._apps

    async def _accept_all(self, connections: trio.Nursery) -> None:
        with self._accepting:
            await self._admitting.wait()
            async with trio.open_nursery() as acceptors:
                for listener in self._listeners:
                    acceptors.start_soon(self._accept, listener, acceptors, connections)

    async def _accept(self, listener: Listener, acceptors: trio.Nursery, connections: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return  # a client arrived just as the listening ended
            except OSError as exc:
                # Nothing that one accept reports may end the listener.
                _log.warning("accept failed", error=errno.errorcode.get(exc.errno or 0, str(exc)))
                await trio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            # One at a time, the last of many that arrive together would wait for the requests of all before it.
            for admitted in (stream, *_arrived(listener, ACCEPTED_TOGETHER - 1)):
                try:
                    self._admit(admitted, listener, acceptors, connections)
                except OSError:  # reset between the kernel's accept and ours
                    admitted.socket.close()

    def _admit(
        self, stream: trio.SocketStream, listener: Listener, acceptors: trio.Nursery, connections: trio.Nursery
    ) -> None:
        endpoint = listener.endpoint
        configured = self._tls.get(endpoint.role)
        tls = configured if (is_secure := endpoint.speaks_tls(configured=configured is not None)) else None
        wire = Wire(stream, tls, patience=self._settings.stall_timeout, notsent_lowat=self._settings.notsent_lowat)
        if (is_secure and tls is None) or not self._serves(endpoint.role):
            # Nobody closes a socket of systemd's: a client must not wait for a handshake that never comes.
            wire.reset()
            return
        if len(self._connections) >= self._limit:
            self._metrics.connections_refused.inc()
            if self._refused < REFUSED_LINGERING and tls is None:
                self._refused += 1
                acceptors.start_soon(self._refuse, wire)
            else:
                wire.close()
            return
        self._metrics.connections_accepted.inc()
        connection = Connection(wire, self._apps[endpoint.role], self._settings, self._config, self._access)
        self._connections.add(connection)
        self._metrics.connections.set(len(self._connections))
        connections.start_soon(self._run, connection)
        # One that was taken just as the drain began.
        if self._draining:
            connection.drain()
        if self._cutting:
            connection.cut("drain")

    async def _refuse(self, wire: Wire) -> None:
        try:
            with suppress(ClientGone):
                await wire.send([encode(BUSY)])
                await wire.finish()
        finally:
            self._refused -= 1

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run()
        except* Exception:
            _log.exception("connection failed")
        finally:
            self._connections.discard(connection)
            self._metrics.connections.set(len(self._connections))
            if connection.cut_cause is not None:
                self._metrics.connections_cut.labels(connection.cut_cause).inc()

    # --- watching --------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await trio.sleep(WATCH_SECONDS)
            self.watch(trio.current_time())

    def watch(self, now: float) -> None:
        """Look at every connection once: reset those whose client is gone or takes nothing any more."""
        hung_up = _hung_up(self._connections)
        for connection in tuple(self._connections):
            connection.watch(now, hung_up=connection.fileno() in hung_up)

    # --- stopping --------------------------------------------------------------------------------

    async def drain(self, grace: float) -> None:
        """Stop: take no new connections, close those that are idle for 5 s, let the others finish for `grace` seconds,
        then cut them.

        Answers that begin from now on say `Connection: close`, and their connections end with them. A WebSocket
        carries no image and its application is told by others to close it: what is left of them after 10 s is closed
        with 1001. Returns when every connection has ended. A second call shortens the first: with 0 it cuts at once.
        """
        self._draining = True
        self._stop_listening()
        if not self._serving:
            return
        for connection in tuple(self._connections):
            connection.drain()
        end = trio.current_time() + grace
        while trio.current_time() < end and not self._ended.is_set():
            with trio.move_on_at(min(end, trio.current_time() + WEBSOCKET_DRAIN_SECONDS)):
                await self._ended.wait()
            for connection in tuple(self._connections):
                connection.go_away()
        self._cutting = True
        for connection in tuple(self._connections):
            connection.cut("drain")
        await self._ended.wait()

    def _stop_listening(self) -> None:
        self._accepting.cancel()
        if self._listeners:
            close_listeners(self._listeners)
            self._listeners = []
            if self.owns_names:
                remove_unix_sockets(self._settings)


def _arrived(listener: Listener, most: int) -> list[trio.SocketStream]:
    """Connections that the kernel has completed by now, taken without a wait."""
    shared, found = listener.socket, list[trio.SocketStream]()
    if shared.fileno() < 0:
        return found
    plain = socket.socket(shared.family, shared.type, shared.proto, fileno=shared.fileno())
    try:
        while len(found) < most:
            accepted, _ = plain.accept()
            found.append(trio.SocketStream(trio.socket.from_stdlib_socket(accepted)))
    except OSError:
        pass  # there are none, or what is wrong is told by the accept that waits
    finally:
        plain.detach()  # the descriptor is the listener's
    return found


def _hung_up(connections: set[Connection]) -> frozenset[int]:
    """Descriptors of clients that are gone both ways (RST, or closed after our own FIN). One system call.

    A mere FIN is no goodbye: a client may half-close and go on reading.
    """
    poll = select.poll()
    for connection in connections:
        if (fd := connection.fileno()) >= 0:
            poll.register(fd, 0)  # POLLHUP and POLLERR are always reported
    return frozenset(fd for fd, _ in poll.poll(0))
