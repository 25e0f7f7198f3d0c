"""An HTTP origin that misbehaves on demand, on loopback or on memory streams, and a network that leads to it.

What it sends is written byte by byte, so that broken framing can be sent too; only requests are parsed by h11.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import h11
import trio
import trio.testing

from visor_gateway.store.contract import ReadStream

PUBLIC: Final = "93.184.215.14"  # an address that passes the check; nothing is ever sent there


@dataclass(frozen=True)
class Stall:
    """Send nothing more, and keep the connection open."""


@dataclass(frozen=True)
class Reset:
    """Cut the connection with a TCP RST."""


@dataclass(frozen=True)
class Close:
    """End the connection with a FIN."""


@dataclass(frozen=True)
class Drip:
    """Send the bytes in pieces of this many, each alone."""

    data: bytes
    piece: int


Step: TypeAlias = bytes | Stall | Reset | Close | Drip


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    connection: int
    body: bytes = b""

    @property
    def span(self) -> tuple[int, int | None] | None:
        """First and last byte of `Range`."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) if match[2] else None) if match else None


def head(status: int, **headers: object) -> bytes:
    """A response head; `_` in names stands for `-`."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status} Some", *lines, "", ""]).encode("latin-1")


def whole(body: bytes, **headers: object) -> list[Step]:
    return [head(200, content_length=len(body), **headers), body]


@dataclass
class Origin:
    """Serves one body well, unless `answer` says otherwise.

    Attributes:
        answer: Takes a request, returns what to send, or None for the well-behaved answer.
        asked: Every request, in order.
        hears_out: Whether a request's body is read before it is answered.
        etag: As it is sent; None for none.
    """

    body: bytes = b""
    etag: str | None = '"v1"'
    answer: Callable[[Asked], Iterable[Step] | None] = lambda asked: None
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    hears_out: bool = True

    def properly(self, asked: Asked) -> list[Step]:
        """What a good server sends: Range, If-Match, HEAD."""
        etag = {} if self.etag is None else {"etag": self.etag}
        if asked.headers.get("if-match", self.etag) != self.etag:
            return [head(412, content_length=0)]
        span = asked.span
        if span is None:
            steps = whole(self.body, **etag)
        elif span[0] >= len(self.body):
            return [head(416, content_length=0, content_range=f"bytes */{len(self.body)}")]
        else:
            last = min(len(self.body) - 1, len(self.body) - 1 if span[1] is None else span[1])
            part = self.body[span[0] : last + 1]
            marks = f"bytes {span[0]}-{last}/{len(self.body)}"
            steps = [head(206, content_length=len(part), content_range=marks, **etag), part]
        return steps[:1] if asked.method == "HEAD" else steps

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, until the peer or a step ends it."""
        self.connections += 1
        number = self.connections
        try:
            async with stream:
                while (asked := await _request(stream, number, hears_out=self.hears_out)) is not None:
                    self.asked.append(asked)
                    steps = self.answer(asked)
                    if not await _play(stream, self.properly(asked) if steps is None else steps):
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass  # the gateway may leave at any time, and may speak TLS to us

    @asynccontextmanager
    async def listening(self, context: ssl.SSLContext | None = None) -> AsyncGenerator[int]:
        """Serve on loopback; yields the port."""

        async def accept(stream: trio.abc.Stream) -> None:
            if context is not None:
                stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            await self.serve(stream)

        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, accept, listeners)
            try:
                yield listeners[0].socket.getsockname()[1]
            finally:
                nursery.cancel_scope.cancel()


async def _request(stream: trio.abc.Stream, connection: int, *, hears_out: bool) -> Asked | None:
    parser = h11.Connection(h11.SERVER)
    request, body = None, b""
    while True:
        match event := parser.next_event():
            case h11.ConnectionClosed():
                return None
            case h11.Request():
                request = event
            case h11.Data():
                body += bytes(event.data)
            case h11.NEED_DATA:
                parser.receive_data(bytes(await stream.receive_some(65536)))
        if request is not None and (not hears_out or isinstance(event, h11.EndOfMessage)):
            break
    headers = {name.decode(): value.decode() for name, value in request.headers}
    return Asked(request.method.decode(), request.target.decode(), headers, connection, body)


async def _play(stream: trio.abc.Stream, steps: Iterable[Step]) -> bool:
    """Returns whether the connection goes on."""
    for step in steps:
        match step:
            case bytes():
                await stream.send_all(step)
            case Drip():
                for start in range(0, len(step.data), step.piece):
                    await stream.send_all(step.data[start : start + step.piece])
                    for _ in range(10):
                        await trio.lowlevel.checkpoint()
            case Stall():
                await trio.sleep_forever()
            case Close():
                return False
            case Reset():
                assert isinstance(stream, trio.SocketStream)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
    return True


class Network:
    """Names, addresses and servers of a world in memory. Use `resolve` as resolver and `connect` as connector.

    Attributes:
        names: Addresses by name; each look-up takes the next of the answers, the last one stays.
        servers: Origins by address and port; everything else refuses.
        looked_up: Names that were asked for.
        connected: Addresses and ports that a connection was tried to.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.names: dict[str, list[Sequence[str]]] = {}
        self.servers: dict[tuple[str, int], Origin] = {}
        self.looked_up: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self._nursery = nursery

    def add(self, name: str, *addresses: str) -> None:
        self.names[name] = [addresses]

    def place(self, origin: Origin, name: str = "images.example", address: str = PUBLIC, port: int = 80) -> None:
        self.add(name, address)
        self.servers[address, port] = origin

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append(host)
        await trio.lowlevel.checkpoint()
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        answers = self.names[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect(self, address: str, port: int) -> trio.abc.Stream:
        self.connected.append((address, port))
        await trio.lowlevel.checkpoint()
        if (address, port) not in self.servers:
            raise ConnectionRefusedError(111, "refused")
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.servers[address, port].serve, theirs)
        return ours


async def drained(stream: ReadStream, into: bytearray | None = None) -> bytes:
    """Everything that a stream gives, and close it; what came before an error is in `into`."""
    received = bytearray() if into is None else into
    try:
        while block := await stream.receive_some():
            received += block
    finally:
        await stream.aclose()
    return bytes(received)


def broken_at(
    body: bytes, count: int, *, times: int, end: Step | None = None
) -> Callable[[Asked], Iterable[Step] | None]:
    """Answers with `body`, of which the first `times` are cut after `count` bytes."""
    cut = Origin(body)
    left = [times]

    def answer(asked: Asked) -> Iterable[Step] | None:
        if not left[0]:
            return None
        left[0] -= 1
        start, part = cut.properly(asked)
        assert isinstance(part, bytes)
        return [start, part[:count], end or Close()]

    return answer
