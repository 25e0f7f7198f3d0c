"""Contract section 4: what is refused when an image is made or changed, and what state is left."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from canary import canary
from gateway_process import store_files
from origin_server import Origin
from wire import OCTETS, Client, Reset, Short, Wire, content_digest, eventually, head_bytes, meta, store_image, unique

LOCATION_AND_BODY = "When the location header is present no file content can be provided"
BODY_FOR_HTTP = "Cannot post an image file to a HTTP backend"
NOT_OCTETS = "Request Content-Type must be application/octet-stream"
NOT_LOCKED = "Can only assign image file to a locked or error image"


def no_bytes(client: Client, name: str) -> None:
    """The image of that name, if there is one, is `error` and has nothing to give."""
    image = eventually(
        lambda: (client.named(name) or {}).get("status") != "uploading" and (client.named(name) or {1: 1})
    )
    if "_id" not in image:
        return
    assert image["status"] == "error"
    assert image["size"] is None
    assert image["checksum"] is None
    assert client.get(f"/images/{image['_id']}").status == 409


# --- fields ------------------------------------------------------------------------------------


def test_no_headers_and_no_body_at_all_is_400(alice: Client) -> None:
    assert alice.request("POST", "/images").status == 400
    image = alice.add().image
    assert alice.put(image["_id"]).status == 400
    assert alice.named(image["name"]) == image


def test_bytes_without_mandatory_fields_are_400_and_nothing_is_stored(alice: Client) -> None:
    before = alice.get(f"/images?owner={alice.access_key}").body
    assert alice.request("POST", "/images", [OCTETS], b"bytes").status == 400
    assert alice.get(f"/images?owner={alice.access_key}").body == before


def test_an_invalid_field_beside_bytes_stores_nothing(alice: Client) -> None:
    name = unique("invalid")
    assert alice.add(b"bytes", name=name, architecture="vax").status == 400
    assert alice.add(b"bytes", name=name, store="tape").status == 400
    assert alice.named(name) is None


def test_a_location_and_a_body_together_are_400(alice: Client) -> None:
    for fields in ({"store": "http"}, {"store": "file"}, {}):
        name = unique("both")
        answer = alice.add(b"x", name=name, location="http://images.example/a", **fields)
        assert (answer.status, answer.message) == (400, LOCATION_AND_BODY)
        answer = alice.add([b"x"], name=name, location="http://images.example/a", **fields)
        assert (answer.status, answer.message) == (400, LOCATION_AND_BODY)
        assert alice.named(name) is None


def test_a_body_for_the_http_store_is_400(alice: Client) -> None:
    name = unique("posted")
    answer = alice.add(b"x", name=name, store="http")
    assert (answer.status, answer.message) == (400, BODY_FOR_HTTP)
    assert alice.named(name) is None
    locked = alice.add().image["_id"]
    answer = alice.put(locked, b"x", store="http")
    assert (answer.status, answer.message) == (400, BODY_FOR_HTTP)
    assert alice.record(locked)["status"] == "locked"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/json", "multipart/form-data; boundary=x", ""])
def test_a_body_that_is_not_octets_is_400(alice: Client, kind) -> None:
    name = unique("typed")
    headers = [*meta(name=name, architecture="i386"), *([("Content-Type", kind)] if kind is not None else [])]
    answer = alice.request("POST", "/images", headers, b"bytes")
    assert (answer.status, answer.message) == (400, NOT_OCTETS)
    assert alice.named(name) is None
    locked = alice.add().image["_id"]
    headers = [("Content-Type", kind)] if kind is not None else []
    answer = alice.request("PUT", f"/images/{locked}", headers, b"bytes")
    assert (answer.status, answer.message) == (400, NOT_OCTETS)
    assert alice.record(locked)["status"] == "locked"


def test_content_type_is_case_insensitive(alice: Client) -> None:
    headers = [*meta(name="n", architecture="i386"), ("Content-Type", "Application/Octet-Stream")]
    assert alice.request("POST", "/images", headers, b"bytes").status == 200


def test_a_body_for_an_unknown_store_is_400(alice: Client) -> None:
    answer = alice.add(b"x", store="tape")
    assert (answer.status, answer.message) == (400, "The store 'tape' is not supported")


# --- state -------------------------------------------------------------------------------------


def test_bytes_for_an_available_image_are_409(alice: Client, stored) -> None:
    answer = alice.put(stored.id, b"more")
    assert (answer.status, answer.message) == (409, NOT_LOCKED)
    assert alice.get(stored.path).body == stored.data


def test_bytes_for_an_uploading_image_are_409_and_the_first_upload_goes_on(alice: Client) -> None:
    name = unique("busy")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Content-Length", "8")]
    with alice.start("POST", "/images", headers) as wire:
        wire.send(b"half")
        image = eventually(lambda: (i := alice.named(name)) and i["status"] == "uploading" and i)
        answer = alice.put(image["_id"], b"mine!")
        assert (answer.status, answer.message) == (409, NOT_LOCKED)
        wire.send(b"half")
        assert wire.read_response().image["status"] == "available"
    assert alice.get(f"/images/{image['_id']}").body == b"halfhalf"


@pytest.mark.parametrize(
    ("field", "value"), [("store", "file"), ("location", "http://images.example/a"), ("format", "iso")]
)
def test_store_location_and_format_of_an_available_image_are_fixed(alice: Client, stored, field, value) -> None:
    assert alice.put(stored.id, **{field: value}).status == 409
    assert alice.get(stored.path).body == stored.data


def test_store_and_format_of_an_uploading_image_are_fixed(alice: Client) -> None:
    name = unique("busy")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Content-Length", "8")]
    with alice.start("POST", "/images", headers) as wire:
        wire.send(b"half")
        image = eventually(lambda: (i := alice.named(name)) and i["status"] == "uploading" and i)
        for fields in ({"store": "file"}, {"format": "iso"}, {"location": "http://images.example/a"}):
            assert alice.put(image["_id"], **fields).status == 409
        wire.send(b"half")
        assert wire.read_response().status == 200


def test_format_of_a_locked_image_may_change(alice: Client) -> None:
    assert alice.put(alice.add(format="iso").image["_id"], format="raw").image["format"] == "raw"


# --- framing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "identity, gzip"])
def test_a_coded_body_is_415(alice: Client, coding) -> None:
    name = unique("coded")
    assert alice.add(b"bytes", [("Content-Encoding", coding)], name=name).status == 415
    assert alice.named(name) is None
    locked = alice.add().image["_id"]
    assert alice.put(locked, b"bytes", [("Content-Encoding", coding)]).status == 415
    assert alice.record(locked)["status"] == "locked"


def test_identity_is_no_coding(alice: Client) -> None:
    assert alice.add(b"bytes", [("Content-Encoding", "identity")]).status == 200


def test_put_with_content_range_is_400(alice: Client) -> None:
    locked = alice.add().image["_id"]
    assert alice.put(locked, b"bytes", [("Content-Range", "bytes 0-4/10")]).status == 400
    assert alice.record(locked)["status"] == "locked"


def test_a_chunked_body_of_zero_bytes_is_400(alice: Client) -> None:
    name = unique("zero")
    assert alice.add([], name=name).status == 400
    no_bytes(alice, name)
    locked = alice.add().image["_id"]
    assert alice.put(locked, []).status == 400
    assert alice.record(locked)["status"] in ("locked", "error")


def test_content_length_zero_means_metadata_only(alice: Client) -> None:
    image = alice.add(b"").image
    assert (image["status"], image["size"]) == ("locked", None)


@pytest.mark.direct("the proxy settles the framing: gateways see one length, or nothing")
@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: \r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
    ],
)
def test_ambiguous_framing_is_refused_and_the_connection_ends(alice: Client, framing) -> None:
    name = unique("framing")
    head = head_bytes(
        "POST", "/images", alice.signed("POST", "/images", [*meta(name=name, architecture="i386"), OCTETS])
    )
    with alice.connect() as wire:
        wire.send(head[:-2] + framing + b"\r\n5\r\nhello\r\n0\r\n\r\n")
        answer = wire.read_response()
        assert answer.status in (400, 411, 413, 501)
        wire.finish_sending()
        assert wire.ends() in ("fin", "reset")
    no_bytes(alice, name)


@pytest.mark.parametrize(
    "chunk", [b"zz\r\nhello\r\n", b"-5\r\nhello\r\n", b"5\r\nhelloXX", b"fffffffffffffffffffffff\r\n", b"0x5\r\n"]
)
def test_a_bad_chunk_ends_the_upload_without_bytes(alice: Client, chunk) -> None:
    name = unique("chunk")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Transfer-Encoding", "chunked")]
    with alice.start("POST", "/images", headers) as wire:
        wire.send(b"5\r\nfirst\r\n" + chunk)
        with contextlib.suppress(Reset):
            assert wire.read_response().status == 400
    no_bytes(alice, name)


def test_bytes_beyond_the_content_length_are_no_part_of_the_image(alice: Client) -> None:
    name = unique("beyond")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Content-Length", "5")]
    with alice.start("POST", "/images", headers) as wire:
        wire.send(b"hello and more, which is no request\r\n\r\n")
        answer = wire.read_response()
        if answer.status == 200:
            assert answer.image["size"] == 5
            assert wire.read_response().status == 400
        else:
            assert answer.status == 400
            no_bytes(alice, name)


# --- size --------------------------------------------------------------------------------------

CAP = 1 << 20  # what `locating` is configured with


def test_an_image_of_exactly_the_maximum_is_taken(locating) -> None:
    assert locating.admin.add(b"x" * CAP).image["size"] == CAP
    assert locating.admin.add([b"x" * (CAP // 4)] * 4).image["size"] == CAP


def test_a_content_length_above_the_maximum_is_413_before_any_byte(locating) -> None:
    name = unique("large")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Content-Length", str(CAP + 1))]
    with locating.admin.start("POST", "/images", headers) as wire:
        assert wire.read_response().status == 413
    no_bytes(locating.admin, name)


def test_chunks_above_the_maximum_are_413_and_the_part_is_gone(locating) -> None:

    before = store_files(locating)
    name = unique("large")
    answer = locating.admin.add([b"x" * 65536] * 17, name=name)
    assert answer.status == 413
    no_bytes(locating.admin, name)
    assert store_files(locating) == before


def test_an_enormous_chunk_size_is_413_or_400_and_allocates_nothing(locating) -> None:
    name = unique("large")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Transfer-Encoding", "chunked")]
    with locating.admin.start("POST", "/images", headers) as wire:
        wire.send(b"7fffffffffffffff\r\n" + b"x" * (CAP + 65536))
        with contextlib.suppress(Reset):
            assert wire.read_response().status in (400, 413)
    no_bytes(locating.admin, name)


# --- digests -----------------------------------------------------------------------------------


def b64(algorithm: str, data: bytes) -> str:
    return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()


DIGESTS = [
    ("Content-MD5", "{md5}"),
    ("Content-Digest", "sha-256=:{sha256}:"),
    ("Content-Digest", "sha-512=:{sha512}:"),
    ("Content-Digest", "md5=:{md5}:"),
    ("Repr-Digest", "sha-256=:{sha256}:"),
    ("Repr-Digest", "sha-512=:{sha512}:"),
    ("Repr-Digest", "md5=:{md5}:"),
    ("Content-Digest", "md5=:{md5}:, sha-512=:{sha512}:, sha-256=:{sha256}:"),
    ("Repr-Digest", "unixsum=:AAAA:, sha-256=:{sha256}:"),
]


def digest_header(header: str, form: str, data: bytes) -> tuple[str, str]:
    return header, form.format(**{name: b64(name, data) for name in ("md5", "sha256", "sha512")})


@pytest.mark.parametrize(("header", "form"), DIGESTS)
def test_a_digest_that_matches_is_accepted(alice: Client, header, form) -> None:
    data = b"digested bytes" * 1000
    assert alice.add(data, [digest_header(header, form, data)]).image["size"] == len(data)
    assert alice.add([data[:5], data[5:]], [digest_header(header, form, data)]).image["size"] == len(data)


@pytest.mark.parametrize(("header", "form"), DIGESTS)
def test_a_digest_that_does_not_match_is_400_and_no_bytes_are_kept(alice: Client, header, form) -> None:
    name = unique("digest")
    answer = alice.add(b"digested bytes", [digest_header(header, form, b"other bytes")], name=name)
    assert answer.status == 400
    assert "digest" in answer.message.lower() or "md5" in answer.message.lower()
    image = alice.named(name)
    assert image["status"] == "error"
    no_bytes(alice, name)


def test_one_wrong_digest_among_right_ones_is_enough(alice: Client) -> None:
    data, name = b"bytes", unique("digest")
    headers = [digest_header("Content-Digest", "sha-256=:{sha256}:", data), ("Content-MD5", b64("md5", b"other"))]
    assert alice.add(data, headers, name=name).status == 400
    no_bytes(alice, name)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Content-MD5", "!!!"),
        ("Content-MD5", "AAAA"),
        ("Content-Digest", "sha-256=:AAAA:"),
        ("Repr-Digest", "sha-256=:*:"),
    ],
)
def test_a_digest_that_can_match_nothing_is_400(alice: Client, header, value) -> None:
    name = unique("digest")
    assert alice.add(b"bytes", [(header, value)], name=name).status == 400
    no_bytes(alice, name)


def test_a_failed_upload_leaves_no_file(fresh) -> None:

    assert fresh.admin.add(b"bytes" * 1000, [("Content-MD5", b64("md5", b"other"))]).status == 400
    assert store_files(fresh) == []


# --- clients that leave ------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["cut", "close", "half-close"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_client_that_leaves_leaves_an_error_and_no_bytes(alice: Client, leave, framing) -> None:
    name = unique("left")
    how = ("Content-Length", "1000") if framing == "length" else ("Transfer-Encoding", "chunked")
    with alice.start("POST", "/images", [*meta(name=name, architecture="i386"), OCTETS, how]) as wire:
        wire.send(b"hello" if framing == "length" else b"5\r\nhello\r\n")
        eventually(lambda: (alice.named(name) or {}).get("status") == "uploading")
        if leave == "cut":
            wire.cut()
        elif leave == "half-close":
            wire.finish_sending()
            with contextlib.suppress(Short, Reset):
                assert wire.read_response().status == 400
    image = eventually(lambda: (image := alice.named(name)) and image["status"] == "error" and image)
    assert image["size"] is None
    no_bytes(alice, name)


def test_a_client_that_leaves_before_a_chunk_ends_leaves_nothing_whole(alice: Client) -> None:
    name = unique("left")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Transfer-Encoding", "chunked")]
    with alice.start("POST", "/images", headers) as wire:
        wire.send(b"5\r\nhello\r\n0\r\n")  # the last CRLF never comes
        eventually(lambda: alice.named(name))
    eventually(lambda: alice.named(name)["status"] == "error")


# --- Expect ------------------------------------------------------------------------------------

EXPECT = ("Expect", "100-continue")


def test_an_accepted_upload_is_asked_to_continue(alice: Client) -> None:
    headers = [*meta(name=unique("expected"), architecture="i386"), OCTETS, ("Content-Length", "5"), EXPECT]
    with alice.start("POST", "/images", headers) as wire:
        assert wire.read_line().startswith(b"HTTP/1.1 100")
        while wire.read_line():
            pass
        wire.send(b"bytes")
        assert wire.read_response().image["size"] == 5


def test_expect_is_case_insensitive(alice: Client) -> None:
    headers = [*meta(name=unique("expected"), architecture="i386"), OCTETS, ("Content-Length", "5")]
    with alice.start("POST", "/images", [*headers, ("Expect", "100-Continue")]) as wire:
        assert wire.read_line().startswith(b"HTTP/1.1 100")
        while wire.read_line():
            pass
        wire.send(b"bytes")
        assert wire.read_response().status == 200


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({"architecture": "vax"}, [OCTETS], 400),
        ({}, [("Content-Type", "text/plain")], 400),
        ({"store": "tape"}, [OCTETS], 400),
        ({"store": "http"}, [OCTETS], 400),
        ({"status": "available"}, [OCTETS], 400),
        ({}, [OCTETS, ("Content-Encoding", "gzip")], 415),
        ({}, [OCTETS, ("Authorization", "VISOR nobody:AAAA")], 403),
    ],
)
def test_a_refused_upload_is_never_asked_to_continue(alice: Client, fields, headers, status) -> None:
    record = {"name": unique("refused"), "architecture": "i386"} | fields
    full = [*meta(**record), *headers, ("Content-Length", "1000000000"), EXPECT]
    with alice.start("POST", "/images", full) as wire:
        answer = wire.read_response()
        assert (answer.status, answer.interim) == (status, [])


def test_a_refused_put_is_never_asked_to_continue(alice: Client, bob: Client, stored) -> None:
    for client, path, status in ((alice, stored.path, 409), (bob, stored.path, 403), (alice, "/images/fake", 404)):
        with client.start("PUT", path, [OCTETS, ("Content-Length", "1000"), EXPECT]) as wire:
            answer = wire.read_response()
            assert (answer.status, answer.interim) == (status, [])


def test_another_expectation_is_417_or_ignored_but_breaks_nothing(alice: Client) -> None:
    headers = [*meta(name=unique("expected"), architecture="i386"), OCTETS, ("Expect", "a-miracle")]
    assert alice.request("POST", "/images", headers, b"bytes").status in (200, 417)


# --- bytes against their declaration -----------------------------------------------------------


def qcow2(size: int = 1 << 20, *, backing: bytes = b"", data_file: bool = False) -> bytes:
    """A version 3 qcow2 header, by QEMU's docs/interop/qcow2.txt, with a refcount table and an empty L1 table."""
    cluster = 1 << 16
    header = bytearray(5 * cluster)
    backing_offset = 512 if backing else 0
    struct.pack_into(
        ">4sIQIIQIIQQIIQ", header, 0, b"QFI\xfb", 3, backing_offset, len(backing), 16, size, 0, 1, 3 * cluster,
        cluster, 1, 0, 0,
    )  # fmt: skip
    struct.pack_into(">QQQII", header, 72, 4 if data_file else 0, 0, 0, 4, 104)
    if data_file:
        name = b"/etc/passwd"
        struct.pack_into(">II16s", header, 104, 0x44415441, len(name), name)
    header[512 : 512 + len(backing)] = backing
    struct.pack_into(">Q", header, cluster, 2 * cluster)
    for number in range(4):
        struct.pack_into(">H", header, 2 * cluster + 2 * number, 1)
    return bytes(header[: 4 * cluster])


def vmdk(extent: str) -> bytes:
    """A VMDK text descriptor that names where its bytes are."""
    text = (
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\n\n# Extent description\nRW 2048 FLAT "{extent}" 0\n\n'
        '# The Disk Data Base\nddb.virtualHWVersion = "4"\n'
    )
    return text.encode().ljust(4096, b"\n")


UNSAFE = [
    pytest.param("qcow2", qcow2(backing=b"/etc/passwd"), id="qcow2-backing-file"),
    pytest.param("qcow2", qcow2(backing=b'json:{"driver":"file","filename":"/etc/passwd"}'), id="qcow2-json-backing"),
    pytest.param("qcow2", qcow2(data_file=True), id="qcow2-data-file"),
    pytest.param("vmdk", vmdk("/etc/passwd"), id="vmdk-foreign-extent"),
    pytest.param("vmdk", vmdk("other-flat.vmdk"), id="vmdk-relative-extent"),
    pytest.param("qcow2", b"\0" * 70_000, id="qcow2-declared-zeros-sent"),
    pytest.param("qcow2", b"hello image", id="qcow2-declared-text-sent"),
    pytest.param("vmdk", b"\0" * 70_000, id="vmdk-declared-zeros-sent"),
    pytest.param("vdi", qcow2(), id="vdi-declared-qcow2-sent"),
    pytest.param("raw", qcow2(backing=b"/etc/passwd"), id="raw-declared-qcow2-with-backing-sent"),
    pytest.param("raw", qcow2(), id="raw-declared-qcow2-sent"),
    pytest.param("none", qcow2(backing=b"/etc/passwd"), id="none-declared-qcow2-with-backing-sent"),
    pytest.param(None, qcow2(backing=b"/etc/passwd"), id="undeclared-qcow2-with-backing"),
    pytest.param(None, qcow2(data_file=True), id="undeclared-qcow2-with-data-file"),
    pytest.param(None, vmdk("/etc/passwd"), id="undeclared-vmdk-with-foreign-extent"),
]


@pytest.mark.parametrize(("declared", "data"), UNSAFE)
@pytest.mark.parametrize("cut", ["whole", "chunks", "dribble"])
def test_bytes_that_contradict_their_format_or_reach_outside_are_400_and_not_kept(alice, declared, data, cut) -> None:
    name = unique("unsafe")
    pieces = {
        "whole": data,
        "chunks": [data[i : i + 1000] for i in range(0, len(data), 1000)],
        "dribble": [*(data[i : i + 1] for i in range(200)), data[200:]] if len(data) > 200 else [data[:1], data[1:]],
    }[cut]
    fields = {"format": declared} if declared else {}
    answer = alice.add(pieces, name=name, **fields)
    assert answer.status == 400
    assert "/etc/passwd" not in answer.message
    assert alice.named(name)["status"] == "error"
    no_bytes(alice, name)


def test_a_sound_qcow2_is_taken_and_comes_back(alice: Client) -> None:
    data = qcow2()
    for fields in ({"format": "qcow2"}, {}):
        image = alice.add(data, **fields).image
        assert alice.get(f"/images/{image['_id']}").body == data


def test_bytes_put_to_a_locked_image_are_held_to_its_format(alice: Client) -> None:
    image = alice.add(format="qcow2").image
    assert alice.put(image["_id"], b"no qcow2 at all").status == 400
    assert alice.record(image["_id"])["status"] == "error"
    assert alice.put(image["_id"], qcow2()).image["status"] == "available"


# --- locations ---------------------------------------------------------------------------------

SCHEMES = [
    "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "s3://bucket/key", "ftp://images.example/a",
    "hdfs://name/a", "gopher://images.example/", "data:,x", "/etc/passwd", "//images.example/a", "http:", "http://",
    "cumulus://k:s@h/b/o", "HTTPX://images.example/", "nonsense", "http:///etc/passwd", "dict://127.0.0.1:11211/stat",
]  # fmt: skip


@pytest.mark.parametrize("location", SCHEMES)
@pytest.mark.parametrize("store", ["http", "file"])
def test_a_location_whose_scheme_is_not_allowed_is_400(alice: Client, location, store) -> None:
    name = unique("scheme")
    assert alice.add(name=name, store=store, location=location).status == 400
    assert alice.named(name) is None


def test_a_location_with_credentials_is_400_and_they_are_not_repeated(alice: Client) -> None:
    password = canary.secret("hunter2")
    answer = alice.add(store="http", location=f"http://user:{password}@images.example/a")
    assert answer.status == 400
    assert password not in answer.message


@pytest.fixture
def silent() -> Iterator[tuple[int, list[object]]]:
    """A listener on loopback that notes who connects."""
    seen: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, peer = server.accept()
                except TimeoutError:
                    continue
                seen.append(peer)
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], seen
        stop.set()
        thread.join()


DENIED = [
    "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "0.0.0.0", "[::]", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
    "[fe80::1]", "[fc00::1]", "[64:ff9b::7f00:1]", "224.0.0.1", "255.255.255.255", "[::127.0.0.1]", "[2002:7f00:1::]",
]  # fmt: skip


@pytest.mark.parametrize("store", ["http", "file"])
@pytest.mark.parametrize("host", DENIED)
def test_a_location_that_is_not_globally_reachable_is_404_without_a_connection(alice, silent, host, store) -> None:
    port, seen = silent
    location, name = f"http://{host}:{port}/image", unique("denied")
    answer = alice.add(name=name, store=store, location=location)
    assert (answer.status, answer.message) == (404, f"No image file found at {location}")
    assert seen == []
    assert alice.named(name) is None


def test_every_cause_of_a_missing_location_looks_alike(alice: Client, locating, origin: Origin) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        data = origin.put("there", b"bytes")
        causes = [
            (alice, data),  # denied
            (alice, refused),  # denied, and closed
            (locating.admin, refused),  # denied there too
            (locating.admin, f"{origin.url}/missing"),  # 404 at the origin
            (locating.admin, f"{origin.url}/to?http://127.0.0.1:1/a"),  # redirect to a denied address
            (locating.admin, f"{origin.url}/to?http://localhost:{origin.port}/there"),
            (locating.admin, f"{origin.url}/to?file:///etc/passwd"),
            (locating.admin, "http://does-not-exist.invalid/a"),
            (alice, "http://does-not-exist.invalid/a"),
        ]
        for client, location in causes:
            for store in ("http", "file"):
                name = unique("missing")
                answer = client.add(name=name, store=store, location=location)
                expected = {"code": 404, "message": f"No image file found at {location}"}
                assert (answer.status, answer.json()) == (404, expected), (location, store)
                assert client.named(name) is None


def test_a_refused_port_of_an_allowed_host_looks_alike_too(start) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gateway = start('[locations]\nallow_hosts = ["127.0.0.1"]\n')
        for store in ("http", "file"):
            location = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
            answer = gateway.admin.add(store=store, location=location)
            assert (answer.status, answer.message) == (404, f"No image file found at {location}")


def test_a_put_of_a_missing_location_is_404_and_leaves_the_image_locked(alice: Client) -> None:
    image = alice.add().image
    answer = alice.put(image["_id"], store="http", location="http://127.0.0.1:9/a")
    assert (answer.status, answer.message) == (404, "No image file found at http://127.0.0.1:9/a")
    record = alice.record(image["_id"])
    assert record["status"] == "locked"
    assert "location" not in record


def test_an_http_reference_is_available_with_what_the_origin_tells(locating, origin: Origin) -> None:
    data = unique("referred").encode() * 500
    location = origin.put("reference", data)
    image = locating.admin.add(store="http", location=location).image
    assert (image["status"], image["store"], image["location"]) == ("available", "http", location)
    assert image["size"] == len(data)
    assert image["checksum"] == origin.etags["/reference"]
    answer = locating.admin.get(f"/images/{image['_id']}")
    assert (answer.status, answer.body) == (200, data)


def test_an_http_reference_serves_ranges(locating, origin: Origin) -> None:
    data = bytes(range(256)) * 40
    image = locating.admin.add(store="http", location=origin.put("ranged", data)).image
    answer = locating.admin.get(f"/images/{image['_id']}", ("Range", "bytes=100-299"))
    assert (answer.status, answer.body) == (206, data[100:300])
    assert answer.header("content-range") == f"bytes 100-299/{len(data)}"


def test_a_redirect_between_allowed_places_is_followed(locating, origin: Origin) -> None:
    location = origin.put("moved", b"moved bytes")
    image = locating.admin.add(store="http", location=f"{origin.url}/to?{location}").image
    assert locating.admin.get(f"/images/{image['_id']}").body == b"moved bytes"


def test_deleting_an_http_reference_keeps_its_origin(locating, origin: Origin) -> None:
    location = origin.put("kept", b"kept bytes")
    image = locating.admin.add(store="http", location=location).image
    assert locating.admin.delete(f"/images/{image['_id']}").status == 200
    assert "DELETE" not in origin.methods("/kept")


def test_our_credentials_never_go_to_an_origin(locating, origin: Origin) -> None:
    location = origin.put("watched", b"watched bytes")
    image = locating.admin.add([], [("Cookie", "c=1")], store="http", location=location)
    image = locating.admin.add(None, [("Cookie", "c=1")], store="http", location=location).image
    locating.admin.get(f"/images/{image['_id']}", ("Cookie", "c=1"))
    for _, path, headers in origin.seen:
        if path == "/watched":
            assert "authorization" not in headers
            assert "cookie" not in headers
            assert locating.access_key not in json.dumps(headers)


def test_bytes_of_a_location_are_asked_for_as_they_are(locating, origin: Origin) -> None:
    location = origin.put("identity", b"plain bytes")
    image = locating.admin.add(store="http", location=location).image
    locating.admin.get(f"/images/{image['_id']}")
    asked = [headers for method, path, headers in origin.seen if path == "/identity" and method == "GET"]
    assert asked
    assert all(headers.get("accept-encoding") == "identity" for headers in asked)


def test_a_location_for_another_store_is_imported_in_the_background(locating, origin: Origin) -> None:
    data = unique("imported").encode() * 1000
    image = locating.admin.add(store="file", location=origin.put("import", data)).image
    assert image["status"] in ("locked", "uploading", "available")
    path = f"/images/{image['_id']}"
    record = eventually(lambda: (r := locating.admin.record(image["_id"]))["status"] == "available" and r)
    assert record["checksum"] == hashlib.sha256(data).hexdigest()
    assert record["size"] == str(len(data))
    del origin.files["/import"]
    assert locating.admin.get(path).body == data


def test_an_import_is_uploading_while_it_runs_and_a_transfer_of_its_owner(locating, origin: Origin) -> None:
    data = b"slow bytes" * 1000
    origin.put("later", data)
    origin.release.clear()
    image = locating.admin.add(store="file", location=f"{origin.url}/slow/later").image
    try:
        eventually(lambda: locating.admin.record(image["_id"])["status"] == "uploading")
        answer = locating.admin.get(f"/transfers?image={image['_id']}")
        (transfer,) = answer.json()["transfers"]
        assert (transfer["kind"], transfer["user"]) == ("import", locating.access_key)
        assert locating.admin.put(image["_id"], b"mine").status == 409
    finally:
        origin.release.set()
    eventually(lambda: locating.admin.record(image["_id"])["status"] == "available")
    assert locating.admin.get(f"/images/{image['_id']}").body == data


def test_delete_cancels_a_running_import(locating, origin: Origin) -> None:

    before = store_files(locating)
    origin.put("endless", b"slow bytes" * 1000)
    origin.release.clear()
    image = locating.admin.add(store="file", location=f"{origin.url}/slow/endless").image
    try:
        eventually(lambda: locating.admin.record(image["_id"])["status"] == "uploading")
        assert locating.admin.delete(f"/images/{image['_id']}").status == 200
        assert locating.admin.get(f"/images/{image['_id']}").status == 404
        eventually(lambda: store_files(locating) == before, what="no file of the import")
    finally:
        origin.release.set()


def test_an_import_of_unsafe_bytes_ends_in_error_without_bytes(locating, origin: Origin) -> None:
    location = origin.put("unsafe", qcow2(backing=b"/etc/passwd"))
    image = locating.admin.add(store="file", format="qcow2", location=location).image
    eventually(lambda: locating.admin.record(image["_id"])["status"] == "error")
    assert locating.admin.get(f"/images/{image['_id']}").status == 409


def test_an_import_whose_source_vanishes_ends_in_error(locating, origin: Origin) -> None:
    origin.put("vanished", b"bytes")
    image = locating.admin.add(store="file", location=f"{origin.url}/vanishing/vanished").image
    eventually(lambda: locating.admin.record(image["_id"])["status"] == "error")
    assert locating.admin.get(f"/images/{image['_id']}").status == 409


def test_an_import_above_the_maximum_is_refused_or_ends_in_error(locating, origin: Origin) -> None:
    name = unique("large")
    origin.put("toolarge", b"x" * (CAP + 1))
    for location in (f"{origin.url}/toolarge", f"{origin.url}/unsized/toolarge"):
        answer = locating.admin.add(name=name, store="file", location=location)
        if answer.status == 200:
            path = answer.image["_id"]
            eventually(lambda path=path: locating.admin.record(path)["status"] == "error")
            assert locating.admin.delete(f"/images/{path}").status == 200
        else:
            assert answer.status in (400, 413)


# --- early answers -----------------------------------------------------------------------------


def flood(wire: Wire, total: int) -> int:
    """Send up to `total` bytes; how many went before the peer cut the connection."""
    sent = 0
    try:
        while sent < total:
            wire.send(b"x" * 65536)
            sent += 65536
    except (Reset, TimeoutError):
        pass
    return sent


@pytest.mark.direct("connections of clients are the proxy's to close")
@pytest.mark.parametrize("case", ["403", "400", "413"])
def test_an_early_refusal_can_be_read_while_the_client_still_sends(alice: Client, locating, case) -> None:
    client = locating.admin if case == "413" else alice
    fields = {"name": unique("early"), "architecture": "vax" if case == "400" else "i386"}
    headers = [*meta(**fields), OCTETS, ("Content-Length", str(64 << 20))]
    if case == "403":
        headers.append(("Authorization", "VISOR nobody:AAAA"))
    with client.start("POST", "/images", headers) as wire:
        flood(wire, 512 * 1024)
        answer = wire.read_response()
        assert answer.status == int(case)
        assert (answer.header("connection") or "").lower() == "close"


def test_a_refused_client_that_sends_for_ever_is_cut_off(alice: Client) -> None:

    headers = [*meta(name="n", architecture="vax"), OCTETS, ("Content-Length", str(1 << 40))]
    with alice.start("POST", "/images", headers) as wire, pytest.raises(Reset):
        wire.send(bytes(64 << 20))


def test_a_post_refused_by_its_fields_stores_no_byte_of_what_follows(alice: Client) -> None:
    name = unique("smuggled")
    inner = head_bytes("POST", "/images", alice.signed("POST", "/images", meta(name=name, architecture="i386")))
    headers = [*meta(name="n", architecture="vax"), OCTETS, ("Content-Length", "5")]
    with alice.start("POST", "/images", headers) as wire:
        wire.send(inner)  # 5 bytes of body, then the rest of a request whose head is broken
        assert wire.read_response().status == 400
    assert alice.named(name) is None


def test_checksum_of_a_reference_is_not_taken_for_a_sha256(locating, origin: Origin) -> None:
    location = origin.put("tagged", b"tagged bytes")
    image = locating.admin.add(store="http", location=location).image
    assert image["checksum"] == origin.etags["/tagged"]
    assert locating.admin.head(f"/images/{image['_id']}").header("repr-digest") is None


def test_store_image_is_what_the_tests_think_it_is(alice: Client) -> None:
    image = store_image(alice)
    assert image.record["checksum"] == hashlib.sha256(image.data).hexdigest()
    assert content_digest(image.data).startswith("sha-256=:")
