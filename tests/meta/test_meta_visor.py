"""Records shared with other programs through a VISOR Meta server."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest
import trio
from servers.visor_meta import MetaServer

from visor_gateway.errors import ConfigError, Conflict, MetadataUnavailable, NotFound
from visor_gateway.image import Fields, change
from visor_gateway.meta.contract import ImageQuery
from visor_gateway.meta.visor import marker as markers
from visor_gateway.meta.visor.opening import open_catalogue
from visor_gateway.meta.visor.published import MARK

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
URL = "http://images.example/a.iso"


@pytest.fixture
def backend(visor_backend):
    return visor_backend


@pytest.fixture
def server(backend):
    return backend.server


def open_at(server, directory, *, watch_seconds=None, stale_if_error=0):
    return open_catalogue(
        server.url,
        f"sqlite:///{directory}/other.db",
        directory / "other.key",
        watch_seconds=watch_seconds,
        stale_if_error=stale_if_error,
    )


def named(image, **values):
    return change(image, Fields(named=values, attributes={}), now=NOW)


# --- what the server is told ----------------------------------------------------------------------


async def test_the_server_is_told_of_a_record_as_it_comes_to_be(
    metadata, server, make_image, make_attempt, written
) -> None:
    image = make_image(format="iso", type="machine", attributes={"distro": "debian"})
    await metadata.images.insert(image)
    row = server.images()["Debian"]
    told = {"owner": "alice", "access": "public", "format": "iso", "type": "machine", "distro": "debian"}
    assert {**row, **told} == row
    assert (row["status"], row[MARK]) == ("locked", image.id)
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    assert server.images()["Debian"]["status"] == "uploading"
    await metadata.images.commit(attempt, written)
    row = server.images()["Debian"]
    assert (row["status"], row["store"], row["location"]) == ("available", "file", attempt.location)
    assert (row["size"], row["checksum"]) == (4096, "c" * 64)
    assert row["uploaded_at"] is not None
    await metadata.images.entomb(image.id)
    assert server.images() == {}
    await metadata.images.bury(image.id)
    assert await metadata.images.find(ImageQuery(everything=True)) == []


async def test_a_failed_upload_is_told(metadata, server, make_image, make_attempt) -> None:
    image = make_image()
    attempt = make_attempt(image)
    await metadata.images.begin(attempt, new=image)
    await metadata.images.fail(attempt)
    assert server.images()["Debian"]["status"] == "error"


@pytest.mark.parametrize("fields", [
    {"name": "x', owner='admin' -- "}, {"name": "back\\slash"}, {"name": "Ünïcode \u2028 🐧"}, {"name": "x" * 255},
    {"architecture": "aarch64"}, {"format": "qcow2"}, {"type": "openstack"}, {"owner": "x" * 64},
    {"size": 1 << 40, "status": "available"}, {"location": "http://h/" + "x" * 300, "status": "available"},
    {"location": "http://h/it's", "status": "available"}, {"store": "backup", "status": "available"},
    {"attributes": {"distro": "it's"}}, {"attributes": {"distro": 'a"b'}}, {"attributes": {"distro": "x" * 300}},
    {"attributes": {"others": "x", "sort": "y"}}, {"kernel": "no-such"},
])  # fmt: skip
async def test_what_the_server_can_not_hold_is_kept_here_and_breaks_nothing_there(metadata, server, make_image, fields):
    image = make_image(**fields)
    await metadata.images.insert(image)
    assert await metadata.images.get(image.id) == image
    assert await metadata.images.find(ImageQuery(everything=True)) == [image]
    renamed = await metadata.images.replace(named(image, name="new"), expected=image)
    assert await metadata.images.get(image.id) == renamed
    assert server.failures == []
    assert len(server.images()) == (0 if "architecture" in fields else 1)


async def test_kernel_and_ramdisk_are_named_by_the_servers_ids(metadata, server, make_image) -> None:
    kernel = make_image(name="linux", type="kernel")
    machine = make_image(name="machine", kernel=kernel.id)
    await metadata.images.insert(kernel)
    await metadata.images.insert(machine)
    rows = server.images()
    assert rows["machine"]["kernel"] == rows["linux"]["_id"] != kernel.id
    assert (await metadata.images.get(machine.id)).kernel == kernel.id


# --- what others do there ---------------------------------------------------------------------------


async def test_others_images_are_seen_by_who_may_see_them(metadata, server) -> None:
    public = server.add(name="public", owner="bob", distro="x", others='{"distro":"debian"}')
    private = server.add(name="private", owner="bob", access="private")
    assert [image.id for image in await metadata.images.find(ImageQuery())] == [public]
    assert [image.id for image in await metadata.images.find(ImageQuery(viewer="alice"))] == [public]
    seen = await metadata.images.find(ImageQuery(viewer="bob", sort="name"))
    assert [image.id for image in seen] == [private, public]
    assert seen[1].attributes == {"distro": "debian"}
    found = await metadata.images.find(ImageQuery(filters=(("distro", "debian"),)))
    assert [image.id for image in found] == [public]


async def test_an_image_that_was_just_registered_is_found_by_its_id(metadata, server) -> None:
    image_id = server.add(name="fresh", owner="bob", access="private")
    image = await metadata.images.get(image_id)
    assert (image.name, image.owner, image.access, image.status) == ("fresh", "bob", "private", "locked")
    assert await metadata.images.get(str(uuid.uuid4())) is None


async def test_descriptions_that_others_change_are_taken_over(metadata, server, make_image) -> None:
    image = make_image(name="it's long " + "x" * 60, attributes={"a": "1", "b": "it's"})
    await metadata.images.insert(image)
    [name] = server.images()
    others = json.dumps({MARK: image.id, "a": "2", "c": "3"})
    server.change(name, type="kernel", others=others, updated_at="2026-05-06 07:08:09 +0000")
    seen = await metadata.images.get(image.id)
    assert seen.name == image.name  # what the server made of it is nobody's change
    assert (seen.type, seen.updated_at) == ("kernel", NOW)
    assert seen.attributes == {"a": "2", "b": "it's", "c": "3"}
    server.change(name, name="renamed")
    assert (await metadata.images.get(image.id)).name == "renamed"


async def test_an_image_that_others_delete_is_hidden_and_its_bytes_are_kept(
    metadata, server, make_image, make_attempt, written
) -> None:
    image = make_image()
    attempt = make_attempt(image)
    await metadata.images.begin(attempt, new=image)
    stored = await metadata.images.commit(attempt, written)
    rows = dict(server.rows)
    del server.rows[server.images()["Debian"]["_id"]]
    assert await metadata.images.get(image.id) is None
    assert await metadata.images.find(ImageQuery(everything=True)) == []
    assert await metadata.images.entombed() == []
    assert attempt.key in await metadata.images.known_keys()
    server.rows.update(rows)
    assert [one.id for one in await metadata.images.find(ImageQuery())] == [image.id]
    assert await metadata.images.get(image.id) == stored


async def test_bytes_can_be_given_to_anothers_image_that_waits_for_some(
    metadata, server, make_attempt, written
) -> None:
    image_id = server.add(name="waits", owner="bob")
    image = await metadata.images.get(image_id)
    attempt = make_attempt(image)
    await metadata.images.begin(attempt)
    await metadata.images.commit(attempt, written)
    assert server.images()["waits"]["location"] == attempt.location
    server.change("waits", location="http://evil.example/", status="locked", owner="mallory", size=1, checksum="x")
    now = await metadata.images.get(image_id)
    assert (now.location, now.status, now.owner, now.size) == (attempt.location, "available", "bob", 4096)


@pytest.mark.parametrize("status", ["available", "uploading"])
async def test_anothers_image_that_has_bytes_is_given_none(metadata, server, make_attempt, status) -> None:
    image_id = server.add(name="full", owner="bob", status=status, store="file", location="file:///srv/x.iso")
    image = await metadata.images.get(image_id)
    for taking in (metadata.images.begin, metadata.images.promise):
        with pytest.raises(Conflict):
            await taking(make_attempt(image))
    assert server.images()["full"]["status"] == status


async def test_anothers_image_can_be_described_and_deleted(metadata, server) -> None:
    image_id = server.add(name="old", owner="bob", status="available", store="http", location=URL)
    image = await metadata.images.get(image_id)
    assert (image.store, image.location, image.status) == ("http", URL, "available")
    await metadata.images.replace(named(image, name="new"), expected=image)
    row = server.images()["new"]
    assert (row["location"], row["status"]) == (URL, "available")
    assert (await metadata.images.get(image_id)).name == "new"
    await metadata.images.entomb(image_id)
    assert server.images() == {}
    await metadata.images.bury(image_id)
    with pytest.raises(NotFound):
        await metadata.images.entomb(image_id)


async def test_what_a_first_read_found_of_anothers_reference_lasts_while_its_location_does(metadata, server) -> None:
    image_id = server.add(name="reference", owner="bob", status="available", store="http", location=URL, size=5)
    image = await metadata.images.get(image_id)
    assert (image.size, image.sha256) == (None, None)
    assert await metadata.images.pin(image, sha256="a" * 64, size=7) == "a" * 64
    image = await metadata.images.get(image_id)
    assert await metadata.images.learn(image, "b" * 64)
    server.change("reference", owner="carol")
    image = await metadata.images.get(image_id)
    assert (image.owner, image.size, image.sha256, image.blake3) == ("carol", 7, "a" * 64, "b" * 64)
    server.change("reference", location=URL + "2")
    image = await metadata.images.get(image_id)
    assert (image.location, image.size, image.sha256, image.learned) == (URL + "2", None, None, None)


async def test_all_pages_of_a_list_are_read(metadata, server) -> None:
    wanted = [server.add(name=f"page {number}", owner="bob") for number in range(3)]
    rows = [dict(server.rows[image_id]) for image_id in wanted]

    def page(method, path, status, answer):
        if path.startswith("/images/detail") and "owner" not in path:
            number = int(path.rpartition("=")[2]) if "marker" in path else 0
            status, answer = 200, {"images": rows[number : number + 1]}
        return status, json.dumps(answer).encode()

    def link(path):
        number = int(path.rpartition("=")[2]) if "marker" in path else 0
        return f'<http://elsewhere.example/other?marker={number + 1}>; rel="next"' if number < 2 else ""

    server.lie, server.link = page, link
    found = await metadata.images.find(ImageQuery(sort="name"))
    assert [image.id for image in found] == wanted
    assert "GET /images/detail?marker=2" in server.requests


# --- outages ----------------------------------------------------------------------------------------


async def test_nothing_is_changed_while_the_server_is_away(metadata, server, make_image, make_attempt) -> None:
    image = make_image()
    await metadata.images.insert(image)
    server.close()
    metadata.catalogue._stale_seconds = 3600
    for refused in (
        metadata.images.insert(make_image()),
        metadata.images.replace(named(image, name="new"), expected=image),
        metadata.images.begin(make_attempt(image)),
        metadata.images.promise(make_attempt(image)),
        metadata.images.entomb(image.id),
        metadata.images.check(),
    ):
        with pytest.raises(MetadataUnavailable):
            await refused
    assert await metadata.images.get(image.id) == image
    assert await metadata.images.find(ImageQuery()) == [image]
    server.reopen()
    await metadata.images.check()


async def test_what_is_known_is_used_for_a_bounded_time(metadata, server, make_image) -> None:
    image = make_image()
    await metadata.images.insert(image)
    server.close()
    with pytest.raises(MetadataUnavailable):  # `stale_if_error` is 0
        await metadata.images.get(image.id)
    with pytest.raises(MetadataUnavailable):
        await metadata.images.find(ImageQuery())
    server.reopen()
    assert await metadata.images.get(image.id) == image


async def test_an_upload_that_ends_while_the_server_is_away_is_told_later(
    backend, server, make_image, make_attempt, written
) -> None:
    image = make_image()
    attempt = make_attempt(image)
    async with backend.open() as metadata:
        await metadata.images.begin(attempt, new=image)
        server.close()
        stored = await metadata.images.commit(attempt, written)
        server.reopen()
        assert stored.status == "available"
        assert server.images()["Debian"]["status"] == "uploading"
    async with backend.open() as metadata:
        assert server.images()["Debian"]["status"] == "available"
        assert await metadata.images.get(image.id) == stored


async def test_a_registration_without_an_answer_is_not_made_twice(metadata, server, make_image) -> None:
    server.lie = lambda method, path, status, answer: (
        (503, b"") if method == "POST" else (status, json.dumps(answer).encode())
    )
    image = make_image()
    await metadata.images.insert(image)
    assert len(server.images()) == 1
    server.lie = None
    await metadata.catalogue.tell_all()
    assert [row for row in server.requests if row.startswith("POST /images")][2:] == []
    assert await metadata.images.find(ImageQuery(everything=True)) == [image]
    renamed = await metadata.images.replace(named(image, name="new"), expected=image)
    assert list(server.images()) == ["new"]
    assert await metadata.images.get(image.id) == renamed


async def test_the_service_tells_and_looks_by_itself(metadata, server, make_image) -> None:
    metadata.catalogue.poll_seconds = 0.01
    image = make_image()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metadata.serve)
        await metadata.images.insert(image)
        server.add(name="other", owner="bob", access="private")
        server.add(name="third", owner="bob")
        with trio.fail_after(60):
            while len(await metadata.images._database.read(lambda c: c.exec_driver_sql(COUNT).all())) != 3:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


COUNT = "SELECT id FROM images"


# --- one gateway ------------------------------------------------------------------------------------


async def renewing(opened: object) -> None:
    while True:
        await opened.catalogue.marker.renew()
        await trio.sleep(0.01)


async def test_a_second_gateway_is_refused_while_the_first_one_is_there(metadata, server, tmp_path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(renewing, metadata)
        with pytest.raises(ConfigError, match="without another gateway: one writes to that of 127"):
            async with open_at(server, tmp_path, watch_seconds=60):
                pytest.fail("it was opened")
        nursery.cancel_scope.cancel()
    assert len(server.rows) == 1
    await metadata.images.check()


async def test_the_catalogue_of_a_gateway_that_is_gone_is_taken_and_that_one_notices(
    metadata, server, tmp_path, make_image, monkeypatch
) -> None:
    async with open_at(server, tmp_path, watch_seconds=0) as other:
        assert len(server.rows) == 1
        await other.images.insert(make_image())
        for refused in (metadata.images.insert(make_image()), metadata.images.check()):
            with pytest.raises(MetadataUnavailable, match="taken by another gateway"):
                await refused


async def test_of_two_gateways_that_start_at_once_one_goes_on(server, tmp_path, monkeypatch) -> None:
    first = server.add(name="visor-gateway", owner=markers.OWNER, access="private", others='{"instance":"other"}')
    hidden = server.rows.pop(first)

    def appear(method, path, status, answer):
        if method == "POST":
            server.rows["00000000-0000-4000-8000-000000000000"] = {
                **hidden,
                "_id": "00000000-0000-4000-8000-000000000000",
            }
        return status, json.dumps(answer).encode()

    server.lie = appear
    with pytest.raises(ConfigError):
        async with open_at(server, tmp_path):
            pytest.fail("it was opened")
    assert list(server.rows) == ["00000000-0000-4000-8000-000000000000"]


async def test_the_same_gateway_starts_again_at_once(backend, server) -> None:
    for _ in range(2):
        async with backend.open() as metadata:
            await metadata.images.check()
    assert len(server.rows) == 1


async def test_a_marker_is_no_image(metadata, server) -> None:
    [marker] = server.rows
    assert await metadata.images.get(marker) is None
    assert await metadata.images.find(ImageQuery(viewer=markers.OWNER)) == []


async def test_a_server_that_is_away_or_none_refuses_the_start(tmp_path) -> None:
    server = MetaServer()
    server.close()
    with pytest.raises(MetadataUnavailable, match="can't be reached"):
        async with open_at(server, tmp_path):
            pytest.fail("it was opened")


@pytest.mark.parametrize("url", [
    "visor+http://", "visor+ftp://host", "visor+http://user:pw@host", "visor+http://host/path", "visor+http://host:x",
    "visor+http://ho st", "visor+http://host?x=y",
])  # fmt: skip
async def test_a_url_of_another_form_is_refused_without_showing_it(tmp_path, url) -> None:
    with pytest.raises(ConfigError, match=r"\[metadata\] url: expected visor\+http://HOST") as refused:
        async with open_catalogue(url, f"sqlite:///{tmp_path}/x.db", tmp_path / "key"):
            pytest.fail("it was opened")
    assert "pw" not in refused.value.message
