"""A Meta server that lies, or that somebody else writes lies to, harms nothing: a test for each lie."""

from __future__ import annotations

import json
import uuid

import msgspec
import pytest
import trio
from servers.visor_raw import BROKEN

from visor_gateway.errors import MetadataUnavailable
from visor_gateway.meta.contract import ImageQuery
from visor_gateway.meta.visor.published import MARK


@pytest.fixture
def backend(visor_backend):
    return visor_backend


@pytest.fixture
def server(backend):
    return backend.server


@pytest.fixture
async def stored(metadata, make_image, make_attempt, written):
    """A private image with bytes."""
    image = make_image(access="private", format="qcow2", attributes={"distro": "debian"})
    attempt = make_attempt(image)
    await metadata.images.begin(attempt, new=image)
    return await metadata.images.commit(attempt, written)


@pytest.mark.parametrize("lie", [
    {"status": "locked"}, {"status": "error"}, {"status": "uploading"}, {"status": "owned"}, {"status": None},
    {"owner": "mallory"}, {"owner": None}, {"owner": "a\r\nb"}, {"owner": {"$ne": 1}},
    {"access": "public"}, {"access": "everybody"},
    {"location": "file:///etc/passwd"}, {"location": "http://169.254.169.254/latest/meta-data/"},
    {"location": "http://127.0.0.1:4566/users"}, {"location": None}, {"location": "file:///a\r\nx-evil: 1"},
    {"store": "http", "location": "http://evil.example/"}, {"store": "s3"}, {"store": "../../etc"},
    {"size": 1}, {"size": 1 << 30}, {"size": -1}, {"size": "4096"}, {"size": 1e300},
    {"checksum": "d" * 64}, {"checksum": "d" * 1000}, {"others": json.dumps({"sha256": "d" * 64})},
    {"others": json.dumps({"attempt_id": "x", "_id": "y", "uri": "file:///z"})}, {"format": "raw"}, {"format": "x"},
    {"_id": "fake"}, {"_id": str(uuid.uuid4())}, {"created_at": "1970-01-01 00:00:00 +0000"}, {"created_at": "never"},
    {"uploaded_at": "2000-01-01 00:00:00 +0000"}, {"access_count": -1}, {"name": None}, {"name": "a\r\nx-evil: 1"},
    {"name": "x" * 100_000}, {"others": "{"}, {"kernel": "../../etc/passwd"}, {"kernel": str(uuid.uuid4())},
])  # fmt: skip
async def test_of_an_image_with_our_bytes_no_lie_is_believed(metadata, server, stored, lie) -> None:
    others = server.images()["Debian"]
    kept = {MARK: others[MARK], "distro": "debian"}
    if isinstance(lie.get("others"), str) and lie["others"] != "{":
        lie = {**lie, "others": json.dumps(kept | json.loads(lie["others"]))}
    metadata.catalogue._stale_seconds = 3600
    server.lie = lambda method, path, status, answer: (status, json.dumps(lying(answer, lie)).encode())
    now = await metadata.images.get(stored.id)
    # A new custom attribute is a description like others; what we know is what it was.
    added = {"attempt_id": "x"} if "attempt_id" in str(lie) else {}
    assert msgspec.structs.replace(now, updated_at=None, attributes={}) == msgspec.structs.replace(
        stored, updated_at=None, attributes={}
    )
    assert now.attributes == {"distro": "debian"} | added
    assert await metadata.images.find(ImageQuery(viewer="mallory")) == []
    assert [image.id for image in await metadata.images.find(ImageQuery(viewer="alice"))] == [stored.id]


def lying(answer, lie):
    """The answer with the lie in every image."""
    if "image" in answer:
        return {"image": lied(answer["image"], lie)}
    return {"images": [lied(one, lie) for one in answer["images"]]} if "images" in answer else answer


def lied(row, lie):
    if row["name"] == "visor-gateway":
        return row
    told = {**row, **lie}
    if isinstance(told.get("others"), str) and told["others"] != "{":
        for name in (MARK, "distro"):
            told.pop(name, None)
    return told


@pytest.mark.parametrize("location", [
    "file:///etc/passwd", "file:///images/x", "s3://bucket/key", "hdfs://host/x", "ftp://host/x", "gopher://host/",
    "http://user:pw@host/", "http:///x", "//host/x", "/etc/passwd", "data:text/plain,x", "javascript:1", None,
])  # fmt: skip
async def test_of_others_images_only_references_have_bytes(metadata, server, location) -> None:
    image_id = server.add(name="x", owner="bob", status="available", store="file", location=location, size=5)
    image = await metadata.images.get(image_id)
    assert (image.status, image.location, image.store, image.size) == ("error", None, None, None)
    [image] = await metadata.images.find(ImageQuery())
    assert (image.status, image.location) == ("error", None)


async def test_others_size_and_checksum_of_a_reference_are_not_believed(metadata, server) -> None:
    url = "http://origin.example/x"
    image_id = server.add(
        name="x",
        owner="bob",
        status="available",
        store="http",
        location=url,
        size=1,
        checksum="c",
        others='{"sha256":"d"}',
    )
    image = await metadata.images.get(image_id)
    assert (image.location, image.size, image.checksum, image.sha256, image.validator) == (url, None, None, None, None)
    assert "sha256" not in image.attributes


async def test_an_image_that_others_say_is_gone_keeps_its_bytes_and_comes_back(metadata, server, stored) -> None:
    server.lie = lambda method, path, status, answer: (404, b'{"code":404,"message":"x"}')
    assert await metadata.images.get(stored.id) is None
    assert await metadata.images.entombed() == []
    assert f"{stored.id}/{stored.attempt_id}" in await metadata.images.known_keys()
    server.lie = None
    await metadata.images.find(ImageQuery(viewer="alice"))
    assert await metadata.images.get(stored.id) == stored


async def test_an_upload_is_not_ended_by_the_server(metadata, server, make_image, make_attempt, written) -> None:
    image = make_image()
    attempt = make_attempt(image)
    await metadata.images.begin(attempt, new=image)
    server.lie = lambda method, path, status, answer: (404, b'{"code":404,"message":"x"}')
    await metadata.images.find(ImageQuery())
    assert (await metadata.images.commit(attempt, written)).status == "available"


async def test_a_list_of_lies_hides_no_other_image(metadata, server) -> None:
    good = server.add(name="good", owner="bob")
    row = dict(server.rows[good])
    junk = [None, 5, [], {}, {**row, "_id": "x"}, row, {**row, "name": 5}]

    def lie(method, path, status, answer):
        answer = {"images": [*junk, *answer["images"]]} if "images" in answer else answer
        return status, json.dumps(answer).encode()

    server.lie = lie
    assert [image.id for image in await metadata.images.find(ImageQuery())] == [good]


async def test_an_owners_list_that_has_others_images_shows_none_of_them(metadata, server) -> None:
    secret = server.add(name="secret", owner="carol", access="private")
    row = dict(server.rows[secret])
    server.lie = lambda method, path, status, answer: (200, json.dumps({"images": [row]}).encode())
    assert await metadata.images.find(ImageQuery(viewer="bob")) == []


async def test_an_answer_about_another_record_is_not_taken_for_this_one(metadata, server, make_image) -> None:
    first, second = make_image(name="first"), make_image(name="second")
    await metadata.images.insert(first)
    other = server.images()["first"]

    def lie(method, path, status, answer):
        return (status, json.dumps({"image": other} if method in {"POST", "PUT"} else answer).encode())

    server.lie = lie
    metadata.catalogue.poll_seconds = 3600  # no question about the marker
    await metadata.images.insert(second)
    server.lie = None
    metadata.catalogue.poll_seconds = 0
    assert [image.name for image in await metadata.images.find(ImageQuery(sort="name"))] == ["first", "second"]
    await metadata.catalogue.tell_all()
    assert await metadata.images.get(first.id) == first
    assert await metadata.images.get(second.id) == second


async def test_pages_without_an_end_are_given_up(metadata, server, monkeypatch) -> None:
    monkeypatch.setattr("visor_gateway.meta.visor.catalogue._PAGES", 5)
    image_id = server.add(name="x", owner="bob")
    server.link = lambda path: '<http://elsewhere.example/?marker=1>; rel="next"'
    server.lie = lambda method, path, status, answer: (
        200,
        json.dumps({"images": [server.rows[image_id]]} if "/detail" in path else answer).encode(),
    )
    assert [image.id for image in await metadata.images.find(ImageQuery())] == [image_id]


BODIES = {
    "nothing": b"",
    "no JSON": b"<html>",
    "another document": b'{"users":[]}',
    "null": b"null",
    "no UTF-8": b'{"images":["\xff"]}',
    "deep": b"[" * 200_000,
    "too much": b'{"images":[' + b" " * (65 << 10) + b"]}",
}


@pytest.mark.parametrize(
    ("status", "body"),
    [*((200, body) for body in BODIES.values()), (204, b""), *((status, b"{}") for status in (302, 401, 418, 500))],
)
async def test_an_answer_of_another_form_is_no_answer(metadata, server, stored, body, status) -> None:
    metadata.catalogue._stale_seconds = 3600
    metadata.catalogue._server.list_bytes = 64 << 10
    server.lie = lambda method, path, was, answer: (status, body)
    assert await metadata.images.get(stored.id) == stored
    assert await metadata.images.find(ImageQuery(viewer="alice")) == [stored]
    with pytest.raises(MetadataUnavailable):
        await metadata.images.check()
    server.lie = None
    await metadata.images.check()


@pytest.mark.parametrize("raw", BROKEN)
async def test_an_exchange_that_never_ends_or_breaks_is_no_answer(metadata, server, stored, raw) -> None:
    asked = metadata.catalogue._server
    asked.document_seconds = asked.list_seconds = 0.3
    metadata.catalogue._stale_seconds = 3600
    server.raw = raw
    with trio.fail_after(60):
        assert await metadata.images.get(stored.id) == stored
        assert await metadata.images.find(ImageQuery(viewer="alice")) == [stored]
        with pytest.raises(MetadataUnavailable):
            await metadata.images.check()
    asked.document_seconds = asked.list_seconds = 30
    server.raw = None
    await metadata.images.check()
