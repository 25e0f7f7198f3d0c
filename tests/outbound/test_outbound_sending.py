"""Bodies of requests, over memory streams and real sockets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from faulty_origin import Close, Network, Origin, Stall, head, whole

from visor_gateway.outbound import (
    CONFIGURED,
    BodyBroken,
    BytesBody,
    LocationPolicy,
    Outbound,
    StaleConnection,
    Unreachable,
)

URL = "http://images.example/disk"


class Pieces:
    """A body of given pieces, under a length that may be a lie."""

    def __init__(self, pieces: Sequence[bytes], length: int | None) -> None:
        self.length = length
        self._pieces = list(pieces)

    async def receive_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._pieces.pop(0) if self._pieces else b""


@pytest.fixture
def origin(nursery: trio.Nursery) -> Origin:
    return Origin(b"image bytes")


@pytest.fixture
def outbound(nursery: trio.Nursery, origin: Origin) -> Outbound:
    network = Network(nursery)
    network.place(origin)
    return Outbound(LocationPolicy(), resolver=network.resolve, connector=network.connect, stall_timeout=7)


async def put(outbound: Outbound, body: Pieces | BytesBody | None) -> int:
    async with outbound.request("PUT", URL, body=body) as response:
        while await response.stream.receive_some():
            pass
        return response.status


async def test_a_body_of_known_length_arrives_whole_and_keeps_its_connection(
    outbound: Outbound, origin: Origin
) -> None:
    for content in (b"", b"x", bytes(range(256)) * 20_000):
        assert await put(outbound, BytesBody(content)) == 200
        assert origin.asked[-1].body == content
        assert origin.asked[-1].headers["content-length"] == str(len(content))
    assert origin.connections == 1


async def test_a_body_of_unknown_length_is_sent_in_chunks(outbound: Outbound, origin: Origin) -> None:
    assert await put(outbound, Pieces([b"one", b"two"], None)) == 200
    assert origin.asked[-1].body == b"onetwo"
    assert origin.asked[-1].headers["transfer-encoding"] == "chunked"


async def test_a_put_without_body_tells_that_it_has_none(outbound: Outbound, origin: Origin) -> None:
    assert await put(outbound, None) == 200
    assert origin.asked[-1].headers["content-length"] == "0"


@pytest.mark.parametrize("length", [2, 4])
async def test_a_body_of_another_length_than_announced_breaks(outbound: Outbound, length: int) -> None:
    with pytest.raises(BodyBroken):
        await put(outbound, Pieces([b"abc"], length))


async def test_what_the_source_raises_ends_the_exchange(outbound: Outbound, origin: Origin) -> None:
    class Failing(Pieces):
        async def receive_some(self) -> bytes:
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await put(outbound, Failing([], 3))
    assert await put(outbound, None) == 200
    assert origin.connections == 2


async def test_a_redirect_is_an_answer_where_it_is_not_followed(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [head(307, location="/b", content_length=0)]
    assert await put(outbound, BytesBody(b"x")) == 307
    async with outbound.request("GET", URL, follow=False) as response:
        assert response.status == 307
    assert len(origin.asked) == 2


async def test_a_connection_that_went_stale_is_told_for_a_put(outbound: Outbound, origin: Origin) -> None:
    origin.answer = lambda asked: [*whole(b"x"), Close()] if asked.connection == 1 else None
    assert await put(outbound, BytesBody(b"x")) == 200
    with pytest.raises(StaleConnection):
        await put(outbound, BytesBody(b"x"))
    assert await put(outbound, BytesBody(b"x")) == 200


async def test_a_slow_answer_has_the_time_that_was_given(
    outbound: Outbound, origin: Origin, autojump_clock: trio.testing.MockClock
) -> None:
    origin.answer = lambda asked: [Stall()]
    for seconds in (1, 300):
        began = trio.current_time()
        with pytest.raises(Exception, match=f"no head within {seconds} s"):
            await outbound.open("PUT", URL, body=BytesBody(b"x"), head_seconds=seconds)
        assert trio.current_time() - began == pytest.approx(seconds)


async def test_a_peer_that_takes_nothing_more_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async def connector(address: str, port: int) -> trio.abc.Stream:
        ours, theirs = trio.testing.lockstep_stream_pair()
        connected.append(theirs)
        return ours

    connected: list[trio.abc.Stream] = []
    outbound = Outbound(CONFIGURED, connector=connector, stall_timeout=7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read_head_only, connected)
        with pytest.raises(Unreachable):
            await outbound.open("PUT", "http://127.0.0.1/", body=Pieces([b"x"], 1))
        nursery.cancel_scope.cancel()


async def _read_head_only(connected: list[trio.abc.Stream]) -> None:
    while not connected:
        await trio.lowlevel.checkpoint()
    await connected[0].receive_some(65536)
    await trio.sleep(20)
    await connected[0].aclose()


async def test_an_answer_given_before_the_end_of_the_body_is_heard(origin: Origin) -> None:
    origin.hears_out = False
    origin.answer = lambda asked: [head(403, content_length=0, connection="close"), Close()]
    async with origin.listening() as port:
        outbound = Outbound(CONFIGURED, stall_timeout=5)
        async with outbound.request("PUT", f"http://127.0.0.1:{port}/", body=BytesBody(bytes(64 << 20))) as response:
            assert response.status == 403
        await outbound.aclose()
