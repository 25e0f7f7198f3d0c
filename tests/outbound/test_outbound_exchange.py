"""Requests, redirects and bounds of heads, over memory streams."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from contextlib import aclosing

import httpcore2
import pytest
import trio
import trio.testing
from faulty_origin import PUBLIC, Asked, Close, Network, Origin, Stall, Step, head, whole

from visor_gateway.outbound import (
    AddressDenied,
    BadResponse,
    BadTarget,
    LocationPolicy,
    Outbound,
    OutboundError,
    RedirectRefused,
    SchemeRefused,
    Unreachable,
)
from visor_gateway.outbound.connection import HEAD_LIMIT, HEAD_SECONDS, IDLE_SECONDS, Connection
from visor_gateway.outbound.dialer import Dialer
from visor_gateway.outbound.exchange import MAX_REDIRECTS, OPEN_SECONDS

URL = "http://images.example/disk"
PRIVATE = "192.168.7.7"


@pytest.fixture
def network(nursery: trio.Nursery) -> Network:
    return Network(nursery)


@pytest.fixture
def origin(network: Network) -> Origin:
    origin = Origin(b"image bytes")
    network.place(origin)
    return origin


@pytest.fixture
def outbound(network: Network) -> Outbound:
    return Outbound(LocationPolicy(), resolver=network.resolve, connector=network.connect)


async def fetch(outbound: Outbound, url: str = URL) -> bytes:
    async with outbound.request("GET", url) as response:
        assert response.status == 200
        return b"".join([block async for block in response.stream])


async def test_a_body_arrives(outbound: Outbound, origin: Origin) -> None:
    assert await fetch(outbound) == b"image bytes"


async def test_requests_ask_for_identity_and_carry_no_credentials(outbound: Outbound, origin: Origin) -> None:
    await fetch(outbound)
    assert origin.asked[0].headers == {
        "host": "images.example",
        "user-agent": origin.asked[0].headers["user-agent"],
        "accept": "*/*",
        "accept-encoding": "identity",
    }


async def test_a_wholly_read_body_leaves_its_connection_for_the_next_request(
    outbound: Outbound, origin: Origin
) -> None:
    await fetch(outbound)
    await fetch(outbound)
    assert [asked.connection for asked in origin.asked] == [1, 1]


async def test_a_head_request_leaves_its_connection_for_the_next_request(outbound: Outbound, origin: Origin) -> None:
    async with outbound.request("HEAD", URL) as response:
        assert response.header("content-length") == "11"
        assert await response.stream.receive_some() == b""
    await fetch(outbound)
    assert origin.connections == 1


async def test_a_body_left_early_closes_its_connection(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [head(200, content_length=11), b"image", Stall()]
    async with outbound.request("GET", URL) as response:
        assert await response.stream.receive_some() == b"image"
    origin.answer = lambda asked: None
    assert await fetch(outbound) == b"image bytes"
    assert origin.connections == 2


async def test_a_cancelled_exchange_closes_its_connection(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [Stall()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbound.open, "GET", URL)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    origin.answer = lambda asked: None
    assert await fetch(outbound) == b"image bytes"
    assert origin.connections == 2


@pytest.mark.parametrize(
    "steps",
    [
        [head(200, content_length=3, connection="close"), b"abc", Stall()],
        [b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", Stall()],
        [head(200, content_length=3) + b"abcEXTRA", Stall()],
        [head(200, content_length=3), b"abcEXTRA\r\n\r\n", Stall()],
    ],
)
async def test_a_connection_that_may_not_go_on_is_not_used_again(
    outbound: Outbound, origin: Origin, steps: list[Step]
) -> None:
    origin.answer = lambda asked: steps
    assert await fetch(outbound) == b"abc"
    origin.answer = lambda asked: None
    assert await fetch(outbound) == b"image bytes"
    assert origin.connections == 2


async def test_an_idle_connection_is_given_up_after_a_while(
    outbound: Outbound, origin: Origin, autojump_clock: trio.testing.MockClock
) -> None:
    await fetch(outbound)
    await trio.sleep(IDLE_SECONDS + 1)
    await fetch(outbound)
    assert origin.connections == 2


async def test_a_connection_that_the_origin_closed_meanwhile_is_replaced(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [head(200, content_length=1), b"x", Close()] if asked.connection == 1 else None
    assert await fetch(outbound) == b"x"
    assert await fetch(outbound) == b"image bytes"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(outbound: Outbound, origin: Origin, status: int) -> None:
    origin.answer = lambda asked: [head(status, location="/b", content_length=0)] if asked.target == "/disk" else None
    assert await fetch(outbound) == b"image bytes"
    assert [asked.target for asked in origin.asked] == ["/disk", "/b"]


async def test_a_redirect_answers_from_where_it_led(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [head(302, location="/b", content_length=0)] if asked.target == "/disk" else None
    async with outbound.request("HEAD", URL) as response:
        assert response.url == "http://images.example/b"
    assert [asked.method for asked in origin.asked] == ["HEAD", "HEAD"]


async def test_a_redirect_loop_ends(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [head(302, location="/disk", content_length=0)]
    with pytest.raises(RedirectRefused):
        await outbound.open("GET", URL)
    assert len(origin.asked) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "location",
    ["http://inside.example/", f"http://{PRIVATE}/", "//inside.example/", "http://127.1/", "http://[::ffff:7f00:1]/"],
)
async def test_a_redirect_to_a_private_address_is_never_connected_to(
    outbound: Outbound, origin: Origin, network: Network, location: str
) -> None:
    network.add("inside.example", PRIVATE)
    origin.answer = lambda asked: [head(302, location=location, content_length=0)]
    with pytest.raises(AddressDenied):
        await outbound.open("GET", URL)
    assert network.connected == [(PUBLIC, 80)]


async def test_an_allowed_host_may_not_redirect_into_its_network(network: Network) -> None:
    origin = Origin(answer=lambda asked: [head(302, location=f"http://{PRIVATE}:81/", content_length=0)])
    network.place(origin, "mirror.lan", PRIVATE)
    policy = LocationPolicy(allow_hosts=("mirror.lan",))
    outbound = Outbound(policy, resolver=network.resolve, connector=network.connect)
    with pytest.raises(AddressDenied):
        await outbound.open("GET", "http://mirror.lan/")
    assert network.connected == [(PRIVATE, 80)]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://images.example/", "http://user:key@images.example/"])
async def test_a_redirect_to_another_kind_of_url_is_refused(outbound: Outbound, origin: Origin, location: str) -> None:
    origin.answer = lambda asked: [head(302, location=location, content_length=0)]
    with pytest.raises(BadTarget):
        await outbound.open("GET", URL)


async def test_a_redirect_without_location_is_refused(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [head(302, content_length=0)]
    with pytest.raises(RedirectRefused):
        await outbound.open("GET", URL)


async def test_a_redirect_to_a_scheme_that_is_not_allowed_is_refused(network: Network) -> None:
    network.place(Origin(answer=lambda asked: [head(302, location="https://images.example/", content_length=0)]))
    outbound = Outbound(LocationPolicy(allow=("http",)), resolver=network.resolve, connector=network.connect)
    with pytest.raises(RedirectRefused):
        await outbound.open("GET", URL)


async def test_credentials_stay_at_their_origin(outbound: Outbound, origin: Origin, network: Network) -> None:
    other = Origin(b"x")
    network.place(other, "other.example", "93.184.215.99")

    def answer(asked: Asked) -> Iterable[Step]:
        where = "http://other.example/" if asked.target == "/b" else "/b"
        return [head(302, location=where, content_length=0)]

    origin.answer = answer
    secret = {"Authorization": "VISOR a:b", "Cookie": "c=d", "X-Auth-Token": "e", "Range": "bytes=0-0"}
    async with outbound.request("GET", URL, secret):
        pass
    assert all(asked.headers["x-auth-token"] == "e" for asked in origin.asked)
    assert len(origin.asked) == 2
    assert set(other.asked[0].headers) == {"host", "user-agent", "accept", "accept-encoding", "range"}


async def test_a_scheme_that_is_not_allowed_is_refused_before_any_look_up(network: Network) -> None:
    outbound = Outbound(LocationPolicy(allow=("https",)), resolver=network.resolve, connector=network.connect)
    with pytest.raises(SchemeRefused):
        await outbound.open("GET", URL)
    assert network.looked_up == []


def endless_headers(asked: Asked) -> Iterable[Step]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-Filler: " + b"x" * 500 + b"\r\n"


def endless_line(asked: Asked) -> Iterable[Step]:
    yield b"HTTP/1.1 200 OK\r\nX: "
    while True:
        yield b"x" * 500


def endless_interim_answers(asked: Asked) -> Iterable[Step]:
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


def a_large_head(asked: Asked) -> Iterable[Step]:
    return [head(200, content_length=0, x="y" * HEAD_LIMIT)]


@pytest.mark.parametrize("answer", [endless_headers, endless_line, endless_interim_answers, a_large_head])
async def test_a_head_is_bounded(outbound: Outbound, origin: Origin, answer: Callable[[Asked], Iterable[Step]]) -> None:
    origin.answer = answer
    with pytest.raises(BadResponse):
        await outbound.open("GET", URL)


async def test_a_head_of_common_size_is_taken(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: whole(b"x", x="y" * 16 * 1024)
    assert await fetch(outbound) == b"x"


async def test_a_head_that_never_ends_is_given_up(
    outbound: Outbound, origin: Origin, autojump_clock: trio.testing.MockClock
) -> None:
    origin.answer = lambda asked: [b"HTTP/1.1 200 OK\r\n", Stall()]
    with pytest.raises(BadResponse):
        await outbound.open("GET", URL)
    assert trio.current_time() == pytest.approx(HEAD_SECONDS)


async def test_slow_redirects_together_are_bounded(
    outbound: Outbound, origin: Origin, network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    async def connector(address: str, port: int) -> trio.abc.Stream:
        await trio.sleep(9)
        return await network.connect(address, port)

    origin.answer = lambda asked: [head(302, location="/disk", connection="close", content_length=0), Stall()]
    slow = Outbound(LocationPolicy(), resolver=network.resolve, connector=connector)
    with pytest.raises(OutboundError):
        await slow.open("GET", URL)
    assert trio.current_time() <= OPEN_SECONDS


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_clear_http_is_refused(outbound: Outbound, origin: Origin, raw: bytes) -> None:
    origin.answer = lambda asked: [raw, Stall()]
    with pytest.raises(BadResponse):
        await outbound.open("GET", URL)


async def test_a_peer_that_closes_without_an_answer_is_unreachable(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [Close()]
    with pytest.raises(Unreachable):
        await outbound.open("GET", URL)
    assert origin.connections == 1


async def test_closing_closes_idle_connections(outbound: Outbound, origin: Origin, network: Network) -> None:
    await fetch(outbound)
    await outbound.aclose()
    await fetch(outbound)
    assert origin.connections == 2


async def test_the_pool_is_told_which_connections_have_a_socket(origin: Origin, network: Network) -> None:
    dialer = Dialer(LocationPolicy(), resolver=network.resolve, connector=network.connect)
    url = httpcore2.URL(URL)
    connection = Connection(url.origin, dialer=dialer, ssl_context=ssl.create_default_context(), stall_timeout=1)
    assert not connection.is_connected()
    request = httpcore2.Request("GET", url, headers={"Host": "images.example"})
    async with aclosing(await connection.handle_async_request(request)):
        assert connection.is_connected()
    assert not connection.is_connected()
