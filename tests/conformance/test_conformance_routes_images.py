"""Contract section 4: the routes and their answers."""

from __future__ import annotations

import hashlib
import random
from urllib.parse import quote, unquote, urlsplit

import pytest
from gateway_process import store_files
from wire import OCTETS, Client, Reset, Short, eventually, head_bytes, meta, store_image, unique

BIG = 24 << 20  # more than all socket buffers between two processes hold


def big_bytes(seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(BIG)


def uploading(client: Client, name: str, promised: int = 8, **fields: str):
    """A connection that has begun an upload and sent less than it promised."""
    headers = [*meta(name=name, architecture="i386", **fields), OCTETS, ("Content-Length", str(promised))]
    wire = client.start("POST", "/images", headers)
    wire.send(b"half")
    eventually(lambda: (client.named(name) or {}).get("status") == "uploading", what="status uploading")
    return wire


# --- status, readiness, metrics ----------------------------------------------------------------


def test_status_is_ok_as_plain_text_without_credentials(anonymous: Client) -> None:
    answer = anonymous.get("/status")
    assert (answer.status, answer.body) == (200, b"OK")
    assert (answer.header("content-type") or "").startswith("text/plain")


def test_ready_names_each_part_without_credentials(anonymous: Client) -> None:
    answer = anonymous.get("/ready")
    assert answer.status == 200
    document = answer.json()
    assert isinstance(document, dict)
    assert "metadata" in answer.body.decode()
    assert "file" in answer.body.decode()


def test_ready_gives_no_details(anonymous: Client, gateway) -> None:
    body = anonymous.get("/ready").body.decode()
    assert "/" not in body
    assert "sqlite" not in body
    assert "127.0.0.1" not in body


@pytest.mark.direct("through a proxy nobody comes from loopback")
def test_metrics_are_prometheus_text_from_loopback(anonymous: Client, stored) -> None:
    answer = anonymous.get("/metrics")
    assert answer.status == 200
    assert (answer.header("content-type") or "").startswith("text/plain")
    text = answer.body.decode()
    assert "# TYPE " in text
    assert stored.id not in text
    assert stored.record["name"] not in text


def test_metrics_from_elsewhere_need_credentials(start) -> None:
    gateway = start("[metrics]\nallow = []\n")
    assert gateway.client().get("/metrics").status == 403
    assert gateway.admin.get("/metrics").status == 200


# --- lists -------------------------------------------------------------------------------------


def ids(answer) -> list[str]:
    assert answer.status in (200, 404), (answer.status, answer.body)
    return [image["_id"] for image in answer.json()["images"]] if answer.status == 200 else []


@pytest.mark.parametrize("path", ["/images", "/images/detail"])
def test_lists_show_public_images_and_ones_own_private_ones(alice: Client, bob: Client, path) -> None:
    group = unique("group")
    public = [client.add(note=group).image["_id"] for client in (alice, bob)]
    mine = alice.add(note=group, access="private").image["_id"]
    his = bob.add(note=group, access="private").image["_id"]
    assert set(ids(alice.get(f"{path}?note={group}"))) == {*public, mine}
    assert set(ids(bob.get(f"{path}?note={group}"))) == {*public, his}


def test_detail_shows_all_fields(alice: Client) -> None:
    image = alice.add(b"detailed", note="x").image
    assert alice.get(f"/images/detail?_id={image['_id']}").json()["images"] == [image]


def test_nothing_found_is_404_with_the_message_for_filters(alice: Client) -> None:
    for path in ("/images", "/images/detail"):
        answer = alice.get(f"{path}?name=nothing-has-this-name")
        assert (answer.status, answer.message) == (404, "No public images found with given parameters.")


def test_an_empty_gateway_has_no_public_images(fresh) -> None:
    for path in ("/images", "/images/detail"):
        answer = fresh.admin.get(path)
        assert (answer.status, answer.message) == (404, "No public images found.")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("name", {}),
        ("architecture", {"architecture": "s390x"}),
        ("type", {"type": "nimbus"}),
        ("format", {"format": "ova"}),
        ("access", {"access": "private"}),
        ("status", {}),
        ("owner", {}),
        ("_id", {}),
        ("created_at", {}),
        ("distro", {"distro": "plan9"}),
    ],
)
def test_any_field_or_attribute_filters_by_equality(alice: Client, field, fields) -> None:
    group = unique("group")
    image = alice.add(note=group, **fields).image
    other = alice.add(note=group).image
    found = ids(alice.get(f"/images?note={group}&{field}={image[field].replace('+', '%2B')}"))
    assert image["_id"] in found
    assert (other["_id"] in found) == (other.get(field) == image[field])
    assert ids(alice.get(f"/images?note={group}&{field}=unheard-of")) == []


def test_size_and_checksum_filter_too(alice: Client) -> None:
    image = alice.add(unique("bytes").encode()).image
    assert ids(alice.get(f"/images?checksum={image['checksum']}&size={image['size']}")) == [image["_id"]]
    assert ids(alice.get(f"/images?checksum={image['checksum']}&size={image['size'] + 1}")) == []


def test_several_filters_are_anded(alice: Client) -> None:
    group = unique("group")
    both = alice.add(note=group, distro="debian").image["_id"]
    alice.add(note=group, distro="fedora")
    alice.add(distro="debian")
    assert ids(alice.get(f"/images?note={group}&distro=debian")) == [both]


def test_a_filter_is_equality_and_no_pattern(alice: Client) -> None:
    note = unique("exact")
    alice.add(note=note)
    for value in ("%25", "_" * len(note), note[:-1] + "_", note[:-1], note.upper(), "%27%20OR%201%3D1%20--"):
        assert ids(alice.get(f"/images?note={value}")) == []


def test_filter_values_are_percent_decoded_utf8(alice: Client) -> None:
    name = unique("Ümläut & more")
    image_id = alice.add(name=name).image["_id"]

    assert ids(alice.get(f"/images?name={quote(name)}")) == [image_id]


def test_the_format_parameter_filters_and_chooses_no_representation(alice: Client) -> None:
    group = unique("group")
    image_id = alice.add(note=group, format="vdi").image["_id"]
    assert ids(alice.get(f"/images?note={group}&format=vdi")) == [image_id]
    answer = alice.get(f"/images?note={group}&format=xml")
    assert answer.message == "No public images found with given parameters."


def test_filtering_by_private_shows_no_one_elses(alice: Client, bob: Client) -> None:
    hidden = bob.add(access="private").image["_id"]
    assert hidden not in ids(alice.get("/images?access=private"))
    assert ids(alice.get(f"/images?owner={bob.access_key}&access=private")) == []
    assert ids(alice.get(f"/images?_id={hidden}")) == []


@pytest.fixture(scope="module")
def sorted_group(alice: Client) -> tuple[str, list[dict]]:
    group = unique("sorted")
    images = [
        alice.add(b"x" * size, note=group, name=name, architecture=arch).image
        for size, name, arch in ((30, "b", "i386"), (4, "a", "x86_64"), (100, "d", "i386"), (5, "c", "aarch64"))
    ]
    return group, images


@pytest.mark.parametrize("field", ["_id", "name", "size", "created_at", "checksum", "uploaded_at"])
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_lists_sort_by_a_field_in_both_directions(alice: Client, sorted_group, field, direction) -> None:
    group, images = sorted_group
    expected = sorted(images, key=lambda image: image[field], reverse=direction == "desc")
    found = ids(alice.get(f"/images?note={group}&sort={field}&dir={direction}"))
    assert found == [image["_id"] for image in expected]


def test_lists_sort_by_id_ascending_by_default(alice: Client, sorted_group) -> None:
    group, images = sorted_group
    assert ids(alice.get(f"/images?note={group}")) == sorted(image["_id"] for image in images)
    found = ids(alice.get(f"/images?note={group}&dir=desc"))
    assert found == sorted((image["_id"] for image in images), reverse=True)


@pytest.mark.parametrize("sort", ["", "&sort=architecture", "&sort=size&dir=desc", "&sort=type", "&sort=name&dir=asc"])
@pytest.mark.parametrize("path", ["/images", "/images/detail"])
def test_pages_follow_the_next_link_and_miss_nothing(alice: Client, sorted_group, path, sort) -> None:
    group, images = sorted_group
    whole = ids(alice.get(f"{path}?note={group}{sort}"))
    assert len(whole) == len(images)
    target, pages = f"{path}?note={group}{sort}&limit=3", []
    while target:
        answer = alice.get(target)
        pages.append(ids(answer))
        link = answer.header("link")
        target = None
        if link:
            uri, _, relation = link.partition(";")
            assert relation.strip() == 'rel="next"'
            parts = urlsplit(uri.strip("<>"))
            target = f"{parts.path}?{parts.query}"
    assert [len(page) for page in pages] == [3, 1]
    assert pages[0] + pages[1] == whole


def test_a_page_that_ends_the_list_has_no_next_link(alice: Client, sorted_group) -> None:
    group, _ = sorted_group
    assert alice.get(f"/images?note={group}&limit=4").header("link") is None
    assert alice.get(f"/images?note={group}&limit=1000").header("link") is None


def test_marker_is_an_id_after_which_the_page_begins(alice: Client, sorted_group) -> None:
    group, images = sorted_group
    order = sorted(image["_id"] for image in images)
    assert ids(alice.get(f"/images?note={group}&marker={order[1]}")) == order[2:]


@pytest.mark.parametrize(
    "query",
    [
        "sort=nothing",
        "sort=",
        "sort=name;drop",
        "dir=up",
        "dir=ASCENDING",
        "limit=0",
        "limit=-1",
        "limit=1001",
        "limit=ten",
        "limit=1.5",
        "limit=",
        "limit=99999999999999999999",
        "marker=fake",
        "marker=7c0d0c16-4c5c-4b7e-9a0b-0a9c8a3a0e55",
    ],
)
def test_an_invalid_paging_parameter_is_400(alice: Client, sorted_group, query) -> None:
    answer = alice.get(f"/images?note={sorted_group[0]}&{query}")
    assert answer.status == 400
    assert query.partition("=")[0] in answer.message


def test_another_users_private_image_is_no_marker(alice: Client, bob: Client, sorted_group) -> None:
    hidden = bob.add(access="private").image["_id"]
    assert alice.get(f"/images?note={sorted_group[0]}&marker={hidden}").status == 400


# --- one image ---------------------------------------------------------------------------------


@pytest.mark.parametrize("image_id", ["fake", "7c0d0c16-4c5c-4b7e-9a0b-0a9c8a3a0e55", "DETAIL", "%2e%2e", "a b"])
def test_an_unknown_id_is_404_with_its_message(alice: Client, image_id) -> None:

    path = f"/images/{quote(unquote(image_id), safe='')}"
    for method in ("GET", "DELETE"):
        answer = alice.request(method, path)
        assert (answer.status, answer.message) == (404, f"No image found with id '{unquote(image_id)}'.")
    answer = alice.request("PUT", path, [("x-image-meta-name", "y")])
    assert (answer.status, answer.message) == (404, f"No image found with id '{unquote(image_id)}'.")
    assert alice.head(path).status == 404


def test_get_answers_bytes_and_record(alice: Client, stored) -> None:
    answer = alice.get(stored.path)
    assert answer.status == 200
    assert answer.body == stored.data
    expected = {name: str(value) for name, value in stored.record.items() if value is not None}
    assert answer.meta() == expected


def test_head_answers_the_record_and_the_headers_of_get(alice: Client, stored) -> None:
    pulled, asked = alice.get(stored.path), alice.head(stored.path)
    own = {"date", "x-transfer-id", "x-request-id", "connection", "keep-alive"}
    assert asked.status == 200
    assert {pair for pair in asked.headers if pair[0] not in own} == {
        pair for pair in pulled.headers if pair[0] not in own
    }
    assert asked.header("content-length") == str(len(stored.data))


def test_head_has_no_body_on_the_wire(alice: Client, stored) -> None:
    with alice.start("HEAD", stored.path) as wire:
        wire.read_head()
        wire.finish_sending()
        assert wire.read_to_end() == b""


def test_a_locked_image_is_200_and_empty(alice: Client) -> None:
    image = alice.add(note="bare").image
    answer = alice.get(f"/images/{image['_id']}")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.header("content-length") == "0"
    assert answer.meta()["status"] == "locked"
    assert answer.meta()["note"] == "bare"
    assert alice.head(f"/images/{image['_id']}").status == 200


def test_an_uploading_image_is_409_with_its_record_and_a_time_to_come_back(alice: Client) -> None:
    name = unique("uploading")
    with uploading(alice, name):
        image_id = alice.named(name)["_id"]
        answer = alice.get(f"/images/{image_id}")
        assert answer.status == 409
        assert answer.message == f"Image '{image_id}' has no bytes: status is 'uploading'"
        assert answer.meta()["_id"] == image_id
        assert answer.meta()["status"] == "uploading"
        assert answer.header("etag") is None
        assert answer.header("cache-control") == "no-store"
        assert int(answer.header("retry-after") or "") > 0
        asked = alice.head(f"/images/{image_id}")
        assert asked.status == 200
        assert asked.meta()["status"] == "uploading"
        for header in ("etag", "repr-digest", "accept-ranges", "content-disposition", "last-modified"):
            assert asked.header(header) is None


def failed_image(client: Client) -> str:
    """The `_id` of an image whose upload went wrong."""
    name = unique("failed")
    assert client.add(b"bytes", [("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA==")], name=name).status == 400
    image = client.named(name)
    assert image
    assert image["status"] == "error"
    return image["_id"]


def test_a_failed_image_is_409_with_its_record(alice: Client) -> None:
    image_id = failed_image(alice)
    answer = alice.get(f"/images/{image_id}")
    assert answer.status == 409
    assert answer.message == f"Image '{image_id}' has no bytes: status is 'error'"
    assert answer.meta()["status"] == "error"
    assert answer.header("etag") is None
    assert answer.header("cache-control") == "no-store"
    assert answer.header("retry-after") is None
    asked = alice.head(f"/images/{image_id}")
    assert (asked.status, asked.meta()["status"]) == (200, "error")
    assert asked.header("etag") is None
    assert asked.header("repr-digest") is None


# --- POST --------------------------------------------------------------------------------------


def test_post_answers_the_record_and_its_location(alice: Client, gateway) -> None:
    for answer in (alice.add(), alice.add(b"bytes")):
        assert answer.header("location") == answer.image["uri"]
        assert answer.header("location") == f"{gateway.url}/images/{answer.image['_id']}"
        assert answer.meta() == {}


def test_posted_bytes_come_back_whole(alice: Client) -> None:
    data = big_bytes()
    image = alice.add(data).image
    assert (image["size"], image["status"]) == (BIG, "available")
    assert alice.get(f"/images/{image['_id']}").body == data


@pytest.mark.parametrize("sizes", [[1], [1] * 50, [65536, 1, 65536], [3 << 20], [100_000] * 30, [5, 262144, 262145]])
def test_chunked_bytes_of_unknown_length_come_back_whole(alice: Client, sizes) -> None:
    pieces = [random.Random(size).randbytes(size) for size in sizes]
    image = alice.add(pieces).image
    assert image["size"] == sum(sizes)
    assert alice.get(f"/images/{image['_id']}").body == b"".join(pieces)


def test_chunk_extensions_and_trailers_are_not_bytes_of_the_image(alice: Client) -> None:
    headers = [*meta(name=unique("framed"), architecture="i386"), OCTETS, ("Transfer-Encoding", "chunked")]
    with alice.start("POST", "/images", headers) as wire:
        wire.send(b"5;name=value\r\nhello\r\n6\r\n image\r\n0\r\nX-Trailer: x\r\n\r\n")
        image = wire.read_response().image
    assert alice.get(f"/images/{image['_id']}").body == b"hello image"


def test_a_connection_serves_several_requests(alice: Client, stored) -> None:
    with alice.connect() as wire:
        for _ in range(3):
            wire.send(head_bytes("GET", stored.path, alice.signed("GET", stored.path)))
            assert wire.read_response().body == stored.data
            headers = [*meta(name="kept alive", architecture="i386"), OCTETS, ("Content-Length", "5")]
            wire.send(head_bytes("POST", "/images", alice.signed("POST", "/images", headers)) + b"bytes")
            assert wire.read_response().image["size"] == 5


def test_pipelined_requests_are_answered_in_order(alice: Client, stored) -> None:

    with alice.connect() as wire:
        get = head_bytes("GET", stored.path, alice.signed("GET", stored.path))
        wire.send(get + head_bytes("GET", "/images/fake", alice.signed("GET", "/images/fake")) + get)
        assert wire.read_response().body == stored.data
        assert wire.read_response().status == 404
        assert wire.read_response().body == stored.data


# --- PUT ---------------------------------------------------------------------------------------


def test_put_changes_what_it_names_and_keeps_the_rest(alice: Client) -> None:
    image = alice.add(b"kept", note="old", type="machine").image
    changed = alice.put(image["_id"], note="new", name="renamed").image
    assert changed | {"updated_at": None} == image | {"note": "new", "name": "renamed"} | {"updated_at": None}
    assert changed["updated_at"] is not None
    assert alice.get(f"/images/{image['_id']}").body == b"kept"


def test_put_gives_bytes_to_a_locked_image(alice: Client) -> None:
    image = alice.add(format="raw").image
    changed = alice.put(image["_id"], b"late bytes", note="with them").image
    assert (changed["status"], changed["size"], changed["note"]) == ("available", 10, "with them")
    assert changed["checksum"] == hashlib.sha256(b"late bytes").hexdigest()
    assert alice.get(f"/images/{image['_id']}").body == b"late bytes"


def test_put_gives_bytes_to_a_failed_image(alice: Client) -> None:
    image_id = failed_image(alice)
    assert alice.put(image_id, b"second try").image["status"] == "available"
    assert alice.get(f"/images/{image_id}").body == b"second try"


def test_put_checks_values_as_post_does(alice: Client) -> None:
    image = alice.add().image
    for fields in ({"architecture": "vax"}, {"name": "n" * 256}, {"store": "tape"}, {"kernel": "fake"}):
        assert alice.put(image["_id"], **fields).status == 400
    assert alice.named(image["name"]) == image


def test_put_answers_the_record_without_metadata_headers(alice: Client) -> None:
    answer = alice.put(alice.add().image["_id"], note="n")
    assert answer.meta() == {}


# --- DELETE ------------------------------------------------------------------------------------


def test_delete_answers_the_record_as_it_was(alice: Client) -> None:
    image = alice.add(b"gone soon", note="n").image
    deleted = alice.delete(f"/images/{image['_id']}").image
    assert {name: deleted[name] for name in image} == image


def test_a_deleted_image_is_404_on_every_route(alice: Client, admin: Client) -> None:
    image = alice.add(b"gone").image
    path = f"/images/{image['_id']}"
    assert alice.delete(path).status == 200
    for client in (alice, admin):
        assert client.get(path).message == f"No image found with id '{image['_id']}'."
        assert client.head(path).status == 404
        assert client.delete(path).status == 404
        assert client.put(image["_id"], note="n").status == 404
        assert client.put(image["_id"], b"bytes").status == 404
        assert client.send_json("POST", f"{path}/links", {}).status == 404
        assert client.get(f"/images?_id={image['_id']}").status == 404


def test_delete_cancels_a_running_upload_and_keeps_nothing(alice: Client) -> None:
    name = unique("deleted")
    with uploading(alice, name, promised=1 << 20) as wire:
        image_id = alice.named(name)["_id"]
        assert alice.delete(f"/images/{image_id}").image["status"] == "uploading"
        assert alice.get(f"/images/{image_id}").status == 404

        try:
            answer = wire.read_response()
        except (Reset, Short):
            pass
        else:
            assert answer.status >= 400
    assert alice.named(name) is None


def test_a_pull_that_is_under_way_survives_the_delete_and_no_new_one_starts(alice: Client) -> None:
    image = store_image(alice, big_bytes())
    with alice.start("GET", image.path, receive_buffer=65536) as wire:
        head = wire.read_head()
        assert head.status == 200
        assert alice.delete(image.path).status == 200
        assert alice.get(image.path).status == 404
        assert wire.read_body(head) == image.data


def test_delete_all_is_for_admins(alice: Client, stored) -> None:
    answer = alice.delete("/all")
    assert answer.status == 403
    assert alice.head(stored.path).status == 200


def test_delete_all_removes_every_record_and_its_bytes(fresh) -> None:

    user = fresh.new_user("carol")
    made = [user.add(b"one").image, user.add(b"two", access="private").image, fresh.admin.add().image]
    assert store_files(fresh)
    assert fresh.admin.delete("/all").status == 200
    for image in made:
        assert user.get(f"/images/{image['_id']}").status == 404
        assert fresh.admin.get(f"/images/{image['_id']}").status == 404
    assert fresh.admin.get("/images").message == "No public images found."
    eventually(lambda: not store_files(fresh), what="an empty store")
    assert fresh.admin.delete("/all").status == 200


@pytest.mark.parametrize("path", ["/images", "/images/detail"])
def test_who_prefers_it_gets_an_empty_list_instead_of_404(alice: Client, path) -> None:
    query = f"{path}?name={unique('nothing')}"
    assert alice.get(query).status == 404
    assert alice.get(query, ("Prefer", "respond-async")).status == 404
    answer = alice.get(query, ("Prefer", "respond-async, handling=lenient"))
    assert (answer.status, answer.json()) == (200, {"images": []})
    assert answer.header("preference-applied") == "handling=lenient"
