"""A cache that fails under pulls: no client gets an error for it, and none a wrong byte."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway import Gateway, running_gateway
from memory_store import MemoryStore
from pulling_client import DATA, Client, Connect, connecting

from visor_gateway.transfer.growth import Growth

DIGEST = sha256(DATA).digest()
MIB = 1 << 20


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


def files(gateway: Gateway, pattern: str) -> list[Path]:
    directory = gateway.services.settings.cache.directory
    assert directory is not None
    return list(directory.glob(pattern))


async def settled(gateway: Gateway) -> None:
    """Wait until nothing is under way."""
    with trio.fail_after(60):
        while gateway.services.hub.live():
            await trio.lowlevel.checkpoint()


async def warmed(gateway: Gateway) -> tuple[str, Path]:
    """An image with an entry: its path, and the entry's file."""
    image = await gateway.add(DATA, store="remote")
    path = f"/images/{image['_id']}"
    assert (await gateway.call("GET", path)).body == DATA
    await settled(gateway)
    (entry,) = files(gateway, "*.image")
    return path, entry


async def asking(connect: Connect, path: str) -> Client:
    client = await connect()
    await client.ask(path)
    return client


def failures(gateway: Gateway) -> float:
    return float(gateway.services.metrics.cache_failures._value.get())


@pytest.fixture
def unreadable(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The disk can't be read beyond `at`."""
    fault = {"at": len(DATA)}
    send, grow = gateway.services.zerocopy.send_file, gateway.services.zerocopy.send_growing

    async def send_file(sock: int, file: int, offset: int, length: int, *others: Any) -> None:
        left = max(0, min(length, fault["at"] - offset))
        await send(sock, file, offset, left, *others)
        if left < length:
            raise OSError(errno.EIO, "Input/output error")

    async def send_growing(sock: int, file: int, offset: int, length: int, growth: Growth, *others: Any) -> None:
        left = max(0, min(length, fault["at"] - offset))
        await grow(sock, file, offset, left, growth, *others)
        if left < length:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(gateway.services.zerocopy, "send_file", send_file)
    monkeypatch.setattr(gateway.services.zerocopy, "send_growing", send_growing)
    return fault


@pytest.mark.parametrize("at", [0, 3 * MIB + 5, len(DATA) - 7])
async def test_an_entry_that_can_not_be_read_costs_no_byte_and_is_filled_anew(
    gateway: Gateway, connect: Connect, remote: MemoryStore, unreadable: dict[str, int], at: int
) -> None:
    path, _ = await warmed(gateway)
    unreadable["at"] = at
    client = await asking(connect, path)
    assert await client.read() == DIGEST
    await settled(gateway)
    assert files(gateway, "*.image") == []
    assert failures(gateway) == 1
    unreadable["at"] = len(DATA)
    client = await asking(connect, path)
    assert await client.read() == DIGEST
    await settled(gateway)
    assert len(files(gateway, "*.image")) == 1
    assert len(remote.reads) == 3


async def test_a_store_that_changed_is_not_taken_for_the_rest_of_an_entry(
    gateway: Gateway, connect: Connect, remote: MemoryStore, unreadable: dict[str, int]
) -> None:
    path, _ = await warmed(gateway)
    (key,) = remote.objects
    wrong = bytearray(DATA)
    wrong[6 * MIB] ^= 1
    remote.objects[key] = replace(remote.objects[key], content=bytes(wrong))
    unreadable["at"] = 3 * MIB
    client = await asking(connect, path)
    with pytest.raises((trio.BrokenResourceError, EOFError)):
        await client.read()


async def test_a_client_that_is_gone_or_a_want_of_descriptors_costs_no_entry(
    gateway: Gateway, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = await warmed(gateway)
    for code in (errno.EMFILE, errno.ECONNRESET, errno.ENOTCONN):

        async def fails(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(gateway.services.zerocopy, "send_file", fails)
        client = await asking(connect, path)
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            await client.read()
    assert len(files(gateway, "*.image")) == 1
    assert failures(gateway) == 0


async def test_an_entry_that_is_removed_under_a_pull_is_sent_to_its_end(
    gateway: Gateway, connect: Connect, remote: MemoryStore
) -> None:
    path, _ = await warmed(gateway)
    client = await asking(connect, path)
    await client.read(1)
    for file in files(gateway, "*"):
        file.unlink()
    assert await client.read() == DIGEST
    assert len(remote.reads) == 1


@pytest.mark.parametrize("length", [0, len(DATA) - MIB])
async def test_an_entry_that_is_cut_under_a_pull_costs_no_byte(
    gateway: Gateway, connect: Connect, remote: MemoryStore, length: int
) -> None:
    path, entry = await warmed(gateway)
    client = await asking(connect, path)
    await client.read(1)
    os.truncate(entry, length)
    assert await client.read() == DIGEST
    await settled(gateway)
    assert files(gateway, "*.image") == []
    assert len(remote.reads) == 2


async def test_what_was_sent_of_an_entry_that_is_cut_before_it_is_not_trusted(
    gateway: Gateway, connect: Connect
) -> None:
    """The kernel may have cleared a part of a page that is still on its way."""
    path, entry = await warmed(gateway)
    client = await asking(connect, path)
    await client.read(MIB)
    os.truncate(entry, MIB // 2)
    with pytest.raises((trio.BrokenResourceError, EOFError)):
        await client.read()
    await settled(gateway)
    assert files(gateway, "*.image") == []


async def test_an_entry_that_is_written_to_under_a_pull_is_never_a_whole_image(
    gateway: Gateway, connect: Connect
) -> None:
    path, entry = await warmed(gateway)
    client = await asking(connect, path)
    await client.read(1)
    with entry.open("r+b") as file:
        file.seek(len(DATA) - MIB)
        file.write(b"not the image")
    with pytest.raises((trio.BrokenResourceError, EOFError)):
        await client.read()
    await settled(gateway)
    assert files(gateway, "*.image") == []
    again = await asking(connect, path)
    assert await again.read() == DIGEST


async def test_an_entry_that_is_touched_under_a_pull_is_hashed(gateway: Gateway, connect: Connect) -> None:
    path, entry = await warmed(gateway)
    client = await asking(connect, path)
    await client.read(1)
    os.utime(entry)
    assert await client.read() == DIGEST


async def test_a_range_goes_on_from_the_store_where_the_entry_can_not_be_read(
    gateway: Gateway, remote: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernel's help, as over TLS."""
    path, _ = await warmed(gateway)
    cache = gateway.services.cache._files
    assert cache is not None
    calls = cache._reads._calls

    def preadv(fd: int, views: list[memoryview], offset: int, *flags: int) -> int:
        if offset >= 2 * MIB:
            raise OSError(errno.EIO, "Input/output error")
        return calls.preadv(fd, views, offset, *flags)

    monkeypatch.setattr(cache._reads, "_calls", replace(calls, preadv=preadv))
    reply = await gateway.call("GET", path, {"range": f"bytes={MIB}-{5 * MIB - 1}"})
    assert (reply.status, reply.body == DATA[MIB : 5 * MIB]) == (206, True)
    assert remote.reads[-1][1:] == (2 * MIB, 3 * MIB)
    reply = await gateway.call("GET", path, {"range": f"bytes=0-9,{3 * MIB}-{3 * MIB + 9}"})
    assert reply.status == 206
    assert DATA[:10] in reply.body
    assert DATA[3 * MIB : 3 * MIB + 10] in reply.body
    assert (await gateway.call("GET", path)).body == DATA
    await settled(gateway)
    assert remote.open_streams == 0


# --- while it is filled --------------------------------------------------------------------------


async def filling(gateway: Gateway, connect: Connect, remote: MemoryStore, clients: int) -> tuple[str, list[Client]]:
    """Clients that have the first half of an image, whose fill stalls there."""
    image = await gateway.add(DATA, store="remote")
    remote.faults.read_stalls_at = 4 * MIB
    found = [await asking(connect, f"/images/{image['_id']}") for _ in range(clients)]
    await remote.faults.stalled.wait()
    return f"/images/{image['_id']}", found


async def test_a_growing_file_that_can_not_be_read_costs_no_byte(
    gateway: Gateway, connect: Connect, remote: MemoryStore, unreadable: dict[str, int]
) -> None:
    unreadable["at"] = 2 * MIB
    path, clients = await filling(gateway, connect, remote, 3)
    remote.faults.resume.set()
    for client in clients:
        assert await client.read() == DIGEST
    await settled(gateway)
    assert files(gateway, "*.image") == []
    unreadable["at"] = len(DATA)
    assert await (await asking(connect, path)).read() == DIGEST


async def test_a_cache_that_is_removed_under_a_fill_costs_no_byte(
    gateway: Gateway, connect: Connect, remote: MemoryStore
) -> None:
    _, clients = await filling(gateway, connect, remote, 3)
    for file in files(gateway, "*"):
        file.unlink()
    gateway.services.settings.cache.directory.rmdir()  # type: ignore[union-attr]
    remote.faults.resume.set()
    for client in clients:
        assert await client.read() == DIGEST
    await settled(gateway)


@pytest.mark.parametrize("cut", ["*.partial", "*.progress", "*"])
async def test_a_file_that_is_cut_under_a_fill_is_never_an_entry_nor_a_whole_image(
    gateway: Gateway, connect: Connect, remote: MemoryStore, cut: str
) -> None:
    """What is written behind the cut leaves a hole before it."""
    path, clients = await filling(gateway, connect, remote, 2)
    for client in clients:
        await client.read(MIB)
    for file in files(gateway, cut):
        os.truncate(file, 0)
    remote.faults.resume.set()
    for client in clients:
        try:
            assert await client.read() == DIGEST
        except (trio.BrokenResourceError, EOFError):
            assert cut != "*.progress"
    await settled(gateway)
    assert cut == "*.progress" or files(gateway, "*.image") == []
    assert await (await asking(connect, path)).read() == DIGEST
