"""The contract of stores on the S3 family, on real servers.

`VISOR_SLOW_SERVERS=0` leaves out those that take long to install and start, Swift and Ceph.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Final

import pytest
import trio
from s3_subject import s3_subject
from servers import ceph, rclone, seaweedfs, swift
from servers.s3_service import S3Service
from store_suite import MIB, StoreSuite, Subject, drain, new_key, put, read

from visor_gateway.errors import ObjectMissing, StoreError, StoreFull
from visor_gateway.store.contract import DirectReadStream, Store, WriteStream

SLOW: Final = os.environ.get("VISOR_SLOW_SERVERS") != "0"
STARTERS: Final = {"seaweedfs": seaweedfs.start, "rclone": rclone.start, "swift": swift.start, "ceph": ceph.start}


@pytest.fixture(scope="module")
def server() -> Generator[Callable[[str], S3Service], None, None]:
    """Servers by name, each started when the first test asks for it."""
    services: dict[str, S3Service] = {}

    def get(name: str) -> S3Service:
        if name not in services:
            services[name] = STARTERS[name]()
        return services[name]

    yield get
    for service in services.values():
        service.stop()


class S3Suite(StoreSuite):
    """The contract, for one type of store on one server."""

    kind = "s3"
    on = "seaweedfs"

    @pytest.fixture
    async def subject(self, server: Callable[[str], S3Service], tmp_path: Path) -> AsyncGenerator[Subject, None]:
        async with s3_subject(server(self.on), tmp_path / "spool", self.kind) as subject:
            yield subject

    @pytest.mark.parametrize("known", [True, False])
    async def test_what_is_too_large_for_one_request_is_read_as_it_was_written(self, store: Store, known: bool) -> None:
        content = os.urandom(20 * MIB + 1)
        writer = await store.open_write(new_key(), size=len(content) if known else None)
        for start in range(0, len(content), 3 * MIB):
            await writer.write(content[start : start + 3 * MIB])
        info = await writer.commit()
        assert info.size == len(content)
        assert await store.stat(writer.location) == info
        assert await read(store, writer.location) == content
        assert await read(store, writer.location, 9 * MIB, 100) == content[9 * MIB :][:100]
        await store.delete(writer.location)

    @pytest.mark.parametrize("known", [True, False])
    async def test_a_large_object_that_is_given_up_leaves_nothing(self, store: Store, known: bool) -> None:
        writer = await store.open_write(new_key(), size=40 * MIB if known else None)
        await _write(writer, 20 * MIB)
        await writer.abort()
        with pytest.raises(ObjectMissing):
            await store.stat(writer.location)
        assert await store.leftovers(0) == []


class TestS3OnSeaweedFS(S3Suite):
    pass


async def test_parts_that_are_too_large_for_memory_are_spooled(
    server: Callable[[str], S3Service], tmp_path: Path
) -> None:
    content = os.urandom(100 * MIB + 1)
    async with s3_subject(server("seaweedfs"), tmp_path / "spool", max_size=160 * MIB, max_parts=5) as subject:
        writer = await subject.store.open_write(new_key())
        spooled = 0
        for start in range(0, len(content), MIB):
            await writer.write(content[start : start + MIB])
            spooled = max(spooled, subject.store.spool.used)
        info = await writer.commit()
        assert info.size == len(content)
        assert spooled > 16 * MIB
        assert subject.store.spool.used == 0
        assert await read(subject.store, writer.location) == content
        await subject.store.delete(writer.location)


async def test_a_spool_without_room_ends_the_upload_and_leaves_nothing(
    server: Callable[[str], S3Service], tmp_path: Path
) -> None:
    service = server("seaweedfs")
    async with s3_subject(service, tmp_path, max_size=160 * MIB, max_parts=5, spool_limit=MIB) as subject:
        writer = await subject.store.open_write(new_key())
        with pytest.raises(StoreFull):
            await _write(writer, 100 * MIB)
        await writer.abort()
        assert subject.residue() == []
        assert subject.client.keys() == []


async def test_what_a_process_left_that_is_gone_is_abandoned_by_another(
    server: Callable[[str], S3Service], tmp_path: Path
) -> None:
    key = new_key()
    async with (
        s3_subject(server("seaweedfs"), tmp_path / "one") as crashed,
        s3_subject(server("seaweedfs"), tmp_path / "two") as other,
    ):
        writer = await crashed.store.open_write(key)
        await _write(writer, 20 * MIB)
        assert [each for each, _ in other.client.uploads()] == [key]
        assert await other.store.leftovers(0) == []
        await other.store.abandon(key)
        assert other.client.uploads() == []
        with pytest.raises(StoreError):
            await writer.commit()
        await writer.abort()


async def test_bytes_of_a_read_may_be_taken_from_its_socket(server: Callable[[str], S3Service], tmp_path: Path) -> None:
    content = os.urandom(4 * MIB)
    async with s3_subject(server("seaweedfs"), tmp_path) as subject:
        location, _ = await put(subject.store, content)
        stream = await subject.store.open_read(location, MIB, 2 * MIB)
        assert isinstance(stream, DirectReadStream)
        got = b""
        while (offer := stream.direct()) is None:
            got += await stream.receive_some()
        assert offer.length == 2 * MIB - len(got)
        with socket.socket(fileno=os.dup(offer.sock)) as taken:
            await trio.lowlevel.wait_readable(taken)
            piece = taken.recv(min(1000, offer.length))
        stream.advance(len(piece))
        assert got + piece + await drain(stream) == content[MIB : 3 * MIB]
        await subject.store.delete(location)


async def _write(writer: WriteStream, size: int) -> None:
    for _ in range(size // MIB):
        await writer.write(bytes(MIB))


class TestS3OnRclone(S3Suite):
    on = "rclone"


class TestS3OnSwift(S3Suite):
    __test__ = SLOW
    on = "swift"


class TestS3OnCeph(S3Suite):
    __test__ = SLOW
    on = "ceph"


class TestLunacloud(S3Suite):
    kind = "lunacloud"


class TestCumulus(S3Suite):
    kind = "cumulus"


class TestWalrus(S3Suite):
    kind = "walrus"

    async def test_leftovers_are_the_keys_of_what_is_old_enough(self, store: Store) -> None:
        """A server that is no Walrus has no bucket at its path to list: what this process has begun is known."""
        begun = new_key()
        location, _ = await put(store, b"content")
        writer = await store.open_write(begun)
        await writer.write(b"content")
        assert await store.leftovers(0) == [begun]
        assert await store.leftovers(3600) == []
        await writer.abort()
        await store.delete(location)
