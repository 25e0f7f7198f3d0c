"""The healing read over http: ranges, conditions, and origins that break, change and drip."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable

import faulty_origin
import pytest
import trio
import trio.testing
from faulty_origin import PUBLIC, Asked, Close, Network, Origin, Reset, Stall, Step, drained, head

from visor_gateway.errors import StoreError, StoreUnreachable
from visor_gateway.outbound import LocationPolicy, Outbound
from visor_gateway.store.contract import ObjectInfo
from visor_gateway.store.http import HttpStore
from visor_gateway.transfer.setbacks import Candidate
from visor_gateway.transfer.transfer import Transfer
from visor_gateway.transfer.upstream import RETRY_SECONDS, Upstream

URL = "http://images.example/disk.qcow2"
BODY = bytes(range(256)) * 16
SIZE = len(BODY)

broken_at = functools.partial(faulty_origin.broken_at, BODY)


@pytest.fixture
def network(nursery: trio.Nursery) -> Network:
    return Network(nursery)


@pytest.fixture
def origin(network: Network) -> Origin:
    origin = Origin(BODY)
    network.place(origin)
    return origin


@pytest.fixture
def store(network: Network) -> HttpStore:
    return HttpStore(Outbound(LocationPolicy(), resolver=network.resolve, connector=network.connect))


@pytest.fixture
def transfer() -> Transfer:
    return Transfer(id="t", kind="pull", image="i", store="http", client="c", user=None, size=SIZE)


def read(store: HttpStore, transfer: Transfer, offset: int = 0, length: int | None = None, url: str = URL) -> Upstream:
    return Upstream([Candidate(store, url, ObjectInfo(size=None))], transfer, offset, length, random=lambda: 1.0)


def ignoring_conditions(origin: Origin) -> Callable[[Asked], Iterable[Step]]:
    """Answers that look at no `If-Match`."""
    return lambda asked: origin.properly(Asked(asked.method, asked.target, {}, asked.connection))


@pytest.mark.parametrize("end", [Close(), Stall()])
@pytest.mark.parametrize("count", [0, 1, 1000, SIZE - 1])
async def test_a_broken_or_stalled_read_is_resumed_under_its_validator(
    store: HttpStore,
    origin: Origin,
    transfer: Transfer,
    count: int,
    end: Step,
    autojump_clock: trio.testing.MockClock,
) -> None:
    origin.answer = broken_at(count, times=1, end=end)
    assert await drained(read(store, transfer)) == BODY
    assert transfer.attempt == 2
    assert origin.asked[-1].headers["if-match"] == '"v1"'
    if count:
        assert origin.asked[-1].headers["range"] == f"bytes={count}-{SIZE - 1}"


async def test_a_resumed_range_stays_inside_its_end(
    store: HttpStore, origin: Origin, transfer: Transfer, autojump_clock: trio.testing.MockClock
) -> None:
    origin.answer = broken_at(10, times=2)
    assert await drained(read(store, transfer, 100, 200)) == BODY[100:300]
    assert [asked.headers["range"] for asked in origin.asked] == ["bytes=100-299", "bytes=110-299", "bytes=120-299"]


async def test_an_origin_that_ignores_range_is_resumed_by_reading_and_dropping(
    store: HttpStore, origin: Origin, transfer: Transfer, autojump_clock: trio.testing.MockClock
) -> None:
    cuts = iter([1000, 500, SIZE])

    def answer(asked: Asked) -> Iterable[Step]:
        return [head(200, content_length=SIZE, etag='"v1"'), BODY[: next(cuts)], Close()]

    origin.answer = answer
    assert await drained(read(store, transfer)) == BODY


async def test_a_partial_answer_shorter_than_asked_is_continued(
    store: HttpStore, origin: Origin, transfer: Transfer, autojump_clock: trio.testing.MockClock
) -> None:
    def answer(asked: Asked) -> Iterable[Step]:
        span = asked.span or (0, None)
        part = BODY[span[0] : span[0] + 1500]
        marks = f"bytes {span[0]}-{span[0] + len(part) - 1}/{SIZE}"
        return [head(206, content_length=len(part), content_range=marks, etag='"v1"'), part]

    origin.answer = answer
    assert await drained(read(store, transfer, 0, SIZE)) == BODY


async def test_an_unreachable_origin_is_tried_again(
    store: HttpStore,
    origin: Origin,
    transfer: Transfer,
    network: Network,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    origin.answer = broken_at(1000, times=1)
    upstream = read(store, transfer)
    await upstream.open()
    servers = dict(network.servers)
    network.servers.clear()

    async def come_back() -> None:
        await trio.sleep(1)
        network.servers.update(servers)

    nursery.start_soon(come_back)
    assert await drained(upstream) == BODY
    assert transfer.attempt == 3


@pytest.mark.parametrize("etag", ['W/"v1"', None])
async def test_without_a_strong_validator_a_break_is_final(
    store: HttpStore, origin: Origin, transfer: Transfer, etag: str | None
) -> None:
    named = {} if etag is None else {"etag": etag}
    origin.answer = lambda asked: [head(200, content_length=SIZE, **named), BODY[:1000], Close()]
    received = bytearray()
    with pytest.raises(StoreUnreachable):
        await drained(read(store, transfer), received)
    assert received == BODY[:1000]
    assert len(origin.asked) == 1


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("change", ["etag", "size", "gone", "no etag"])
async def test_bytes_of_two_representations_never_meet(
    store: HttpStore,
    origin: Origin,
    transfer: Transfer,
    change: str,
    heeds: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    origin.answer = broken_at(1000, times=1)
    upstream = read(store, transfer)
    received = bytearray(await upstream.receive_some())
    origin.answer = ignoring_conditions(origin) if not heeds else lambda asked: None
    if change == "etag":
        origin.etag, origin.body = '"v2"', bytes(SIZE)
    elif change == "no etag":
        origin.etag, origin.body = None, bytes(SIZE)
    elif change == "size":
        origin.body = bytes(500)
    else:
        origin.answer = lambda asked: [head(404, content_length=0)]
    with pytest.raises(StoreError):
        await drained(upstream, received)
    assert received == BODY[:1000]


async def test_a_chunked_body_of_unknown_size_ends_where_it_ends(
    store: HttpStore, origin: Origin, transfer: Transfer
) -> None:
    origin.answer = lambda asked: [head(200, transfer_encoding="chunked"), b"3\r\nabc\r\n0\r\n\r\n"]
    upstream = read(store, transfer)
    assert await drained(upstream) == b"abc"
    assert upstream.end == 3


async def test_an_origin_that_drips_and_breaks_gets_growing_delays(
    store: HttpStore, origin: Origin, transfer: Transfer, autojump_clock: trio.testing.MockClock
) -> None:
    origin.body = BODY[:10]
    origin.answer = lambda asked: [*origin.properly(asked)[:1], bytes(origin.properly(asked)[1])[:1], Close()]  # type: ignore[arg-type]
    assert await drained(read(store, transfer)) == BODY[:10]
    assert round(trio.current_time()) == 56  # the delays 0.5, 1, 2, 4, 8, 10, 10, 10 and 10


async def test_an_origin_that_stays_away_is_given_up(
    store: HttpStore, origin: Origin, transfer: Transfer, autojump_clock: trio.testing.MockClock
) -> None:
    first = broken_at(9, times=1)
    origin.answer = lambda asked: first(asked) or [head(503, content_length=0)]
    with pytest.raises(StoreUnreachable):
        await drained(read(store, transfer))
    assert trio.current_time() == RETRY_SECONDS


async def test_a_rebinding_origin_is_not_followed_inside_when_resuming(
    store: HttpStore,
    origin: Origin,
    transfer: Transfer,
    network: Network,
    autojump_clock: trio.testing.MockClock,
) -> None:
    network.names["images.example"] = [[PUBLIC], ["127.0.0.1"]]
    origin.answer = broken_at(1000, times=1)
    with pytest.raises(StoreUnreachable):
        await drained(read(store, transfer))
    assert network.connected == [(PUBLIC, 80)]


async def test_a_reset_on_a_real_socket_is_resumed_whoever_took_the_bytes_before_it(transfer: Transfer) -> None:
    origin = Origin(BODY * 1000)

    def answer(asked: Asked) -> Iterable[Step] | None:
        if asked.connection > 1:
            return None
        start, part = origin.properly(asked)
        assert isinstance(part, bytes)
        return [start, part[:100_000], Reset()]

    origin.answer = answer
    async with origin.listening() as port:
        outbound = Outbound(LocationPolicy(allow_hosts=(f"127.0.0.1:{port}",)))
        upstream = read(HttpStore(outbound), transfer, url=f"http://127.0.0.1:{port}/")
        received = bytearray(await upstream.receive_some())
        direct = upstream.direct()
        assert direct is not None
        await trio.lowlevel.wait_readable(direct.sock)
        try:
            taken = os.read(direct.sock, min(1000, direct.length))
        except ConnectionResetError:
            taken = b""
        upstream.advance(len(taken))
        received += taken
        assert await drained(upstream, received) == origin.body
        assert transfer.attempt == 2
        await outbound.aclose()
