"""Request heads: what passes reaches the application as sent, everything else is refused with the right status."""

from __future__ import annotations

from contextlib import suppress

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visor_gateway.server.head import MAX_HEAD, RequestHead, cut_head, parse_head, parse_simple
from visor_gateway.server.refusal import Refusal

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n"
)


def parsed(data: bytes) -> RequestHead:
    buffer = bytearray(data)
    raw = cut_head(buffer)
    assert raw is not None
    assert not buffer
    for _ in range(2):  # the second time it may be remembered
        simple = parse_simple(raw)
    head = parse_head(h11.Connection(h11.SERVER), raw)
    assert simple in (None, head)
    return head


def refused(data: bytes) -> int:
    with pytest.raises(Refusal) as caught:
        parsed(data)
    with pytest.raises(Refusal) as again:
        parse_head(h11.Connection(h11.SERVER), cut_head(bytearray(data)))
    assert again.value.status == caught.value.status
    return caught.value.status


def get(*lines: bytes, target: bytes = b"/", host: bytes = b"Host: h\r\n") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def test_only_short_heads_without_body_or_upgrade_are_remembered() -> None:
    assert parse_simple(get(b"X-A: 1")) is parse_simple(get(b"X-A: 1")) is not None
    body, upgrade = b"Content-Length: 0", b"Upgrade: websocket"
    for line in (
        body,
        body.lower(),
        b"Transfer-Encoding: chunked",
        upgrade,
        b"Expect: 100-continue",
        b"X: " + b"x" * 1000,
    ):
        assert parse_simple(get(line)) is None
    assert parse_simple(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n") is None


def test_header_values_arrive_as_sent() -> None:
    head = parsed(get(b"X-Image-Meta-Name: \xc3\xa9t\xc3\xa9 \t x", b"X-A: 1", b"x-a: 2"))
    assert head.headers == [
        (b"host", b"h"),
        (b"x-image-meta-name", b"\xc3\xa9t\xc3\xa9 \t x"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
    ]
    assert (head.method, head.target, head.version, head.length, head.websocket) == ("GET", b"/", "1.1", 0, False)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get(b"A: b", b" folded"), 400),
        (get(b"A: b", b"\tfolded"), 400),
        (b"GET / HTTP/1.1\r\n folded\r\nHost: h\r\n\r\n", 400),
        (get(b"A: b\x00c"), 400),
        (get(b"A: b\rc"), 400),
        (b"GET / HTTP/1.1\nHost: h\n\n", 400),
        (get(b"A: b\nC: d"), 400),
        (get(b"A : b"), 400),
        (get(b"A"), 400),
        (get(host=b""), 400),
        (get(host=b"Host: a\r\nHost: a\r\n"), 400),
        (get(host=b"Host: a b\r\n"), 400),
        (get(host=b"Host: a/b\r\n"), 400),
        (get(b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
        (get(b"Content-Length: 5", b"Content-Length: 5"), 400),
        (get(b"Content-Length: 5", b"Content-Length: 6"), 400),
        (get(b"Content-Length: 5, 5"), 400),
        (get(b"Content-Length: +5"), 400),
        (get(b"Content-Length: -5"), 400),
        (get(b"Content-Length: 0x5"), 400),
        (get(b"Content-Length: 5_0"), 400),
        (get(b"Content-Length:"), 400),
        (get(b"Content-Length: 1" + b"0" * 30), 400),
        (get(b"Transfer-Encoding: gzip"), 501),
        (get(b"Transfer-Encoding: gzip, chunked"), 501),
        (get(b"Transfer-Encoding: chunked, chunked"), 501),
        (get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 501),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (get(b"Expect: the-unexpected"), 417),
        (get(target=b"/a#b"), 400),
        (get(target=b"/\xc3\xa9"), 400),
        (get(target=b"/a\x7fb"), 400),
        (get(target=b"/a b"), 400),
        (get(target=b"*"), 400),
        (get(target=b"images"), 400),
        (get(target=b"h:80"), 400),
        (get(target=b"http://"), 400),
        (get(target=b"http://user@h/"), 400),
        (get(target=b"ftp://h/"), 400),
        (b"CONNECT /x HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
def test_malformed_head_is_refused(data: bytes, status: int) -> None:
    assert refused(data) == status


@pytest.mark.parametrize(
    ("target", "host", "seen"),
    [
        (b"http://gateway:80/images?a=b", b"gateway:80", b"/images?a=b"),
        (b"HTTPS://gateway", b"gateway", b"/"),
        (b"http://gateway?a=b", b"gateway", b"/?a=b"),
        (b"//double", b"h", b"//double"),
        (b"/%zz%00", b"h", b"/%zz%00"),
    ],
)
def test_absolute_target_becomes_origin_form_and_names_the_host(target: bytes, host: bytes, seen: bytes) -> None:
    head = parsed(get(target=target))
    assert head.target == seen
    assert (b"host", host) in head.headers


def test_empty_lines_before_a_request_are_dropped() -> None:
    assert parsed(b"\r\n\r\n\n" + get()).target == b"/"
    assert cut_head(bytearray(b"\r\n\r")) is None


@pytest.mark.parametrize("field", [b"Protocol", b"Extensions", b"Key", b"Version"])
def test_websocket_handshake_with_other_bytes_than_ascii_is_refused(field: bytes) -> None:
    assert refused(HANDSHAKE + b"Sec-WebSocket-" + field + b": a\xe9\r\n\r\n") == 400


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Connection: Upgrade", b"Connection: \xe9, Upgrade", 400),
        (b"Upgrade: websocket", b"Upgrade: websocket, \xe9", 400),
        (b"Connection: Upgrade", b"Connection: keep-alive", 400),
        (b"Connection: Upgrade\r\n", b"", 400),
        (b"Version: 13", b"Version: 8", 426),
        (b"Sec-WebSocket-Version: 13\r\n", b"", 426),
        (KEY, b"short", 400),
        (KEY, b"!" * 24, 400),
        (b"Host: h", b"Host: h\r\nContent-Length: 3", 400),
    ],
)
def test_incomplete_websocket_handshake_is_refused(old: bytes, new: bytes, status: int) -> None:
    assert refused(HANDSHAKE.replace(old, new) + b"\r\n") == status


def test_websocket_handshake_is_recognised() -> None:
    assert parsed(HANDSHAKE + b"\r\n").websocket
    assert not parsed(HANDSHAKE.replace(b"websocket", b"h2c") + b"HTTP2-Settings: ?\r\n\r\n").websocket
    assert not parsed(HANDSHAKE.replace(b"GET", b"POST") + b"\r\n").websocket


@settings(deadline=None)
@given(st.integers(50, MAX_HEAD // 2), st.integers(-40, 40))
def test_the_limit_of_a_head_does_not_depend_on_how_it_is_split(size: int, extra: int) -> None:
    prefix = b"GET / HTTP/1.1\r\nHost: h\r\nA: "
    data = prefix + b"a" * (MAX_HEAD + extra - len(prefix) - 4) + b"\r\n\r\n"
    buffer = bytearray()
    outcome: object = None
    for start in range(0, len(data), size):
        buffer += data[start : start + size]
        try:
            outcome = cut_head(buffer)
        except Refusal as refusal:
            outcome = refusal.status
        if outcome is not None:
            break
    assert outcome == (data if extra <= 0 else 431)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes) -> None:
    for sample in (data, b"GET " + data + b" HTTP/1.1\r\nHost: h\r\n\r\n", get(data), HANDSHAKE + data + b"\r\n\r\n"):
        head = None
        with suppress(Refusal):
            raw = cut_head(bytearray(sample))
            head = None if raw is None else parse_head(h11.Connection(h11.SERVER), raw)
        assert head is None or (head.target.startswith(b"/") and head.target.isascii())


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 60))
def test_bytes_after_a_head_stay_in_the_buffer(rest: bytes, split: int) -> None:
    buffer = bytearray(get() + rest)
    assert cut_head(buffer) == get()
    assert buffer == rest
