"""References to images on other servers: what is known of them, ranges, and origins that change."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable

import faulty_origin
import pytest
import trio
import trio.testing
from faulty_origin import PUBLIC, Asked, Close, Network, Origin, Stall, Step, drained, head, whole

from visor_gateway.errors import (
    InvalidField,
    InvalidRequest,
    NotFound,
    ObjectChanged,
    ObjectMissing,
    StoreError,
    StoreUnreachable,
)
from visor_gateway.outbound import LocationPolicy, Outbound
from visor_gateway.store.contract import DirectReadStream, ObjectInfo, Store
from visor_gateway.store.http import HttpStore
from visor_gateway.store.reference import ReferenceStream

URL = "http://images.example/disk.qcow2?key=canary"
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


async def test_it_is_a_store_that_needs_no_check(store: HttpStore) -> None:
    specified: Store = store
    assert (specified.name, specified.writable) == ("http", False)
    await specified.check()


# --- stat ------------------------------------------------------------------------------------------------------------


async def test_stat_tells_size_validator_and_checksum_by_one_head(store: HttpStore, origin: Origin) -> None:
    info = await store.stat(URL)
    assert (info.size, info.validator, info.checksum) == (SIZE, '"v1"', "v1")
    assert [asked.method for asked in origin.asked] == ["HEAD"]


@pytest.mark.parametrize("status", [400, 403, 405, 500, 501])
async def test_stat_asks_for_one_byte_where_head_is_refused(store: HttpStore, origin: Origin, status: int) -> None:
    origin.answer = lambda asked: [head(status, content_length=0)] if asked.method == "HEAD" else None
    info = await store.stat(URL)
    assert (info.size, info.validator, info.checksum) == (SIZE, '"v1"', "v1")
    assert origin.asked[-1].headers["range"] == "bytes=0-0"


@pytest.mark.parametrize("lie", [head(200), head(200, content_length=0)])
async def test_stat_asks_for_one_byte_where_head_tells_no_size(store: HttpStore, origin: Origin, lie: bytes) -> None:
    origin.answer = lambda asked: [lie] if asked.method == "HEAD" else None
    assert (await store.stat(URL)).size == SIZE


async def test_stat_takes_the_size_from_an_origin_that_knows_no_ranges(store: HttpStore, origin: Origin) -> None:
    origin.answer = lambda asked: [head(405, content_length=0)] if asked.method == "HEAD" else whole(BODY, etag='"v1"')
    assert (await store.stat(URL)).size == SIZE


async def test_stat_knows_an_empty_file(store: HttpStore, origin: Origin) -> None:
    origin.body = b""
    assert (await store.stat(URL)).size == 0


async def test_stat_survives_an_origin_that_sends_a_body_to_head(store: HttpStore, origin: Origin) -> None:
    origin.answer = lambda asked: [head(405, content_length=4), b"body"] if asked.method == "HEAD" else None
    assert (await store.stat(URL)).size == SIZE


async def test_stat_of_a_chunked_origin_tells_no_size(store: HttpStore, origin: Origin) -> None:
    empty = head(200, transfer_encoding="chunked")
    origin.answer = lambda asked: [empty] if asked.method == "HEAD" else [empty, b"0\r\n\r\n"]
    assert (await store.stat(URL)).size is None


@pytest.mark.parametrize(
    ("etag", "validator", "checksum"),
    [
        ('"abc"', '"abc"', "abc"),
        ('W/"abc"', None, "W/abc"),
        ("abc", None, "abc"),
        ('""', None, None),
        (None, None, None),
        ('"a"b"', None, "ab"),
        ('"' + "x" * 300 + '"', None, None),
        ('"\u00e4"', None, None),
    ],
)
async def test_only_a_strong_etag_is_a_validator(
    store: HttpStore, origin: Origin, etag: str | None, validator: str | None, checksum: str | None
) -> None:
    origin.etag = etag
    info = await store.stat(URL)
    assert (info.validator, info.checksum) == (validator, checksum)


async def test_stat_refuses_a_scheme_that_the_operator_does_not_allow(network: Network, origin: Origin) -> None:
    policy = LocationPolicy(allow=("https",))
    store = HttpStore(Outbound(policy, resolver=network.resolve, connector=network.connect))
    with pytest.raises(InvalidField, match="https"):
        await store.stat(URL)
    assert network.looked_up == []


# --- one error for everything ----------------------------------------------------------------------------------------


def missing(network: Network, origin: Origin) -> None:
    origin.answer = lambda asked: [head(404, content_length=0)]


def forbidden(network: Network, origin: Origin) -> None:
    origin.answer = lambda asked: [head(403, content_length=0)]


def failing(network: Network, origin: Origin) -> None:
    origin.answer = lambda asked: [head(500, content_length=0)]


def refused(network: Network, origin: Origin) -> None:
    network.servers.clear()


def closed(network: Network, origin: Origin) -> None:
    origin.answer = lambda asked: [Close()]


def filtered(network: Network, origin: Origin) -> None:
    origin.answer = lambda asked: [Stall()]


def unknown(network: Network, origin: Origin) -> None:
    network.names.clear()


def private(network: Network, origin: Origin) -> None:
    network.add("images.example", "10.0.0.1")


def mixed(network: Network, origin: Origin) -> None:
    network.add("images.example", PUBLIC, "127.0.0.1")


def redirected_inside(network: Network, origin: Origin) -> None:
    origin.answer = lambda asked: [head(302, location="http://169.254.169.254/meta", content_length=0)]


def looping(network: Network, origin: Origin) -> None:
    origin.answer = lambda asked: [head(302, location="/", content_length=0)]


def not_http(network: Network, origin: Origin) -> None:
    origin.answer = lambda asked: [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Stall()]


def coded(network: Network, origin: Origin) -> None:
    origin.answer = lambda asked: whole(b"x", content_encoding="gzip")


CAUSES = [missing, forbidden, failing, refused, closed, filtered, unknown, private, mixed, redirected_inside, looping,
          not_http, coded]  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
async def test_every_cause_gives_the_same_answer(
    store: HttpStore,
    origin: Origin,
    network: Network,
    cause: Callable[[Network, Origin], None],
    autojump_clock: trio.testing.MockClock,
) -> None:
    cause(network, origin)
    with pytest.raises(NotFound) as stat:
        await store.stat(URL)
    assert isinstance(stat.value, ObjectMissing)
    assert (stat.value.status, stat.value.message) == (404, f"No image file found at {URL}")
    assert not stat.value.retryable
    with pytest.raises((StoreUnreachable, ObjectMissing)) as read:
        await store.open_read(URL)
    assert (read.value.status, read.value.message) == (503, f"No image file found at {URL}")
    assert {address for address, _ in network.connected} <= {PUBLIC}


async def test_the_log_has_the_cause_but_neither_path_nor_query(
    store: HttpStore, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    origin.answer = lambda asked: [head(404, content_length=0)]
    with caplog.at_level(logging.DEBUG, logger="visor_gateway"), pytest.raises(NotFound):
        await store.stat(URL)
    assert "404" in caplog.text
    assert "canary" not in caplog.text
    assert "disk.qcow2" not in caplog.text


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"), [(0, None), (0, SIZE), (100, None), (100, 50), (SIZE - 1, 1), (SIZE, None), (7, 0)]
)
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("known", [True, False])
async def test_a_range_is_exactly_its_bytes(
    store: HttpStore, origin: Origin, offset: int, length: int | None, ranges: bool, known: bool
) -> None:
    if not ranges:
        origin.answer = lambda asked: whole(BODY, etag='"v1"')
    expected = ObjectInfo(size=SIZE, validator='"v1"') if known else None
    if not known and ranges and offset == SIZE:
        with pytest.raises(StoreError, match="outside"):
            await store.open_read(URL, offset, length)
        return
    stream = await store.open_read(URL, offset, length, expected=expected)
    end = SIZE if length is None else offset + length
    assert await drained(stream) == BODY[offset:end]


@pytest.mark.parametrize(("offset", "length"), [(SIZE + 1, None), (0, SIZE + 1), (SIZE, 1)])
@pytest.mark.parametrize("known", [True, False])
async def test_a_range_outside_the_object_is_an_error(
    store: HttpStore, origin: Origin, offset: int, length: int, known: bool
) -> None:
    expected = ObjectInfo(size=SIZE) if known else None
    with pytest.raises(StoreError, match="outside"):
        await store.open_read(URL, offset, length, expected=expected)


async def test_the_stream_tells_what_the_first_answer_told(store: HttpStore, origin: Origin) -> None:
    stream = await store.open_read(URL, 10, 10)
    assert stream.info == ObjectInfo(size=SIZE, validator='"v1"')
    await stream.aclose()
    await stream.aclose()


async def test_a_known_validator_goes_with_the_request(store: HttpStore, origin: Origin) -> None:
    stream = await store.open_read(URL, 10, 10, expected=ObjectInfo(size=SIZE, validator='"v1"'))
    await stream.aclose()
    assert origin.asked[0].headers["if-match"] == '"v1"'
    assert origin.asked[0].headers["range"] == "bytes=10-19"


def ignoring_conditions(origin: Origin) -> Callable[[Asked], Iterable[Step]]:
    """Answers that look at no `If-Match`."""
    return lambda asked: origin.properly(Asked(asked.method, asked.target, {}, asked.connection))


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("etag", ['"v2"', 'W/"v1"', None])
async def test_another_etag_than_expected_is_told_before_the_first_byte(
    store: HttpStore, origin: Origin, etag: str | None, heeds: bool
) -> None:
    origin.etag = etag
    if not heeds:
        origin.answer = ignoring_conditions(origin)
    with pytest.raises(ObjectChanged) as caught:
        await store.open_read(URL, expected=ObjectInfo(size=SIZE, validator='"v1"'))
    assert caught.value.status == 502


@pytest.mark.parametrize(("offset", "length"), [(0, None), (10, 10), (SIZE - 10, 10)])
@pytest.mark.parametrize("size", [SIZE - 1, 20, SIZE + 1])
async def test_another_size_than_expected_is_told_before_the_first_byte(
    store: HttpStore, origin: Origin, size: int, offset: int, length: int | None
) -> None:
    origin.body = bytes(size)
    with pytest.raises(ObjectChanged):
        await store.open_read(URL, offset, length, expected=ObjectInfo(size=SIZE))


CHUNKED = head(200, transfer_encoding="chunked", etag='"v1"')


def chunks(*blocks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(block), block) for block in blocks) + b"0\r\n\r\n"


async def test_a_body_of_unknown_size_is_read_to_its_end(store: HttpStore, origin: Origin) -> None:
    origin.answer = lambda asked: [CHUNKED, chunks(b"abc", b"def")]
    stream = await store.open_read(URL)
    assert stream.info.size is None
    assert await drained(stream) == b"abcdef"


@pytest.mark.parametrize("blocks", [[b"abc", b"defg"], [b"abc", b"def", b"g"], [b"abcdefg"]])
async def test_a_body_longer_than_expected_never_shows_its_last_block(
    store: HttpStore, origin: Origin, blocks: list[bytes]
) -> None:
    origin.answer = lambda asked: [CHUNKED, chunks(*blocks)]
    received = bytearray()
    with pytest.raises(ObjectChanged):
        await drained(await store.open_read(URL, expected=ObjectInfo(size=6)), received)
    assert len(received) < 6


async def test_a_body_of_unknown_end_is_refused_unless_its_size_is_known(store: HttpStore, origin: Origin) -> None:
    origin.answer = lambda asked: [head(200), b"abcdef", Close()]
    with pytest.raises(StoreUnreachable):
        await store.open_read(URL)
    assert await drained(await store.open_read(URL, expected=ObjectInfo(size=6))) == b"abcdef"


async def test_a_body_that_ends_with_its_connection_too_early_is_an_error(store: HttpStore, origin: Origin) -> None:
    origin.answer = lambda asked: [head(200), b"abc", Close()]
    received = bytearray()
    with pytest.raises(StoreUnreachable):
        await drained(await store.open_read(URL, expected=ObjectInfo(size=6)), received)
    assert received == b"abc"


@pytest.mark.parametrize(
    "steps",
    [
        [head(206, content_length=10, content_range=f"bytes 20-29/{SIZE}", etag='"v1"'), bytes(10)],
        [head(206, content_length=10, content_range=f"bytes 0-9/{SIZE}", etag='"v1"'), bytes(10)],
        [head(206, content_length=9, content_range=f"bytes 10-19/{SIZE}", etag='"v1"'), bytes(9)],
        [head(206, content_length=10, content_range="bytes 10-19/15", etag='"v1"'), bytes(10)],
        [head(206, content_length=10, content_range="bytes 19-10/4096", etag='"v1"'), bytes(10)],
        [head(206, content_length=10, etag='"v1"'), bytes(10)],
        [head(206, content_length=10, content_type="multipart/byteranges; boundary=x", etag='"v1"'), bytes(10)],
        [head(206, content_length=10, content_range=f"bytes 10-19/{SIZE}", content_encoding="gzip"), bytes(10)],
        [head(204)],
        [head(304, etag='"v1"')],
    ],
)
async def test_an_answer_that_does_not_fit_the_question_is_refused(
    store: HttpStore, origin: Origin, steps: list[Step]
) -> None:
    origin.answer = lambda asked: steps
    with pytest.raises(StoreUnreachable):
        await store.open_read(URL, 10, 10)


async def test_a_broken_or_short_answer_is_told_with_its_place(store: HttpStore, origin: Origin) -> None:
    origin.answer = broken_at(1000, times=1)
    stream = await store.open_read(URL, 100, 2000)
    received = bytearray()
    with pytest.raises(StoreUnreachable, match="byte 1100"):
        await drained(stream, received)
    assert received == BODY[100:1100]
    assert len(origin.asked) == 1


async def test_a_cancelled_read_leaves_no_connection_behind(store: HttpStore, origin: Origin) -> None:
    origin.answer = lambda asked: [head(200, content_length=SIZE, etag='"v1"'), BODY[:10], Stall()]
    stream = await store.open_read(URL)
    with trio.CancelScope() as scope:
        await stream.receive_some()
        scope.cancel()
        await stream.receive_some()
    await stream.aclose()
    origin.answer = lambda asked: None
    assert await drained(await store.open_read(URL)) == BODY
    assert origin.connections == 2


# --- writing ---------------------------------------------------------------------------------------------------------


async def test_bytes_are_refused(store: HttpStore) -> None:
    with pytest.raises(InvalidRequest, match="Cannot post an image file to a HTTP backend"):
        await store.open_write("image/attempt", size=1)


async def test_deleting_a_reference_asks_the_origin_nothing(store: HttpStore, origin: Origin, network: Network) -> None:
    await store.delete(URL)
    await store.abandon("image/attempt")
    assert list(await store.leftovers(0)) == []
    assert network.looked_up == []
    assert network.connected == []


# --- the socket behind a read ----------------------------------------------------------------------------------------


async def taken(stream: ReferenceStream, count: int) -> bytes:
    """At most `count` bytes, from the socket where there is one."""
    if (offered := stream.direct()) is None:
        return await stream.receive_some()
    await trio.lowlevel.wait_readable(offered.sock)
    data = os.read(offered.sock, min(count, offered.length))
    stream.advance(len(data))
    return data


@pytest.mark.parametrize("ignores_ranges", [False, True])
async def test_a_range_can_be_taken_from_the_socket_and_no_byte_behind_it(ignores_ranges: bool) -> None:
    origin = Origin(BODY)
    if ignores_ranges:
        origin.answer = lambda asked: whole(BODY, etag='"v1"')
    async with origin.listening() as port:
        outbound = Outbound(LocationPolicy(allow_hosts=("127.0.0.1",)))
        stream = await HttpStore(outbound).open_read(f"http://127.0.0.1:{port}/", 100, 2000)
        assert isinstance(stream, DirectReadStream)
        received = b""
        while data := await taken(stream, 700):
            received += data
        assert received == BODY[100:2100]
        assert stream.direct() is None
        await stream.aclose()
        assert stream.direct() is None
        await outbound.aclose()
