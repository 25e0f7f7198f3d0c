"""A listening socket, and whether TLS is spoken on it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

import trio

#: Names that systemd gives to passed sockets (`FileDescriptorName=`), and whether TLS is spoken on those.
SPOKEN: Final = {"http": False, "unix": False, "tls": True}
#: The role of a socket that no name tells another one of.
IMAGE: Final = "image"
#: Names of sockets that belong to other roles.
ROLES: Final = frozenset({"meta", "auth"})

Address = tuple[str, int] | str


class Endpoint(NamedTuple):
    """Where clients reach a listener.

    Attributes:
        address: (host, port) or the path of a Unix socket.
        name: What the socket was called by who passed it; empty for one of our own.
    """

    address: Address
    name: str = ""

    @property
    def role(self) -> str:
        """What is served there."""
        return self.name if self.name in ROLES else IMAGE

    def speaks_tls(self, *, configured: bool) -> bool:
        """Whether clients speak TLS there: as its name says, else if TLS is configured, but never on a Unix socket."""
        return SPOKEN.get(self.name, configured and not isinstance(self.address, str))


class Inherited(NamedTuple):
    """A listening socket from another process.

    Attributes:
        sock: The socket. Whoever takes it over closes it.
        name: What it was called there; empty for none.
    """

    sock: socket.socket
    name: str = ""


class Listener:
    """A listening socket. `socket` closes it.

    Attributes:
        endpoint: Where clients reach it.
    """

    def __init__(self, accepting: trio.SocketListener, name: str = "") -> None:
        self._accepting = accepting
        address = accepting.socket.getsockname()
        self.endpoint = Endpoint((address[0], address[1]) if isinstance(address, tuple) else str(address), name)

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket itself."""
        return self._accepting.socket

    async def accept(self) -> trio.SocketStream:
        """The next connection. Raises `OSError`, after which one may accept again, and `trio.ClosedResourceError`."""
        return await self._accepting.accept()


def adopt(inherited: Sequence[Inherited]) -> list[Listener]:
    """Make listeners of sockets that are listening already. They own the sockets from now on."""
    return [Listener(trio.SocketListener(trio.socket.from_stdlib_socket(sock)), name) for sock, name in inherited]
