"""Both ends for tests of the socket edge: a served application, and a client that sees bytes, FIN and RST."""

from __future__ import annotations

import logging
import os
import select
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import trio
from trio.testing import wait_all_tasks_blocked

from visor_gateway.metrics import Metrics
from visor_gateway.server.listen import Server, ServerSettings

END = b"\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"

Message = dict[str, Any]
Application = Callable[..., Any]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Peer:
    """One client connection over a raw socket.

    Attributes:
        vanished: Whether it was closed with a RST.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.vanished = False

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self.sock.send(view) :]

    async def fill(self) -> bool:
        data = await self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            assert await self.fill(), f"FIN before {mark!r}; got {bytes(self.buffer)!r}"
        return self.take(self.buffer.index(mark) + len(mark))

    async def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            assert await self.fill(), f"FIN after {len(self.buffer)} of {count} bytes"
        return self.take(count)

    def take(self, count: int) -> bytes:
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def answer(self, *, head_only: bool = False) -> Answer:
        """One answer with a Content-Length, or without a body."""
        lines = (await self.until(END)).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
        length = 0 if head_only else int(headers.get("content-length", 0))
        return Answer(int(lines[0].split(" ")[1]), headers, await self.exactly(length))

    async def rest(self) -> tuple[bytes, str]:
        """All that still comes, and how it ends: "fin" or "rst"."""
        try:
            while await self.fill():
                pass
        except ConnectionResetError:
            return self.take(len(self.buffer)), "rst"
        return self.take(len(self.buffer)), "fin"

    def silent(self) -> bool:
        """Whether nothing waits to be read."""
        return not self.buffer and not select.select([self.sock.fileno()], [], [], 0)[0]

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def vanish(self) -> None:
        """Close with RST, as a killed client with unread data does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()
        self.vanished = True


class Edge:
    """A server under test.

    Attributes:
        port: Where it listens on 127.0.0.1.
        nursery: Where it runs.
    """

    nursery: trio.Nursery

    def __init__(self, server: Server, metrics: Metrics) -> None:
        self.server = server
        self.metrics = metrics
        self.peers: list[Peer] = []

    @property
    def port(self) -> int:
        address = self.server.addresses[0]
        assert isinstance(address, tuple)
        return address[1]

    async def connect(self, *, receive_buffer: int | None = None) -> Peer:
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await sock.connect(("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        self.peers.append(Peer(sock))
        return self.peers[-1]

    @property
    def listening_descriptor(self) -> int:
        return self.server._listeners[0].socket.fileno()

    def admitted(self) -> int:
        """Connections that the server has taken from the queue."""
        counts = self.metrics.connections_accepted, self.metrics.connections_refused
        return sum(int(count._value.get()) for count in counts)  # type: ignore[attr-defined]

    async def ask(self, request: bytes = LAST_GET) -> Answer:
        """One request on a connection of its own, which the server ends in order."""
        peer = await self.connect()
        await peer.send(request)
        answer = await peer.answer()
        assert await peer.rest() == (b"", "fin")
        peer.close()
        return answer

    async def tls_client(self, context: ssl.SSLContext, host: str = "localhost") -> trio.SSLStream[trio.SocketStream]:
        stream = trio.SSLStream(
            await trio.open_tcp_stream("127.0.0.1", self.port), context, server_hostname=host, https_compatible=True
        )
        await stream.do_handshake()
        return stream


def open_descriptors() -> set[str]:
    return {f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}" for fd in os.listdir("/proc/self/fd") if _is_open(fd)}


def _is_open(fd: str) -> bool:
    try:
        os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return True


@asynccontextmanager
async def serving(app: Application, **settings: Any) -> AsyncGenerator[Edge]:
    """Serve `app`; at the end nothing may be left of it: no connection, no task, no descriptor."""
    before = open_descriptors()
    metrics = Metrics()
    server = Server(app, ServerSettings(**{"bind": ("127.0.0.1:0",), **settings}), metrics)
    edge = Edge(server, metrics)
    async with trio.open_nursery() as nursery:
        edge.nursery = nursery
        await nursery.start(server.serve)
        try:
            yield edge
        finally:
            for peer in edge.peers:
                peer.close()
        await server.drain(0)
    assert server.statistics().connections == 0
    assert open_descriptors() == before


@contextmanager
def logged_requests() -> Generator[list[dict[str, Any]]]:
    """What the access log tells meanwhile, one dictionary a line."""
    logger, lines = logging.getLogger("visor_gateway.access"), []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.msg.values())

    handler, level = Collector(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def headers(fields: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in fields]


async def respond(send: Any, body: bytes = b"hello", status: int = 200, *fields: tuple[str, str]) -> None:
    await send({
        "type": "http.response.start",
        "status": status,
        "headers": headers([("content-length", str(len(body))), *fields]),
    })
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Any) -> bytes | None:
    """The whole request body; None if the client left first."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def hello(scope: Message, receive: Any, send: Any) -> None:
    """Answers everything at once, without reading."""
    await respond(send)


async def echo(scope: Message, receive: Any, send: Any) -> None:
    """Answers with the request body."""
    body = await read_body(receive)
    if body is not None:
        await respond(send, body)


async def until_no_connection(edge: Edge, *, but: int = 0) -> None:
    """Wait until the server has accepted every connection and ended it, `but` so many."""
    # One that was reset in the queue may never be seen by the server.
    made = sum(not peer.vanished for peer in edge.peers)
    while edge.admitted() < made or edge.server.statistics().connections > but:
        await wait_all_tasks_blocked()
