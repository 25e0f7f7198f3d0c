"""Pushes over real sockets: threads move the bytes; framing, digests, refusals and cancellation stay as they were."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
import threading
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import trio
from gateway import OCTETS, RECORD, Gateway, running_gateway

from visor_gateway.metrics import Metrics
from visor_gateway.server.listen import Server, ServerSettings
from visor_gateway.store.file import FileStore
from visor_gateway.store.filecalls import FileCalls
from visor_gateway.transfer import intake
from visor_gateway.transfer.transfer import Transfer

MIB = 1 << 20
DATA = os.urandom(6 * MIB + 10)


class Client:
    """One connection, and answers by their Content-Length."""

    def __init__(self, gateway: Gateway, stream: trio.SocketStream) -> None:
        self.gateway = gateway
        self.stream = stream
        self._buffer = bytearray()

    def head(self, length: int, **fields: str) -> bytes:
        """A signed POST of `length` bytes (-1: chunked)."""
        headers = {"host": "gateway.test", **RECORD, **OCTETS}
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        headers |= {"transfer-encoding": "chunked"} if length < 0 else {"content-length": str(length)}
        headers = self.gateway._signed("POST", "/images", headers, self.gateway.admin)
        lines = ["POST /images HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    async def push(self, data: bytes, **fields: str) -> tuple[int, dict[str, str], Any]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.stream.send_all, self.head(len(data), **fields) + data)
            answer = await self.answer()
            nursery.cancel_scope.cancel()  # who is refused early may stop sending
        return answer

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        lines = (await self.until(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:-2])
        body = await self._exactly(int(headers["content-length"]))
        shown = msgspec.json.decode(body) if headers["content-type"].startswith("application/json") else body
        return int(lines[0].split(" ")[1]), headers, shown

    async def until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            await self._fill()
        return await self._exactly(self._buffer.index(mark) + len(mark))

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _fill(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError
        self._buffer += data


class Setting:
    """A served gateway; `read` counts what its threads read from sockets."""

    def __init__(self, gateway: Gateway, connect: Callable[[], Any], read: list[int]) -> None:
        self.gateway, self.connect, self.read = gateway, connect, read

    async def under_way(self, id: str, enough: int = 1) -> Transfer:
        """The transfer, once it has stored `enough`."""
        with trio.fail_after(60):
            while (found := self.gateway.services.hub.find(id)) is None or found.meter.moved < enough:
                await trio.lowlevel.checkpoint()
        return found

    async def status(self, transfer: Transfer) -> str:
        """The record's status, once the transfer has ended and no thread is at work for it."""
        with trio.fail_after(60):
            await transfer.ended.wait()
            for thread in threading.enumerate():
                if thread.name in {"intake", "hash"}:
                    # The last thing that it does is to say that it is done.
                    await trio.to_thread.run_sync(thread.join)
        image = await self.gateway.services.images.get(transfer.image)
        assert image is not None
        return image.status


@asynccontextmanager
async def serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stall_timeout: float = 60, calls: FileCalls | None = None
) -> AsyncGenerator[Setting, None]:
    read: list[int] = []
    readv = os.readv

    def watched(fd: int, views: list[memoryview]) -> int:
        read.append(readv(fd, views))
        return read[-1]

    monkeypatch.setattr(intake.os, "readv", watched)
    stores = {"file": FileStore("file", tmp_path / "store", calls=calls)}
    async with running_gateway(tmp_path, stores=stores) as gateway, trio.open_nursery() as nursery:
        server = Server(gateway.app, ServerSettings(bind=("127.0.0.1:0",), stall_timeout=stall_timeout), Metrics())
        await nursery.start(server.serve)
        host, port = server.addresses[0]
        clients: list[trio.SocketStream] = []

        async def connect() -> Client:
            clients.append(await trio.open_tcp_stream(str(host), int(port)))
            return Client(gateway, clients[-1])

        try:
            yield Setting(gateway, connect, read)
        finally:
            for client in clients:
                client.socket.close()
            nursery.cancel_scope.cancel()


@pytest.fixture
async def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Setting, None]:
    async with serving(tmp_path, monkeypatch) as opened:
        yield opened


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_threads_take_a_large_body_and_the_connection_lives_on(setting: Setting) -> None:
    client = await setting.connect()
    for length in (len(DATA), 256 * 1024, MIB - 1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1):
        data = DATA[:length]
        setting.read.clear()
        digest = f"sha-256=:{b64encode(hashlib.sha256(data).digest()).decode()}:"
        status, _, body = await client.push(
            data, repr_digest=digest, content_md5=b64encode(hashlib.md5(data).digest()).decode()
        )
        assert (status, body["image"]["checksum"], body["image"]["size"]) == (200, sha256_of(data), length)
        # All but what came with the head passed by the event loop.
        assert length - 16 * 1024 <= sum(setting.read) <= length
    stored = {path.stat().st_size: path.read_bytes() for path in setting.gateway.files()}
    assert len(stored) == 7
    assert all(data == DATA[:size] for size, data in stored.items())


async def test_a_short_body_is_not_worth_a_thread(setting: Setting) -> None:
    client = await setting.connect()
    assert (await client.push(DATA[: 256 * 1024 - 1]))[0] == 200
    assert setting.read == []


async def test_a_chunked_body_goes_the_ordinary_way(setting: Setting) -> None:
    client = await setting.connect()
    chunk = b"%x\r\n%b\r\n" % (MIB, DATA[:MIB])
    await client.stream.send_all(client.head(-1) + chunk + b"0\r\n\r\n")
    status, _, body = await client.answer()
    assert (status, body["image"]["checksum"], setting.read) == (200, sha256_of(DATA[:MIB]), [])


async def test_where_no_thread_is_free_a_body_goes_the_ordinary_way(setting: Setting) -> None:
    setting.gateway.services.ingest.intake._free = 0
    client = await setting.connect()
    status, _, body = await client.push(DATA)
    assert (status, body["image"]["checksum"], setting.read) == (200, sha256_of(DATA), [])


async def test_a_request_right_behind_the_body_is_answered_next(setting: Setting) -> None:
    client = await setting.connect()
    async with trio.open_nursery() as nursery:
        behind = b"GET /status HTTP/1.1\r\nhost: gateway.test\r\n\r\n"
        nursery.start_soon(client.stream.send_all, client.head(MIB) + DATA[:MIB] + behind + behind)
        assert (await client.answer())[0] == 200
        for _ in range(2):
            assert (await client.answer())[2] == b"OK"
    assert sum(setting.read) <= MIB


async def test_a_client_that_waits_for_100_continue_gets_it_first(setting: Setting) -> None:
    client = await setting.connect()
    await client.stream.send_all(client.head(MIB, expect="100-continue"))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    await client.stream.send_all(DATA[:MIB])
    status, _, body = await client.answer()
    assert (status, body["image"]["checksum"], sum(setting.read)) == (200, sha256_of(DATA[:MIB]), MIB)


async def test_a_wrong_digest_is_refused_and_leaves_nothing(setting: Setting) -> None:
    client, id = await setting.connect(), str(uuid4())
    wrong = f"sha-256=:{b64encode(bytes(32)).decode()}:"
    status, _, _ = await client.push(DATA, repr_digest=wrong, x_transfer_id=id)
    assert status == 400
    assert await setting.status(await setting.under_way(id)) == "error"
    assert setting.gateway.files() == []
    # The body was read to its end, so the connection can be used again.
    assert (await client.push(DATA))[0] == 200


async def test_a_body_of_a_refused_format_ends_early_with_an_answer(setting: Setting) -> None:
    pytest.importorskip("oslo_utils")
    client, id = await setting.connect(), str(uuid4())
    backed = b"QFI\xfb\0\0\0\3" + b"\0\0\0\0\0\0\2\0" + b"\0\0\0\x08" + bytes(MIB)
    status, headers, _ = await client.push(backed, x_transfer_id=id)
    assert (status, headers["connection"]) == (400, "close")
    assert await setting.status(await setting.under_way(id, 0)) == "error"
    assert setting.gateway.files() == []


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_vanishes_leaves_an_error_and_nothing_else(setting: Setting, reset: bool) -> None:
    client, id = await setting.connect(), str(uuid4())
    await client.stream.send_all(client.head(len(DATA), x_transfer_id=id) + DATA[: 3 * MIB])
    transfer = await setting.under_way(id, 2 * MIB)
    if reset:
        client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.stream.aclose()
    assert await setting.status(transfer) == "error"
    assert (transfer.state, setting.gateway.files()) == ("failed", [])
    assert sum(setting.read) > 0


async def test_a_client_that_stalls_is_answered_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, monkeypatch, stall_timeout=0.1) as setting:
        client, id = await setting.connect(), str(uuid4())
        await client.stream.send_all(client.head(len(DATA), x_transfer_id=id) + DATA[:MIB])
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert await setting.status(await setting.under_way(id, 0)) == "error"
        assert setting.gateway.files() == []


@pytest.mark.parametrize("moment", [1, MIB, 2 * MIB + 1])
async def test_a_cancelled_push_is_reset_and_leaves_nothing(setting: Setting, moment: int) -> None:
    client, id = await setting.connect(), str(uuid4())
    await client.stream.send_all(client.head(len(DATA), x_transfer_id=id) + DATA[: 3 * MIB + 5])
    transfer = await setting.under_way(id, moment)
    transfer.cancel("request")
    with pytest.raises(trio.BrokenResourceError):
        await client.answer()
    assert await setting.status(transfer) == "error"
    assert (transfer.state, setting.gateway.files()) == ("cancelled", [])


async def test_a_delete_ends_a_push_under_way(setting: Setting) -> None:
    client, id = await setting.connect(), str(uuid4())
    await client.stream.send_all(client.head(len(DATA), x_transfer_id=id) + DATA[:MIB])
    transfer = await setting.under_way(id)
    assert (await setting.gateway.call("DELETE", f"/images/{transfer.image}")).status == 200
    with pytest.raises(trio.BrokenResourceError):
        await client.answer()
    assert (transfer.state, setting.gateway.files()) == ("cancelled", [])


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def write(fd: int, data: Any) -> int:
        nonlocal written
        if written >= 2 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += os.write(fd, data)
        return len(data)

    async with serving(tmp_path, monkeypatch, calls=FileCalls(write=write)) as setting:
        client, id = await setting.connect(), str(uuid4())
        status, headers, _ = await client.push(DATA, x_transfer_id=id)
        assert (status, headers["connection"], "retry-after" in headers) == (503, "close", True)
        assert await setting.status(await setting.under_way(id)) == "error"
        assert setting.gateway.files() == []
