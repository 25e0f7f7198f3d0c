"""The guarded dialer: resolve once, check every address, connect to an address that was checked.

A name is never resolved a second time, so an answer that changes between check and connect (DNS rebinding)
changes nothing. Numeric hosts take the same way: whatever spelling the system's resolver understands (`127.1`,
`0x7f000001`, `2130706433`) is judged by the address that comes out.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import trio

from .errors import AddressDenied, Unreachable
from .policy import LocationPolicy

#: Turns a host name and a port into addresses, best first. Raises OSError where there is none.
Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
#: Opens a TCP connection to an address and a port. Raises OSError.
Connector: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]

CONNECT_SECONDS: Final = 10.0  # for name, all addresses and TLS handshake together
ADDRESS_SECONDS: Final = 3.0  # for one address where more follow, so that a dead IPv6 route does not use up all
RESOLVER_THREADS: Final = 16  # a dead name server must not take the threads of files and database

_resolver_limit = trio.CapacityLimiter(RESOLVER_THREADS)


async def resolve(host: str, port: int) -> list[str]:
    """The system's resolver, in a worker thread. Cancellation abandons the thread: a look-up has no side effect."""
    lookup = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    return _addresses(await trio.to_thread.run_sync(lookup, abandon_on_cancel=True, limiter=_resolver_limit))


async def connect(address: str, port: int) -> trio.abc.Stream:
    """A TCP connection to a numeric address; no name is looked up."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tcp = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await tcp.connect((address, port))
    except BaseException:
        tcp.close()
        raise
    return trio.SocketStream(tcp)


class Dialer:
    """Opens TCP connections for one policy.

    Args:
        policy: Which addresses may be connected to.
        resolver: Replaces the system's resolver.
        connector: Replaces the socket; it sees only addresses that were checked.
    """

    def __init__(self, policy: LocationPolicy, *, resolver: Resolver = resolve, connector: Connector = connect) -> None:
        self._policy = policy
        self._resolver = resolver
        self._connector = connector

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        """Connect to `host`. The caller closes the stream and bounds the time.

        Raises:
            AddressDenied: One of the host's addresses is not admitted; none was connected to.
            Unreachable: No address, or none that answers.
        """
        addresses = await self._checked_addresses(host, port)
        for address in addresses[:-1]:
            with trio.move_on_after(ADDRESS_SECONDS):
                try:
                    return await self._connector(address, port)
                except OSError:
                    continue
        try:
            return await self._connector(addresses[-1], port)
        except OSError as exc:
            raise Unreachable(f"no address of {host} accepts a connection") from exc

    async def _checked_addresses(self, host: str, port: int) -> list[str]:
        addresses = _numeric(host, port) or await self._resolved(host, port)
        denied = [each for each in addresses if not self._policy.admits_address(host, port, each)]
        # All or nothing: a name with one private address among public ones is an attack or a mistake.
        if denied:
            raise AddressDenied(f"{host} resolves to {denied[0]}")
        return addresses

    async def _resolved(self, host: str, port: int) -> list[str]:
        try:
            addresses = list(await self._resolver(host, port))
        except (OSError, UnicodeError) as exc:  # a label above 63 characters fails in the codec for names
            raise Unreachable(f"{host} does not resolve") from exc
        if not addresses:
            raise Unreachable(f"{host} has no address")
        return addresses


def _numeric(host: str, port: int) -> list[str]:
    """The address that a numeric host stands for in any spelling; empty for a name. Asks no server, never blocks."""
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        return _addresses(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))
    except (OSError, UnicodeError):
        return []


def _addresses(found: Sequence[tuple[object, ...]]) -> list[str]:
    """Addresses of `getaddrinfo`'s answer, in its order, each once."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in found if isinstance(entry[4], tuple)))
