"""What leaves of an image: several ranges in one answer, and never the last block of what is no longer right."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
from gateway import Gateway, Reply, running_gateway
from memory_store import MemoryStore

from visor_gateway.metrics import Metrics
from visor_gateway.routes.delivery import LAST_BLOCK
from visor_gateway.server.listen import Server, ServerSettings
from visor_gateway.store.file import BLOCK_SIZE

DATA = os.urandom(3_000_000)
LARGE = os.urandom(16 << 20)


def parts(reply: Reply) -> list[tuple[int, int, bytes]]:
    """First and last position and the bytes of each part, by the grammar of RFC 2046."""
    assert reply.status == 206
    found = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-f]{32})", reply.headers["content-type"])
    assert found is not None
    assert int(reply.headers["content-length"]) == len(reply.body)
    assert "content-range" not in reply.headers
    delimiter = f"\r\n--{found[1]}".encode()
    preamble, *pieces, end = (b"\r\n" + reply.body).split(delimiter)
    assert (preamble, end) == (b"", b"--\r\n")
    made = []
    for piece in pieces:
        head, _, body = piece.partition(b"\r\n\r\n")
        told = re.fullmatch(
            rb"\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes (\d+)-(\d+)/%d" % len(DATA), head
        )
        assert told is not None
        made.append((int(told[1]), int(told[2]), body))
    return made


async def ranged(gateway: Gateway, image_id: str, value: str) -> Reply:
    return await gateway.call("GET", f"/images/{image_id}", {"range": value})


# --- several ranges ------------------------------------------------------------------------------


async def test_several_ranges_are_parts_of_one_answer_with_their_bytes(gateway: Gateway) -> None:
    image = await gateway.add(DATA)
    last = len(DATA) - 1
    reply = await ranged(gateway, image["_id"], "bytes=0-0, 7-1000000, 1000001-1000002,-5")
    assert parts(reply) == [
        (first, end, DATA[first : end + 1])
        for first, end in ((0, 0), (7, 1000000), (1000001, 1000002), (last - 4, last))
    ]
    head = await gateway.call("HEAD", f"/images/{image['_id']}")
    for name in ("etag", "last-modified", "repr-digest", "accept-ranges", "content-disposition"):
        assert reply.headers[name] == head.headers[name]
    shown = (await gateway.call("GET", f"/transfers/{reply.headers['x-transfer-id']}")).json()["transfer"]
    count = 1 + 999_994 + 2 + 5
    assert (shown["state"], shown["bytes"], shown["size"], shown["offset"]) == ("finished", count, count, 0)


async def test_every_answer_has_a_boundary_of_its_own(gateway: Gateway) -> None:
    image = await gateway.add(DATA)
    kinds = {(await ranged(gateway, image["_id"], "bytes=0-0,2-2")).headers["content-type"] for _ in range(5)}
    assert len(kinds) == 5


@pytest.mark.parametrize("value", ["bytes=0-10,5-20", "bytes=10-20,0-5", "bytes=0-99,100-", "bytes=0-1," * 17])
async def test_ranges_that_nobody_needs_get_the_whole(gateway: Gateway, value: str) -> None:
    image = await gateway.add(DATA)
    reply = await ranged(gateway, image["_id"], value)
    assert (reply.status, reply.body) == (200, DATA)


async def test_several_ranges_of_a_store_without_files_are_read_one_by_one(faulty: Gateway, store: MemoryStore) -> None:
    image = await faulty.add(DATA)
    assert parts(await ranged(faulty, image["_id"], "bytes=1-2,5-6")) == [(1, 2, DATA[1:3]), (5, 6, DATA[5:7])]
    assert [(offset, length) for _, offset, length in store.reads] == [(1, 2), (5, 2)]
    assert store.open_streams == 0


async def test_a_store_that_breaks_between_two_ranges_ends_in_a_reset(faulty: Gateway, store: MemoryStore) -> None:
    image = await faulty.add(DATA)
    store.faults.read_fails_at = 50
    reply = await ranged(faulty, image["_id"], "bytes=1-2,100-200")
    assert (reply.status, reply.was_reset) == (206, True)
    assert len(reply.body) < int(reply.headers["content-length"])
    assert store.open_streams == 0


# --- what a cache is told ------------------------------------------------------------------------


async def test_an_answer_without_body_guides_caches_as_the_whole_does(gateway: Gateway) -> None:
    image = await gateway.add(DATA, access="private")
    whole = await gateway.call("GET", f"/images/{image['_id']}")
    spared = await gateway.call("GET", f"/images/{image['_id']}", {"if-none-match": whole.headers["etag"]})
    assert (spared.status, spared.body) == (304, b"")
    for name in ("etag", "last-modified", "cache-control"):
        assert spared.headers[name] == whole.headers[name]
    assert "content-length" not in spared.headers


async def test_head_tells_what_get_tells(gateway: Gateway) -> None:
    image = await gateway.add(DATA)
    got = await gateway.call("GET", f"/images/{image['_id']}")
    told = await gateway.call("HEAD", f"/images/{image['_id']}")
    del got.headers["x-transfer-id"]
    assert told.headers == got.headers


# --- no false success ----------------------------------------------------------------------------


def only_file(gateway: Gateway) -> Path:
    (file,) = gateway.files()
    return file


def flip_last_byte(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        last = handle.read(1)
        handle.seek(-1, os.SEEK_END)
        handle.write(bytes([last[0] ^ 1]))


async def test_a_flipped_bit_under_a_restored_mtime_is_502_for_the_whole_and_for_ranges(gateway: Gateway) -> None:
    image = await gateway.add(DATA)
    file = only_file(gateway)
    before = file.stat()
    flip_last_byte(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    for value in ("", "bytes=0-", "bytes=0-9", "bytes=0-1,5-6"):
        reply = await ranged(gateway, image["_id"], value)
        assert (reply.status, reply.was_reset) == (502, False)


class Stalled:
    """A client with a small receive buffer."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = bytearray()

    async def ask(self, target: str, more: str = "") -> None:
        await self.stream.send_all(f"GET {target} HTTP/1.1\r\nHost: gateway.test\r\n{more}\r\n".encode())

    async def read_head(self) -> bytes:
        while b"\r\n\r\n" not in self.received:
            self.received += await self.stream.receive_some(1000)
        head, _, _ = bytes(self.received).partition(b"\r\n\r\n")
        del self.received[: len(head) + 4]
        return head

    async def read_body(self, length: int) -> bytes:
        """So many bytes, or fewer where the connection ends before."""
        while len(self.received) < length:
            data = await self.stream.receive_some(1 << 18)
            if not data:
                break
            self.received += data
        return bytes(self.received)


Connect = Callable[[], Awaitable[Stalled]]


@pytest.fixture
async def open_gateway(tmp_path: Path) -> AsyncGenerator[Gateway, None]:
    async with running_gateway(tmp_path, environ={"VISOR_GATEWAY__AUTH__ANONYMOUS_PULL": "true"}) as running:
        yield running


@pytest.fixture
async def connect(open_gateway: Gateway) -> AsyncGenerator[Connect, None]:
    server = Server(open_gateway.app, ServerSettings(bind=("127.0.0.1:0",)), Metrics())
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        clients: list[trio.SocketStream] = []

        async def opened() -> Stalled:
            sock = trio.socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            await sock.connect(server.addresses[0])
            clients.append(trio.SocketStream(sock))
            return Stalled(clients[-1])

        try:
            yield opened
        finally:
            for client in clients:
                client.socket.close()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("restored", [False, True], ids=["as it is", "with its mtime restored"])
@pytest.mark.parametrize("wanted", ["", "Range: bytes=0-\r\n", "Range: bytes=1-\r\n"], ids=["whole", "all", "rest"])
async def test_a_file_that_is_rewritten_during_a_pull_never_arrives_whole(
    open_gateway: Gateway, connect: Connect, wanted: str, restored: bool
) -> None:
    image = await open_gateway.add(LARGE)
    file = only_file(open_gateway)
    before = file.stat()
    client = await connect()
    await client.ask(f"/images/{image['_id']}", wanted)
    await client.read_head()
    flip_last_byte(file)
    if restored:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with trio.fail_after(60), pytest.raises(trio.BrokenResourceError):
        await client.read_body(len(LARGE) + 1)
    assert len(client.received) <= len(LARGE) - LAST_BLOCK


async def test_a_small_file_that_is_rewritten_after_it_was_opened_never_arrives_whole(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await gateway.add(DATA)
    store = gateway.services.stores["file"]
    open_read = store.open_read

    async def open_then_rewrite(*arguments: object, **options: object) -> object:
        stream = await open_read(*arguments, **options)  # type: ignore[arg-type]
        flip_last_byte(only_file(gateway))
        return stream

    monkeypatch.setattr(store, "open_read", open_then_rewrite)
    reply = await gateway.call("GET", f"/images/{image['_id']}")
    assert reply.was_reset
    assert len(reply.body) == len(DATA) - len(DATA) % BLOCK_SIZE


async def test_several_large_ranges_go_through_the_kernel_and_the_connection_lives_on(
    open_gateway: Gateway, connect: Connect
) -> None:
    image = await open_gateway.add(LARGE)
    client = await connect()
    for _ in range(2):
        await client.ask(f"/images/{image['_id']}", "Range: bytes=3-5000000,6000000-15000000,-7\r\n")
        head = await client.read_head()
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        body = await client.read_body(length)
        assert len(body) == length
        client.received.clear()
        boundary = re.search(rb"boundary=(\w+)", head)[1]  # type: ignore[index]
        bodies = [piece.partition(b"\r\n\r\n")[2] for piece in body.split(b"--" + boundary)[1:-1]]
        assert bodies == [LARGE[3:5000001] + b"\r\n", LARGE[6000000:15000001] + b"\r\n", LARGE[-7:] + b"\r\n"]


async def test_ranges_of_an_image_that_is_deleted_meanwhile_all_arrive(open_gateway: Gateway, connect: Connect) -> None:
    image = await open_gateway.add(LARGE)
    client = await connect()
    await client.ask(f"/images/{image['_id']}", "Range: bytes=0-9000000,9000002-\r\n")
    head = await client.read_head()
    assert (await open_gateway.call("DELETE", f"/images/{image['_id']}")).status == 200
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
    body = await client.read_body(length)
    assert len(body) == length
    assert LARGE[9000002:] in body
