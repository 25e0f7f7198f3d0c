"""Clients of real sockets that take as much of an image as a test says, so that the rest waits in the gateway."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from gateway import Gateway

from visor_gateway.metrics import Metrics
from visor_gateway.server.listen import Server, ServerSettings

T = TypeVar("T")

DATA = os.urandom(8 << 20)


class Client:
    """One pull with a small receive buffer, which is hashed as it arrives."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.head = b""
        self.received = 0
        self._digest = hashlib.sha256()

    async def ask(self, target: str) -> None:
        await self.stream.send_all(f"GET {target} HTTP/1.1\r\nhost: gateway.test\r\n\r\n".encode())

    async def read(self, until: int = len(DATA)) -> bytes:
        """Read on until so much of the body is there. Returns the digest so far."""
        while b"\r\n\r\n" not in self.head:
            self.head += await self.stream.receive_some(65536)
        if not self.received:
            self._take(self.head.partition(b"\r\n\r\n")[2])
        while self.received < until:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self._take(bytes(data))
        return self._digest.digest()

    def _take(self, data: bytes) -> None:
        self._digest.update(data)
        self.received += len(data)


Connect = Callable[[], Awaitable[Client]]


@asynccontextmanager
async def connecting(
    gateway: Gateway, client: Callable[[trio.SocketStream], T] = Client
) -> AsyncGenerator[Callable[[], Awaitable[T]]]:
    """Serve a gateway, and give what opens a connection to it, for a `client`. All are closed in the end."""
    settings = ServerSettings(bind=("127.0.0.1:0",), stall_timeout=60)
    server = Server(gateway.app, settings, Metrics())
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        host, port = server.addresses[0]
        streams: list[trio.SocketStream] = []

        async def opened() -> T:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            sock.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            await stream.socket.connect((host, port))
            streams.append(stream)
            return client(stream)

        try:
            yield opened
        finally:
            for stream in streams:
                stream.socket.close()
            nursery.cancel_scope.cancel()
