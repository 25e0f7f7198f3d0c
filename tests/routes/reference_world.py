"""A gateway behind a real socket and the origin of its one image, which does as it is told."""

from __future__ import annotations

import hashlib
import os
import socket
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import trio
from faulty_origin import Asked, Origin, Step, head
from gateway import RECORD, Gateway, running_gateway

from visor_gateway.metrics import Metrics
from visor_gateway.server.listen import Server, ServerSettings
from visor_gateway.transfer.transfer import Transfer

DATA = os.urandom(6 << 20)
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA)
REPR_DIGEST = f"sha-256=:{b64encode(SHA256.digest()).decode()}:"
ENVIRON = {
    "VISOR_GATEWAY__AUTH__ANONYMOUS_PULL": "true",
    "VISOR_GATEWAY__LOCATIONS__ALLOW_HOSTS": "127.0.0.1",
    "VISOR_GATEWAY__STORES__RETRY_TIMEOUT": "5",
}
UNVERIFIED = {"VISOR_GATEWAY__STORES__VERIFY_DIRECT_PULLS": "false"}


class Reply:
    """An answer as far as it came; `cut` if the connection was reset under it."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool) -> None:
        self.status, self.headers, self.body, self.cut = status, headers, body, cut


class World:
    """A gateway behind a real socket, and the origin of its one image."""

    def __init__(self, gateway: Gateway, origin: Origin, address: tuple[str, int], location: str) -> None:
        self.gateway = gateway
        self.origin = origin
        self.location = location
        self._address = address

    async def refer(self) -> str:
        """Add a reference; its id."""
        headers = {**RECORD, "x-image-meta-store": "http", "x-image-meta-location": self.location}
        reply = await self.gateway.call("POST", "/images", headers)
        assert reply.status == 200, reply.body
        return str(reply.json()["image"]["_id"])

    async def pinned(self) -> str:
        """A reference that was read once."""
        image = await self.refer()
        assert (await self.pull(image)).body == DATA
        return image

    async def ask(self, image: str, **headers: str) -> trio.SocketStream:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        await sock.connect(self._address)
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        stream = trio.SocketStream(sock)
        text = "\r\n".join([f"GET /images/{image} HTTP/1.1", "host: gateway.test", "connection: close", *lines, "", ""])
        await stream.send_all(text.encode())
        return stream

    async def pull(self, image: str, **headers: str) -> Reply:
        return await finish(await self.ask(image, **headers))

    async def cancelled(self, image: str) -> Transfer:
        """A pull that was cancelled once bytes had moved: its client saw a reset, and it has ended."""
        id = str(uuid4())
        stream = await self.ask(image, x_transfer_id=id)
        transfer = await self.transfer(id)
        with trio.fail_after(60):
            while not transfer.meter.bytes:
                await trio.lowlevel.checkpoint()
        transfer.cancel("request")
        assert (await finish(stream)).cut
        with trio.fail_after(60):
            await transfer.ended.wait()
        return transfer

    async def transfer(self, id: str) -> Transfer:
        with trio.fail_after(60):
            while (found := self.gateway.services.hub.find(id)) is None:
                await trio.lowlevel.checkpoint()
        return found


async def finish(stream: trio.SocketStream) -> Reply:
    """All that still comes."""
    received, cut = bytearray(), False
    try:
        with trio.fail_after(60):
            while data := await stream.receive_some(1 << 17):
                received += data
    except trio.BrokenResourceError:
        cut = True
    finally:
        await trio.aclose_forcefully(stream)
    start, _, body = bytes(received).partition(b"\r\n\r\n")
    lines = start.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return Reply(int(lines[0].split()[1]) if lines[0] else 0, fields, body, cut=cut)


@asynccontextmanager
async def world(tmp_path: Path, **environ: str) -> AsyncGenerator[World]:
    origin = Origin(DATA)
    async with running_gateway(tmp_path, environ={**ENVIRON, **environ}) as gateway, origin.listening() as port:
        server = Server(gateway.app, ServerSettings(bind=("127.0.0.1:0",), stall_timeout=60), Metrics())
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve)
            host, own = server.addresses[0]
            assert own is not None
            try:
                yield World(gateway, origin, (host, own), f"http://127.0.0.1:{port}/disk.img?key=canary")
            finally:
                nursery.cancel_scope.cancel()


def once(*faults: Iterable[Step]) -> Callable[[Asked], Iterable[Step] | None]:
    """Play each of these for a GET, one after the other; then behave."""
    left = list(faults)
    return lambda asked: left.pop(0) if left and asked.method == "GET" else None


def cut_at(count: int, end: Step, body: bytes = DATA, start: int = 0, **headers: object) -> list[Step]:
    """A 200 or 206 from `start` to the end whose body ends after `count` bytes."""
    etag = {"etag": '"v1"', **headers}
    if start:
        marks = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return [
            head(206, content_length=len(body) - start, content_range=marks, **etag),
            body[start : start + count],
            end,
        ]
    return [head(200, content_length=len(body), **etag), body[:count], end]
