"""Where the server listens: addresses to sockets, and the TLS that is spoken on them."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from ..errors import ConfigError
from .listener import IMAGE, Inherited, Listener, adopt
from .settings import RoleSettings, ServerSettings

UNIX_PREFIX: Final = "unix:"


async def open_listeners(settings: ServerSettings, inherited: Sequence[Inherited] = ()) -> list[Listener]:
    """Listen for every role: on the sockets that were inherited for it, else on its addresses.

    Returns:
        The listeners. They own the inherited sockets; the caller closes all.

    Raises:
        ConfigError: An address can't be used; nothing stays open.
    """
    listeners = adopt(inherited)
    there = {listener.endpoint.role for listener in listeners}
    addresses = [(address, "") for address in settings.bind if IMAGE not in there]
    for role in settings.roles:
        addresses += [(address, role.name) for address in role.bind if role.name not in there]
    try:
        for address, name in addresses:
            try:
                listeners += await _open(address, name, settings.backlog)
            except OSError as exc:
                raise ConfigError(f"Can't listen on {address}: {exc.strerror or exc}") from exc
    except BaseException:
        close_listeners(listeners)
        raise
    return listeners


class Listeners:
    """Listening sockets that are held for other processes, which accept on them.

    Attributes:
        endpoints: Where clients reach them.
        owns_names: Whether names of Unix sockets are removed with them.
    """

    def __init__(self, listeners: list[Listener], settings: ServerSettings, *, inherited: bool) -> None:
        self._listeners = listeners
        self._settings = settings
        self.owns_names = not inherited
        self.endpoints = tuple(listener.endpoint for listener in listeners)

    @property
    def names(self) -> dict[int, str]:
        """Their descriptors, and what each was called by who passed it."""
        return {listener.socket.fileno(): listener.endpoint.name for listener in self._listeners}

    def passed_on(self) -> dict[int, str]:
        """Duplicates of their descriptors, with names. The caller closes them."""
        return duplicated(self._listeners)

    def leave_names(self) -> None:
        """Another process listens on them too, from now on: leave the names to it."""
        self.owns_names = False

    def close(self) -> None:
        """Close them here. Clients are refused once all processes have. A second call changes nothing."""
        if self._listeners:
            close_listeners(self._listeners)
            self._listeners = []
            if self.owns_names:
                remove_unix_sockets(self._settings)


@asynccontextmanager
async def held_listeners(settings: ServerSettings, inherited: list[Inherited]) -> AsyncGenerator[Listeners, None]:
    """Listen as `Server` would, until the block ends or `Listeners.close`.

    Raises:
        ConfigError: An address or the certificate can't be used.
    """
    tls_contexts(settings)
    listeners = await open_listeners(settings, inherited)
    held = Listeners(listeners, settings, inherited=bool(inherited))
    try:
        yield held
    finally:
        held.close()


def duplicated(listeners: Sequence[Listener]) -> dict[int, str]:
    """Duplicates of the sockets' descriptors, with their names."""
    return {os.dup(listener.socket.fileno()): listener.endpoint.name for listener in listeners}


def close_listeners(listeners: list[Listener]) -> None:
    """Close at once; the kernel refuses new connections from now on. Does not block."""
    for listener in listeners:
        listener.socket.close()


def remove_unix_sockets(settings: ServerSettings) -> None:
    """Remove the names of our Unix sockets from the file system."""
    for address in (*settings.bind, *(address for role in settings.roles for address in role.bind)):
        if address.startswith(UNIX_PREFIX):
            with suppress(OSError):
                os.unlink(address.removeprefix(UNIX_PREFIX))


async def _open(address: str, name: str, backlog: int) -> list[Listener]:
    if address.startswith(UNIX_PREFIX):
        return adopt([Inherited(_open_unix(address.removeprefix(UNIX_PREFIX), backlog), name)])
    host, port = split_address(address)
    return [Listener(opened, name) for opened in await trio.open_tcp_listeners(port, host=host, backlog=backlog)]


def split_address(address: str) -> tuple[str | None, int]:
    """Host and port of `host:port` or `[ipv6]:port`; an empty host is every interface.

    Raises:
        ConfigError: It is neither.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"Can't listen on {address}: an IPv6 address is written in brackets")
    if not colon or not port.isdecimal() or int(port) > 0xFFFF:
        raise ConfigError(f"Can't listen on {address}: expected host:port, [ipv6]:port or unix:/path")
    return host or None, int(port)


def _open_unix(path: str, backlog: int) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on: a crash leaves one behind."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # not ours: bind says that the address is in use
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            return  # somebody listens, with a full queue


def tls_contexts(settings: ServerSettings) -> dict[str, ssl.SSLContext]:
    """The TLS of every role that has a certificate.

    Raises:
        ConfigError: Files can't be read or do not fit together.
    """
    contexts = {IMAGE: tls_context(settings)}
    for role in settings.roles:
        contexts[role.name] = _role_context(role)
    return {name: context for name, context in contexts.items() if context is not None}


def _role_context(role: RoleSettings) -> ssl.SSLContext | None:
    context = tls_context(role, section=f"{role.name}_server")
    if context is None or role.client_ca is None:
        return context
    try:
        context.load_verify_locations(role.client_ca)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"{role.name}_server.client_ca: expected a PEM file with certificates that can be read, not"
            f" {role.client_ca}: {exc.strerror or exc}"
        ) from exc
    # Who shows none may have a key. A session is never taken up again: a certificate is looked at each time.
    context.verify_mode = ssl.CERT_OPTIONAL
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


def tls_context(settings: ServerSettings | RoleSettings, *, section: str = "server") -> ssl.SSLContext | None:
    """The TLS of `settings`, None without a certificate. `section` is where they stand in the configuration.

    Raises:
        ConfigError: The files can't be read or do not fit together.
    """
    if settings.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"{section}.tls_certificate, {section}.tls_key: expected PEM files that can be read and belong together,"
            f" not {settings.tls_certificate} and {settings.tls_key}: {exc.strerror or exc}"
        ) from exc
    return context
