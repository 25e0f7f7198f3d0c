"""A damaged image never leaves whole, and who looks after images can see it and have it scrubbed."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from gateway import Gateway, running_gateway

from visor_gateway.errors import MetadataUnavailable
from visor_gateway.store.file import BLOCK_SIZE, FileStore

DATA = os.urandom(3 * BLOCK_SIZE + 77)
SMALL = b"bytes of a small image"


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncGenerator[Gateway, None]:
    store = FileStore("file", tmp_path / "store", always_verify=True)
    async with running_gateway(tmp_path, stores={"file": store}) as running:
        yield running


async def with_silent_rot(gateway: Gateway, content: bytes) -> str:
    """An image of which a bit is flipped on the disk while nothing else tells of it. Returns its `_id`."""
    image = await gateway.add(content)
    (file,) = gateway.files()
    with file.open("r+b") as handle:
        handle.seek(len(content) // 2)
        byte = handle.read(1)[0]
        handle.seek(len(content) // 2)
        handle.write(bytes([byte ^ 1]))
    stored = await gateway.services.images.get(image["_id"])
    assert stored is not None
    assert stored.location is not None
    # As if the disk had done it: the record's validator is that of the file as it is now.
    validator = (await gateway.services.stores["file"].stat(stored.location)).validator
    await gateway.services.images.judge(stored, good=True, validator=validator)
    return str(image["_id"])


async def test_with_verify_always_an_image_that_is_right_arrives(strict: Gateway) -> None:
    for content in (DATA, SMALL):
        image = await strict.add(content)
        for headers in ({}, {"range": "bytes=0-"}):
            reply = await strict.call("GET", f"/images/{image['_id']}", headers)
            assert (reply.body, reply.was_reset) == (content, False)


@pytest.mark.parametrize("content", [DATA, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("headers", [{}, {"range": "bytes=0-"}], ids=["whole", "range over everything"])
async def test_with_verify_always_a_silently_flipped_bit_never_arrives_whole_and_is_marked(
    strict: Gateway, content: bytes, headers: dict[str, str]
) -> None:
    image_id = await with_silent_rot(strict, content)
    reply = await strict.call("GET", f"/images/{image_id}", headers)
    assert reply.was_reset
    assert len(reply.body) == (len(content) - 1) // BLOCK_SIZE * BLOCK_SIZE
    again = await strict.call("GET", f"/images/{image_id}", headers)
    assert (again.status, again.was_reset) == (502, False)
    assert again.json()["message"].startswith(f"Image '{image_id}' is damaged")


async def test_a_bit_that_is_found_while_the_database_is_away_is_refused_all_the_same(
    strict: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = await with_silent_rot(strict, DATA)

    async def away(*_: object, **__: object) -> None:
        raise MetadataUnavailable("away")

    monkeypatch.setattr(strict.services.images, "judge", away)
    assert (await strict.call("GET", f"/images/{image_id}")).was_reset
    assert (await strict.call("GET", f"/images/{image_id}")).status == 502


async def test_what_a_scrub_found_is_refused_in_every_form(gateway: Gateway) -> None:
    image_id = await with_silent_rot(gateway, DATA)
    whole = await gateway.call("GET", f"/images/{image_id}")
    assert whole.status == 200  # a file that nobody touched is trusted
    assert await gateway.services.scrub.scrub(image_id) == "bad"
    for headers in (
        {},
        {"range": "bytes=0-9"},
        {"range": "bytes=0-9,20-29"},
        {"if-none-match": whole.headers["etag"]},
        {"if-range": whole.headers["etag"], "range": "bytes=5-"},
    ):
        reply = await gateway.call("GET", f"/images/{image_id}", headers)
        assert (reply.status, reply.was_reset) == (502, False)
        assert "damaged" in reply.json()["message"]
    head = await gateway.call("HEAD", f"/images/{image_id}")
    assert (head.status, head.headers["x-image-meta-status"]) == (200, "available")
    assert not {"etag", "content-length", "repr-digest", "accept-ranges"} & head.headers.keys()
    assert head.headers["cache-control"] == "no-store"


async def test_no_client_sees_a_mark_in_the_record(gateway: Gateway) -> None:
    image_id = await with_silent_rot(gateway, DATA)
    await gateway.services.scrub.scrub(image_id)
    (shown,) = (await gateway.call("GET", "/images/detail")).json()["images"]
    assert not {"bad_since", "scrubbed_at"} & shown.keys()
    head = await gateway.call("HEAD", f"/images/{image_id}")
    assert not any("bad" in name or "scrubbed" in name for name in head.headers)


async def test_a_pull_that_is_under_way_when_a_scrub_finds_rot_ends_before_its_last_block(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = await with_silent_rot(gateway, DATA)
    store = gateway.services.stores["file"]
    open_read = store.open_read

    async def open_then_scrub(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(store, "open_read", open_read)
        stream = await open_read(*arguments, **options)  # type: ignore[arg-type]
        assert await gateway.services.scrub.scrub(image_id) == "bad"
        return stream

    monkeypatch.setattr(store, "open_read", open_then_scrub)
    reply = await gateway.call("GET", f"/images/{image_id}")
    assert (reply.status, reply.was_reset) == (200, True)
    assert len(reply.body) == len(DATA) - 77


async def test_a_file_that_was_only_touched_is_served_again_after_a_scrub(gateway: Gateway) -> None:
    image = await gateway.add(DATA)
    (file,) = gateway.files()
    os.utime(file, ns=(1, 1))
    assert (await gateway.call("GET", f"/images/{image['_id']}")).status == 502
    assert await gateway.services.scrub.scrub(image["_id"]) == "good"
    assert (await gateway.call("GET", f"/images/{image['_id']}")).body == DATA


# --- the routes ----------------------------------------------------------------------------------


async def test_scrubs_are_asked_for_and_shown(gateway: Gateway) -> None:
    one = (await gateway.add(SMALL, name="one"))["_id"]
    reply = await gateway.json("POST", "/scrub", {"images": [one]})
    assert (reply.status, reply.headers["cache-control"]) == (202, "no-store")
    nothing = {"image": None, "bytes": 0, "size": None, "bad": []}
    assert reply.json() == {"scrub": nothing | {"waiting": 1}}
    await gateway.add(DATA)
    assert (await gateway.call("POST", "/scrub")).json()["scrub"]["waiting"] == 2
    shown = (await gateway.call("GET", "/scrub")).json()["scrub"]
    assert shown == nothing | {"waiting": 2}


async def test_bad_images_are_listed_with_the_time_since_when(gateway: Gateway) -> None:
    image_id = await with_silent_rot(gateway, DATA)
    await gateway.services.scrub.scrub(image_id)
    (bad,) = (await gateway.call("GET", "/scrub")).json()["scrub"]["bad"]
    assert (bad["_id"], bad["name"], bad["store"]) == (image_id, "disk", "file")
    assert bad["bad_since"] == bad["scrubbed_at"]


async def test_what_has_no_bytes_in_a_file_store_can_not_be_scrubbed(gateway: Gateway) -> None:
    headers = {"x-image-meta-name": "locked", "x-image-meta-architecture": "x86_64"}
    locked = (await gateway.call("POST", "/images", headers)).json()["image"]["_id"]
    there = (await gateway.add(SMALL))["_id"]
    assert (await gateway.json("POST", "/scrub", {"images": [there, locked]})).status == 409
    assert (await gateway.json("POST", "/scrub", {"images": [there, "none"]})).status == 404
    assert (await gateway.call("GET", "/scrub")).json()["scrub"]["waiting"] == 0


@pytest.mark.parametrize("body", [{"images": "all"}, {"images": [1]}, {"image": "x"}, {"images": {}}])
async def test_a_body_that_names_no_images_is_refused(gateway: Gateway, body: object) -> None:
    assert (await gateway.json("POST", "/scrub", body)).status == 400


async def test_scrubs_are_for_admins(gateway: Gateway) -> None:
    image = (await gateway.add(SMALL))["_id"]
    user = await gateway.user("bob")
    assert (await gateway.json("POST", "/scrub", {"images": [image]}, user=user)).status == 403
    for method in ("POST", "GET"):
        assert (await gateway.call(method, "/scrub", user=user)).status == 403
