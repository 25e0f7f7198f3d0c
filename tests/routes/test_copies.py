"""Several locations of one image: making them, showing them, removing them, and pulls that go from one to the next."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway import Gateway, Reply, running_gateway
from memory_store import MemoryStore

from visor_gateway.errors import StoreUnreachable
from visor_gateway.store.file import FileStore
from visor_gateway.store.filecalls import FileCalls

DATA = os.urandom(1_000_000)
BLOCK = 64 * 1024


@pytest.fixture
def one() -> MemoryStore:
    return MemoryStore("one", block_size=BLOCK)


@pytest.fixture
def two() -> MemoryStore:
    return MemoryStore("two", block_size=BLOCK)


@pytest.fixture
async def gateway(tmp_path: Path, one: MemoryStore, two: MemoryStore) -> AsyncGenerator[Gateway, None]:
    async with running_gateway(tmp_path, stores={"one": one, "two": two}) as running:
        yield running


async def ended(gateway: Gateway, reply: Reply) -> dict[str, Any]:
    """The transfer that a copy was answered with, once it is over."""
    assert reply.status == 202, reply.body
    transfer_id = reply.headers["x-transfer-id"]
    with trio.fail_after(60):
        while True:
            shown: dict[str, Any] = (await gateway.call("GET", f"/transfers/{transfer_id}")).json()["transfer"]
            if shown["state"] in ("finished", "failed", "cancelled"):
                return shown
            await trio.lowlevel.checkpoint()


async def copy(gateway: Gateway, image: dict[str, Any], store: str) -> dict[str, Any]:
    return await ended(gateway, await gateway.json("POST", f"/images/{image['_id']}/copies", {"store": store}))


async def stores(gateway: Gateway, image: dict[str, Any]) -> list[tuple[str, str]]:
    reply = await gateway.call("GET", f"/images/{image['_id']}/copies")
    assert reply.status == 200
    return [(one["store"], one["status"]) for one in reply.json()["copies"]]


def only(store: MemoryStore) -> bytes:
    (kept,) = store.objects.values()
    return kept.content


# --- making them -----------------------------------------------------------------------------------


async def test_a_copy_is_made_in_the_background_and_shown(gateway: Gateway, two: MemoryStore) -> None:
    image = await gateway.add(DATA)
    reply = await gateway.json("POST", f"/images/{image['_id']}/copies", {"store": "two"})
    transfer = reply.json()["transfer"]
    assert (transfer["kind"], transfer["store"], transfer["size"], transfer["client"]) == (
        "copy",
        "two",
        len(DATA),
        None,
    )
    assert reply.headers["location"].endswith(f"/transfers/{reply.headers['x-transfer-id']}")
    shown = await ended(gateway, reply)
    assert (shown["state"], shown["bytes"]) == ("finished", len(DATA))
    assert only(two) == DATA
    copies = (await gateway.call("GET", f"/images/{image['_id']}/copies")).json()["copies"]
    assert [(one["store"], one["status"], one["size"]) for one in copies] == [
        ("file", "available", len(DATA)),
        ("two", "available", len(DATA)),
    ]
    assert copies[0]["location"] == image["location"]
    assert all(one["verified_at"] for one in copies)
    head = await gateway.call("HEAD", f"/images/{image['_id']}")
    assert head.headers["x-image-meta-store"] == "file"


async def test_a_copy_under_way_is_shown_and_its_store_is_taken(gateway: Gateway, two: MemoryStore) -> None:
    image = await gateway.add(DATA)
    two.faults.commit_stalls = True
    reply = await gateway.json("POST", f"/images/{image['_id']}/copies", {"store": "two"})
    await two.faults.stalled.wait()
    assert await stores(gateway, image) == [("file", "available"), ("two", "copying")]
    again = await gateway.json("POST", f"/images/{image['_id']}/copies", {"store": "two"})
    assert (again.status, "being copied" in again.json()["message"]) == (409, True)
    two.faults.resume.set()
    assert (await ended(gateway, reply))["state"] == "finished"
    again = await gateway.json("POST", f"/images/{image['_id']}/copies", {"store": "two"})
    assert (again.status, "already" in again.json()["message"]) == (409, True)


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        ({"store": "tape"}, 400),
        ({"store": "http"}, 400),
        ({"store": 3}, 400),
        ({}, 400),
        ({"store": "two", "speed": 1}, 400),
        ({"store": "file"}, 409),
    ],
)
async def test_a_copy_that_can_not_be_is_refused(gateway: Gateway, payload: dict[str, object], status: int) -> None:
    image = await gateway.add(DATA)
    reply = await gateway.json("POST", f"/images/{image['_id']}/copies", payload)
    assert reply.status == status
    assert await stores(gateway, image) == [("file", "available")]


async def test_an_image_without_bytes_has_no_copies(gateway: Gateway) -> None:
    headers = {"x-image-meta-name": "disk", "x-image-meta-architecture": "x86_64"}
    image = (await gateway.call("POST", "/images", headers)).json()["image"]
    assert (await gateway.json("POST", f"/images/{image['_id']}/copies", {"store": "two"})).status == 409
    assert await stores(gateway, image) == []


async def test_only_the_owner_and_admins_change_copies(gateway: Gateway) -> None:
    alice, bob = await gateway.user("alice"), await gateway.user("bob")
    public = await gateway.add(DATA, alice)
    private = await gateway.add(DATA, alice, access="private")
    for image, status in ((public, 403), (private, 404)):
        target = f"/images/{image['_id']}/copies"
        assert (await gateway.json("POST", target, {"store": "two"}, user=bob)).status == status
        assert (await gateway.call("DELETE", f"{target}/file", user=bob)).status == status
    assert (await gateway.call("GET", f"/images/{public['_id']}/copies", user=bob)).status == 200
    assert (await gateway.call("GET", f"/images/{private['_id']}/copies", user=bob)).status == 404
    reply = await gateway.json("POST", f"/images/{public['_id']}/copies", {"store": "two"}, user=alice)
    assert reply.status == 202
    nobody = await gateway.call("GET", "/images/ae0b5c7e-6f6c-4a0e-9d0c-2b8a3f1f5a11/copies")
    assert nobody.status == 404


async def test_a_body_that_is_not_covered_by_the_signature_is_refused(gateway: Gateway) -> None:
    image = await gateway.add(DATA)
    headers = {"content-type": "application/json"}
    reply = await gateway.call("POST", f"/images/{image['_id']}/copies", headers, b'{"store": "two"}')
    assert reply.status in (400, 403)
    assert await stores(gateway, image) == [("file", "available")]


@pytest.mark.parametrize("fault", ["write", "commit", "digest"])
async def test_a_copy_that_fails_leaves_nothing(
    gateway: Gateway, one: MemoryStore, two: MemoryStore, fault: str
) -> None:
    image = await gateway.add(DATA, store="one")
    if fault == "write":
        two.faults.write_fails_at = 500_000
    elif fault == "commit":
        two.faults.commit_error = StoreUnreachable("away")
    else:
        ((key, kept),) = one.objects.items()
        one.objects[key] = type(kept)(bytes(len(DATA)), kept.info, kept.begun)
    shown = await copy(gateway, image, "two")
    assert shown["state"] == "failed"
    assert (two.objects, two.partial) == ({}, {})
    assert await stores(gateway, image) == [("one", "available")]
    assert await gateway.services.images.expired() == []


async def test_a_cancelled_copy_leaves_nothing_and_the_image_as_it_was(gateway: Gateway, two: MemoryStore) -> None:
    image = await gateway.add(DATA)
    two.faults.write_stalls_at = 500_000
    reply = await gateway.json("POST", f"/images/{image['_id']}/copies", {"store": "two"})
    await two.faults.stalled.wait()
    assert (await gateway.call("DELETE", f"/transfers/{reply.headers['x-transfer-id']}")).status == 200
    assert (await ended(gateway, reply))["state"] == "cancelled"
    assert (two.objects, two.partial) == ({}, {})
    assert (await gateway.call("GET", f"/images/{image['_id']}")).body == DATA
    two.faults.resume.set()
    assert (await copy(gateway, image, "two"))["state"] == "finished"


async def test_a_copy_reads_on_from_a_further_location_where_one_breaks(
    gateway: Gateway, one: MemoryStore, two: MemoryStore
) -> None:
    image = await gateway.add(DATA, store="one")
    assert (await copy(gateway, image, "two"))["state"] == "finished"
    one.faults.read_fails_at = 300_000
    shown = await copy(gateway, image, "file")
    assert (shown["state"], shown["attempt"]) == ("finished", 2)
    assert [path.read_bytes() for path in gateway.files()] == [DATA]


async def test_what_a_crash_leaves_of_a_copy_is_swept(gateway: Gateway, two: MemoryStore) -> None:
    image = await gateway.add(DATA)
    two.faults.write_stalls_at = 500_000
    await gateway.json("POST", f"/images/{image['_id']}/copies", {"store": "two"})
    await two.faults.stalled.wait()
    (attempt,) = await gateway.services.images.copying(image["_id"])
    assert attempt.key in two.partial
    await gateway.services.sweep.after("test")  # as of a process that has ended
    assert two.partial == {}
    assert await stores(gateway, image) == [("file", "available")]
    two.faults.resume.set()


# --- removing them -----------------------------------------------------------------------------------


async def test_a_copy_is_removed_with_its_bytes_and_never_the_last(gateway: Gateway, two: MemoryStore) -> None:
    image = await gateway.add(DATA)
    await copy(gateway, image, "two")
    target = f"/images/{image['_id']}/copies"
    reply = await gateway.call("DELETE", f"{target}/two")
    assert [one["store"] for one in reply.json()["copies"]] == ["file"]
    assert two.objects == {}
    assert (await gateway.call("DELETE", f"{target}/two")).status == 404
    assert (await gateway.call("DELETE", f"{target}/file")).status == 409
    assert (await gateway.call("GET", f"/images/{image['_id']}")).body == DATA


async def test_a_copy_takes_the_place_of_the_removed_first_location(gateway: Gateway, two: MemoryStore) -> None:
    image = await gateway.add(DATA)
    await copy(gateway, image, "two")
    before = await gateway.call("HEAD", f"/images/{image['_id']}")
    assert (await gateway.call("DELETE", f"/images/{image['_id']}/copies/file")).status == 200
    assert gateway.files() == []
    reply = await gateway.call("GET", f"/images/{image['_id']}")
    assert (reply.body, reply.headers["x-image-meta-store"]) == (DATA, "two")
    assert reply.headers["etag"] == before.headers["etag"]


async def test_a_store_that_is_away_keeps_bytes_for_the_sweep(gateway: Gateway, two: MemoryStore) -> None:
    image = await gateway.add(DATA)
    await copy(gateway, image, "two")
    two.faults.abort_error = StoreUnreachable("away")
    assert (await gateway.call("DELETE", f"/images/{image['_id']}/copies/two")).status == 200
    assert await stores(gateway, image) == [("file", "available")]
    assert len(two.objects) == 1
    two.faults.abort_error = None
    await gateway.services.sweep.at_start()
    assert two.objects == {}


@pytest.mark.parametrize("target", ["/images/{}", "/all"])
async def test_a_delete_of_the_image_removes_all_its_bytes(gateway: Gateway, two: MemoryStore, target: str) -> None:
    image = await gateway.add(DATA)
    await copy(gateway, image, "two")
    assert (await gateway.call("DELETE", target.format(image["_id"]))).status == 200
    assert (gateway.files(), two.objects) == ([], {})


async def test_a_delete_ends_a_copy_under_way(gateway: Gateway, two: MemoryStore) -> None:
    image = await gateway.add(DATA)
    two.faults.write_stalls_at = 500_000
    reply = await gateway.json("POST", f"/images/{image['_id']}/copies", {"store": "two"})
    await two.faults.stalled.wait()
    assert (await gateway.call("DELETE", f"/images/{image['_id']}")).status == 200
    assert (await ended(gateway, reply))["state"] == "cancelled"
    assert (gateway.files(), two.objects, two.partial) == ([], {}, {})


# --- pulling -----------------------------------------------------------------------------------------


async def twice(gateway: Gateway, first: str = "one", second: str = "two") -> dict[str, Any]:
    """An image in two stores."""
    image = await gateway.add(DATA, store=first)
    assert (await copy(gateway, image, second))["state"] == "finished"
    return image


async def test_the_first_healthy_location_is_read(gateway: Gateway, one: MemoryStore, two: MemoryStore) -> None:
    image = await twice(gateway)
    one.reads.clear()
    assert (await gateway.call("GET", f"/images/{image['_id']}")).body == DATA
    assert (len(one.reads), len(two.reads)) == (1, 0)
    one.faults.open_error = StoreUnreachable("away")
    for _ in range(2):
        reply = await gateway.call("GET", f"/images/{image['_id']}")
        assert (reply.status, reply.body, reply.was_reset) == (200, DATA, False)
    one.faults.open_error = None
    one.reads.clear()
    assert (await gateway.call("GET", f"/images/{image['_id']}")).body == DATA
    assert one.reads == []  # it failed a moment ago


@pytest.mark.parametrize("ranges", [None, "bytes=1000-900000", "bytes=10-20,200000-800000"])
async def test_a_pull_goes_on_elsewhere_where_its_location_breaks(
    gateway: Gateway, one: MemoryStore, two: MemoryStore, ranges: str | None
) -> None:
    image = await twice(gateway)
    whole = await gateway.call("GET", f"/images/{image['_id']}", {"range": ranges} if ranges else None)
    one.faults.read_fails_at = 400_000
    reply = await gateway.call("GET", f"/images/{image['_id']}", {"range": ranges} if ranges else None)
    assert not reply.was_reset
    if ranges is None or "," not in ranges:
        assert reply.body == whole.body
    assert len(reply.body) == len(whole.body) == int(reply.headers["content-length"])
    assert two.reads[0][1] == 400_000
    shown = (await gateway.call("GET", f"/transfers/{reply.headers['x-transfer-id']}")).json()["transfer"]
    assert (shown["state"], shown["attempt"]) == ("finished", 2)
    assert one.open_streams == two.open_streams == 0


async def test_an_object_that_was_exchanged_is_passed_over(gateway: Gateway, one: MemoryStore) -> None:
    image = await twice(gateway)
    (key,) = one.objects
    one.put(key, os.urandom(len(DATA)))
    reply = await gateway.call("GET", f"/images/{image['_id']}")
    assert (reply.status, reply.body) == (200, DATA)


async def test_a_file_that_was_changed_or_condemned_is_passed_over(gateway: Gateway, two: MemoryStore) -> None:
    for damage in ("changed", "condemned"):
        image = await twice(gateway, "file")
        path = next(path for path in gateway.files() if image["_id"] in str(path))
        path.chmod(0o600)
        path.write_bytes(os.urandom(len(DATA)))
        if damage == "condemned":
            assert await gateway.services.scrub.scrub(image["_id"]) == "bad"
            assert await stores(gateway, image) == [("file", "bad"), ("two", "available")]
        for headers, body in ((None, DATA), ({"range": "bytes=5-99"}, DATA[5:100])):
            reply = await gateway.call("GET", f"/images/{image['_id']}", headers)
            assert (reply.body, reply.was_reset) == (body, False)
        repaired = await gateway.call("DELETE", f"/images/{image['_id']}/copies/file")
        assert [one["store"] for one in repaired.json()["copies"]] == ["two"]


async def test_wrong_bytes_under_a_right_validator_never_arrive_whole(
    gateway: Gateway, one: MemoryStore, two: MemoryStore
) -> None:
    image = await twice(gateway)
    for store in (one, two):
        ((key, kept),) = store.objects.items()
        store.objects[key] = type(kept)(bytes(len(DATA)), kept.info, kept.begun)
    reply = await gateway.call("GET", f"/images/{image['_id']}")
    assert reply.was_reset
    assert len(reply.body) < len(DATA)


async def test_a_store_that_is_configured_no_more_is_passed_over(gateway: Gateway, one: MemoryStore) -> None:
    image = await twice(gateway)
    stores = dict(gateway.services.stores)
    stores.pop("one")
    gateway.services.stores.clear()  # type: ignore[attr-defined]
    gateway.services.stores.update(stores)  # type: ignore[attr-defined]
    assert (await gateway.call("GET", f"/images/{image['_id']}")).body == DATA


async def test_a_second_file_store_takes_over(tmp_path: Path) -> None:
    shelf = FileStore("shelf", tmp_path / "shelf")
    async with running_gateway(tmp_path, stores={"shelf": shelf}) as gateway:
        image = await twice(gateway, "file", "shelf")
        for path in gateway.files():
            path.unlink()
        reply = await gateway.call("GET", f"/images/{image['_id']}")
        assert (reply.status, reply.body) == (200, DATA)


async def test_a_scrub_reads_copies_too_and_a_bad_one_is_not_read(tmp_path: Path, two: MemoryStore) -> None:
    shelf = FileStore("shelf", tmp_path / "shelf")
    async with running_gateway(tmp_path, stores={"shelf": shelf, "two": two}) as gateway:
        image = await twice(gateway, "file", "shelf")
        assert await gateway.services.scrub.scrub(image["_id"]) == "good"
        (path,) = (path for path in (tmp_path / "shelf").rglob("*") if path.is_file())
        status = path.stat()
        path.chmod(0o600)
        path.write_bytes(os.urandom(len(DATA)))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert await gateway.services.scrub.scrub(image["_id"]) == "good"
        assert await stores(gateway, image) == [("file", "available"), ("shelf", "bad")]
        (found,) = await gateway.services.images.locations(image["_id"])
        assert found.bad_since is not None
        assert (await copy(gateway, image, "two"))["state"] == "finished"
        # With the first location gone, it is the one that is right which takes its place.
        for file in gateway.files():
            file.unlink()
        assert (await gateway.call("GET", f"/images/{image['_id']}")).body == DATA
        await gateway.call("DELETE", f"/images/{image['_id']}/copies/file")
        assert await stores(gateway, image) == [("two", "available"), ("shelf", "bad")]
        path.write_bytes(DATA)
        assert await gateway.services.scrub.scrub(image["_id"]) == "good"
        assert await stores(gateway, image) == [("two", "available"), ("shelf", "available")]


async def test_an_image_of_which_every_location_is_bad_is_refused(tmp_path: Path) -> None:
    shelf = FileStore("shelf", tmp_path / "shelf")
    async with running_gateway(tmp_path, stores={"shelf": shelf}) as gateway:
        image = await twice(gateway, "file", "shelf")
        for path in (*gateway.files(), *(path for path in (tmp_path / "shelf").rglob("*") if path.is_file())):
            path.chmod(0o600)
            path.write_bytes(bytes(len(DATA)))
        assert await gateway.services.scrub.scrub(image["_id"]) == "bad"
        assert await stores(gateway, image) == [("file", "bad"), ("shelf", "bad")]
        reply = await gateway.call("GET", f"/images/{image['_id']}")
        assert (reply.status, "damaged" in reply.json()["message"]) == (502, True)


class BreakingFile:
    """Calls of a file system whose reads fail from an offset on."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.fails = False

    def __call__(self, fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if self.fails and offset >= self._at:
            raise OSError(errno.EIO, "Input/output error")
        return os.preadv(fd, buffers, offset, flags)


@pytest.mark.parametrize("wrong", [False, True])
async def test_a_file_that_can_not_be_read_on_is_followed_by_a_store_whose_digest_is_compared(
    tmp_path: Path, two: MemoryStore, wrong: bool
) -> None:
    reads = BreakingFile(500_000)
    shelf = FileStore("shelf", tmp_path / "shelf", block_size=BLOCK, calls=FileCalls(preadv=reads))
    async with running_gateway(tmp_path, stores={"shelf": shelf, "two": two}) as gateway:
        image = await twice(gateway, "shelf", "two")
        reads.fails = True
        if wrong:
            ((key, kept),) = two.objects.items()
            two.objects[key] = type(kept)(kept.content[:-1] + b"?", kept.info, kept.begun)
        reply = await gateway.call("GET", f"/images/{image['_id']}")
        assert reply.was_reset is wrong
        assert reply.body == DATA if not wrong else len(reply.body) < len(DATA)
        assert two.open_streams == 0
        part = await gateway.call("GET", f"/images/{image['_id']}", {"range": "bytes=100-599999"})
        assert part.body == DATA[100:600_000]
