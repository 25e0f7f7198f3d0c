"""The contract of stores on a real Hadoop HDFS."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator

import pytest
import trio
from servers import hdfs
from store_suite import MIB, StoreSuite, Subject, new_key, put, read

from visor_gateway.errors import ObjectExists, ObjectMissing, StoreError, StoreFull, StoreUnreachable
from visor_gateway.outbound import CONFIGURED, Outbound
from visor_gateway.store.contract import WriteStream
from visor_gateway.store.remoteexception import NotServing, Refused
from visor_gateway.store.webhdfs import WebHdfsStore


@pytest.fixture
def server(hdfs_server: hdfs.Hdfs) -> hdfs.Hdfs:
    return hdfs_server


class HdfsSubject(Subject):
    """A store in a directory of its own."""

    store: WebHdfsStore

    def __init__(self, server: hdfs.Hdfs, outbound: Outbound, *, username: str = hdfs.Hdfs.user) -> None:
        self.directory = f"/images/{uuid.uuid4()}"
        self._server = server
        self._outbound = outbound
        endpoints = ["http://127.0.0.1:1", server.url]  # the first one is down
        super().__init__(
            WebHdfsStore("hdfs", outbound, endpoints=endpoints, directory=self.directory, username=username)
        )

    def residue(self) -> list[str]:
        """Partial files, and directories that hold nothing."""
        below = self._server.walk(self.directory)
        return [path for path, kind, count in below if path.endswith(".partial") or (kind == "DIRECTORY" and not count)]

    async def settle(self) -> None:
        """Close what idles in the pool: it is no descriptor that the store left."""
        await self._outbound.aclose()


@pytest.fixture
async def subject(server: hdfs.Hdfs) -> AsyncGenerator[HdfsSubject, None]:
    outbound = Outbound(CONFIGURED, stall_timeout=20)
    subject = HdfsSubject(server, outbound)
    yield subject
    await outbound.aclose()
    server.remove(subject.directory)


class TestWebHdfsStore(StoreSuite):
    @pytest.fixture
    async def subject(self, subject: HdfsSubject) -> HdfsSubject:
        return subject


async def test_locations_say_where_an_object_is_and_nothing_of_who_asks(subject: HdfsSubject) -> None:
    key = new_key()
    location, _ = await put(subject.store, b"content", key)
    assert location == f"hdfs://127.0.0.1{subject.directory}/{key}"


async def test_no_other_user_of_the_file_system_reads_an_image(server: hdfs.Hdfs, subject: HdfsSubject) -> None:
    await subject.store.check()
    await put(subject.store, b"content")
    permissions = {server.call("GET", "GETFILESTATUS", subject.directory)["FileStatus"]["permission"]}
    for path, kind, _ in server.walk(subject.directory):
        if kind == "FILE":
            permissions.add(server.call("GET", "GETFILESTATUS", path)["FileStatus"]["permission"])
    assert permissions == {"700", "600"}


async def test_an_object_of_many_blocks_is_read_from_any_of_them(subject: HdfsSubject) -> None:
    content = os.urandom(3 * hdfs.BLOCK_SIZE + 12345)
    location, info = await put(subject.store, content)
    assert info.size == len(content)
    for offset in (0, hdfs.BLOCK_SIZE - 1, hdfs.BLOCK_SIZE, 2 * hdfs.BLOCK_SIZE + 17):
        assert await read(subject.store, location, offset) == content[offset:]
        assert await read(subject.store, location, offset, 1000) == content[offset : offset + 1000]


async def test_bytes_may_be_taken_from_the_socket(subject: HdfsSubject) -> None:
    content = os.urandom(MIB)
    location, _ = await put(subject.store, content)
    stream = await subject.store.open_read(location, 1000)
    taken = bytearray(await stream.receive_some())
    while (offer := stream.direct()) is not None:
        assert offer.length == len(content) - 1000 - len(taken)
        await trio.lowlevel.wait_readable(offer.sock)
        data = os.read(offer.sock, min(offer.length, 65536))
        assert data
        stream.advance(len(data))
        taken += data
    assert await stream.receive_some() == b""
    await stream.aclose()
    assert bytes(taken) == content[1000:]


async def test_who_may_not_write_is_told_so_by_the_class_of_the_refusal_alone(
    server: hdfs.Hdfs, subject: HdfsSubject
) -> None:
    await subject.store.check()
    location, _ = await put(subject.store, b"content")
    outbound = Outbound(CONFIGURED)
    stranger = WebHdfsStore("hdfs", outbound, endpoints=[server.url], directory=subject.directory, username="stranger")
    for call, *arguments in (
        (stranger.check,),
        (stranger.stat, location),
        (stranger.open_read, location),
        (stranger.open_write, new_key()),
        (stranger.delete, location),
        (stranger.abandon, new_key()),
        (stranger.leftovers, 0),
    ):
        with pytest.raises(Refused) as caught:
            await call(*arguments)
        assert caught.value.message == "The store 'hdfs' refuses: AccessControlException"
    await outbound.aclose()
    assert await read(subject.store, location) == b"content"


async def test_a_name_that_is_taken_between_begin_and_commit_is_left_alone(
    server: hdfs.Hdfs, subject: HdfsSubject
) -> None:
    key = new_key()
    writer = await subject.store.open_write(key)
    await writer.write(b"ours")
    rival = f"{subject.directory}/{new_key()}"
    server.call("PUT", "MKDIRS", os.path.dirname(rival))
    server.call("PUT", "RENAME", f"{subject.directory}/{key}.partial", destination=rival)
    other, _ = await put(subject.store, b"theirs")
    server.call(
        "PUT", "RENAME", "/" + other.removeprefix("hdfs://127.0.0.1/"), destination=f"{subject.directory}/{key}"
    )
    with pytest.raises(StoreError):
        await writer.commit()
    await writer.abort()
    assert await read(subject.store, writer.location) == b"theirs"


async def test_a_commit_onto_an_object_that_came_meanwhile_is_refused(server: hdfs.Hdfs, subject: HdfsSubject) -> None:
    key = new_key()
    writer = await subject.store.open_write(key)
    await writer.write(b"ours")
    other, _ = await put(subject.store, b"theirs")
    path = "/" + other.removeprefix("hdfs://127.0.0.1/")
    server.call("PUT", "RENAME", path, destination=f"{subject.directory}/{key}")
    with pytest.raises(ObjectExists):
        await writer.commit()
    assert not [path for path in subject.residue() if path.endswith(".partial")]
    assert await read(subject.store, writer.location) == b"theirs"


async def test_a_file_system_in_safe_mode_is_read_and_not_written(server: hdfs.Hdfs, subject: HdfsSubject) -> None:
    location, _ = await put(subject.store, b"content")
    await trio.to_thread.run_sync(server.administer, "-safemode", "enter")
    try:
        assert await read(subject.store, location) == b"content"
        for call, argument in ((subject.store.open_write, new_key()), (subject.store.delete, location)):
            with pytest.raises(NotServing, match="SafeModeException"):
                await call(argument)
        with pytest.raises(NotServing, match="SafeModeException"):
            await subject.store.check()
    finally:
        with trio.move_on_after(60, shield=True):
            await trio.to_thread.run_sync(server.administer, "-safemode", "leave")
    await subject.store.check()


async def write_until_refused(writer: WriteStream, size: int) -> None:
    for _ in range(0, size, MIB):
        await writer.write(bytes(MIB))


async def test_a_quota_that_is_used_up_means_a_full_store(server: hdfs.Hdfs, subject: HdfsSubject) -> None:
    await subject.store.check()
    quota = 2 * hdfs.BLOCK_SIZE
    await trio.to_thread.run_sync(server.administer, "-setSpaceQuota", str(quota), subject.directory)
    writer = await subject.store.open_write(new_key())
    with pytest.raises(StoreFull, match="no room"):
        await write_until_refused(writer, MIB * 200)
    await writer.abort()
    assert subject.residue() == []


async def test_no_namenode_at_all_is_an_unreachable_store(subject: HdfsSubject) -> None:
    outbound = Outbound(CONFIGURED)
    store = WebHdfsStore("hdfs", outbound, endpoints=["http://127.0.0.1:1"], directory="/x", username="visor")
    for call, *arguments in (
        (store.check,),
        (store.open_write, new_key()),
        (store.stat, f"hdfs://h/x/{new_key()}"),
    ):
        with pytest.raises(StoreUnreachable, match="does not answer"):
            await call(*arguments)
    await outbound.aclose()


async def test_a_missing_object_is_not_one_that_can_not_be_reached(subject: HdfsSubject) -> None:
    with pytest.raises(ObjectMissing):
        await subject.store.stat(f"hdfs://elsewhere{subject.directory}/{new_key()}")
    assert await subject.store.leftovers(0) == []
