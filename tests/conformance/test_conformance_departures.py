"""Contract section 9: where the gateway departs from VISOR 2012 on purpose."""

from __future__ import annotations

import pytest
from wire import OCTETS, Client, eventually, head_bytes, meta, store_image, unique


@pytest.mark.parametrize("location", ["http://key:secret@images.example/a", "https://key@images.example/a"])
def test_a_location_never_carries_credentials(alice: Client, location) -> None:
    name = unique("secretive")
    for store in ("http", "file"):
        answer = alice.add(name=name, store=store, location=location)
        assert answer.status == 400
        assert "secret" not in answer.message
    assert alice.named(name) is None


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "s3://k:s@host/bucket/key", "hdfs://host/a", "walrus://h/a"]
)
@pytest.mark.parametrize("store", ["file", "http", None])
def test_a_location_never_takes_file_or_another_stores_scheme(alice: Client, location, store) -> None:
    name = unique("local")
    assert alice.add(name=name, location=location, **({"store": store} if store else {})).status == 400
    assert alice.named(name) is None
    locked = alice.add().image["_id"]
    assert alice.put(locked, location=location).status == 400
    assert alice.record(locked)["status"] == "locked"


@pytest.mark.parametrize(
    ("field", "value"), [("status", "available"), ("size", "5"), ("checksum", "0" * 64), ("owner", "admin")]
)
def test_status_size_checksum_and_owner_are_not_for_clients_to_set(alice: Client, admin: Client, field, value) -> None:
    for client in (alice, admin):
        image = client.add().image
        assert client.add(**{field: value}).status == 400
        assert client.put(image["_id"], **{field: value}).status == 400
        assert client.named(image["name"]) == image


def test_private_means_private_on_every_route(alice: Client, bob: Client) -> None:
    hidden = store_image(alice, access="private", note=unique("hidden"))
    transfer = alice.get(hidden.path).header("x-transfer-id")
    note = hidden.record["note"]
    missing = [
        bob.get(hidden.path),
        bob.head(hidden.path),
        bob.put(hidden.id, note="n"),
        bob.delete(hidden.path),
        bob.send_json("POST", f"{hidden.path}/links", {}),
        bob.get(f"/images?note={note}"),
        bob.get(f"/images/detail?note={note}"),
        bob.get(f"/images?access=private&owner={alice.access_key}"),
        bob.get(f"/transfers/{transfer}"),
        bob.delete(f"/transfers/{transfer}"),
    ]
    assert [answer.status for answer in missing] == [404] * len(missing)
    assert hidden.id not in bob.get("/transfers").body.decode()
    assert bob.get(f"/transfers?image={hidden.id}").json()["transfers"] == []
    assert bob.add(kernel=hidden.id).status == 400


def test_delete_all_is_not_for_users(alice: Client, stored) -> None:
    assert alice.delete("/all").status == 403
    assert alice.get(stored.path).body == stored.data


def test_lists_show_own_private_images(alice: Client) -> None:
    image = alice.add(access="private").image
    assert alice.get(f"/images?_id={image['_id']}").json()["images"][0]["_id"] == image["_id"]


def test_secrets_are_shown_once(admin: Client, gateway) -> None:
    user = gateway.new_user("once")
    for answer in (admin.get("/users"), admin.get(f"/users/{user.access_key}")):
        assert user.secret_key not in answer.body.decode()


def test_changing_requests_can_not_be_replayed(alice: Client) -> None:
    client = Client(alice.url, alice.access_key, alice.secret_key, "VISOR")
    name = unique("replayed")
    headers = client.signed("POST", "/images", [*meta(name=name, architecture="i386"), OCTETS, ("Content-Length", "5")])
    statuses = []
    for _ in range(2):
        with client.connect() as wire:
            wire.send(head_bytes("POST", "/images", headers) + b"bytes")
            statuses.append(wire.read_response().status)
    assert statuses == [200, 403]
    assert client.named(name)["status"] == "available"


def test_bytes_that_were_just_uploaded_are_there(alice: Client) -> None:
    image = alice.add(b"hello image").image
    assert alice.get(f"/images/{image['_id']}").body == b"hello image"


def test_an_upload_under_way_is_no_empty_success(alice: Client) -> None:
    name = unique("partial")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Content-Length", "100")]
    with alice.start("POST", "/images", headers) as wire:
        wire.send(b"x" * 50)
        image = eventually(lambda: (i := alice.named(name)) and i["status"] == "uploading" and i)
        assert alice.get(f"/images/{image['_id']}").status == 409
        assert alice.get(f"/images/{image['_id']}", ("Range", "bytes=0-9")).status == 409
    eventually(lambda: alice.named(name)["status"] == "error")
    assert alice.get(f"/images/{image['_id']}").status == 409


def test_header_names_match_in_any_case(alice: Client) -> None:
    headers = [("X-Image-Meta-Name", "any case"), ("X-IMAGE-META-ARCHITECTURE", "i386")]
    assert alice.request("POST", "/images", headers).image["architecture"] == "i386"
