"""The role `meta` on real sockets: what a peer may do with records, and what it may not."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from canary import canary
from gateway_process import store_files
from roles import KEY, Role, serving
from wire import Response, eventually, store_image, unique

MD5 = "d41d8cd98f00b204e9800998ecf8427e"
OTHER_KEY = canary.secret("another-key-")
STATUSES = ("locked", "uploading", "available", "error")


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    with serving(tmp_path_factory.mktemp("meta"), "meta") as role:
        yield role


def register(role: Role, **fields: Any) -> dict[str, Any]:
    record = {"name": unique("image"), "architecture": "i386", "owner": "foo"} | fields
    answer = role.peer.send_json("POST", "/images", {"image": record})
    return answer.image


def put(role: Role, image_id: str, **fields: Any) -> Response:
    return role.peer.send_json("PUT", f"/images/{image_id}", {"image": fields})


def in_status(role: Role, status: str) -> str:
    """A record of a peer that has come to a status."""
    image_id: str = register(role)["_id"]
    if status != "locked":
        assert put(role, image_id, status="uploading").status == 200
    if status == "available":
        assert put(role, image_id, status=status, store="file", location="file:///srv/x", size=1).status == 200
    elif status == "error":
        assert put(role, image_id, status=status).status == 200
    return image_id


# --- records of a peer -----------------------------------------------------------------------------


def test_what_a_peer_registers_is_an_image_of_the_gateway(role: Role) -> None:
    name = unique("image")
    made = register(role, name=name, distro="centos", ram=512)
    assert made["status"] == "locked"
    seen = role.gateway.admin.named(name)
    assert seen is not None
    assert (seen["_id"], seen["owner"], seen["distro"], seen["ram"]) == (made["_id"], "foo", "centos", "512")


def test_a_status_that_is_sent_with_a_new_record_does_not_count(role: Role) -> None:
    assert register(role, status="available")["status"] == "locked"


@pytest.mark.parametrize(
    ("before", "after"), [(before, after) for before in STATUSES for after in STATUSES if before != after]
)
def test_statuses_follow_each_other_as_they_do_for_uploads(role: Role, before: str, after: str) -> None:
    image_id = in_status(role, before)
    answer = put(role, image_id, status=after, store="file", location="file:///srv/x")
    allowed = {
        "locked": {"uploading", "available", "error"},
        "uploading": {"available", "error"},
        "error": {"uploading", "available"},
        "available": set(),
    }
    if after in allowed[before]:
        assert answer.image["status"] == after
    else:
        assert (answer.status, answer.message) == (409, f"Can't change status from '{before}' to '{after}'")
        assert role.peer.get(f"/images/{image_id}").image["status"] == before


@pytest.mark.parametrize(
    "change",
    [
        {"size": 2},
        {"checksum": MD5},
        {"location": "file:///srv/y"},
        {"store": "s3"},
        {"format": "iso"},
        {"uploaded_at": "2026-11-22 10:09:46 +0000"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_bytes_of_an_available_image_stay(role: Role, change: dict[str, Any]) -> None:
    answer = put(role, in_status(role, "available"), **change)
    name = next(iter(change))
    assert (answer.status, answer.message) == (409, f"Can only change {name} of a locked or error image")


def test_what_does_not_concern_the_bytes_can_change_always(role: Role) -> None:
    image_id = in_status(role, "available")
    changed = put(role, image_id, name="other", access="private", type="kernel", note="x", status="available").image
    assert [changed[name] for name in ("name", "access", "type", "note")] == ["other", "private", "kernel", "x"]
    assert put(role, image_id, type=None).image["type"] is None


def test_an_available_image_is_somewhere(role: Role) -> None:
    image_id = in_status(role, "uploading")
    for fields in ({}, {"store": "file"}, {"location": "file:///srv/x"}):
        answer = put(role, image_id, status="available", **fields)
        assert (answer.status, answer.message) == (400, "An available image has a store and a location")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"location": "s3://key:secret@s3.amazonaws.com/bucket/x"}, "Invalid location: it may not carry credentials"),
        ({"location": "http://example.org/x?sig=abcdef"}, "Invalid location: it may not carry credentials"),
        ({"location": "javascript:alert(1)"}, "Invalid location: its scheme must be one of"),
        ({"location": "x"}, "Invalid location: its scheme must be one of"),
        ({"location": "http://[x"}, "Invalid location: it is not a URI"),
        ({"location": "file:///a b"}, "Invalid location"),
        ({"location": "file:///etc/passwd", "store": "http"}, "Invalid location: for the store 'http'"),
        ({"store": "../x"}, "Invalid store"),
        ({"status": "gone"}, "Invalid status 'gone'"),
        ({"status": None}, "Invalid status"),
        ({"size": -1}, "Invalid size"),
        ({"size": "many"}, "Invalid size"),
        ({"kernel": "00000000-0000-4000-8000-000000000000"}, "Invalid kernel"),
        ({"owner": "somebody.else"}, "These fields are read-only: owner"),
        ({"access_count": 7}, "These fields are read-only: access_count"),
        ({"name": None}, "These fields are required: name"),
    ],
    ids=str,
)
def test_a_value_that_a_record_may_not_have_is_refused_and_named(
    role: Role, fields: dict[str, Any], message: str
) -> None:
    image_id = register(role)["_id"]
    before = role.peer.get(f"/images/{image_id}").image
    answer = put(role, image_id, **fields)
    assert answer.status == 400
    assert answer.message.startswith(message)
    assert role.peer.get(f"/images/{image_id}").image == before


def test_a_location_may_name_the_object_of_another_gateway(role: Role) -> None:
    """One that keeps its records here has ids of its own in its locations."""
    location = f"s3://bucket/{uuid.uuid4()}/{uuid.uuid4()}"
    answer = put(role, in_status(role, "uploading"), status="available", store="s3", location=location)
    assert answer.image["location"] == location


def test_a_user_name_in_a_location_is_no_credential(role: Role) -> None:
    location = "hdfs://visor@10.0.0.2:50070/visor/x"
    assert put(role, in_status(role, "uploading"), store="hdfs", location=location).image["location"] == location


def test_a_record_without_an_owner_is_refused(role: Role) -> None:
    answer = role.peer.send_json("POST", "/images", {"image": {"name": "x", "architecture": "i386"}})
    assert (answer.status, answer.message) == (400, "These fields are required: owner")


# --- who sees what ---------------------------------------------------------------------------------


def test_lists_show_public_images_and_with_an_owner_all_of_his(role: Role) -> None:
    owner = unique("owner")
    public = register(role, owner=owner)["_id"]
    private = register(role, owner=owner, access="private")["_id"]
    listed = {image["_id"] for image in role.peer.get("/images").json()["images"]}
    assert public in listed
    assert private not in listed
    his = role.peer.get(f"/images/detail?owner={owner}&sort=access&dir=desc").json()["images"]
    assert [image["_id"] for image in his] == [public, private]
    assert role.peer.get(f"/images/{private}").status == 200


def test_lists_come_in_pages_where_they_are_asked_for(role: Role) -> None:
    owner = unique("owner")
    made = sorted(register(role, owner=owner)["_id"] for _ in range(5))
    path, found = f"/images?owner={owner}&limit=2", []
    while path:
        answer = role.peer.get(path)
        found += [image["_id"] for image in answer.json()["images"]]
        link = answer.header("link")
        path = link.partition(">")[0][1:] if link else ""
    assert found == made


@pytest.mark.parametrize("query", ["sort=nothing", "dir=up", "limit=0", "limit=x", "sort=name&sort=size", "marker=x"])
def test_a_wrong_list_is_refused(role: Role, query: str) -> None:
    assert role.peer.get(f"/images?{query}").status == 400


# --- bytes of the gateway ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"status": "error"}, {"location": "file:///etc/passwd"}, {"size": 1}, {"checksum": MD5}, {"store": "s3"}],
    ids=lambda change: next(iter(change)),
)
def test_bytes_that_the_gateway_wrote_are_not_a_peers_to_change(role: Role, change: dict[str, Any]) -> None:
    image = store_image(role.gateway.admin)
    answer = put(role, image.id, **change)
    name = next(iter(change))
    expected = f"Can't change {name}: the bytes of image '{image.id}' are this gateway's"
    assert (answer.status, answer.message) == (409, expected)
    assert put(role, image.id, name="renamed").status == 200
    assert role.gateway.admin.get(image.path).body == image.data


def test_an_image_that_a_peer_deletes_goes_with_its_bytes(role: Role) -> None:
    image = store_image(role.gateway.admin)
    assert any(image.id in str(path) for path in store_files(role.gateway))
    gone = role.peer.delete(image.path).image
    assert gone["_id"] == image.id
    assert role.gateway.admin.get(image.path).status == 404
    assert not any(image.id in str(path) for path in store_files(role.gateway))


def test_no_record_can_name_the_object_of_another_one(role: Role) -> None:
    """Else it would be served by the one's rules, and deleted with it."""
    image = store_image(role.gateway.admin, access="private")
    location = role.peer.get(image.path).image["location"]
    mine = in_status(role, "uploading")
    answer = put(role, mine, status="available", store="file", location=location)
    assert (answer.status, answer.message) == (400, "Invalid location: it is that of another image")
    assert role.peer.delete(f"/images/{mine}").status == 200
    assert role.gateway.admin.get(image.path).body == image.data


@pytest.mark.parametrize(
    ("store", "location"),
    [
        ("file", "file:///etc/passwd"),
        ("http", "http://127.0.0.1:1/x"),
        ("http", "http://169.254.169.254/latest/meta-data"),
        ("s3", "s3://bucket/x"),
    ],
)
def test_a_location_of_a_peer_opens_nothing_of_this_host(role: Role, store: str, location: str) -> None:
    image_id = in_status(role, "uploading")
    assert put(role, image_id, status="available", store=store, location=location, size=10).status == 200
    answer = role.gateway.admin.get(f"/images/{image_id}")
    assert answer.status >= 400
    assert b"root:" not in answer.body
    assert role.gateway.admin.delete(f"/images/{image_id}").status == 200
    assert role.peer.get(f"/images/{image_id}").status == 404


def test_an_upload_of_a_peer_is_not_taken_over(role: Role) -> None:
    image_id = in_status(role, "uploading")
    answer = role.gateway.admin.put(image_id, b"bytes")
    assert (answer.status, answer.message) == (409, "Can only assign image file to a locked or error image")


# --- where it is -----------------------------------------------------------------------------------


def test_a_record_tells_where_its_image_is(role: Role) -> None:
    image_id = register(role)["_id"]
    named = role.peer.get(f"/images/{image_id}", ("User-Agent", "VISOR Image System - 10.0.0.9:4568")).image
    assert named["uri"] == f"http://10.0.0.9:4568/images/{image_id}"
    for agent in ("visor-gateway/0.1", "x - a/b", "x - evil.example/?"):
        other = role.peer.get(f"/images/{image_id}", ("User-Agent", agent)).image
        assert other["uri"] == f"{role.url}/images/{image_id}"


def test_monitors_are_answered_without_credentials(role: Role) -> None:
    assert role.anybody.get("/status").body == b"OK"
    ready = role.anybody.get("/ready")
    assert ready.status == 200
    assert json.loads(ready.body)["ready"] is True


def test_a_reload_changes_who_is_let_in(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    with serving(tmp_path, "meta", f'shared_key_file = "{file}"') as role:
        assert role.peer.get("/images").status == 404
        file.write_text(OTHER_KEY)
        assert role.gateway.process
        role.gateway.process.send_signal(signal.SIGHUP)
        eventually(lambda: role.peer.get("/images").status == 403, what="the new key")
        role.peer.secret_key = OTHER_KEY
        assert role.peer.get("/images").status == 404


def test_all_workers_serve_it(tmp_path: Path) -> None:
    with serving(tmp_path, "meta", workers=2) as role:
        made = [register(role)["_id"] for _ in range(6)]
        for image_id in made:
            assert put(role, image_id, status="uploading").image["status"] == "uploading"
        assert {image["_id"] for image in role.peer.get("/images").json()["images"]} == {*made}
