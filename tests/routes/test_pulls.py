"""Image bytes out where something fails: what the client sees, and what is left."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from gateway import Gateway
from memory_store import MemoryStore

from visor_gateway.errors import StoreUnreachable
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.transfer import Transfer

DATA = bytes(range(256)) * 2000


async def test_a_pull_is_counted_listed_and_forgotten_by_nobody(gateway: Gateway) -> None:
    image = await gateway.add(DATA)
    reply = await gateway.call("GET", f"/images/{image['_id']}")
    assert (reply.status, reply.body) == (200, DATA)
    shown = (await gateway.call("GET", f"/transfers/{reply.headers['x-transfer-id']}")).json()["transfer"]
    assert (shown["state"], shown["kind"], shown["bytes"], shown["size"]) == ("finished", "pull", len(DATA), len(DATA))
    assert shown["client"] == "192.0.2.7"
    await gateway.services.access_counts.flush()
    stored = await gateway.services.images.get(image["_id"])
    assert stored is not None
    assert stored.access_count == 1


async def test_a_store_that_breaks_in_mid_pull_ends_in_a_reset(faulty: Gateway, store: MemoryStore) -> None:
    image = await faulty.add(DATA)
    store.faults.read_fails_at = 100_000
    reply = await faulty.call("GET", f"/images/{image['_id']}")
    assert reply.was_reset
    assert reply.status == 200
    assert len(reply.body) < len(DATA)
    assert store.open_streams == 0


async def test_a_store_that_is_away_before_the_first_byte_is_503(faulty: Gateway, store: MemoryStore) -> None:
    image = await faulty.add(DATA)
    store.faults.open_error = StoreUnreachable("The store 'file' is away")
    reply = await faulty.call("GET", f"/images/{image['_id']}")
    assert (reply.status, reply.was_reset) == (503, False)
    assert reply.json()["message"] == "The store 'file' is away"
    assert "retry-after" in reply.headers


async def test_bytes_that_changed_in_the_store_never_leave(faulty: Gateway, store: MemoryStore) -> None:
    image = await faulty.add(DATA)
    (key,) = store.objects
    store.put(key, bytes(len(DATA)))
    reply = await faulty.call("GET", f"/images/{image['_id']}")
    assert reply.status == 502
    assert store.open_streams == 0


async def test_a_file_that_changed_on_disk_never_leaves(gateway: Gateway) -> None:
    image = await gateway.add(DATA)
    (file,) = gateway.files()
    with file.open("r+b") as handle:
        handle.write(b"tampered")
    assert (await gateway.call("GET", f"/images/{image['_id']}")).status == 502


async def test_a_pull_that_is_under_way_outlives_the_delete(faulty: Gateway, store: MemoryStore) -> None:
    image = await faulty.add(DATA)
    store.faults.read_stalls_at = 100_000
    replies: list[Any] = []

    async def pull() -> None:
        replies.append(await faulty.call("GET", f"/images/{image['_id']}"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull)
        await store.faults.stalled.wait()
        assert (await faulty.call("DELETE", f"/images/{image['_id']}")).status == 200
        store.faults.resume.set()
    assert replies[0].body == DATA


class _Looks(trio.abc.Instrument):
    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_of_pulls_that_arrive_together_each_begins_alone(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that arrives meanwhile is looked at after one start and not after all of them."""
    image = await gateway.add(DATA)
    await gateway.call("GET", f"/images/{image['_id']}")  # from now on the record is kept
    hub, looks, begun = gateway.services.hub, _Looks(), list[int]()
    assert isinstance(hub, Hub)
    add = hub.add

    def added(transfer: Transfer) -> None:
        begun.append(looks.count)
        add(transfer)

    monkeypatch.setattr(hub, "add", added)
    trio.lowlevel.add_instrument(looks)
    replies: list[int] = []

    async def pull() -> None:
        replies.append((await gateway.call("GET", f"/images/{image['_id']}")).status)

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(pull)
    assert replies == [200] * 12
    assert len(set(begun)) >= 6  # whoever waits for more on the way may come together with the next one
