"""What is asked while an image is filled: parts of it, its head, other access, a purge, a delete; what is counted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway import Gateway, Reply, running_gateway
from memory_store import MemoryStore

from visor_gateway.transfer.transfer import Transfer

DATA = os.urandom(3_000_000)
AT = 2_000_000  # where the store is silent until it is told to go on
ENVIRON = {"VISOR_GATEWAY__CACHE__MAX_BYTES": "10 MB", "VISOR_GATEWAY__STORES__RETRY_TIMEOUT": "0"}


@pytest.fixture
def remote() -> MemoryStore:
    return MemoryStore("remote", block_size=64 * 1024)


@pytest.fixture
async def cached(tmp_path: Path, remote: MemoryStore) -> AsyncGenerator[Gateway, None]:
    async with running_gateway(tmp_path, environ=ENVIRON, stores={"remote": remote}) as running:
        yield running


class Filling:
    """An image of which the first `AT` bytes are there, and a client that waits for the rest.

    Attributes:
        path: The image's.
        reply: What that client got, once it has.
    """

    def __init__(self, gateway: Gateway, remote: MemoryStore, path: str, nursery: trio.Nursery) -> None:
        self.path = path
        self.reply: Reply | None = None
        self._gateway = gateway
        self._remote = remote
        nursery.start_soon(self._pull)

    async def _pull(self) -> None:
        self.reply = await self._gateway.call("GET", self.path)

    async def get(self, span: str, **headers: str) -> Reply:
        return await self._gateway.call("GET", self.path, {"range": span, **headers})

    @property
    def transfer(self) -> Transfer:
        (found,) = (each for each in self._gateway.services.hub.live() if each.kind == "fill")
        return found

    def go_on(self) -> None:
        self._remote.faults.resume.set()

    async def ended(self) -> None:
        self.go_on()
        with trio.fail_after(60):
            while self.reply is None or self._gateway.services.hub.live():
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def filling(gateway: Gateway, remote: MemoryStore, **fields: str) -> AsyncGenerator[Filling]:
    image = await gateway.add(DATA, store="remote", **fields)
    remote.faults.read_stalls_at = AT
    async with trio.open_nursery() as nursery:
        running = Filling(gateway, remote, f"/images/{image['_id']}", nursery)
        await remote.faults.stalled.wait()
        try:
            yield running
        finally:
            running.go_on()
        await running.ended()


def counted(gateway: Gateway) -> dict[str, float]:
    metrics = gateway.services.metrics
    outcomes = ("hit", "miss", "coalesced", "bypass")
    found = {outcome: metrics.cache_requests.labels(outcome)._value.get() for outcome in outcomes}
    found["from stores"] = metrics.cache_bytes_from_stores._value.get()
    found["to clients"] = metrics.cache_bytes_to_clients._value.get()
    return {name: value for name, value in found.items() if value}


async def test_several_ranges_behind_a_fill_are_one_answer_at_once(cached: Gateway, remote: MemoryStore) -> None:
    async with filling(cached, remote) as running:
        with trio.fail_after(60):
            reply = await running.get("bytes=5-9,100000-199999")
        assert reply.status == 206
        assert reply.headers["content-type"].startswith("multipart/byteranges")
        assert DATA[5:10] in reply.body
        assert DATA[100_000:200_000] in reply.body
        assert len(remote.reads) == 1
    # The pull that began the fill, and the ranges: one request each, however many parts it has.
    assert counted(cached) == {
        "miss": 1,
        "coalesced": 1,
        "from stores": len(DATA),
        "to clients": len(DATA) + 5 + 100_000,
    }


async def test_of_several_ranges_those_far_ahead_come_from_the_store(
    cached: Gateway, remote: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visor_gateway.transfer.fill.NEAR", 100_000)
    monkeypatch.setattr("visor_gateway.transfer.fill.NEAR_SECONDS", 0.0)
    async with filling(cached, remote) as running:
        remote.faults.read_stalls_at = None
        with trio.fail_after(60):
            reply = await running.get("bytes=0-99,2800000-2800099,2900000-2900099")
        assert reply.status == 206
        for first in (0, 2_800_000, 2_900_000):
            assert DATA[first : first + 100] in reply.body
        assert [read[1:] for read in remote.reads[1:]] == [(2_800_000, 100), (2_900_000, 100)]


@pytest.mark.parametrize("agrees", [True, False])
async def test_if_range_during_a_fill(cached: Gateway, remote: MemoryStore, agrees: bool) -> None:
    async with filling(cached, remote) as running:
        etag = (await cached.call("HEAD", running.path)).headers["etag"]
        replies: list[Reply] = []

        async def get() -> None:
            replies.append(await running.get("bytes=7-1000", **{"if-range": etag if agrees else '"other"'}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            if agrees:
                with trio.fail_after(60):
                    while not replies:
                        await trio.lowlevel.checkpoint()
            running.go_on()
    assert [(reply.status, reply.body) for reply in replies] == [(206, DATA[7:1001]) if agrees else (200, DATA)]


async def test_heads_and_conditions_wait_for_nothing(cached: Gateway, remote: MemoryStore) -> None:
    async with filling(cached, remote) as running:
        with trio.fail_after(60):
            head = await cached.call("HEAD", running.path)
            assert (head.status, head.headers["content-length"], head.body) == (200, str(len(DATA)), b"")
            etag = head.headers["etag"]
            assert (await cached.call("GET", running.path, {"if-none-match": etag})).status == 304
            assert (await cached.call("GET", running.path, {"if-match": '"other"'})).status == 412
            beyond = await running.get(f"bytes={len(DATA)}-")
            assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{len(DATA)}")
        assert len(remote.reads) == 1
        assert running.transfer.waiters == 1


async def test_access_is_looked_at_for_each_request(cached: Gateway, remote: MemoryStore) -> None:
    """Also of one whose image is being filled, and of one that is in the cache."""
    stranger = await cached.user("stranger")

    async def status(running: Filling) -> int:
        return (await cached.call("GET", running.path, {"range": "bytes=0-9"}, user=stranger)).status

    async def change(running: Filling, access: str) -> None:
        assert (await cached.call("PUT", running.path, {"x-image-meta-access": access})).status == 200

    async with filling(cached, remote) as running:
        assert await status(running) == 206
        await change(running, "private")
        assert await status(running) == 404
    assert running.reply is not None
    assert running.reply.body == DATA
    assert await status(running) == 404
    await change(running, "public")
    assert await status(running) == 206
    assert len(remote.reads) == 1


async def test_to_warm_what_is_being_filled_keeps_it_from_ending_with_its_client(
    cached: Gateway, remote: MemoryStore
) -> None:
    image = await cached.add(DATA, store="remote")
    remote.faults.read_stalls_at = 300_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cached.call, "GET", f"/images/{image['_id']}")
        await remote.faults.stalled.wait()
        assert (await cached.json("POST", "/cache", {"image": image["_id"]})).status == 202
        nursery.cancel_scope.cancel()
    remote.faults.resume.set()
    with trio.fail_after(60):
        while cached.services.hub.live():
            await trio.lowlevel.checkpoint()
    assert [entry["image"] for entry in await entries(cached)] == [image["_id"]]
    assert len(remote.reads) == 1


async def entries(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await gateway.call("GET", "/cache")).json()["cache"]["entries"]
    return found


async def test_a_purge_during_a_fill_costs_its_readers_nothing(cached: Gateway, remote: MemoryStore) -> None:
    async with filling(cached, remote) as running:
        assert (await cached.call("DELETE", "/cache")).status == 200
    assert running.reply is not None
    assert running.reply.body == DATA
    assert await entries(cached) == []
    remote.faults.read_stalls_at = None
    assert (await cached.call("GET", running.path)).body == DATA
    assert counted(cached)["miss"] == 2


async def test_who_comes_after_a_delete_gets_nothing_of_a_fill(cached: Gateway, remote: MemoryStore) -> None:
    async with filling(cached, remote) as running:
        assert (await cached.call("DELETE", running.path)).status == 200
        for method in ("GET", "HEAD"):
            assert (await cached.call(method, running.path)).status == 404
        assert (await running.get("bytes=0-9")).status == 404
    assert running.reply is not None
    assert hashlib.sha256(running.reply.body).digest() == hashlib.sha256(DATA).digest()
    assert await entries(cached) == []
