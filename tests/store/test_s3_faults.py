"""What a store of the S3 family makes of answers that are wrong, late or lost, over memory streams."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from canary import canary
from faulty_origin import Asked, Close, Network, Origin, Step, head
from store_suite import drain, new_key, put

from visor_gateway.errors import (
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from visor_gateway.outbound import CONFIGURED, Outbound
from visor_gateway.store.contract import ObjectInfo, RetryingStream, ServedStore, WriteStream
from visor_gateway.store.s3 import S3Settings, S3Store
from visor_gateway.store.s3_bucket import TRIES
from visor_gateway.store.s3_dialect import DIALECTS, Dialect
from visor_gateway.store.s3_signing import Signer
from visor_gateway.store.spool import Spool

MIB = 1 << 20
#: No hashing in threads, which a clock that jumps would not wait for.
PARTS = Dialect(scheme="s3", signature="v2")
SECRET = canary.secret("never-to-be-seen")


def error(status: int, code: str, **headers: object) -> list[Step]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode()
    return [head(status, content_length=len(body), **headers), body]


def xml(body: str) -> list[Step]:
    return [head(200, content_length=len(body)), body.encode()]


class FakeS3(Origin):
    """Keeps objects and uploads of one bucket. `faults` may answer first: by returning steps, or None.

    Attributes:
        objects: By key.
        parts: By upload id, then number.
        did: The operations in order, such as "PUT part".
    """

    def __init__(self) -> None:
        super().__init__(answer=self._reply)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.keys: dict[str, str] = {}
        self.did: list[str] = []
        self.faults: Callable[[str, Asked], list[Step] | None] = lambda did, asked: None

    def operation(self, asked: Asked) -> str:
        query = asked.target.partition("?")[2]
        kinds = {"partNumber": "part", "uploadId": "upload", "uploads": "uploads", "max-keys": "list"}
        return f"{asked.method} {next((kind for mark, kind in kinds.items() if mark in query), 'object')}"

    def _reply(self, asked: Asked) -> list[Step]:
        did = self.operation(asked)
        self.did.append(did)
        steps = self.faults(did, asked)
        return self.act(did, asked) if steps is None else steps

    def act(self, did: str, asked: Asked) -> list[Step]:
        """Do what was asked, well."""
        path, _, query = asked.target.partition("?")
        key = path.removeprefix("/bucket").removeprefix("/")
        upload_id = (re.search(r"uploadId=(\w+)", query) or [None, ""])[1]
        match did:
            case "HEAD object" | "GET object":
                if key not in self.objects:
                    return error(404, "NoSuchKey")[: 1 if asked.method == "HEAD" else 2]
                self.body, self.etag = self.objects[key], f'"{len(self.objects[key])}"'
                return self.properly(asked)
            case "PUT object":
                if "if-none-match" in asked.headers and key in self.objects:
                    return error(412, "PreconditionFailed")
                self.objects[key] = asked.body
                return [head(200, content_length=0)]
            case "POST uploads":
                upload_id = f"id{len(self.parts)}"
                self.parts[upload_id], self.keys[upload_id] = {}, key
                body = f"<UploadId>{upload_id}</UploadId>"
                return xml(f"<InitiateMultipartUploadResult>{body}</InitiateMultipartUploadResult>")
            case "PUT part":
                number = int((re.search(r"partNumber=(\d+)", query) or [None, "0"])[1])
                self.parts[upload_id][number] = asked.body
                return [head(200, content_length=0, etag=f'"part{number}"')]
            case "POST upload":
                if upload_id not in self.parts:
                    return error(404, "NoSuchUpload")
                self.objects[key] = b"".join(data for _, data in sorted(self.parts.pop(upload_id).items()))
                return xml("<CompleteMultipartUploadResult><ETag></ETag></CompleteMultipartUploadResult>")
            case "DELETE upload":
                gone = self.parts.pop(upload_id, None) is None
                return error(404, "NoSuchUpload") if gone else [head(204)]
            case "DELETE object":
                self.objects.pop(key, None)
                return [head(204)]
            case "GET uploads":
                found = "".join(
                    f"<Upload><Key>{self.keys[i]}</Key><UploadId>{i}</UploadId></Upload>" for i in self.parts
                )
                return xml(f"<ListMultipartUploadsResult>{found}</ListMultipartUploadsResult>")
        return xml("<ListBucketResult></ListBucketResult>")


@pytest.fixture
def server() -> FakeS3:
    return FakeS3()


@asynccontextmanager
async def serving(
    server: FakeS3, spool: Path, dialect: Dialect = PARTS, *, spool_limit: int = 1 << 40
) -> AsyncGenerator[S3Store, None]:
    async with trio.open_nursery() as nursery:
        network = Network(nursery)
        network.place(server)
        outbound = Outbound(CONFIGURED, resolver=network.resolve, connector=network.connect)
        signer = Signer(dialect.signature, "AKID", SECRET, "us-east-1")
        settings = S3Settings(endpoint="http://images.example", bucket="bucket", max_size=1 << 40)
        store = S3Store("cloud", settings, dialect, signer, outbound, Spool(spool, spool_limit))
        await nursery.start(store.serve)
        try:
            yield store
        finally:
            nursery.cancel_scope.cancel()
    assert store.spool.used == 0
    assert store._writing == {}


@pytest.fixture
async def store(
    server: FakeS3, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> AsyncGenerator[S3Store, None]:
    async with serving(server, tmp_path) as store:
        yield store


async def fill(writer: WriteStream, count: int, *, commit: bool = False) -> None:
    for _ in range(count):
        await writer.write(bytes(MIB))
    if commit:
        await writer.commit()


def once(operation: str, steps: list[Step] | None, *, after: bool = False, server: FakeS3 | None = None):
    """A fault that strikes an operation the first time; `after`: the operation is done, and its answer is lost."""
    struck = []

    def fault(did: str, asked: Asked) -> list[Step] | None:
        if did != operation or struck:
            return None
        struck.append(asked)
        if after and server is not None:
            server.act(did, asked)
        return steps

    return fault


PASSING = [
    error(503, "SlowDown"),
    error(500, "InternalError"),
    error(400, "RequestTimeout"),
    error(429, "Throttled"),
    [Close()],
    [b"nonsense\r\n\r\n", Close()],
]


@pytest.mark.parametrize("steps", PASSING)
@pytest.mark.parametrize("operation", ["PUT object", "GET object", "DELETE object"])
async def test_what_may_pass_is_tried_again(store: S3Store, server: FakeS3, operation: str, steps: list[Step]) -> None:
    server.faults = once(operation, steps)
    location, info = await put(store, b"content")
    assert await drain(await store.open_read(location)) == b"content"
    assert info.size == 7
    await store.delete(location)
    assert server.objects == {}


async def test_the_tries_come_to_an_end_and_are_told(store: S3Store, server: FakeS3) -> None:
    server.faults = lambda did, asked: error(503, "SlowDown") if did == "PUT object" else None
    writer = await store.open_write(new_key())
    told = []
    assert isinstance(writer, RetryingStream)
    writer.on_retry = lambda: told.append(1)
    await writer.write(b"content")
    with pytest.raises(StoreUnreachable):
        await writer.commit()
    await writer.abort()
    assert server.did.count("PUT object") == TRIES
    assert len(told) == TRIES - 1


@pytest.mark.parametrize("steps", PASSING)
async def test_a_part_that_failed_is_sent_again_as_it_was(store: S3Store, server: FakeS3, steps: list[Step]) -> None:
    server.faults = once("PUT part", steps)
    content = bytes(range(256)) * (20 * MIB // 256)
    location, _ = await put(store, content)
    assert await drain(await store.open_read(location)) == content
    assert server.did.count("PUT part") == 4


async def test_a_part_that_fails_for_good_ends_the_upload_and_leaves_nothing(store: S3Store, server: FakeS3) -> None:
    server.faults = lambda did, asked: error(403, "AccessDenied") if did == "PUT part" else None
    writer = await store.open_write(new_key())
    with pytest.raises(StoreError, match="keys or their rights"):
        await fill(writer, 100)
    await writer.abort()
    assert (server.objects, server.parts) == ({}, {})


async def test_an_upload_that_was_put_together_though_the_answer_was_lost_is_whole(
    store: S3Store, server: FakeS3
) -> None:
    server.faults = once("POST upload", [Close()], after=True, server=server)
    location, info = await put(store, bytes(20 * MIB))
    assert info.size == 20 * MIB
    assert server.did.count("POST upload") == 2
    assert (await store.stat(location)) == info


async def test_an_object_that_was_put_though_the_answer_was_lost_is_not_somebody_elses(
    store: S3Store, server: FakeS3
) -> None:
    server.faults = once("PUT object", [Close()], after=True, server=server)
    _, info = await put(store, b"content")
    assert info.size == 7
    assert [asked.method for asked in server.asked] == ["HEAD", "PUT", "PUT", "HEAD", "HEAD"]
    assert "if-none-match" in server.asked[1].headers


async def test_an_upload_begun_without_telling_its_id_is_removed(store: S3Store, server: FakeS3) -> None:
    server.faults = once("POST uploads", [Close()], after=True, server=server)
    await put(store, bytes(20 * MIB))
    assert server.parts == {}


async def test_an_error_inside_a_200_is_an_error(store: S3Store, server: FakeS3) -> None:
    server.faults = once("POST upload", error(200, "InternalError"))
    _, info = await put(store, bytes(20 * MIB))
    assert info.size == 20 * MIB
    server.faults = lambda did, asked: error(200, "InvalidPart") if did == "POST upload" else None
    writer = await store.open_write(new_key())
    await writer.write(bytes(20 * MIB))
    with pytest.raises(StoreError, match="InvalidPart"):
        await writer.commit()
    await writer.abort()
    assert (len(server.objects), server.parts) == (1, {})


async def test_a_service_that_does_not_know_the_condition_is_not_asked_for_it_again(
    store: S3Store, server: FakeS3
) -> None:
    server.faults = lambda did, asked: error(501, "NotImplemented") if "if-none-match" in asked.headers else None
    for _ in range(2):
        await put(store, b"content")
    assert ["if-none-match" in asked.headers for asked in server.asked if asked.method == "PUT"] == [True, False, False]


async def test_a_key_that_is_taken_at_the_last_moment_is_not_overwritten(store: S3Store, server: FakeS3) -> None:
    key = new_key()

    def taken_meanwhile(did: str, asked: Asked) -> None:
        if did == "PUT object":
            server.objects[key] = b"somebody else's"

    server.faults = taken_meanwhile
    with pytest.raises(ObjectExists):
        await put(store, b"content", key)
    assert server.objects == {key: b"somebody else's"}


async def test_what_was_not_kept_as_it_was_written_is_an_error(store: S3Store, server: FakeS3) -> None:
    server.faults = lambda did, asked: [head(200, content_length=0)] if did == "PUT object" else None
    writer = await store.open_write(new_key())
    await writer.write(b"content")
    with pytest.raises(StoreError, match="not kept"):
        await writer.commit()
    await writer.abort()


async def test_other_uploads_are_never_aborted(store: S3Store, server: FakeS3) -> None:
    key = new_key()
    for upload_id, other in (("stranger", "backup"), ("near", key + "x"), ("ours", key)):
        server.parts[upload_id], server.keys[upload_id] = {}, other
    assert await store.leftovers(0) == []
    await store.abandon(key)
    assert sorted(server.parts) == ["near", "stranger"]


@pytest.mark.parametrize(
    ("steps", "kind", "words"),
    [
        (error(404, "NoSuchBucket"), StoreError, "bucket that is configured"),
        (error(403, "RequestTimeTooSkewed"), StoreError, "clock"),
        (error(403, "SignatureDoesNotMatch"), StoreError, "keys or their rights"),
        (error(301, "PermanentRedirect", location="http://elsewhere.example/"), StoreError, "endpoint or region"),
        (error(307, "TemporaryRedirect", location="http://elsewhere.example/"), StoreError, "endpoint or region"),
        (error(507, "StorageFull"), StoreFull, "no room"),
        (error(403, "QuotaExceeded"), StoreFull, "no room"),
        (error(418, "<b>"), StoreError, "refused a request: 418"),
    ],
)
async def test_refusals_say_what_is_wrong_and_nothing_else(
    store: S3Store, server: FakeS3, steps: list[Step], kind: type[StoreError], words: str
) -> None:
    server.faults = lambda did, asked: steps
    for ask in (
        store.check,
        lambda: store.open_read(store.location(new_key())),
        lambda: store.delete(store.location(new_key())),
    ):
        with pytest.raises(kind, match=words) as raised:
            await ask()
        assert SECRET not in str(raised.value)
        assert not isinstance(raised.value, ObjectMissing)
    assert all(asked.headers["host"] == "images.example" for asked in server.asked)


@pytest.mark.parametrize(
    "body",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ListBucketResult>&b;</ListBucketResult>',
        "not XML",
        "<Other/>",
        "<ListBucketResult><Contents><Key>x</Key><LastModified>then</LastModified></Contents></ListBucketResult>",
    ],
)
async def test_a_list_that_is_none_is_a_failure_of_the_service(store: S3Store, server: FakeS3, body: str) -> None:
    server.faults = lambda did, asked: xml(body)
    with pytest.raises(StoreUnreachable):
        await store.leftovers(0)


async def test_an_endless_answer_is_cut(store: S3Store, server: FakeS3) -> None:
    server.faults = lambda did, asked: [head(200, content_length=1 << 40), *[bytes(MIB)] * 8]
    with pytest.raises(StoreUnreachable):
        await store.leftovers(0)


# --- reading ---------------------------------------------------------------------------------------


async def test_the_expected_object_is_asked_for_by_its_etag(store: S3Store, server: FakeS3) -> None:
    location, info = await put(store, b"content")
    await drain(await store.open_read(location, expected=info))
    assert server.asked[-1].headers["if-match"] == '"7"'
    key = location.removeprefix("s3://bucket/")
    server.objects[key] = b"other content"
    with pytest.raises(ObjectChanged):
        await store.open_read(location, expected=info)


async def test_a_server_that_ignores_if_match_is_judged_by_its_answer(store: S3Store, server: FakeS3) -> None:
    location, info = await put(store, b"content")

    def ignore(did: str, asked: Asked) -> list[Step] | None:
        asked.headers.pop("if-match", None)
        return None

    server.faults = ignore
    for other in (
        msgspec.structs.replace(info, size=8),
        msgspec.structs.replace(info, validator=f'{(info.validator or "").partition(":")[0]}:"other"'),
    ):
        with pytest.raises(ObjectChanged):
            await store.open_read(location, expected=other)


async def test_a_server_that_ignores_range_is_read_up_to_it(store: S3Store, server: FakeS3) -> None:
    location, _ = await put(store, bytes(range(200)))

    def ignore(did: str, asked: Asked) -> list[Step] | None:
        asked.headers.pop("range", None)
        return None

    server.faults = ignore
    assert await drain(await store.open_read(location, 50, 10)) == bytes(range(50, 60))
    assert await drain(await store.open_read(location, 199)) == bytes([199])


async def test_a_weak_etag_is_no_condition(store: S3Store, server: FakeS3) -> None:
    key = new_key()
    weak = [head(200, content_length=7, etag='W/"1"', last_modified="Sun, 22 Nov 2026 14:32:32 GMT"), b"content"]
    server.faults = lambda did, asked: weak
    stream = await store.open_read(store.location(key))
    assert stream.info == ObjectInfo(size=7, validator=f"{key.partition('/')[2]}:Sun, 22 Nov 2026 14:32:32 GMT")
    await stream.aclose()
    await (await store.open_read(store.location(key), expected=stream.info)).aclose()
    assert "if-match" not in server.asked[-1].headers


async def test_a_body_that_breaks_is_never_taken_for_a_whole_one(store: S3Store, server: FakeS3) -> None:
    location, _ = await put(store, bytes(100))
    server.faults = lambda did, asked: [head(200, content_length=100), bytes(60), Close()]
    with pytest.raises(StoreUnreachable):
        await drain(await store.open_read(location))


# --- services without parts ------------------------------------------------------------------------


async def test_a_known_length_goes_straight_through(server: FakeS3, tmp_path: Path) -> None:
    content = bytes(range(256)) * (20 * MIB // 256)
    async with serving(server, tmp_path, DIALECTS["cumulus"], spool_limit=0) as store:
        writer = await store.open_write(new_key(), size=len(content))
        block = bytearray(MIB)
        for start in range(0, len(content), MIB):
            block[:] = content[start : start + MIB]
            await writer.write(block)
        block[:] = bytes(MIB)  # the caller's again
        await writer.commit()
        assert list(server.objects.values()) == [content]
        assert server.did.count("PUT object") == 1


async def test_an_unknown_length_is_spooled_first_if_there_is_room(server: FakeS3, tmp_path: Path) -> None:
    content = bytes(range(256)) * (20 * MIB // 256)
    async with serving(server, tmp_path, DIALECTS["cumulus"], spool_limit=20 * MIB) as store:
        writer = await store.open_write(new_key())
        await writer.write(content)
        assert store.spool.used == 20 * MIB
        assert "PUT object" not in server.did
        other = await store.open_write(new_key())
        with pytest.raises(StoreFull, match="spool_max_bytes"):
            await other.write(content)
        await other.abort()
        await writer.commit()
        assert list(server.objects.values()) == [content]


@pytest.mark.parametrize("count", [19, 21])
async def test_another_length_than_announced_leaves_nothing(server: FakeS3, tmp_path: Path, count: int) -> None:
    async with serving(server, tmp_path, DIALECTS["cumulus"]) as store:
        writer = await store.open_write(new_key(), size=20 * MIB)
        with pytest.raises(StoreError, match="than it was announced"):
            await fill(writer, count, commit=True)
        await writer.abort()
        assert server.objects == {}


async def test_a_refused_stream_ends_the_upload(server: FakeS3, tmp_path: Path) -> None:
    server.hears_out = False
    server.faults = lambda did, asked: [*error(403, "AccessDenied"), Close()] if did == "PUT object" else None
    async with serving(server, tmp_path, DIALECTS["walrus"]) as store:
        writer = await store.open_write(new_key(), size=64 * MIB)
        with pytest.raises(StoreError):
            await fill(writer, 64)
        await writer.abort()


async def test_nothing_is_written_where_nobody_serves(tmp_path: Path) -> None:
    signer = Signer("v4", "AKID", SECRET, "us-east-1")
    settings = S3Settings(endpoint="http://images.example", bucket="bucket", max_size=1)
    store = S3Store("cloud", settings, PARTS, signer, Outbound(CONFIGURED), Spool(tmp_path, 0))
    assert isinstance(store, ServedStore)
    with pytest.raises(StoreError):
        await store.open_write(new_key())
