"""What ends other servers: bytes that no honest client sends. The daemon and everybody else's transfers go on."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time

import pytest
from gateway_process import Gateway
from wire import (
    OCTETS,
    Client,
    Reset,
    Short,
    Stored,
    Wire,
    eventually,
    head_bytes,
    meta,
    store_image,
    unique,
    upgrade_headers,
)

SIZE = 16 << 20
WS = "/transfers/ws"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def image(gateway: Gateway) -> Stored:
    return store_image(gateway.admin, random.Random(6).randbytes(SIZE))


def request(*lines: bytes) -> bytes:
    return b"\r\n".join([*lines, b"Host: x", b"", b""])


def upgrade(*changes: tuple[str, bytes]) -> bytes:
    """A WebSocket handshake with some headers replaced by other bytes."""
    headers = dict(upgrade_headers()) | dict(changes)
    return head_bytes("GET", WS, [("Host", "x"), *headers.items()])


def frame(first: int, payload: bytes = b"", *, mask: bool = True, length: int | None = None) -> bytes:
    """A WebSocket frame (RFC 6455, 5.2), well-formed or not."""
    size = len(payload) if length is None else length
    bit = 0x80 if mask else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + (b"\0\0\0\0" if mask else b"") + payload


GARBAGE = random.Random(9).randbytes(200_000)

BEFORE_ANYTHING = {
    "h2c upgrade with bad settings": request(
        b"GET /status HTTP/1.1", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: !!!"
    ),
    "h2c upgrade with non-ASCII settings": request(
        b"GET /status HTTP/1.1", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: \xe9\xff"
    ),
    "h2c upgrade with good settings": request(
        b"GET /status HTTP/1.1", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk"
    ),
    "h2c upgrade of a POST": request(
        b"POST /images HTTP/1.1", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: x",
        b"Content-Length: 5",
    ) + b"hello",
    "HTTP/2 preface": PREFACE,
    "HTTP/2 preface and settings": PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "HTTP/2 preface and garbage": PREFACE + GARBAGE[:5000],
    "byte E9 in Sec-WebSocket-Protocol": upgrade(("Sec-WebSocket-Protocol", b"\xe9")),
    "byte E9 in Sec-WebSocket-Extensions": upgrade(("Sec-WebSocket-Extensions", b"permessage-deflate; x=\xe9")),
    "byte E9 in Connection": upgrade(("Connection", b"Upgrade, \xe9")),
    "byte E9 in Upgrade": upgrade(("Upgrade", b"websocket, \xe9")),
    "byte E9 in Sec-WebSocket-Key": upgrade(("Sec-WebSocket-Key", b"\xe9" * 24)),
    "byte E9 in Sec-WebSocket-Version": upgrade(("Sec-WebSocket-Version", b"\xe9")),
    "byte E9 in Origin": upgrade(("Origin", b"\xe9")),
    "WebSocket frames behind the handshake": upgrade() + frame(0x81, b"{}") * 50,
    "WebSocket of version 12": upgrade(("Sec-WebSocket-Version", b"12")),
    "WebSocket with a body": upgrade(("Content-Length", b"5")) + b"hello",
    "WebSocket by POST": upgrade().replace(b"GET", b"POST", 1),
    "WebSocket over HTTP/1.0": upgrade().replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "upgrade on a route that has none": upgrade().replace(WS.encode(), b"/images", 1),
    "chunk of bad size": request(b"POST /images HTTP/1.1", b"Transfer-Encoding: chunked") + b"zz\r\n",
    "length and chunks": request(b"POST /images HTTP/1.1", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "no method": b"\r\n\r\n\r\n",
    "no version": b"GET /status\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/3.0": b"GET / HTTP/3.0\r\n\r\n",
    "NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "non-ASCII method": b"G\xe9T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "star": request(b"OPTIONS * HTTP/1.1"),
    "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    "broken absolute target": request(b"GET http://[::1 HTTP/1.1"),
    "broken host": b"GET /images HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "host of control bytes": b"GET /images HTTP/1.1\r\nHost: \x01\x02\r\n\r\n",
    "percent at the end": request(b"GET /images/% HTTP/1.1"),
    "broken UTF-8 in the path": request(b"GET /images/%ff%fe HTTP/1.1"),
    "huge query": request(b"GET /images?" + b"a=b&" * 3000 + b" HTTP/1.1"),
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + GARBAGE[:512],
    "garbage": GARBAGE,
    "zeros": bytes(100_000),
    "line feeds": b"\n" * 50_000,
    "ten thousand headers": request(b"GET /status HTTP/1.1", *[b"a: b"] * 10_000),
    "half a head": b"GET /status HTTP/1.1\r\nHos",
    "nothing": b"",
}  # fmt: skip


def survives(gateway: Gateway, image: Stored, attack) -> None:
    """Run `attack` in the middle of somebody's pull."""
    pid = gateway.pid
    with gateway.admin.start("GET", image.path, receive_buffer=65536) as victim:
        head = victim.read_head()
        begun = victim.read_exactly(100_000)
        attack()
        assert gateway.is_running()
        assert gateway.pid == pid
        assert gateway.client().get("/status").body == b"OK"
        assert begun + victim.read_exactly(SIZE - 100_000) == image.data
        assert head.status == 200


@pytest.mark.parametrize("leave", ["fin", "rst", "half"])
@pytest.mark.parametrize("name", BEFORE_ANYTHING)
def test_no_bytes_of_a_stranger_end_the_daemon_or_anothers_transfer(gateway, image, name, leave) -> None:
    def attack() -> None:
        with gateway.client().connect(timeout=8) as wire, contextlib.suppress(Reset, Short, TimeoutError):
            wire.send(BEFORE_ANYTHING[name])
            if leave == "rst":
                wire.cut()
                return
            if leave == "half":
                wire.finish_sending()
                wire.read_to_end()
            elif BEFORE_ANYTHING[name].strip().endswith(b"Host: x"):
                assert 100 < wire.read_head().status < 600

    survives(gateway, image, attack)


AFTER_THE_UPGRADE = {
    "unmasked frame": frame(0x81, b"{}", mask=False),
    "reserved bits": frame(0xF1, b"{}"),
    "reserved opcode": frame(0x83, b"{}"),
    "binary": frame(0x82, b"\xff" * 100),
    "text that is not UTF-8": frame(0x81, b"\xff\xfe\xe9"),
    "huge length": frame(0x81, b"", length=2**63 - 1),
    "length with the top bit": frame(0x81, b"", length=2**64 - 1),
    "four million bytes": frame(0x81, b"x" * (4 << 20)),
    "endless fragments": frame(0x01, b"x" * 1000) + frame(0x00, b"x" * 1000) * 2000,
    "continuation of nothing": frame(0x80, b"x"),
    "fragmented ping": frame(0x09, b"x"),
    "ping of 126 bytes": frame(0x89, b"x" * 126),
    "ten thousand pings": frame(0x89, b"x" * 100) * 10_000,
    "close of one byte": frame(0x88, b"x"),
    "close with a bad code": frame(0x88, struct.pack("!H", 5)),
    "close and more": frame(0x88, struct.pack("!H", 1000)) + frame(0x81, b"{}") * 10,
    "deep JSON": frame(0x81, b"[" * 50_000),
    "surrogates": frame(0x81, b'{"type": "\\ud800"}'),
    "number beyond all": frame(0x81, b'{"type": "subscribe", "hz": 1e999}'),
    "garbage": GARBAGE,
}


@pytest.mark.parametrize("leave", ["fin", "rst"])
@pytest.mark.parametrize("name", AFTER_THE_UPGRADE)
def test_no_frames_of_a_subscriber_end_the_daemon_or_anothers_transfer(gateway, image, name, leave) -> None:
    def attack() -> None:
        with gateway.admin.start("GET", WS, upgrade_headers(), timeout=8) as wire:
            assert wire.read_head().status == 101
            with contextlib.suppress(Reset, TimeoutError):
                wire.send(AFTER_THE_UPGRADE[name])
                if leave == "rst":
                    wire.cut()
                else:
                    wire.finish_sending()
                    wire.read_to_end()

    survives(gateway, image, attack)


def test_frames_that_come_before_the_101_are_survived(gateway, image) -> None:
    def attack() -> None:
        head = head_bytes("GET", WS, gateway.admin.signed("GET", WS, upgrade_headers()))
        with gateway.client().connect() as wire, contextlib.suppress(Reset, Short):
            wire.send(head + frame(0x81, b'{"type": "subscribe"}') + frame(0x88, struct.pack("!H", 1000)))
            wire.read_to_end()

    survives(gateway, image, attack)


def test_a_bad_chunk_during_ones_own_pull_never_mixes_anothers_bytes(gateway, image) -> None:
    """The descriptor of a connection that broke is reused at once by the next one."""
    other = store_image(gateway.admin, b"\xaa" * SIZE)

    def attack() -> None:
        headers = [("Transfer-Encoding", "chunked")]
        for _ in range(5):
            with gateway.admin.start("GET", other.path, headers, receive_buffer=65536) as wire:
                with contextlib.suppress(Reset, Short):
                    wire.send(b"zz\r\nnot a chunk\r\n")
                    wire.read_head()
                wires = [gateway.client().connect() for _ in range(5)]
                for stranger in wires:
                    stranger.send(request(b"GET /status HTTP/1.1"))
                    assert stranger.read_response().body == b"OK"
                    assert stranger.quiet_for(0.01)
                    stranger.close()

    survives(gateway, image, attack)


def test_an_upload_answered_early_whose_client_goes_on_and_leaves_is_survived(gateway, image) -> None:
    def attack() -> None:
        headers = [*meta(name="n", architecture="vax"), OCTETS, ("Content-Length", str(1 << 30))]
        for _ in range(10):
            with gateway.admin.start("POST", "/images", headers) as wire, contextlib.suppress(Reset):
                wire.send(bytes(100_000))
                wire.cut()

    survives(gateway, image, attack)


def test_clients_that_vanish_at_every_point_of_a_request_are_survived(gateway, image) -> None:
    def attack() -> None:
        headers = [*meta(name=unique("vanish"), architecture="i386"), OCTETS, ("Content-Length", "50")]
        message = head_bytes("POST", "/images", gateway.admin.signed("POST", "/images", headers)) + b"x" * 50
        for end in range(0, len(message), 37):
            with Wire(gateway.url) as wire:
                wire.send(message[:end])
                wire.cut()

    survives(gateway, image, attack)


def test_descriptors_of_clients_that_left_are_given_back(gateway, image) -> None:
    def open_files() -> int:
        return len(os.listdir(f"/proc/{gateway.pid}/fd"))

    gateway.client().get("/status")
    before = open_files()
    for number in range(60):
        with gateway.admin.start("GET", image.path, receive_buffer=65536) as wire:
            if number % 2:
                wire.read_head()
            wire.cut()
    eventually(lambda: open_files() <= before + 3, what="as many descriptors as before")


def test_many_idle_connections_do_not_keep_others_out(gateway, image) -> None:
    wires = [Wire(gateway.url) for _ in range(300)]
    try:
        assert gateway.admin.get(image.path).body == image.data
    finally:
        for wire in wires:
            wire.close()


def test_one_connection_more_than_the_limit_is_503(start) -> None:
    gateway = start("[server]\nmax_connections = 5\n")
    image = store_image(gateway.admin)
    wires: list[Wire] = []
    try:
        for _ in range(5):  # of what was there before the gateway may not have noticed the end
            wires.append(eventually(lambda: admitted(gateway), what="room"))
        with Wire(gateway.url) as more:
            with contextlib.suppress(Reset):
                more.send(request(b"GET /status HTTP/1.1"))
            answer = more.read_head()
            assert answer.status == 503
            assert answer.header("retry-after")
    finally:
        for wire in wires:
            wire.close()
    eventually(lambda: answered(gateway.admin, image), what="room again")


def admitted(gateway: Gateway) -> Wire | None:
    """A connection that the gateway has taken, if it takes one."""
    wire = Wire(gateway.url)
    with contextlib.suppress(Reset, Short):
        wire.send(request(b"GET /status HTTP/1.1"))
        if wire.read_response().status == 200:
            return wire
    wire.close()
    return None


def answered(client: Client, image: Stored) -> bool:
    with contextlib.suppress(Reset, Short, ConnectionError):
        return client.get(image.path).body == image.data
    return False


def test_a_stalled_upload_and_a_stalled_pull_are_cut_after_stall_timeout(start) -> None:
    gateway = start("[server]\nstall_timeout = 1\n")
    image = store_image(gateway.admin, bytes(SIZE))
    name = unique("stalled")
    headers = [*meta(name=name, architecture="i386"), OCTETS, ("Content-Length", "100")]
    with (
        gateway.admin.start("POST", "/images", headers) as upload,
        gateway.admin.start("GET", image.path, receive_buffer=65536) as pull,
    ):
        upload.send(b"half")
        pull.read_head()
        eventually(lambda: (gateway.admin.named(name) or {}).get("status") == "error", what="status error")
        eventually(lambda: not gateway.admin.get("/transfers?state=running").json()["transfers"], what="no transfer")
        with pytest.raises((Reset, Short)):
            pull.read_exactly(SIZE)


def test_a_slow_client_that_goes_on_is_not_cut(start) -> None:
    gateway = start("[server]\nstall_timeout = 4\n")
    data = b"x" * 4000
    headers = [*meta(name=unique("slow"), architecture="i386"), OCTETS, ("Content-Length", str(len(data)))]
    with gateway.admin.start("POST", "/images", headers) as wire:
        for number in range(0, len(data), 400):
            wire.send(data[number : number + 400])
            time.sleep(0.5)  # what a slow client is: in all it takes longer than the limit
        assert wire.read_response().image["size"] == len(data)


def test_an_address_family_that_is_not_served_is_refused_by_the_kernel(gateway) -> None:
    port = int(gateway.url.rpartition(":")[2])
    with socket.socket(socket.AF_INET6) as sock, pytest.raises(OSError, match=r"refused|unreachable|assign"):
        sock.connect(("::1", port))
