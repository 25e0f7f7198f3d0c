"""Contract section 3: metadata in headers."""

from __future__ import annotations

import contextlib
import socket

import pytest
from wire import Client, Reset, Value, head_bytes, unique

BASE: list[tuple[str, Value]] = [("x-image-meta-architecture", "i386")]


def post(client: Client, *headers: tuple[str, Value]):
    return client.request("POST", "/images", [*BASE, *headers])


def post_raw(client: Client, signed: list[tuple[str, Value]], lines: bytes):
    """POST with `lines` put into the head as they are; `signed` is what the signature covers."""
    full = client.signed("POST", "/images", signed)
    head = head_bytes("POST", "/images", full)[:-2] + lines + b"Content-Length: 0\r\n\r\n"
    with client.connect() as wire:
        wire.send(head)
        return wire.read_response()


def test_header_names_are_case_insensitive(alice: Client) -> None:
    answer = post(alice, ("X-IMAGE-META-NAME", "upper"), ("X-Image-Meta-Distro", "debian"))
    assert (answer.image["name"], answer.image["distro"]) == ("upper", "debian")


def test_a_hyphen_in_the_field_reads_as_an_underscore(alice: Client) -> None:
    answer = post(alice, ("x-image-meta-name", "n"), ("x-image-meta-os-version", "12"), ("x-image-meta-a_b", "c"))
    assert (answer.image["os_version"], answer.image["a_b"]) == ("12", "c")


@pytest.mark.parametrize("value", ["007", "1", "1.0", "true", "null", "None", "[]", "{}", "1e5", "-0", '"quoted"'])
def test_values_are_text_and_never_type_guessed(alice: Client, value) -> None:
    image = alice.add(note=value).image
    assert image["note"] == value
    assert alice.record(image["_id"])["note"] == value


@pytest.mark.parametrize("value", ["Ümläut", "映像", "🐧", "a%20b", "a+b", "x" * 1000, "semi;colon, comma", "a  b\tc"])
def test_utf8_values_come_back_as_they_went(alice: Client, value) -> None:
    image = alice.add(note=value).image
    assert image["note"] == value
    assert alice.record(image["_id"])["note"] == value
    assert alice.get(f"/images?_id={image['_id']}", ("Accept", "application/xml")).status == 200


def test_blanks_around_a_value_are_not_part_of_it(alice: Client) -> None:
    image = post(alice, ("x-image-meta-name", " \t padded \t ")).image
    assert image["name"] == "padded"


def test_size_is_an_integer(alice: Client) -> None:
    image = alice.add(b"12345").image
    assert image["size"] == 5
    assert isinstance(image["size"], int)
    assert alice.record(image["_id"])["size"] == "5"


@pytest.mark.parametrize("value", [b"\xe9", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"ok \xc0\xaf"])
def test_a_value_that_is_not_utf8_is_400(alice: Client, value) -> None:
    name = unique("bytes")
    answer = post(alice, ("x-image-meta-name", name), ("x-image-meta-note", value))
    assert answer.status == 400
    assert alice.named(name) is None


@pytest.mark.parametrize("value", [b"a\x00b", b"a\rb", b"a\nb", b"\x00", b"a\r"])
def test_cr_lf_and_nul_in_a_value_are_400(alice: Client, value) -> None:
    name = unique("control")
    answer = post(alice, ("x-image-meta-name", name), ("x-image-meta-note", value))
    assert answer.status == 400
    assert alice.named(name) is None


def test_a_field_given_twice_is_400(alice: Client) -> None:
    name = unique("twice")
    answer = post_raw(alice, [*BASE, ("x-image-meta-name", name)], b"x-image-meta-name: other\r\n")
    assert answer.status == 400
    assert alice.named(name) is None
    assert alice.named("other") is None


def test_two_names_that_fold_to_one_field_are_400(alice: Client) -> None:
    name = unique("folded")
    for pair in (("os-x", "os_x"), ("note", "NOTE")):
        headers = [(f"x-image-meta-{spelling}", str(number)) for number, spelling in enumerate(pair)]
        assert post(alice, ("x-image-meta-name", name), *headers).status == 400
    assert alice.named(name) is None


@pytest.mark.direct("HAProxy joins folded lines, as RFC 9112 lets a proxy do")
def test_folded_header_lines_are_400(alice: Client) -> None:
    name = unique("obsolete")
    answer = post_raw(alice, [*BASE, ("x-image-meta-name", name)], b"x-image-meta-note: a\r\n b\r\n")
    assert answer.status == 400
    assert alice.named(name) is None


def filler(client: Client, size: int) -> bytes:
    """A GET head of exactly `size` bytes."""
    headers = client.signed("GET", "/images/detail")
    short = len(head_bytes("GET", "/images/detail", [*headers, ("X-Filler", "")]))
    return head_bytes("GET", "/images/detail", [*headers, ("X-Filler", "f" * (size - short))])


@pytest.mark.direct("the proxy answers heads that are too long, or makes them longer")
@pytest.mark.parametrize("size", [16 * 1024 + 1, 20 * 1024, 200 * 1024])
def test_a_head_above_16_kib_is_431(alice: Client, stored, size) -> None:

    with alice.connect() as wire:
        with contextlib.suppress(Reset):
            wire.send(filler(alice, size))
        assert wire.read_head().status == 431


@pytest.mark.direct("the proxy answers heads that are too long, or makes them longer")
@pytest.mark.parametrize("size", [2000, 15 * 1024, 16 * 1024 - 1])
def test_a_head_below_16_kib_is_served(alice: Client, stored, size) -> None:
    with alice.connect() as wire:
        wire.send(filler(alice, size))
        assert wire.read_response().status == 200


@pytest.mark.parametrize(("size", "status"), [(15 * 1024, 200), (17 * 1024, 431)])
def test_the_limit_of_the_head_does_not_depend_on_how_it_is_cut_into_packets(alice, stored, size, status) -> None:

    head = filler(alice, size)
    with alice.connect() as wire:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for start in range(0, len(head), 500):
                wire.send(head[start : start + 500])
        except Reset:
            pass
        assert wire.read_head().status == status


@pytest.mark.direct("the proxy answers heads that are too long, or makes them longer")
def test_many_small_headers_count_as_well(alice: Client, stored) -> None:

    headers = alice.signed("GET", "/images/detail", [(f"X-H{number}", "v" * 10) for number in range(1200)])
    with alice.connect() as wire:
        with contextlib.suppress(Reset):
            wire.send(head_bytes("GET", "/images/detail", headers))
        assert wire.read_head().status == 431


@pytest.mark.direct("the proxy answers heads that are too long, or makes them longer")
def test_a_request_line_without_end_is_refused(gateway, anonymous: Client) -> None:

    with anonymous.connect() as wire:
        with contextlib.suppress(Reset):
            wire.send(b"GET /" + b"a" * 40_000)
        assert wire.read_head().status in (414, 431)


def test_a_post_answers_without_metadata_headers(alice: Client) -> None:
    assert alice.add(b"x").meta() == {}
    assert alice.add().meta() == {}
