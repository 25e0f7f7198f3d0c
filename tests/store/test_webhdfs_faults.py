"""What the hdfs store makes of NameNodes and DataNodes that misbehave, and of what they say."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator

import pytest
from scripted_hdfs import ScriptedHdfs, refusal
from store_suite import new_key, put, read

from visor_gateway.errors import ObjectExists, ObjectMissing, StoreError, StoreFull, StoreUnreachable
from visor_gateway.outbound import CONFIGURED, Outbound
from visor_gateway.store import hdfswrite
from visor_gateway.store.hdfspaths import HdfsPaths
from visor_gateway.store.objectkey import ObjectKey
from visor_gateway.store.remoteexception import NotServing, Refused, error_of
from visor_gateway.store.webhdfs import WebHdfsStore

Reply = tuple[int, dict[str, str], bytes]


@pytest.fixture
def hdfs() -> Iterator[ScriptedHdfs]:
    server = ScriptedHdfs()
    yield server
    server.close()


@pytest.fixture
async def outbound() -> AsyncGenerator[Outbound, None]:
    outbound = Outbound(CONFIGURED, stall_timeout=10)
    yield outbound
    await outbound.aclose()


@pytest.fixture
def store(hdfs: ScriptedHdfs, outbound: Outbound, monkeypatch: pytest.MonkeyPatch) -> WebHdfsStore:
    monkeypatch.setattr(hdfswrite, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    return WebHdfsStore("hdfs", outbound, endpoints=[hdfs.url], directory="/images", username="visor")


def operations(hdfs: ScriptedHdfs, *names: str) -> list[str]:
    return [name for name, _ in hdfs.asked if name in names]


def times(count: int, reply: Reply) -> object:
    """A fault that happens so often."""
    left = [reply] * count

    def fault(asked: dict[str, str]) -> Reply | None:
        return left.pop() if left else None

    return fault


# --- DataNodes -----------------------------------------------------------------------------------


async def test_what_a_datanode_redirects_to_is_never_asked(hdfs: ScriptedHdfs, store: WebHdfsStore) -> None:
    location, _ = await put(store, b"content")
    hdfs.faults["DATA"] = lambda asked: (307, {"Location": f"{hdfs.url}/elsewhere"}, b"")
    with pytest.raises(StoreUnreachable):
        await store.open_read(location)
    writer = await store.open_write(new_key())
    await writer.write(b"content")
    with pytest.raises(StoreError):
        await writer.commit()
    await writer.abort()
    assert operations(hdfs, "elsewhere") == []
    assert set(hdfs.files) == {"/" + location.removeprefix("hdfs://127.0.0.1/")}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "//127.0.0.1/x", "", "nonsense"])
async def test_a_namenode_may_send_to_http_servers_only(hdfs: ScriptedHdfs, store: WebHdfsStore, target: str) -> None:
    hdfs.faults["CREATE"] = lambda asked: (307, {"Location": target}, b"")
    with pytest.raises(StoreUnreachable, match="does not answer"):
        await store.open_write(new_key())
    assert operations(hdfs, "DATA") == []


async def test_a_body_is_sent_once_and_never_to_the_namenode(hdfs: ScriptedHdfs, store: WebHdfsStore) -> None:
    await put(store, b"content")
    assert operations(hdfs, "CREATE", "DATA") == ["CREATE", "DATA"]


async def test_a_datanode_that_is_down_is_left_out_of_the_next_choice(hdfs: ScriptedHdfs, store: WebHdfsStore) -> None:
    location, _ = await put(store, b"content")

    def fault(asked: dict[str, str]) -> Reply | None:
        down = "excludedatanodes" not in asked
        return (307, {"Location": "http://localhost:1/webhdfs/v1/x?op=OPEN"}, b"") if down else None

    hdfs.faults["OPEN"] = hdfs.faults["CREATE"] = fault
    hdfs.asked.clear()
    assert await read(store, location) == b"content"
    await put(store, b"more")
    assert [asked["excludedatanodes"] for name, asked in hdfs.asked if name == "DATA"] == ["localhost", "localhost"]


@pytest.mark.parametrize(
    "reply",
    [
        (200, {"Content-Length": "7"}, b"conten"),
        (200, {"Content-Length": "8"}, b"content!"),
        (200, {"Content-Length": "6"}, b"conten"),
        (206, {"Content-Range": "bytes 0-6/7"}, b"content"),
        (500, {}, b"<html>"),
    ],
    ids=["short", "long", "other length", "part", "error"],
)
async def test_what_is_not_the_range_is_no_success(hdfs: ScriptedHdfs, store: WebHdfsStore, reply: Reply) -> None:
    location, _ = await put(store, b"content")
    hdfs.faults["DATA"] = lambda asked: reply
    with pytest.raises(StoreUnreachable):
        await read(store, location)


async def test_bytes_that_a_datanode_lost_are_no_object(hdfs: ScriptedHdfs, store: WebHdfsStore) -> None:
    writer = await store.open_write(new_key())
    await writer.write(b"content")

    def lose(asked: dict[str, str]) -> None:
        (path,) = hdfs.files
        hdfs.files[path] = hdfs.files[path][:-1]

    hdfs.faults["DATA"] = lose
    with pytest.raises(StoreUnreachable, match="6 of 7 bytes"):
        await writer.commit()
    await writer.abort()
    assert hdfs.files == {}


async def test_a_file_that_is_never_closed_is_no_object(
    hdfs: ScriptedHdfs, store: WebHdfsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdfswrite, "CLOSE_SECONDS", 0.2)
    writer = await store.open_write(new_key())
    await writer.write(b"content")
    hdfs.open.update(hdfs.files)
    with pytest.raises(StoreUnreachable, match="does not close"):
        await writer.commit()
    await writer.abort()
    assert hdfs.files == {}


# --- NameNodes -----------------------------------------------------------------------------------


async def test_a_standby_is_passed_over_and_the_active_one_remembered(hdfs: ScriptedHdfs, outbound: Outbound) -> None:
    standby = ScriptedHdfs()
    standby.faults["GETFILESTATUS"] = lambda asked: refusal("StandbyException")
    hdfs.put("/images/" + (key := new_key()), b"content")
    store = WebHdfsStore("hdfs", outbound, endpoints=[standby.url, hdfs.url], directory="/images", username="visor")
    for _ in range(3):
        assert (await store.stat(f"hdfs://any/images/{key}")).size == 7
    assert operations(standby, "GETFILESTATUS") == ["GETFILESTATUS"]
    hdfs.faults["GETFILESTATUS"] = lambda asked: refusal("StandbyException")
    with pytest.raises(NotServing, match="StandbyException"):
        await store.stat(f"hdfs://any/images/{key}")
    standby.close()


async def test_a_commit_waits_for_a_namenode_and_says_so(hdfs: ScriptedHdfs, store: WebHdfsStore) -> None:
    writer = await store.open_write(new_key())
    told: list[str] = []
    writer.on_retry = lambda: told.append("retry")
    await writer.write(b"content")
    hdfs.faults["RENAME"] = times(2, refusal("RetriableException"))  # type: ignore[assignment]
    assert (await writer.commit()).size == 7
    assert told == ["retry", "retry"]
    assert await read(store, writer.location) == b"content"


async def test_a_rename_whose_answer_was_lost_is_found_done(hdfs: ScriptedHdfs, store: WebHdfsStore) -> None:
    writer = await store.open_write(new_key())
    await writer.write(b"content")
    lost = []

    def rename(asked: dict[str, str]) -> Reply | None:
        if lost:
            return None
        lost.append(asked)
        (path,) = hdfs.files
        hdfs._rename(path, asked["destination"])
        return refusal("StandbyException")

    hdfs.faults["RENAME"] = rename
    assert (await writer.commit()).size == 7
    assert list(hdfs.files.values()) == [b"content"]


async def test_a_commit_that_finds_no_namenode_can_be_aborted_later(hdfs: ScriptedHdfs, store: WebHdfsStore) -> None:
    writer = await store.open_write(new_key())
    await writer.write(b"content")
    hdfs.faults["RENAME"] = lambda asked: refusal("SafeModeException")
    with pytest.raises(NotServing):
        await writer.commit()
    await writer.abort()
    assert hdfs.files == {}


async def test_a_rename_that_was_done_is_undone_by_an_abort(hdfs: ScriptedHdfs, store: WebHdfsStore) -> None:
    writer = await store.open_write(new_key())
    await writer.write(b"content")

    def rename(asked: dict[str, str]) -> Reply | None:
        (path,) = hdfs.files
        if path.endswith(".partial"):
            hdfs._rename(path, asked["destination"])
        return 500, {}, b"not what a NameNode says"

    hdfs.faults["RENAME"] = rename
    with pytest.raises(StoreUnreachable):
        await writer.commit()
    assert list(hdfs.files.values()) == [b"content"]
    await writer.abort()
    assert hdfs.files == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"FileStatus": {"type": "FILE"}}', b"\xff", b'{"boolean": 1}'])
async def test_what_is_no_answer_is_an_unreachable_store(
    hdfs: ScriptedHdfs, store: WebHdfsStore, content: bytes
) -> None:
    hdfs.faults["GETFILESTATUS"] = lambda asked: (200, {}, content)
    with pytest.raises(StoreUnreachable):
        await store.stat(f"hdfs://any/images/{new_key()}")


# --- what refusals mean --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message", "error", "told"),
    [
        ("FileNotFoundException", "", ObjectMissing, "no such object"),
        ("FileAlreadyExistsException", "", ObjectExists, "already"),
        ("StandbyException", "", NotServing, "StandbyException"),
        ("RetriableException", "", NotServing, "RetriableException"),
        ("SafeModeException", "", NotServing, "SafeModeException"),
        ("RemoteException", "Cannot create file. Name node is in safe mode.\nIt", NotServing, "SafeModeException"),
        ("DSQuotaExceededException", "", StoreFull, "DSQuotaExceededException"),
        ("NSQuotaExceededException", "", StoreFull, "NSQuotaExceededException"),
        ("IOException", "File /x could only be replicated to 0 nodes instead of", StoreFull, "IOException"),
        ("AccessControlException", "", Refused, "AccessControlException"),
        ("IllegalArgumentException", "", Refused, "IllegalArgumentException"),
    ],
)
def test_the_class_of_a_refusal_says_what_it_means(name: str, message: str, error: type[StoreError], told: str) -> None:
    text = f"{message} /secret/path\n\tat org.apache.hadoop.X(X.java:1)"
    content = {"RemoteException": {"exception": name, "javaClassName": "x", "message": text}}
    found = error_of(403, json.dumps(content).encode(), "hdfs")
    assert type(found) is error
    assert told in found.message
    assert "secret" not in found.message
    assert "\n" not in found.message


@pytest.mark.parametrize("content", [b"", b"<html>x</html>", b"[]", b'{"RemoteException": {"exception": "a b\\n"}}'])
def test_a_refusal_that_is_no_remote_exception_shows_its_status_alone(content: bytes) -> None:
    assert error_of(401, content, "hdfs").message == "The store 'hdfs' answers with status 401, and not as WebHDFS does"


# --- paths and locations -------------------------------------------------------------------------


def test_a_location_names_host_and_path_and_is_read_back() -> None:
    key = ObjectKey.parse(new_key())
    paths = HdfsPaths("http://Name.Node:50070/", "/a b/images/")
    location = f"hdfs://name.node/a%20b/images/{key}"
    assert paths.location(key) == location
    assert paths.object(key) == f"/a b/images/{key}"
    assert paths.partial(key) == f"/a b/images/{key}.partial"
    assert paths.key(location) == key
    # The host is for people: a NameNode may move.
    assert paths.key(location.replace("name.node", "other.node:8020")) == key


def test_a_location_of_elsewhere_is_none_of_this_store() -> None:
    paths = HdfsPaths("http://[::1]:50070", "/images")
    key = new_key()
    assert paths.location(ObjectKey.parse(key)) == f"hdfs://[::1]/images/{key}"
    for location in (
        f"hdfs://h/other/{key}",
        f"hdfs://h/images/{key}.partial",
        f"hdfs://h/images/x/{key}",
        f"hdfs://h/images/../images/{key}",
        f"hdfs://u:p@h/images/{key}",
        f"hdfs:///images/{key}",
        f"webhdfs://h/images/{key}",
        f"hdfs://h/images/{key}\n",
        f"hdfs://h/images/{key.upper()}",
    ):
        with pytest.raises(ObjectMissing):
            paths.key(location)
