"""Contract section 5: image bytes as an HTTP entity (RFC 9110), over the file store."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import threading
import uuid
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import unquote

import pytest
from origin_server import Origin
from wire import Client, Reset, Stored, eventually, head_bytes, store_image, unique

SIZE = 100_003


@pytest.fixture(scope="module")
def entity(alice: Client) -> Stored:
    return store_image(alice, bytes(i * 7 % 251 for i in range(SIZE)), name=unique("Entity"))


def test_get_tells_the_length_and_accepts_ranges(alice: Client, entity: Stored) -> None:
    answer = alice.get(entity.path)
    assert answer.status == 200
    assert answer.header("content-length") == str(SIZE)
    assert answer.header("transfer-encoding") is None
    assert answer.header("accept-ranges") == "bytes"
    assert answer.body == entity.data


def test_the_etag_is_strong_and_of_the_bytes(alice: Client, entity: Stored) -> None:
    tag = alice.get(entity.path).header("etag") or ""
    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', tag)
    twin = store_image(alice, entity.data)
    assert alice.head(twin.path).header("etag") == tag
    assert alice.head(store_image(alice, entity.data + b"!").path).header("etag") != tag


def test_the_etag_does_not_change_with_the_record(alice: Client) -> None:
    image = store_image(alice)
    before = alice.head(image.path).header("etag")
    alice.put(image.id, note="changed")
    assert alice.head(image.path).header("etag") == before


def test_repr_digest_is_the_sha256_of_the_whole(alice: Client, entity: Stored) -> None:
    digest = base64.b64encode(hashlib.sha256(entity.data).digest()).decode()
    for answer in (alice.get(entity.path), alice.head(entity.path), alice.get(entity.path, ("Range", "bytes=5-9"))):
        assert answer.header("repr-digest") == f"sha-256=:{digest}:"


def test_last_modified_is_an_http_date_not_in_the_future(alice: Client, entity: Stored) -> None:
    answer = alice.get(entity.path)
    modified, now = answer.header("last-modified") or "", answer.header("date") or ""
    assert modified.endswith(" GMT")
    assert parsedate_to_datetime(modified) <= parsedate_to_datetime(now)


def test_bytes_are_octets_that_no_browser_sniffs_or_shows(alice: Client, entity: Stored) -> None:
    answer = alice.get(entity.path)
    assert answer.header("content-type") == "application/octet-stream"
    assert answer.header("x-content-type-options") == "nosniff"
    assert (answer.header("content-disposition") or "").startswith("attachment;")


@pytest.mark.parametrize("name", ["plain", "Ümläut 映像", 'a"b\\c;d', "100%", "../../etc/passwd", "a'b*c", ".."])
def test_the_file_name_is_the_images_name_in_extended_notation(alice: Client, name) -> None:
    image = store_image(alice, b"named", name=name)
    disposition = alice.get(image.path).header("content-disposition") or ""
    found = re.search(r"filename\*=UTF-8''([A-Za-z0-9!#$&+.^_`|~%-]+)(;|$)", disposition)
    assert found, disposition
    file_name = unquote(found[1], errors="strict")
    assert "/" not in file_name
    assert file_name not in ("", ".", "..")
    if not {"/", "\\", '"'} & set(name) and name != "..":
        assert file_name.startswith(name)


# --- ranges ------------------------------------------------------------------------------------

LAST = SIZE - 1
RANGES = [
    ("bytes=0-0", 0, 0),
    ("bytes=0-99", 0, 99),
    ("bytes=1-", 1, LAST),
    (f"bytes={LAST}-", LAST, LAST),
    (f"bytes={LAST}-{LAST}", LAST, LAST),
    ("bytes=-1", LAST, LAST),
    ("bytes=-500", SIZE - 500, LAST),
    ("bytes=500-99999999999999999999", 500, LAST),
    (f"bytes=70000-{SIZE}", 70000, LAST),
    ("bytes=65535-65536", 65535, 65536),
    ("bytes= 10-19", 10, 19),
    ("BYTES=10-19", 10, 19),
]


@pytest.mark.parametrize(("wanted", "first", "last"), RANGES)
def test_one_range_is_206_with_exactly_those_bytes(alice: Client, entity: Stored, wanted, first, last) -> None:
    answer = alice.get(entity.path, ("Range", wanted))
    assert answer.status == 206
    assert answer.header("content-range") == f"bytes {first}-{last}/{SIZE}"
    assert answer.header("content-length") == str(last - first + 1)
    assert answer.body == entity.data[first : last + 1]
    assert answer.header("etag") == alice.head(entity.path).header("etag")


@pytest.mark.parametrize("wanted", ["bytes=0-", "bytes=-100003", "bytes=-999999999999999999999", f"bytes=0-{LAST}"])
def test_a_range_over_everything_gives_everything(alice: Client, entity: Stored, wanted) -> None:
    answer = alice.get(entity.path, ("Range", wanted))
    assert answer.status in (200, 206)
    assert answer.body == entity.data
    if answer.status == 206:
        assert answer.header("content-range") == f"bytes 0-{LAST}/{SIZE}"


@pytest.mark.parametrize(
    "wanted", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", "bytes=99999999999999999999-"]
)
def test_a_range_outside_is_416_with_the_length(alice: Client, entity: Stored, wanted) -> None:
    answer = alice.get(entity.path, ("Range", wanted))
    assert answer.status == 416
    assert answer.header("content-range") == f"bytes */{SIZE}"
    assert answer.message


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes",
        "bytes=",
        "bytes=a-b",
        "bytes=5",
        "items=0-5",
        "bytes=--5",
        "bytes=1-2-3",
        "bytes=-",
        "=0-5",
        "bytes 0-5",
    ],
)
def test_a_range_that_is_none_is_ignored(alice: Client, entity: Stored, wanted) -> None:
    answer = alice.get(entity.path, ("Range", wanted))
    assert (answer.status, answer.body) == (200, entity.data)


def test_a_range_that_runs_backwards_is_ignored_or_refused(alice: Client, entity: Stored) -> None:
    answer = alice.get(entity.path, ("Range", "bytes=9-5"))
    assert answer.status in (200, 416)
    if answer.status == 200:
        assert answer.body == entity.data


@pytest.mark.parametrize("wanted", ["bytes=0-9,20-29", "bytes=0-9, -5", "bytes=0-0,1-1,2-2", "bytes=5-9,200000-"])
def test_several_ranges_are_multipart_or_the_whole(alice: Client, entity: Stored, wanted) -> None:
    answer = alice.get(entity.path, ("Range", wanted))
    if answer.status == 200:
        assert answer.body == entity.data
        return
    assert answer.status == 206
    kind = answer.header("content-type") or ""
    if not kind.startswith("multipart/byteranges"):
        first, last = re.fullmatch(rf"bytes (\d+)-(\d+)/{SIZE}", answer.header("content-range") or "").groups()
        assert answer.body == entity.data[int(first) : int(last) + 1]
        return
    assert answer.header("content-range") is None
    boundary = re.search(r'boundary="?([^";]+)', kind)[1].encode()
    parts = answer.body.split(b"--" + boundary)[1:-1]
    for part in parts:
        head, _, body = part.strip(b"\r\n").partition(b"\r\n\r\n")
        first, last = re.search(rb"(?i)content-range: bytes (\d+)-(\d+)/", head).groups()
        assert body == entity.data[int(first) : int(last) + 1]


def test_a_thousand_ranges_cost_no_more_than_the_whole(alice: Client, entity: Stored) -> None:
    wanted = "bytes=" + ",".join(["0-"] * 1000)
    answer = alice.get(entity.path, ("Range", wanted))
    assert answer.status in (200, 206, 416)
    assert len(answer.body) <= 2 * SIZE


def test_head_ignores_range(alice: Client, entity: Stored) -> None:
    answer = alice.head(entity.path, ("Range", "bytes=0-9"))
    assert answer.status == 200
    assert answer.header("content-length") == str(SIZE)


def test_ranges_of_many_requests_on_one_connection_stay_apart(alice: Client, entity: Stored) -> None:
    with alice.connect() as wire:
        for first in range(0, SIZE, 9973):
            headers = alice.signed("GET", entity.path, [("Range", f"bytes={first}-{first + 99}")])
            wire.send(head_bytes("GET", entity.path, headers))
            assert wire.read_response().body == entity.data[first : first + 100]


# --- conditions --------------------------------------------------------------------------------


def tag_of(client: Client, entity: Stored) -> str:
    return client.head(entity.path).header("etag") or ""


def test_if_range_with_the_etag_gives_the_range(alice: Client, entity: Stored) -> None:
    answer = alice.get(entity.path, ("Range", "bytes=10-19"), ("If-Range", tag_of(alice, entity)))
    assert (answer.status, answer.body) == (206, entity.data[10:20])


def test_if_range_with_anything_else_gives_the_whole(alice: Client, entity: Stored) -> None:
    tag = tag_of(alice, entity)
    for value in ('"another"', f"W/{tag}", "Sun, 06 Nov 1994 08:49:37 GMT", tag.strip('"'), f"{tag}, {tag}"):
        answer = alice.get(entity.path, ("Range", "bytes=10-19"), ("If-Range", value))
        assert (answer.status, answer.body) == (200, entity.data), value


def test_if_range_guards_a_range_outside_too(alice: Client, entity: Stored) -> None:
    answer = alice.get(entity.path, ("Range", f"bytes={SIZE}-"), ("If-Range", '"another"'))
    assert (answer.status, answer.body) == (200, entity.data)
    assert alice.get(entity.path, ("Range", f"bytes={SIZE}-"), ("If-Range", tag_of(alice, entity))).status == 416


@pytest.mark.parametrize("form", ["{tag}", "*", "W/{tag}", '"x", {tag}', '{tag}, "y"', '"a,b", W/"c", {tag}'])
def test_if_none_match_of_the_etag_is_304_without_body(alice: Client, entity: Stored, form) -> None:
    tag = tag_of(alice, entity)
    for method in ("GET", "HEAD"):
        with alice.start(method, entity.path, [("If-None-Match", form.format(tag=tag))]) as wire:
            answer = wire.read_response(method)
            assert answer.status == 304
            assert answer.header("etag") == tag
            wire.finish_sending()
            assert wire.read_to_end() == b""


@pytest.mark.parametrize("value", ['"x"', 'W/"x"', '"x", "y"'])
def test_if_none_match_of_others_is_200(alice: Client, entity: Stored, value) -> None:
    assert alice.get(entity.path, ("If-None-Match", value)).body == entity.data


def test_if_match_of_the_etag_is_200(alice: Client, entity: Stored) -> None:
    tag = tag_of(alice, entity)
    for value in (tag, "*", f'"x", {tag}'):
        assert alice.get(entity.path, ("If-Match", value)).body == entity.data


def test_if_match_of_others_is_412(alice: Client, entity: Stored) -> None:
    for value in ('"x"', f"W/{tag_of(alice, entity)}", '"x", "y"'):
        answer = alice.get(entity.path, ("If-Match", value))
        assert answer.status == 412
        assert answer.message
        assert alice.head(entity.path, ("If-Match", value)).status == 412


def test_if_match_guards_a_range(alice: Client, entity: Stored) -> None:
    answer = alice.get(entity.path, ("Range", "bytes=0-4"), ("If-Match", tag_of(alice, entity)))
    assert (answer.status, answer.body) == (206, entity.data[:5])
    assert alice.get(entity.path, ("Range", "bytes=0-4"), ("If-Match", '"x"')).status == 412


def test_if_modified_since_by_last_modified(alice: Client, entity: Stored) -> None:
    modified = alice.head(entity.path).header("last-modified") or ""
    earlier = format_datetime(parsedate_to_datetime(modified) - timedelta(hours=1), usegmt=True)
    assert alice.get(entity.path, ("If-Modified-Since", modified)).status == 304
    assert alice.get(entity.path, ("If-Modified-Since", earlier)).body == entity.data
    assert alice.get(entity.path, ("If-Modified-Since", "yesterday")).body == entity.data


def test_if_none_match_takes_precedence_over_if_modified_since(alice: Client, entity: Stored) -> None:
    modified = alice.head(entity.path).header("last-modified") or ""
    answer = alice.get(entity.path, ("If-None-Match", '"x"'), ("If-Modified-Since", modified))
    assert (answer.status, answer.body) == (200, entity.data)


def test_if_unmodified_since_an_earlier_time_is_412(alice: Client, entity: Stored) -> None:
    modified = alice.head(entity.path).header("last-modified") or ""
    earlier = format_datetime(parsedate_to_datetime(modified) - timedelta(hours=1), usegmt=True)
    assert alice.get(entity.path, ("If-Unmodified-Since", earlier)).status == 412
    assert alice.get(entity.path, ("If-Unmodified-Since", modified)).status == 200


def test_conditions_do_not_show_what_is_hidden(alice: Client, bob: Client) -> None:
    image = store_image(alice, access="private")
    tag = tag_of(alice, image)
    for condition in (("If-None-Match", tag), ("If-None-Match", "*"), ("If-Match", '"x"'), ("Range", "bytes=0-1")):
        assert bob.get(image.path, condition).status == 404


# --- transfers' ids ----------------------------------------------------------------------------


def test_every_answer_that_moves_bytes_names_its_transfer(alice: Client, entity: Stored) -> None:
    answers = [alice.get(entity.path), alice.get(entity.path, ("Range", "bytes=0-9")), alice.add(b"pushed")]
    answers.append(alice.put(alice.add().image["_id"], b"pushed"))
    ids = [answer.header("x-transfer-id") for answer in answers]
    assert all(uuid.UUID(value) for value in ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.one_gateway
def test_a_client_may_choose_the_id_of_its_transfer(alice: Client, entity: Stored) -> None:
    for number, send in enumerate((lambda *h: alice.get(entity.path, *h), lambda *h: alice.add(b"chosen", h))):
        chosen = str(uuid.uuid4())
        answer = send(("X-Transfer-Id", chosen))
        assert answer.status == 200
        assert answer.header("x-transfer-id") == chosen
        transfer = alice.get(f"/transfers/{chosen}").json()["transfer"]
        assert transfer["kind"] == ("pull", "push")[number]


@pytest.mark.parametrize("value", ["fake", "../../x", "1", "'; drop table images; --", "g" * 36])
def test_an_id_that_is_no_uuid_is_not_taken(alice: Client, entity: Stored, value) -> None:
    answer = alice.get(entity.path, ("X-Transfer-Id", value))
    assert answer.status in (200, 400)
    assert answer.header("x-transfer-id") != value


@pytest.mark.one_gateway
def test_a_stranger_can_not_take_over_the_id_of_a_transfer(alice: Client, bob: Client, entity: Stored) -> None:
    chosen = str(uuid.uuid4())
    assert alice.get(entity.path, ("X-Transfer-Id", chosen)).status == 200
    answer = bob.get(entity.path, ("X-Transfer-Id", chosen))
    assert answer.status in (200, 400, 409)
    assert alice.get(f"/transfers/{chosen}").json()["transfer"]["user"] == alice.access_key


# --- closing and versions ----------------------------------------------------------------------


def test_connection_close_is_honoured(alice: Client, entity: Stored) -> None:
    with alice.start("GET", entity.path, [("Connection", "close")]) as wire:
        answer = wire.read_response()
        assert answer.body == entity.data
        assert (answer.header("connection") or "").lower() == "close"
        assert wire.ends() == "fin"


def test_http_1_0_gets_the_whole_image_and_a_close(alice: Client, entity: Stored) -> None:
    with alice.connect() as wire:
        wire.send(head_bytes("GET", entity.path, alice.signed("GET", entity.path), "HTTP/1.0"))
        answer = wire.read_response()
        assert answer.status == 200
        assert answer.header("transfer-encoding") is None
        assert answer.header("content-length") == str(SIZE)
        assert answer.body == entity.data
        assert wire.ends() == "fin"


def test_an_unsized_body_is_chunked_and_505_for_http_1_0(locating, origin: Origin) -> None:
    data = unique("unsized").encode() * 1000
    origin.put("nosize", data)
    client = locating.admin
    image = client.add(store="http", location=f"{origin.url}/unsized/nosize").image
    path = f"/images/{image['_id']}"
    with client.connect() as wire:
        wire.send(head_bytes("GET", path, client.signed("GET", path), "HTTP/1.0"))
        assert wire.read_head().status == 505
    answer = client.get(path)
    assert (answer.status, answer.body) == (200, data)
    assert answer.header("transfer-encoding") == "chunked"


def test_an_origin_whose_body_only_the_close_ends_is_never_a_200(locating, origin: Origin) -> None:
    """Nobody could tell a short image from a whole one."""
    origin.put("closed", b"bytes that end with the connection")
    client, location = locating.admin, f"{origin.url}/closing/closed"
    answer = client.add(store="http", location=location)
    if answer.status == 200:
        assert client.get(f"/images/{answer.image['_id']}").status == 503
    else:
        assert answer.status == 404
    answer = client.add(store="file", location=location)
    if answer.status == 200:
        image_id = answer.image["_id"]
        eventually(lambda: client.record(image_id)["status"] == "error")
        assert client.get(f"/images/{image_id}").status == 409


def test_an_origin_that_changed_is_502_before_the_first_byte(locating, origin: Origin) -> None:
    location = origin.put("changing", b"first version")
    image = locating.admin.add(store="http", location=location).image
    path = f"/images/{image['_id']}"
    assert locating.admin.get(path).body == b"first version"
    origin.put("changing", b"other version")
    answer = locating.admin.get(path)
    assert answer.status == 502
    assert b"version" not in answer.body


def test_a_reference_has_the_origins_strong_etag(locating, origin: Origin) -> None:
    location = origin.put("strong", b"tagged bytes")
    path = f"/images/{locating.admin.add(store='http', location=location).image['_id']}"
    assert origin.etags["/strong"] in (locating.admin.head(path).header("etag") or "")


@pytest.mark.direct("where a gateway resets a connection the proxy ends its own with FIN")
def test_an_origin_that_breaks_off_never_makes_a_whole_200(start) -> None:

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    head = connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n")
                    if head.startswith(b"GET"):
                        connection.sendall(b"x" * 300)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        gateway = start(f'[locations]\nallow_hosts = ["127.0.0.1:{port}"]\n')
        answer = gateway.admin.add(store="http", location=f"http://127.0.0.1:{port}/a")
        if answer.status == 200:
            with gateway.admin.start("GET", f"/images/{answer.image['_id']}") as wire:
                head = wire.read_head()
                if head.status == 200:
                    with pytest.raises(Reset):
                        wire.read_body(head)
        server.shutdown(socket.SHUT_RDWR)
    thread.join(60)
