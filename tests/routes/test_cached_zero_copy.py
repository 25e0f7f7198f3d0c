"""Pulls from the cache over real sockets: the kernel moves the bytes, of an entry and of a file that still grows."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from gateway import Gateway, running_gateway
from memory_store import MemoryStore
from pulling_client import DATA, Connect, connecting

DIGEST = hashlib.sha256(DATA).digest()


@pytest.fixture
def remote() -> MemoryStore:
    return MemoryStore("remote", block_size=256 * 1024)


@pytest.fixture
async def gateway(tmp_path: Path, remote: MemoryStore) -> AsyncGenerator[Gateway]:
    environ = {"VISOR_GATEWAY__AUTH__ANONYMOUS_PULL": "true", "VISOR_GATEWAY__CACHE__MAX_BYTES": "64 MiB"}
    async with running_gateway(tmp_path, environ=environ, stores={"remote": remote}) as running:
        yield running


@pytest.fixture
async def connect(gateway: Gateway) -> AsyncGenerator[Connect]:
    async with connecting(gateway) as opened:
        yield opened


async def test_first_pull_and_hit_are_both_moved_by_the_kernel(
    gateway: Gateway, connect: Connect, remote: MemoryStore, sent: list[int]
) -> None:
    image = await gateway.add(DATA, store="remote")
    for _ in range(2):
        client = await connect()
        await client.ask(f"/images/{image['_id']}")
        assert await client.read() == DIGEST
        # The client may have the last bytes before the thread that sent them has said so.
        while gateway.services.hub.live():
            await trio.lowlevel.checkpoint()
        assert sum(sent) == len(DATA)
        sent.clear()
    assert len(remote.reads) == 1


async def test_500_clients_of_an_image_are_one_read(gateway: Gateway, connect: Connect, remote: MemoryStore) -> None:
    image = await gateway.add(DATA[: 1 << 20], store="remote")
    digests: list[bytes] = []

    async def one() -> None:
        client = await connect()
        await client.ask(f"/images/{image['_id']}")
        digests.append(await client.read(1 << 20))

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(one)
    assert digests == [hashlib.sha256(DATA[: 1 << 20]).digest()] * 500
    assert len(remote.reads) == 1
    assert gateway.services.metrics.cache_bytes_from_stores._value.get() == 1 << 20


async def test_a_first_client_that_reads_little_holds_nobody_up(
    gateway: Gateway, connect: Connect, remote: MemoryStore
) -> None:
    image = await gateway.add(DATA, store="remote")
    slow, fast = await connect(), await connect()
    await slow.ask(f"/images/{image['_id']}")
    await slow.read(1)
    await fast.ask(f"/images/{image['_id']}")
    assert await fast.read() == DIGEST
    assert slow.received < len(DATA) // 2
    assert await slow.read() == DIGEST
    assert len(remote.reads) == 1


async def test_readers_of_a_slow_store_get_each_byte_as_it_comes(
    gateway: Gateway, connect: Connect, remote: MemoryStore
) -> None:
    image = await gateway.add(DATA, store="remote")
    remote.faults.read_stalls_at = 3 << 20
    clients = [await connect() for _ in range(5)]
    for client in clients:
        await client.ask(f"/images/{image['_id']}")
    with trio.fail_after(60):
        for client in clients:
            await client.read(3 << 20)
        remote.faults.resume.set()
        for client in clients:
            assert await client.read() == DIGEST
    assert len(remote.reads) == 1


async def test_a_disk_that_fails_under_a_fill_costs_no_byte(
    gateway: Gateway, connect: Connect, remote: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the socket was lent for goes on from the store."""
    image = await gateway.add(DATA, store="remote")
    files = gateway.services.cache._files
    assert files is not None
    written = 0

    def failing(fd: int, data: memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > 5 << 20:
            raise OSError(errno.EIO, "Input/output error")
        return os.write(fd, data)

    monkeypatch.setattr(files._directory, "_calls", replace(files._directory._calls, write=failing))
    clients = [await connect() for _ in range(3)]
    for client in clients:
        await client.ask(f"/images/{image['_id']}")
    for client in clients:
        assert await client.read() == DIGEST
