"""Image bytes in where something fails, and faults behind both ways: what the client sees, and what is left."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from gateway import OCTETS, RECORD, Gateway
from memory_store import Faults, MemoryStore

from visor_gateway.errors import MetadataUnavailable, StoreUnreachable

DATA = bytes(range(256)) * 2000


def upload(**fields: str) -> dict[str, str]:
    return {**RECORD, **OCTETS, **{f"x-image-meta-{name}": value for name, value in fields.items()}}


async def record(gateway: Gateway, image_id: str) -> dict[str, str]:
    reply = await gateway.call("HEAD", f"/images/{image_id}")
    assert reply.status == 200
    return {n.removeprefix("x-image-meta-"): v for n, v in reply.headers.items() if n.startswith("x-image-meta-")}


async def only_image(gateway: Gateway) -> str:
    images = (await gateway.call("GET", "/images")).json()["images"]
    assert len(images) == 1
    return str(images[0]["_id"])


@pytest.mark.parametrize(
    "faults",
    [
        Faults(open_error=StoreUnreachable("away")),
        Faults(write_fails_at=100_000),
        Faults(commit_error=StoreUnreachable("away")),
    ],
    ids=["open", "write", "commit"],
)
async def test_a_store_that_fails_an_upload_leaves_error_and_no_bytes(
    faulty: Gateway, store: MemoryStore, faults: Faults
) -> None:
    store.faults = faults
    reply = await faulty.call("POST", "/images", upload(), DATA)
    assert reply.status == 503
    assert "retry-after" in reply.headers
    image_id = await only_image(faulty)
    assert (await record(faulty, image_id))["status"] == "error"
    assert "size" not in await record(faulty, image_id)
    assert (store.objects, store.partial) == ({}, {})
    # The same image can be given its bytes again.
    store.faults = Faults()
    assert (await faulty.call("PUT", f"/images/{image_id}", OCTETS, DATA)).status == 200


async def test_an_upload_that_is_cancelled_resets_its_client_and_leaves_nothing(
    faulty: Gateway, store: MemoryStore
) -> None:
    store.faults.write_stalls_at = 0
    replies: list[Any] = []
    chosen = "01234567-89ab-4cde-8f01-23456789abcd"

    async def push() -> None:
        replies.append(await faulty.call("POST", "/images", upload() | {"x-transfer-id": chosen}, DATA))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(push)
        await store.faults.stalled.wait()
        assert (await faulty.call("DELETE", f"/transfers/{chosen}")).status == 200
    assert replies[0].was_reset
    assert replies[0].status == 0
    assert (await record(faulty, await only_image(faulty)))["status"] == "error"
    assert (store.objects, store.partial) == ({}, {})


async def test_a_delete_cancels_the_upload_and_waits_for_its_abort(faulty: Gateway, store: MemoryStore) -> None:
    store.faults.write_stalls_at = 0
    replies: list[Any] = []

    async def push() -> None:
        replies.append(await faulty.call("POST", "/images", upload(), DATA))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(push)
        await store.faults.stalled.wait()
        image_id = await only_image(faulty)
        reply = await faulty.call("DELETE", f"/images/{image_id}")
        assert reply.status == 200
        assert reply.json()["image"]["status"] == "uploading"
        assert (store.objects, store.partial) == ({}, {})
    assert replies[0].was_reset
    assert (await faulty.call("GET", f"/images/{image_id}")).status == 404


async def test_a_delete_succeeds_with_the_store_down_and_the_sweep_finishes_it(
    faulty: Gateway, store: MemoryStore
) -> None:
    image = await faulty.add(DATA)
    store.faults.abort_error = StoreUnreachable("away")
    assert (await faulty.call("DELETE", f"/images/{image['_id']}")).status == 200
    assert (await faulty.call("GET", f"/images/{image['_id']}")).status == 404
    assert len(store.objects) == 1
    store.faults.abort_error = None
    await faulty.services.sweep.at_start()
    assert store.objects == {}


async def test_a_chunked_body_without_a_byte_stores_nothing(gateway: Gateway) -> None:
    reply = await gateway.call("POST", "/images", upload(), [], chunked=True)
    assert reply.status == 400
    assert (await gateway.call("GET", "/images")).status == 404


async def test_a_chunked_body_is_stored_whole(gateway: Gateway) -> None:
    pieces = [DATA[:1000], DATA[1000:300_000], DATA[300_000:]]
    reply = await gateway.call("POST", "/images", upload(), pieces, chunked=True)
    assert reply.json()["image"]["size"] == len(DATA)
    assert [path.read_bytes() for path in gateway.files()] == [DATA]


async def test_a_store_that_is_not_configured_is_named(gateway: Gateway) -> None:
    reply = await gateway.call("POST", "/images", upload(store="s3"), DATA)
    assert (reply.status, reply.json()["message"]) == (400, "The store 's3' is not supported")


async def test_a_database_that_is_away_is_503_and_says_when_to_come_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await gateway.add(DATA)

    async def away(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise MetadataUnavailable("The metadata can't be used now")

    for name in ("get", "find", "begin", "check"):
        monkeypatch.setattr(gateway.services.images, name, away)
    for method, target, headers, body in (
        ("GET", f"/images/{image['_id']}", {}, None),
        ("GET", "/images", {}, None),
        ("POST", "/images", upload(), DATA),
    ):
        reply = await gateway.call(method, target, headers, body)
        assert reply.status == 503
        assert "retry-after" in reply.headers
    reply = await gateway.call("GET", "/ready")
    assert (reply.status, reply.json()["metadata"]) == (503, "failed")


async def test_a_failed_store_is_listed_by_ready_and_does_not_end_readiness(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        await trio.lowlevel.checkpoint()
        raise StoreUnreachable("away")

    monkeypatch.setattr(gateway.services.stores["file"], "check", away)
    reply = await gateway.call("GET", "/ready")
    assert (reply.status, reply.json()["stores"]) == (200, {"file": "failed", "http": "ok"})


async def test_a_fault_of_ours_is_500_without_a_word_of_it(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a secret path")

    monkeypatch.setattr(gateway.services.images, "get", broken)
    reply = await gateway.call("GET", "/images/x")
    assert (reply.status, reply.json()) == (500, {"code": 500, "message": "Internal error"})
    monkeypatch.setattr(gateway.services.images, "find", broken)
    reply = await gateway.call("GET", "/images")
    assert (reply.status, reply.json()) == (500, {"code": 500, "message": "Internal error"})
