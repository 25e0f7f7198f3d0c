"""Pulls of an image in a remote store: one read of the store, whoever comes, goes or stalls; and never a wrong byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway import Gateway, Reply, running_gateway
from memory_store import MemoryStore

from visor_gateway.errors import StoreUnreachable
from visor_gateway.transfer.fill import HELD_BACK
from visor_gateway.transfer.transfer import Transfer

DATA = os.urandom(3_000_000)
HALF = len(DATA) // 2


@pytest.fixture
def remote() -> MemoryStore:
    return MemoryStore("remote", block_size=64 * 1024)


@pytest.fixture
async def cached(tmp_path: Path, remote: MemoryStore) -> AsyncGenerator[Gateway, None]:
    async with running_gateway(tmp_path, environ=CACHE, stores={"remote": remote}) as running:
        yield running


CACHE = {"VISOR_GATEWAY__CACHE__MAX_BYTES": "10 MB", "VISOR_GATEWAY__STORES__RETRY_TIMEOUT": "0"}


def cache_names(gateway: Gateway) -> list[str]:
    """Names in the cache's directory, but for the lock."""
    directory = gateway.services.settings.cache.directory
    return sorted(name for name in os.listdir(directory) if name != "lock")


def counted(gateway: Gateway, outcome: str) -> float:
    return float(gateway.services.metrics.cache_requests.labels(outcome)._value.get())


async def pull(gateway: Gateway, image: dict[str, Any], span: str | None = None) -> Reply:
    return await gateway.call("GET", f"/images/{image['_id']}", {} if span is None else {"range": f"bytes={span}"})


async def fill_of(gateway: Gateway) -> Transfer:
    """The fill under way, once it is."""
    with trio.fail_after(60):
        while True:
            for each in gateway.services.hub.live():
                if each.kind == "fill":
                    return each
            await trio.lowlevel.checkpoint()


async def settled(gateway: Gateway) -> None:
    """Wait until no fill is under way."""
    with trio.fail_after(60):
        while any(each.kind == "fill" for each in gateway.services.hub.live()):
            await trio.lowlevel.checkpoint()


# --- one read for all ----------------------------------------------------------------------------


async def test_the_first_pull_fills_and_the_second_needs_no_store(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    first = await pull(cached, image)
    await settled(cached)
    assert len(remote.reads) == 1
    assert [name.rpartition(".")[2] for name in cache_names(cached)] == ["image", "json"]
    second = await pull(cached, image)
    assert (first.status, first.body) == (second.status, second.body) == (200, DATA)
    assert (len(remote.reads), remote.open_streams) == (1, 0)
    assert (counted(cached, "miss"), counted(cached, "hit")) == (1, 1)


@pytest.mark.parametrize("count", [8, 64])
async def test_pulls_at_the_same_time_are_one_read(cached: Gateway, remote: MemoryStore, count: int) -> None:
    image = await cached.add(DATA, store="remote")
    replies: list[Reply] = []

    async def one() -> None:
        replies.append(await pull(cached, image))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    assert {(reply.status, hashlib.sha256(reply.body).digest()) for reply in replies} == {
        (200, hashlib.sha256(DATA).digest())
    }
    assert len(remote.reads) == 1
    assert (counted(cached, "miss"), counted(cached, "coalesced") + counted(cached, "hit")) == (1, count - 1)
    assert cached.services.metrics.cache_bytes_from_stores._value.get() == len(DATA)
    assert cached.services.metrics.cache_bytes_to_clients._value.get() == count * len(DATA)


async def test_the_first_client_leaves_and_the_second_gets_all(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    remote.faults.read_stalls_at = 300_000
    replies: list[Reply] = []

    async def second() -> None:
        replies.append(await pull(cached, image))

    async with trio.open_nursery() as nursery:
        leaving = trio.CancelScope()

        async def first() -> None:
            with leaving:
                await pull(cached, image)

        nursery.start_soon(first)
        await remote.faults.stalled.wait()
        nursery.start_soon(second)
        fill = await fill_of(cached)
        while fill.waiters < 2:
            await trio.lowlevel.checkpoint()
        leaving.cancel()
        while fill.waiters > 1:
            await trio.lowlevel.checkpoint()
        remote.faults.resume.set()
    await settled(cached)
    assert [reply.body for reply in replies] == [DATA]
    assert (len(remote.reads), len(cache_names(cached))) == (1, 2)


@pytest.mark.parametrize(("stalls_at", "state"), [(300_000, "cancelled"), (2_000_000, "finished")])
async def test_a_fill_without_readers_goes_on_if_half_of_it_is_there(
    cached: Gateway, remote: MemoryStore, stalls_at: int, state: str
) -> None:
    image = await cached.add(DATA, store="remote")
    remote.faults.read_stalls_at = stalls_at
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, cached, image)
        await remote.faults.stalled.wait()
        fill = await fill_of(cached)
        nursery.cancel_scope.cancel()
    remote.faults.resume.set()
    with trio.fail_after(60):
        await fill.ended.wait()
    assert (fill.state, bool(cache_names(cached))) == (state, state == "finished")
    assert remote.open_streams == 0
    remote.faults.read_stalls_at = None
    assert (await pull(cached, image)).body == DATA


# --- nothing wrong -------------------------------------------------------------------------------


async def test_the_last_block_waits_for_the_digest(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    wrong = bytearray(DATA)
    wrong[5] ^= 1
    key = remote_key(remote)
    remote.objects[key] = type(remote.objects[key])(bytes(wrong), remote.objects[key].info, 0.0)
    reply = await pull(cached, image)
    assert reply.was_reset
    assert len(reply.body) <= len(DATA) - HELD_BACK
    await settled(cached)
    assert cache_names(cached) == []


def remote_key(remote: MemoryStore) -> str:
    (key,) = remote.objects
    return key


async def test_a_store_that_fails_ends_every_pull_and_leaves_nothing(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    remote.faults.read_fails_at = 1_000_000
    replies: list[Reply] = []

    async def one() -> None:
        replies.append(await pull(cached, image))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert all(reply.was_reset and len(reply.body) <= 1_000_000 for reply in replies)
    await settled(cached)
    assert cache_names(cached) == []
    remote.faults.read_fails_at = None
    assert (await pull(cached, image)).body == DATA


async def test_a_store_that_does_not_answer_is_told_before_the_first_byte(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    remote.faults.open_error = StoreUnreachable("The store 'remote' does not answer")
    reply = await pull(cached, image)
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    await settled(cached)
    assert cache_names(cached) == []


async def test_another_object_in_the_store_is_502_before_the_first_byte(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    remote.put(remote_key(remote), DATA[::-1])
    assert (await pull(cached, image)).status == 502


# --- ranges --------------------------------------------------------------------------------------


async def test_ranges_of_an_entry_come_from_it(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    await pull(cached, image)
    await settled(cached)
    reply = await pull(cached, image, "5-2999990")
    assert (reply.status, reply.body) == (206, DATA[5:2999991])
    assert (await pull(cached, image, "0-1,2000000-2999999")).status == 206
    assert len(remote.reads) == 1


async def test_ranges_during_a_fill(cached: Gateway, remote: MemoryStore) -> None:
    """Behind the fill at once; ahead of it, but near, they wait; what starts no fill is read from the store."""
    image = await cached.add(DATA, store="remote")
    assert (await pull(cached, image, "7-99")).body == DATA[7:100]
    assert remote.reads[-1][1:] == (7, 93)
    remote.faults.read_stalls_at = 2_000_000
    replies: dict[str, Reply] = {}

    async def one(span: str) -> None:
        replies[span] = await pull(cached, image, span)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, cached, image)
        await remote.faults.stalled.wait()
        await one("1000-1499999")
        assert replies["1000-1499999"].body == DATA[1000:1500000]
        nursery.start_soon(one, "1999990-2000009")
        fill = await fill_of(cached)
        while fill.waiters < 2:
            await trio.lowlevel.checkpoint()
        remote.faults.resume.set()
    assert replies["1999990-2000009"].body == DATA[1999990:2000010]
    assert len(remote.reads) == 2


async def test_a_range_far_ahead_of_a_fill_does_not_wait(
    cached: Gateway, remote: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visor_gateway.transfer.fill.NEAR", 100_000)
    monkeypatch.setattr("visor_gateway.transfer.fill.NEAR_SECONDS", 0.0)
    image = await cached.add(DATA, store="remote")
    remote.faults.read_stalls_at = 500_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, cached, image)
        await remote.faults.stalled.wait()
        remote.faults.read_stalls_at = None
        with trio.fail_after(60):
            reply = await pull(cached, image, "1000000-2999999")
        assert (reply.status, reply.body) == (206, DATA[1_000_000:])
        remote.faults.resume.set()


async def test_strict_ranges_wait_for_the_whole(tmp_path: Path, remote: MemoryStore) -> None:
    strict = {**CACHE, "VISOR_GATEWAY__CACHE__STRICT_RANGES": "true"}
    async with running_gateway(tmp_path, environ=strict, stores={"remote": remote}) as gateway:
        image = await gateway.add(DATA, store="remote")
        remote.faults.read_stalls_at = 2_000_000
        replies: list[Reply] = []

        async def one() -> None:
            replies.append(await pull(gateway, image, "0-99"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await remote.faults.stalled.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert replies == []
            remote.faults.resume.set()
        assert [reply.body for reply in replies] == [DATA[:100]]


@pytest.mark.parametrize("right", [True, False])
async def test_strict_ranges_without_a_cache_read_the_whole_first(
    tmp_path: Path, remote: MemoryStore, right: bool
) -> None:
    strict = {"VISOR_GATEWAY__CACHE__STRICT_RANGES": "true"}
    async with running_gateway(tmp_path, environ=strict, stores={"remote": remote}) as gateway:
        image = await gateway.add(DATA, store="remote")
        if not right:
            key = remote_key(remote)
            remote.objects[key] = type(remote.objects[key])(DATA[::-1], remote.objects[key].info, 0.0)
        reply = await pull(gateway, image, "0-99")
        assert (reply.status, reply.body == DATA[:100]) == ((206, True) if right else (502, False))
        assert len(remote.reads) == 2 if right else 1


# --- without a cache -----------------------------------------------------------------------------


async def test_an_image_larger_than_the_cache_is_read_from_the_store(cached: Gateway, remote: MemoryStore) -> None:
    large = os.urandom(10_000_001)
    image = await cached.add(large, store="remote")
    for _ in range(2):
        assert (await pull(cached, image)).body == large
    assert (len(remote.reads), cache_names(cached), counted(cached, "bypass")) == (2, [], 2)


async def test_a_directory_that_cannot_be_written_costs_no_pull(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    directory = cached.services.settings.cache.directory
    for name in os.listdir(directory):
        (directory / name).unlink()
    directory.rmdir()
    directory.write_bytes(b"")
    assert (await pull(cached, image)).body == DATA
    assert len(remote.reads) == 1


async def test_strict_ranges_of_a_fill_whose_disk_fails_are_verified_all_the_same(
    tmp_path: Path, remote: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = {**CACHE, "VISOR_GATEWAY__CACHE__STRICT_RANGES": "true"}
    async with running_gateway(tmp_path, environ=strict, stores={"remote": remote}) as gateway:
        image = await gateway.add(DATA, store="remote")
        key = remote_key(remote)
        remote.objects[key] = type(remote.objects[key])(DATA[::-1], remote.objects[key].info, 0.0)
        files = gateway.services.cache._files
        assert files is not None

        def failing(fd: int, data: memoryview) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(files._directory, "_calls", replaced(files._directory._calls, write=failing))
        assert (await pull(gateway, image, "0-99")).status == 502
        remote.objects[key] = type(remote.objects[key])(DATA, remote.objects[key].info, 0.0)
        reply = await pull(gateway, image, "0-99")
        assert (reply.status, reply.body) == (206, DATA[:100])


@pytest.mark.parametrize("span", [None, "1000-"])
async def test_a_disk_that_fails_under_a_fill_costs_no_pull(
    cached: Gateway, remote: MemoryStore, monkeypatch: pytest.MonkeyPatch, span: str | None
) -> None:
    """Readers go on from the store where the file ends, each with the digest so far."""
    image = await cached.add(DATA, store="remote")
    write, written = os.write, 0

    def failing(fd: int, data: memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > 2_000_000:
            raise OSError(5, "Input/output error")
        return write(fd, data)

    calls = cached.services.cache._files._directory._calls  # type: ignore[union-attr]
    monkeypatch.setattr(cached.services.cache._files._directory, "_calls", replaced(calls, write=failing))  # type: ignore[union-attr]
    reply = await pull(cached, image, span)
    assert reply.body == (DATA if span is None else DATA[1000:])
    assert not reply.was_reset
    await settled(cached)
    assert cache_names(cached) == []


def replaced(calls: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(calls, **changes)


async def test_a_fill_needs_no_slot_of_its_own(tmp_path: Path, remote: MemoryStore) -> None:
    """The pull that waits for it has the only one."""
    environ = {**CACHE, "VISOR_GATEWAY__LIMITS__TRANSFERS": "1", "VISOR_GATEWAY__LIMITS__TRANSFERS_PER_STORE": "1"}
    async with running_gateway(tmp_path, environ=environ, stores={"remote": remote}) as gateway:
        image = await gateway.add(DATA, store="remote")
        with trio.fail_after(60):
            assert (await pull(gateway, image)).body == DATA
        await settled(gateway)
        assert len(cache_names(gateway)) == 2


# --- who may read, and what is removed -----------------------------------------------------------


async def test_a_warm_cache_gives_nothing_to_whom_the_image_is_closed(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote", access="private")
    await pull(cached, image)
    await settled(cached)
    stranger = await cached.user("stranger")
    reply = await cached.call("GET", f"/images/{image['_id']}", user=stranger)
    assert (reply.status, len(reply.body) < 1000) == (404, True)
    assert (await cached.raw("GET", f"/images/{image['_id']}", {"host": "x"}, [])).status == 403


async def test_a_delete_takes_the_entry_and_pulls_run_on(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    remote.faults.read_stalls_at = 1_000_000
    replies: list[Reply] = []

    async def one() -> None:
        replies.append(await pull(cached, image))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        await remote.faults.stalled.wait()
        assert (await cached.call("DELETE", f"/images/{image['_id']}")).status == 200
        assert (await pull(cached, image)).status == 404
        remote.faults.resume.set()
    assert [reply.body for reply in replies] == [DATA]
    await settled(cached)
    assert cache_names(cached) == []


async def test_the_least_recently_used_makes_room(cached: Gateway, remote: MemoryStore) -> None:
    images = [await cached.add(os.urandom(3_000_000), store="remote") for _ in range(4)]
    for image in images[:3]:
        await pull(cached, image)
        await settled(cached)
    directory = cached.services.settings.cache.directory
    for age, image in enumerate((images[1], images[0], images[2])):
        (description,) = directory.glob(f"{image['_id']}*.json")
        os.utime(description, (age, age))
    await pull(cached, images[3])
    await settled(cached)
    left = {name[:36] for name in cache_names(cached)}
    assert left == {image["_id"] for image in (images[0], images[2], images[3])}
    assert cached.services.metrics.cache_evictions._value.get() == 1
