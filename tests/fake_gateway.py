"""A gateway made of scripted answers, on the event loop of the test: one script a connection, in order.

It runs under Trio and asyncio alike. What was asked is kept for the test to look at; a connection without a script left
is an error of the test.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import inspect
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import h11
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

from visor_gateway.client import Client, Timing

BACKENDS = ("trio", "asyncio")
DEADLINE_SECONDS = 60
QUICK = Timing(retries=3, pause=0.0, stall=10.0)


def on_both_backends(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test under Trio and under asyncio, with whatever fixtures it names."""
    asked = inspect.signature(test)

    def run(*, backend: str, **fixtures: Any) -> None:
        async def bounded() -> None:
            with anyio.fail_after(DEADLINE_SECONDS):
                await test(**fixtures)

        anyio.run(bounded, backend=backend)

    functools.update_wrapper(run, test)
    del run.__wrapped__  # type: ignore[attr-defined]
    added = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = asked.replace(parameters=[*asked.parameters.values(), added])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("backend", BACKENDS)(run)


@dataclass
class Asked:
    """One request: its head, and as much of its body as the script read."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)


class Connection:
    """One connection, as a script sees it."""

    def __init__(self, stream: ByteStream, gateway: FakeGateway) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.SERVER)
        self._gateway = gateway
        self.asked: Asked

    async def _event(self) -> Any:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            try:
                data = await self.stream.receive()
            except anyio.EndOfStream:
                data = b""
            self.http.receive_data(data)
        return event

    async def head(self) -> Asked:
        event = await self._event()
        assert isinstance(event, h11.Request), event
        headers = {name.decode(): value.decode("utf-8") for name, value in event.headers}
        self.asked = Asked(event.method.decode(), event.target.decode(), headers)
        self._gateway.asked.append(self.asked)
        return self.asked

    async def body(self, count: int | None = None) -> bytes:
        """The body, or at least `count` bytes of it."""
        while count is None or len(self.asked.body) < count:
            event = await self._event()
            if not isinstance(event, h11.Data):
                break
            self.asked.body += event.data
        return bytes(self.asked.body)

    async def ask_for_body(self) -> None:
        await self.raw(self.http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")

    async def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer. `_` in a header's name stands for `-`."""
        await self.begin(status, content_length=str(len(body)), connection="close", **headers)
        await self.raw(body)

    async def begin(self, status: int, **headers: str) -> None:
        fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        await self.raw(f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode())

    async def raw(self, data: bytes) -> None:
        await self.stream.send(data)

    async def reset(self) -> None:
        """Close so that the client gets a TCP reset."""
        raw = self.stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()


Script = Callable[[Connection], Awaitable[None]]


class FakeGateway:
    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.asked: list[Asked] = []
        self.url = ""
        self._scripts = list(scripts)

    async def serve(self, stream: ByteStream) -> None:
        async with stream:
            if not self._scripts:
                pytest.fail("The client made another connection than the test foresaw")
            try:
                await self._scripts.pop(0)(Connection(stream, self))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # the client has gone, which is its right

    @property
    def left(self) -> int:
        """Scripts that no connection has begun."""
        return len(self._scripts)


#: What the fixture `serve` gives: serves one script a connection to the commands of a test.
Serve = Callable[..., FakeGateway]


@asynccontextmanager
async def gateway(*scripts: Script, tls: ssl.SSLContext | None = None) -> AsyncGenerator[FakeGateway]:
    """Serve one script a connection."""
    fake = FakeGateway(scripts)
    plain = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    fake.url = f"{'https' if tls else 'http'}://127.0.0.1:{plain.extra(SocketAttribute.local_port)}"
    listener = TLSListener(plain, tls, standard_compatible=False) if tls else plain
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, fake.serve)
        try:
            yield fake
        finally:
            group.cancel_scope.cancel()


@asynccontextmanager
async def talking(*scripts: Script, **settings: Any) -> AsyncGenerator[tuple[FakeGateway, Client]]:
    """A gateway and a client of it, which tries again quickly and not often."""
    settings = {"timing": QUICK} | settings
    async with gateway(*scripts) as fake, Client(fake.url, **settings) as client:
        yield fake, client


def digest_of(data: bytes) -> str:
    """`Repr-Digest` of `data`."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def whole(data: bytes, *, etag: str = '"one"', sent: int | None = None, **headers: str) -> Script:
    """A 200 with an image; of its body only `sent` bytes, then the connection ends."""

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.begin(200, **entity_headers(data, etag, len(data)) | headers)
        await connection.raw(data[:sent])

    return script


def part(
    data: bytes, first: int, *, etag: str = '"one"', sent: int | None = None, last: int | None = None, **headers: str
) -> Script:
    """A 206 with an image from byte `first` on; of its body only `sent` bytes."""
    last = len(data) - 1 if last is None else last

    async def script(connection: Connection) -> None:
        await connection.head()
        place = {"content_range": f"bytes {first}-{last}/{len(data)}"}
        await connection.begin(206, **entity_headers(data, etag, last + 1 - first) | place | headers)
        await connection.raw(data[first : last + 1][:sent])

    return script


def entity_headers(data: bytes, etag: str, length: int) -> dict[str, str]:
    return {
        "etag": etag,
        "content_length": str(length),
        "repr_digest": digest_of(data),
        "x_image_meta__id": "the-id",
        "x_image_meta_status": "available",
        "x_image_meta_size": str(len(data)),
    }


def refusing(status: int, body: bytes = b'{"code": 0, "message": "No."}', **headers: str) -> Script:
    """An answer that needs no reading of a body."""

    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.answer(status, b"" if connection.asked.method == "HEAD" else body, **headers)

    return script


def answering(body: bytes, status: int = 200, **headers: str) -> Script:
    """Read the request whole, then answer."""

    async def script(connection: Connection) -> None:
        asked = await connection.head()
        if asked.headers.get("expect"):
            await connection.ask_for_body()
        await connection.body()
        await connection.answer(status, body, **headers)

    return script
