"""The routes of the cache: what admins see of it, fill ahead, and remove."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
from gateway import Gateway, running_gateway
from memory_store import MemoryStore

DATA = os.urandom(1_000_000)


@pytest.fixture
def remote() -> MemoryStore:
    return MemoryStore("remote")


@pytest.fixture
async def cached(tmp_path: Path, remote: MemoryStore) -> AsyncGenerator[Gateway, None]:
    environ = {"VISOR_GATEWAY__CACHE__MAX_BYTES": "1500000"}
    async with running_gateway(tmp_path, environ=environ, stores={"remote": remote}) as running:
        yield running


async def warm(gateway: Gateway, image_id: str, status: int = 202) -> str:
    reply = await gateway.json("POST", "/cache", {"image": image_id})
    assert reply.status == status, reply.body
    with trio.fail_after(60):
        while any(each.kind == "fill" for each in gateway.services.hub.live()):
            await trio.lowlevel.checkpoint()
    return "" if status == 202 else str(reply.json()["message"])


async def entries(gateway: Gateway) -> list[str]:
    return [entry["image"] for entry in (await gateway.call("GET", "/cache")).json()["cache"]["entries"]]


async def test_an_image_is_warmed_once_shown_and_served_without_its_store(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    for _ in range(2):
        await warm(cached, image["_id"])
    shown = (await cached.call("GET", "/cache")).json()["cache"]
    (entry,) = shown["entries"]
    assert (shown["max_bytes"], shown["bytes"]) == (1_500_000, len(DATA))
    assert (entry["image"], entry["size"], entry["sha256"]) == (image["_id"], len(DATA), image["checksum"])
    assert (await cached.call("GET", f"/images/{image['_id']}")).body == DATA
    assert len(remote.reads) == 1


async def test_a_warm_fill_goes_on_without_readers_and_shows_its_waiters(cached: Gateway, remote: MemoryStore) -> None:
    image = await cached.add(DATA, store="remote")
    remote.faults.read_stalls_at = 100_000
    await cached.json("POST", "/cache", {"image": image["_id"]})
    await remote.faults.stalled.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cached.call, "GET", f"/images/{image['_id']}")
        waiters = 0
        while not waiters:
            shown = (await cached.call("GET", "/transfers?kind=fill")).json()["transfers"]
            waiters = shown[0]["waiters"]
        assert (shown[0]["image"], shown[0]["store"], shown[0]["client"], waiters) == (
            image["_id"],
            "remote",
            None,
            1,
        )
        nursery.cancel_scope.cancel()
    remote.faults.resume.set()
    await warm(cached, image["_id"])
    assert await entries(cached) == [image["_id"]]


async def test_what_can_not_be_warmed_says_why(cached: Gateway, remote: MemoryStore) -> None:
    kept = await cached.add(DATA)
    assert "file store" in await warm(cached, kept["_id"], 409)
    locked = (
        await cached.call("POST", "/images", {"x-image-meta-name": "a", "x-image-meta-architecture": "i386"})
    ).json()
    assert "locked" in await warm(cached, locked["image"]["_id"], 409)
    large = await cached.add(os.urandom(1_500_001), store="remote")
    assert "no room" in await warm(cached, large["_id"], 409)
    assert "No image found" in await warm(cached, "nowhere", 404)
    for payload in ({"image": 7}, {}, {"image": kept["_id"], "now": True}):
        assert (await cached.json("POST", "/cache", payload)).status == 400


async def test_a_cache_that_is_off_is_empty_and_warms_nothing(tmp_path: Path, remote: MemoryStore) -> None:
    async with running_gateway(tmp_path, stores={"remote": remote}) as gateway:
        image = await gateway.add(DATA, store="remote")
        assert (await gateway.call("GET", "/cache")).json() == {"cache": {"max_bytes": 0, "bytes": 0, "entries": []}}
        assert "off" in await warm(gateway, image["_id"], 409)
        assert (await gateway.call("DELETE", "/cache")).json() == {"removed": []}
        assert not gateway.services.settings.cache.directory.exists()


async def test_one_image_or_all_are_removed(cached: Gateway) -> None:
    images = [(await cached.add(os.urandom(300_000), store="remote"))["_id"] for _ in range(3)]
    for image_id in images:
        await warm(cached, image_id)
    assert (await cached.call("DELETE", f"/cache/{images[1]}")).json()["removed"][0]["image"] == images[1]
    assert (await cached.call("DELETE", f"/cache/{images[1]}")).status == 404
    assert sorted(await entries(cached)) == sorted([images[0], images[2]])
    assert len((await cached.call("DELETE", "/cache")).json()["removed"]) == 2
    assert await entries(cached) == []


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/cache"), ("POST", "/cache"), ("DELETE", "/cache"), ("DELETE", "/cache/an-id")]
)
async def test_the_cache_is_for_admins(cached: Gateway, method: str, target: str) -> None:
    user = await cached.user("bob")
    assert (await cached.call(method, target, user=user)).status == 403
