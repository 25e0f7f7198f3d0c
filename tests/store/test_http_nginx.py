"""The read half of the stores' contract for references, on a real nginx, plain and over TLS."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator

import pytest
import trio
from servers import nginx_origin
from store_suite import drain, open_descriptors, read

from visor_gateway.errors import ObjectChanged, ObjectMissing, StoreError, StoreUnreachable
from visor_gateway.outbound import LocationPolicy, Outbound
from visor_gateway.store.contract import DirectReadStream, ObjectInfo
from visor_gateway.store.http import HttpStore

DATA = os.urandom(3_000_000)
SIZE = len(DATA)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nginx_origin.NginxOrigin]:
    with nginx_origin.start(tmp_path_factory.mktemp("nginx")) as running:
        yield running


@pytest.fixture
def origin(server: nginx_origin.NginxOrigin) -> nginx_origin.NginxOrigin:
    server.put("disk.img", DATA)
    return server


@pytest.fixture
async def store(origin: nginx_origin.NginxOrigin) -> AsyncGenerator[HttpStore]:
    outbound = Outbound(LocationPolicy(deny_private=False), ssl_context=origin.context, stall_timeout=20)
    yield HttpStore(outbound)
    await outbound.aclose()


@pytest.fixture(params=["url", "tls_url"])
def url(origin: nginx_origin.NginxOrigin, request: pytest.FixtureRequest) -> str:
    return str(getattr(origin, request.param))


async def test_size_and_validator_are_what_the_origin_tells(store: HttpStore, url: str) -> None:
    info = await store.stat(f"{url}/disk.img")
    assert info.size == SIZE
    assert info.validator is not None
    assert info.validator.strip('"') == info.checksum


@pytest.mark.parametrize("where", ["no-ranges", "no-etag", "no-head", "moved"])
async def test_whatever_the_origin_lacks_the_size_is_known(store: HttpStore, url: str, where: str) -> None:
    info = await store.stat(f"{url}/{where}/disk.img")
    assert (info.size, info.validator is None) == (SIZE, where == "no-etag")
    assert await read(store, f"{url}/{where}/disk.img", 7, 1_000_000) == DATA[7:1_000_007]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, None), (0, SIZE), (0, 0), (1, 1), (SIZE - 1, 1), (SIZE, 0), (1_000, 2_000_000), (9, None)],
)
async def test_a_range_is_exactly_its_bytes(store: HttpStore, url: str, offset: int, length: int | None) -> None:
    end = SIZE if length is None else offset + length
    assert await read(store, f"{url}/disk.img", offset, length) == DATA[offset:end]


@pytest.mark.parametrize(("offset", "length"), [(SIZE + 1, None), (SIZE - 1, 2)])
async def test_a_range_outside_the_object_is_an_error(
    store: HttpStore, url: str, offset: int, length: int | None
) -> None:
    with pytest.raises(StoreError):
        await read(store, f"{url}/disk.img", offset, length)


async def test_a_missing_object_is_missing(store: HttpStore, url: str) -> None:
    with pytest.raises(ObjectMissing):
        await store.stat(f"{url}/none")
    with pytest.raises(ObjectMissing):
        await store.open_read(f"{url}/none")


async def test_no_other_object_than_the_expected_one_is_opened(
    store: HttpStore, url: str, origin: nginx_origin.NginxOrigin
) -> None:
    expected = await store.stat(f"{url}/disk.img")
    origin.put("disk.img", DATA[:-1])
    for known in (expected, ObjectInfo(size=SIZE), ObjectInfo(size=None, validator=expected.validator)):
        with pytest.raises(ObjectChanged):
            await store.open_read(f"{url}/disk.img", expected=known)


async def test_a_read_under_way_keeps_its_object_when_another_takes_its_place(
    store: HttpStore, url: str, origin: nginx_origin.NginxOrigin
) -> None:
    stream = await store.open_read(f"{url}/disk.img")
    first = bytes(await stream.receive_some())
    origin.put("disk.img", bytes(SIZE))
    assert first + await drain(stream) == DATA


async def test_a_coded_body_is_never_taken_for_the_image(store: HttpStore, url: str) -> None:
    """Identity is asked for, so nginx compresses nothing."""
    assert await read(store, f"{url}/zipped/disk.img") == DATA


async def test_only_plain_tcp_offers_its_socket(store: HttpStore, origin: nginx_origin.NginxOrigin) -> None:
    for url, offers in ((origin.url, True), (origin.tls_url, False)):
        stream = await store.open_read(f"{url}/disk.img")
        assert isinstance(stream, DirectReadStream)
        while stream.direct() is None and offers:
            await stream.receive_some()  # what came with the head
        assert (stream.direct() is not None) == offers
        await stream.aclose()


async def test_a_certificate_that_is_not_trusted_is_refused(origin: nginx_origin.NginxOrigin) -> None:
    outbound = Outbound(LocationPolicy(deny_private=False))
    with pytest.raises(ObjectMissing):
        await HttpStore(outbound).stat(f"{origin.tls_url}/disk.img")
    await outbound.aclose()


async def test_an_origin_that_dies_under_a_read_is_an_error(
    store: HttpStore, url: str, origin: nginx_origin.NginxOrigin
) -> None:
    origin.put("large.img", bytes(64 << 20))  # more than sockets hold
    stream = await store.open_read(f"{url}/large.img")
    await stream.receive_some()
    origin.stop()
    try:
        with pytest.raises(StoreUnreachable):
            await drain(stream)
        with pytest.raises(StoreUnreachable):
            await store.open_read(f"{url}/disk.img")
    finally:
        origin.start()


async def test_cancelled_reads_leave_nothing(store: HttpStore, url: str) -> None:
    descriptors = open_descriptors()
    for _ in range(3):
        stream = await store.open_read(f"{url}/disk.img")
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive_some()
        await stream.aclose()
    assert open_descriptors().items() - descriptors.items() == set()
