"""Real sockets: resets, TLS names, reuse, and that nothing reaches a denied listener."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

import pytest
import trio
import trustme
from faulty_origin import Close, Origin, Reset, Stall, Step, head

from visor_gateway.outbound import (
    AddressDenied,
    BodyBroken,
    LocationPolicy,
    Outbound,
    OutboundError,
    RedirectRefused,
    Unreachable,
)
from visor_gateway.outbound.dialer import connect


async def to_loopback(host: str, port: int) -> Sequence[str]:
    await trio.lowlevel.checkpoint()
    return ["127.0.0.1"]


def allowed(*hosts: str) -> LocationPolicy:
    return LocationPolicy(allow_hosts=hosts)


async def fetch(outbound: Outbound, url: str) -> bytes:
    async with outbound.request("GET", url) as response:
        return b"".join([block async for block in response.stream])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_large_body_arrives_and_the_connection_is_used_again() -> None:
    origin = Origin(bytes(range(256)) * 20_000)
    async with origin.listening() as port:
        outbound = Outbound(allowed(f"127.0.0.1:{port}"))
        for _ in range(2):
            assert await fetch(outbound, f"http://127.0.0.1:{port}/") == origin.body
        await outbound.aclose()
    assert origin.connections == 1


async def test_the_end_of_a_block_that_is_cancelled_closes_idle_connections_too() -> None:
    dialed: list[trio.SocketStream] = []

    async def recorded(address: str, port: int) -> trio.abc.Stream:
        stream = await connect(address, port)
        assert isinstance(stream, trio.SocketStream)
        dialed.append(stream)
        return stream

    origin = Origin(b"x")
    async with origin.listening() as port:
        with trio.CancelScope() as scope:
            async with Outbound(allowed("127.0.0.1"), connector=recorded) as outbound:
                assert await fetch(outbound, f"http://127.0.0.1:{port}/") == b"x"
                assert [stream.socket.fileno() == -1 for stream in dialed] == [False]
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert [stream.socket.fileno() == -1 for stream in dialed] == [True]


async def test_an_idle_connection_that_the_origin_closed_is_not_tried_again() -> None:
    origin = Origin(answer=lambda asked: [head(200, content_length=1), b"x", Close()])
    async with origin.listening() as port:
        outbound = Outbound(allowed("127.0.0.1"))
        for _ in range(3):
            assert await fetch(outbound, f"http://127.0.0.1:{port}/") == b"x"
        await outbound.aclose()
    assert origin.connections == 3


async def test_a_connection_with_bytes_that_nobody_asked_for_is_not_used_again() -> None:
    extra = [head(200, content_length=1), b"xHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"]
    origin = Origin(b"true", answer=lambda asked: extra if asked.connection == 1 else None)
    async with origin.listening() as port:
        outbound = Outbound(allowed("127.0.0.1"))
        assert await fetch(outbound, f"http://127.0.0.1:{port}/") == b"x"
        assert await fetch(outbound, f"http://127.0.0.1:{port}/") == b"true"
        await outbound.aclose()


async def test_a_reset_body_is_an_error() -> None:
    origin = Origin(answer=lambda asked: [head(200, content_length=10), b"abc", Reset()])
    async with origin.listening() as port:
        outbound = Outbound(allowed("127.0.0.1"))
        with pytest.raises(BodyBroken):
            await fetch(outbound, f"http://127.0.0.1:{port}/")


async def test_a_reset_before_the_head_is_unreachable() -> None:
    async with Origin(answer=lambda asked: [Reset()]).listening() as port:
        with pytest.raises(Unreachable):
            await Outbound(allowed("127.0.0.1")).open("GET", f"http://127.0.0.1:{port}/")


async def test_a_closed_port_is_unreachable() -> None:
    async with Origin().listening() as port:
        pass
    with pytest.raises(Unreachable):
        await Outbound(allowed("127.0.0.1")).open("GET", f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "localhost", "0x7f000001", "[::ffff:127.0.0.1]", "0"])
async def test_a_listener_on_a_denied_address_sees_no_connection(host: str) -> None:
    origin = Origin(b"secret")
    async with origin.listening() as port:
        with pytest.raises(AddressDenied):
            await Outbound(LocationPolicy()).open("GET", f"http://{host}:{port}/")
    assert origin.connections == 0


async def test_a_large_body_arrives_over_tls_and_the_connection_is_used_again(authority: trustme.CA) -> None:
    origin = Origin(os.urandom(3_000_000))
    async with origin.listening(server_context(authority, "images.example")) as port:
        outbound = Outbound(allowed("images.example"), resolver=to_loopback, ssl_context=client_context(authority))
        for _ in range(2):
            assert await fetch(outbound, f"https://images.example:{port}/") == origin.body
        await outbound.aclose()
    assert origin.connections == 1


async def test_a_tls_connection_with_bytes_that_nobody_asked_for_is_not_used_again(authority: trustme.CA) -> None:
    extra = [head(200, content_length=1), b"xHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"]
    origin = Origin(b"true", answer=lambda asked: extra if asked.connection == 1 else None)
    async with origin.listening(server_context(authority, "images.example")) as port:
        outbound = Outbound(allowed("images.example"), resolver=to_loopback, ssl_context=client_context(authority))
        assert await fetch(outbound, f"https://images.example:{port}/") == b"x"
        assert await fetch(outbound, f"https://images.example:{port}/") == b"true"
        await outbound.aclose()
    assert origin.connections == 2


async def test_a_body_that_is_cut_under_tls_is_an_error(authority: trustme.CA) -> None:
    """Also where the peer leaves without a farewell: the end of the connection is no end of a body."""
    context = server_context(authority, "images.example")
    origin = Origin(answer=lambda asked: [head(200, content_length=300_000), b"x" * 200_000, Close()])
    async with origin.listening(context) as port:
        outbound = Outbound(allowed("images.example"), resolver=to_loopback, ssl_context=client_context(authority))
        with pytest.raises(BodyBroken):
            await fetch(outbound, f"https://images.example:{port}/")
        await outbound.aclose()


async def test_the_right_name_passes_tls(authority: trustme.CA) -> None:
    origin = Origin(b"image" * 100_000)
    async with origin.listening(server_context(authority, "images.example")) as port:
        outbound = Outbound(allowed("images.example"), resolver=to_loopback, ssl_context=client_context(authority))
        for host in ("images.example", "images.example."):
            assert await fetch(outbound, f"https://{host}:{port}/") == origin.body
        await outbound.aclose()


async def test_an_address_in_the_certificate_passes_tls(authority: trustme.CA) -> None:
    async with Origin(b"x").listening(server_context(authority, "127.0.0.1")) as port:
        outbound = Outbound(allowed("127.0.0.1"), ssl_context=client_context(authority))
        assert await fetch(outbound, f"https://127.0.0.1:{port}/") == b"x"
        await outbound.aclose()


async def test_a_wrong_name_is_refused_before_any_request(authority: trustme.CA) -> None:
    origin = Origin(b"x")
    async with origin.listening(server_context(authority, "other.example")) as port:
        outbound = Outbound(allowed("images.example"), resolver=to_loopback, ssl_context=client_context(authority))
        with pytest.raises(Unreachable):
            await outbound.open("GET", f"https://images.example:{port}/")
    assert origin.asked == []


async def test_an_unknown_authority_is_refused_by_default(authority: trustme.CA) -> None:
    origin = Origin(b"x")
    async with origin.listening(server_context(authority, "images.example")) as port:
        outbound = Outbound(allowed("images.example"), resolver=to_loopback)
        with pytest.raises(Unreachable):
            await outbound.open("GET", f"https://images.example:{port}/")
    assert origin.asked == []


async def test_a_redirect_from_https_to_http_is_refused(authority: trustme.CA) -> None:
    plain = Origin(b"x")
    async with plain.listening() as plain_port:
        origin = Origin(answer=lambda asked: [head(302, location=f"http://a.example:{plain_port}/", content_length=0)])
        async with origin.listening(server_context(authority, "a.example")) as port:
            outbound = Outbound(allowed("a.example"), resolver=to_loopback, ssl_context=client_context(authority))
            with pytest.raises(RedirectRefused):
                await outbound.open("GET", f"https://a.example:{port}/")
            await outbound.aclose()
    assert plain.connections == 0


async def test_a_redirect_from_http_to_https_is_followed(authority: trustme.CA) -> None:
    secure = Origin(b"x")
    async with secure.listening(server_context(authority, "a.example")) as secure_port:
        where = f"https://a.example:{secure_port}/"
        async with Origin(answer=lambda asked: [head(302, location=where, content_length=0)]).listening() as port:
            outbound = Outbound(allowed("a.example"), resolver=to_loopback, ssl_context=client_context(authority))
            assert await fetch(outbound, f"http://a.example:{port}/") == b"x"
            await outbound.aclose()


async def test_plain_http_on_a_tls_port_is_refused_without_an_error_of_ours(authority: trustme.CA) -> None:
    async with Origin().listening() as port:
        outbound = Outbound(allowed("a.example"), resolver=to_loopback, ssl_context=client_context(authority))
        with pytest.raises(Unreachable):
            await outbound.open("GET", f"https://a.example:{port}/")


ENDINGS: list[list[Step]] = [
    [Close()],
    [Reset()],
    [b"SSH-2.0-x\r\n\r\n"],
    [b"HTTP/1.1 200 OK\r\n", Close()],
    [head(302, location="http://10.0.0.1/", content_length=0)],
    [head(200, content_length=9), b"abc", Close()],
    [head(200, content_length=9), b"abc", Reset()],
    [head(200, content_length=9), b"abc", Stall()],
]


@pytest.mark.parametrize("steps", ENDINGS)
async def test_no_failed_or_cancelled_exchange_leaves_a_descriptor(steps: list[Step]) -> None:
    origin = Origin(answer=lambda asked: steps)
    before = len(os.listdir("/proc/self/fd"))
    async with origin.listening() as port:
        outbound = Outbound(allowed("127.0.0.1"))
        with trio.CancelScope() as scope:
            try:
                async with outbound.request("GET", f"http://127.0.0.1:{port}/") as response:
                    assert await response.stream.receive_some() == b"abc"
                    if Stall() in steps:
                        scope.cancel()
                    await response.stream.receive_some()
            except OutboundError:
                pass
        await outbound.aclose()
    assert len(os.listdir("/proc/self/fd")) == before


# --- the socket behind a body ----------------------------------------------------------------------------------------


def taken(sock: int, count: int) -> bytes:
    """Bytes off a non-blocking socket that has them."""
    return os.read(sock, count)


async def test_a_body_of_known_length_over_plain_tcp_can_be_taken_from_its_socket() -> None:
    origin = Origin(b"0123456789" * 3)
    async with origin.listening() as port:
        outbound = Outbound(allowed("127.0.0.1"))
        for _ in range(2):
            async with outbound.request("GET", f"http://127.0.0.1:{port}/") as response:
                body, received = response.stream, b""
                while not body.complete:
                    if (sock := body.socket) is None:
                        received += await body.receive_some()
                        continue
                    await trio.lowlevel.wait_readable(sock)
                    data = taken(sock, min(7, (body.length or 0) - body.received))
                    body.advance(len(data))
                    received += data
                assert received == origin.body
                assert (body.socket, await body.receive_some()) == (None, b"")
        await outbound.aclose()
    assert origin.connections == 1  # whole bodies leave their connection to the next request


async def test_bytes_that_came_with_the_head_are_handed_out_before_the_socket_is() -> None:
    origin = Origin(answer=lambda asked: [head(200, content_length=6) + b"abc", Stall()])
    async with origin.listening() as port:
        outbound = Outbound(allowed("127.0.0.1"))
        async with outbound.request("GET", f"http://127.0.0.1:{port}/") as response:
            assert response.stream.socket is None
            assert await response.stream.receive_some() == b"abc"
            assert response.stream.socket is not None
        await outbound.aclose()


@pytest.mark.parametrize("steps", [[head(200, transfer_encoding="chunked"), Stall()], [head(200), Stall()]])
async def test_a_body_of_unknown_length_offers_no_socket(steps: list[Step]) -> None:
    origin = Origin(answer=lambda asked: steps)
    async with origin.listening() as port:
        outbound = Outbound(allowed("127.0.0.1"))
        async with outbound.request("GET", f"http://127.0.0.1:{port}/") as response:
            assert response.stream.socket is None
        await outbound.aclose()


async def test_a_body_under_tls_offers_no_socket(authority: trustme.CA) -> None:
    origin = Origin(b"secret")
    async with origin.listening(server_context(authority, "images.example")) as port:
        outbound = Outbound(allowed("images.example"), resolver=to_loopback, ssl_context=client_context(authority))
        async with outbound.request("GET", f"https://images.example:{port}/") as response:
            assert response.stream.socket is None
            assert await response.stream.receive_some() == b"secret"
        await outbound.aclose()
