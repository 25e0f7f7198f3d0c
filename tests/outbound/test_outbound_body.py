"""A body is whole or it is an error."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from faulty_origin import Close, Network, Origin, Stall, Step, head

from visor_gateway.outbound import BodyBroken, LocationPolicy, Outbound

URL = "http://images.example/disk"
STALL = 7.0


@pytest.fixture
def network(nursery: trio.Nursery) -> Network:
    return Network(nursery)


@pytest.fixture
def origin(network: Network) -> Origin:
    origin = Origin()
    network.place(origin)
    return origin


@pytest.fixture
def outbound(network: Network) -> Outbound:
    return Outbound(LocationPolicy(), resolver=network.resolve, connector=network.connect, stall_timeout=STALL)


async def body(outbound: Outbound, received: bytearray) -> None:
    async with outbound.request("GET", URL) as response:
        async for block in response.stream:
            received += block
        assert response.stream.complete
        assert await response.stream.receive_some() == b""


CHUNKED = head(200, transfer_encoding="chunked")
BROKEN: list[list[Step]] = [  # each after `abc`
    [head(200, content_length=10), b"abc", Close()],
    [head(200, content_length=10) + b"abc", Close()],
    [CHUNKED, b"3\r\nabc\r\n", Close()],
    [CHUNKED, b"3\r\nabc\r\n4\r\n", Close()],
    [CHUNKED, b"3\r\nabc\r\n0\r\n", Close()],
    [CHUNKED, b"3\r\nabc\r\nx\r\n", Stall()],
]
STALLED: list[list[Step]] = [
    [head(200, content_length=10), b"abc", Stall()],
    [CHUNKED, b"3\r\nabc\r\n", Stall()],
    [head(200), b"abc", Stall()],
]


@pytest.mark.parametrize("steps", BROKEN)
async def test_a_short_or_broken_body_is_an_error_after_its_good_bytes(
    outbound: Outbound, origin: Origin, steps: list[Step]
) -> None:
    origin.answer = lambda asked: steps
    received = bytearray()
    with pytest.raises(BodyBroken):
        await body(outbound, received)
    assert received == b"abc"


@pytest.mark.parametrize("steps", STALLED)
async def test_a_silent_body_is_given_up_after_the_stall_timeout(
    outbound: Outbound, origin: Origin, steps: list[Step], autojump_clock: trio.testing.MockClock
) -> None:
    origin.answer = lambda asked: steps
    received = bytearray()
    with pytest.raises(BodyBroken):
        await body(outbound, received)
    assert received == b"abc"
    assert trio.current_time() == pytest.approx(STALL)


@pytest.mark.parametrize(
    ("steps", "length", "framed"),
    [
        ([head(200, content_length=6), b"abc", b"def"], 6, True),
        ([head(200, content_length=6) + b"abcdef"], 6, True),
        ([CHUNKED, b"3\r\nabc\r\n", b"3;x=y\r\ndef\r\n0\r\nTrailer: x\r\n\r\n"], None, True),
        ([head(200), b"abc", b"def", Close()], None, False),
        ([b"HTTP/1.0 200 OK\r\n\r\nabcdef", Close()], None, False),
    ],
)
async def test_every_framing_gives_the_same_bytes(
    outbound: Outbound, origin: Origin, steps: list[Step], length: int | None, framed: bool
) -> None:
    origin.answer = lambda asked: steps
    async with outbound.request("GET", URL) as response:
        stream = response.stream
        assert (stream.length, stream.framed) == (length, framed)
        assert b"".join([block async for block in stream]) == b"abcdef"
        assert stream.received == 6


async def test_a_chunked_body_leaves_its_connection_for_the_next_request(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [CHUNKED, b"3\r\nabc\r\n0\r\n\r\n"]
    await body(outbound, bytearray())
    await body(outbound, bytearray())
    assert origin.connections == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_is_whole_at_once(outbound: Outbound, origin: Origin, status: int) -> None:
    origin.answer = lambda asked: [head(status)]
    received = bytearray()
    await body(outbound, received)
    assert received == b""


async def test_a_slow_body_is_no_stalled_one(
    outbound: Outbound, origin: Origin, network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    async def slowly(stream: trio.abc.Stream) -> None:
        await stream.send_all(head(200, content_length=5))
        for _ in range(5):
            await trio.sleep(STALL - 1)
            await stream.send_all(b"x")

    origin.serve = slowly  # type: ignore[method-assign]
    received = bytearray()
    await body(outbound, received)
    assert received == b"xxxxx"


async def test_closing_the_stream_ends_the_exchange(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [head(200, content_length=3), b"abc"]
    for _ in range(2):
        response = await outbound.open("GET", URL)
        assert await response.stream.receive_some() == b"abc"
        await response.stream.aclose()
    assert origin.connections == 1


async def test_closing_is_safe_at_any_time_and_twice(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [head(200, content_length=10), b"abc", Stall()]
    response = await outbound.open("GET", URL)
    await response.stream.receive_some()
    await response.stream.aclose()
    await response.stream.aclose()
    await response.aclose()
    await response.aclose()
    with pytest.raises(BodyBroken):
        await response.stream.receive_some()
