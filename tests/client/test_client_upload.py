"""An upload ends with a record, or with the gateway's reason, never with a broken pipe in its place."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from fake_gateway import QUICK, Connection, answering, digest_of, gateway, on_both_backends, refusing, talking

from visor_gateway.client import (
    BadRequest,
    Client,
    ConnectionBroken,
    DigestMismatch,
    FileBody,
    Forbidden,
    ProtocolViolation,
    RedirectRefused,
    SourceChanged,
    Timing,
    Unreachable,
    VisorError,
)

FIELDS = {"name": "Debian ✓ 12", "architecture": "x86_64", "root_device": "/dev/vda"}
DATA = os.urandom(3 * 1024 * 1024 + 17)
RECORD = b'{"image": {"_id": "x", "checksum": "%s"}}' % hashlib.sha256(DATA).hexdigest().encode()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    path.write_bytes(DATA)
    return path


async def blocks(*, after: Exception | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(DATA), 100_000):
        yield DATA[start : start + 100_000]
        yield b""
    if after is not None:
        raise after


@on_both_backends
async def test_a_file_is_sent_with_its_length_after_the_gateway_asked_for_it(image: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    async with talking(answering(RECORD)) as (fake, client):
        record = await client.create(FIELDS, image, progress=lambda *at: seen.append(at))
    asked = fake.asked[0]
    assert record["_id"] == "x"
    assert (asked.method, asked.target, asked.body) == ("POST", "/images", DATA)
    assert asked.headers["content-length"] == str(len(DATA))
    assert asked.headers["content-type"] == "application/octet-stream"
    assert asked.headers["expect"] == "100-continue"
    assert asked.headers["x-image-meta-name"] == "Debian ✓ 12"
    assert asked.headers["x-image-meta-root-device"] == "/dev/vda"
    assert len(asked.headers["x-transfer-id"]) == 36
    assert (seen[0], seen[-1]) == ((0, len(DATA)), (len(DATA), len(DATA)))


@on_both_backends
async def test_a_stream_of_unknown_length_is_chunked_whole_and_in_order() -> None:
    async with talking(answering(RECORD)) as (fake, client):
        await client.update("an id", {}, blocks(), transfer_id="0b0b0b0b-0000-4000-8000-000000000000")
    asked = fake.asked[0]
    assert (asked.method, asked.target, asked.body) == ("PUT", "/images/an%20id", DATA)
    assert asked.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in asked.headers
    assert asked.headers["x-transfer-id"] == "0b0b0b0b-0000-4000-8000-000000000000"


@on_both_backends
async def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as source:
        os.write(writing, b"from a pipe")
        os.close(writing)
        async with talking(answering(b'{"image": {}}')) as (fake, client):
            await client.create(FIELDS, FileBody(source))
    assert fake.asked[0].body == b"from a pipe"


@on_both_backends
async def test_a_refusal_before_the_body_costs_no_byte_of_it(image: Path) -> None:
    async def refuses(connection: Connection) -> None:
        await connection.head()
        await connection.answer(403, b'{"code": 403, "message": "Not yours."}')
        assert await connection.body() == b""

    async with talking(refuses) as (_, client):
        with pytest.raises(Forbidden, match="Not yours") as caught:
            await client.create(FIELDS, image)
    assert caught.value.status == 403


@pytest.mark.parametrize("reset", [False, True])
@on_both_backends
async def test_a_refusal_in_the_middle_of_the_body_is_heard(reset: bool) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    async def refuses(connection: Connection) -> None:
        await connection.head()
        await connection.ask_for_body()
        await connection.body(200_000)
        await connection.answer(413, b'{"code": 413, "message": "Too long."}')
        if reset:
            # The answer must have left before the reset, which would destroy it.
            await connection.body(1_000_000)
            await connection.reset()
        else:
            await anyio.sleep_forever()

    async with talking(refuses) as (_, client):
        with pytest.raises(VisorError, match="Too long") as caught:
            await client.create(FIELDS, endless())
    assert caught.value.status == 413


@on_both_backends
async def test_a_gateway_that_never_says_continue_gets_the_body_after_a_while(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visor_gateway.client.exchange.CONTINUE_SECONDS", 0.05)

    async def silent(connection: Connection) -> None:
        await connection.head()
        await connection.body()
        await connection.answer(200, RECORD)

    async with talking(silent) as (fake, client):
        await client.create(FIELDS, image)
    assert fake.asked[0].body == DATA


@on_both_backends
async def test_why_a_cut_upload_was_cut_is_asked_for_and_told(image: Path) -> None:
    async def cuts(connection: Connection) -> None:
        await connection.head()
        await connection.ask_for_body()
        await connection.body(100_000)
        await connection.reset()

    reason = answering(b'{"transfer": {"state": "cancelled", "error": "The transfer was cancelled: request"}}')
    async with talking(cuts, reason) as (fake, client):
        with pytest.raises(ConnectionBroken, match="cancelled: request"):
            await client.create(FIELDS, image)
    assert fake.asked[1].target == f"/transfers/{fake.asked[0].headers['x-transfer-id']}"


@on_both_backends
async def test_a_cut_upload_without_a_known_reason_is_a_broken_connection(image: Path) -> None:
    async def cuts(connection: Connection) -> None:
        await connection.head()
        await connection.ask_for_body()

    async with talking(cuts, refusing(404)) as (_, client):
        with pytest.raises(ConnectionBroken):
            await client.create(FIELDS, image)


@on_both_backends
async def test_a_gateway_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visor_gateway.client.exchange.LAST_WORDS_SECONDS", 0.05)

    async def stalls(connection: Connection) -> None:
        await connection.head()
        await connection.ask_for_body()
        await anyio.sleep_forever()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1_000_000)

    timing = Timing(stall=0.2)
    async with talking(stalls, refusing(404), timing=timing) as (_, client):
        with anyio.fail_after(60):
            with pytest.raises(ConnectionBroken):
                await client.create(FIELDS, endless())


@on_both_backends
async def test_a_gateway_that_never_answers_is_given_up(image: Path) -> None:
    async def silent(connection: Connection) -> None:
        await connection.head()
        await connection.ask_for_body()
        await connection.body()
        await anyio.sleep_forever()

    async with talking(silent, refusing(404), timing=Timing(commit=0.1)) as (_, client):
        with pytest.raises(ConnectionBroken, match="no answer"):
            await client.create(FIELDS, image)


@on_both_backends
async def test_a_failing_source_is_told_and_the_gateway_sees_a_cut_body() -> None:
    ends: list[object] = []

    async def takes(connection: Connection) -> None:
        await connection.head()
        await connection.ask_for_body()
        try:
            await connection.body()
            ends.append("whole")
        except Exception as exc:
            ends.append(type(exc).__name__)

    async with talking(takes) as (_, client):
        with pytest.raises(RuntimeError, match="source"):
            await client.create(FIELDS, blocks(after=RuntimeError("the source failed")))
        while not ends:
            await anyio.lowlevel.checkpoint()
    assert ends != ["whole"]


@on_both_backends
async def test_a_file_that_changes_meanwhile_is_never_sent_to_its_end(image: Path) -> None:
    async def changes(connection: Connection) -> None:
        await connection.head()
        os.truncate(image, 1024 * 1024 + 5)
        await connection.ask_for_body()
        with pytest.raises(Exception, match=r"without sending complete|reset|closed"):
            await connection.body()

    async with talking(changes) as (_, client):
        with pytest.raises(SourceChanged):
            await client.create(FIELDS, image)


@on_both_backends
async def test_a_file_that_was_written_to_meanwhile_is_never_sent_to_its_end(image: Path) -> None:
    body = await FileBody.open(image)
    os.utime(image, ns=(1, 1))

    async def read() -> None:
        while await body.receive_some():
            pass

    with pytest.raises(SourceChanged):
        await read()
    await body.aclose()


@on_both_backends
async def test_another_digest_at_the_gateway_is_an_error(image: Path) -> None:
    other = b'{"image": {"_id": "x", "checksum": "0123456789abcdef0123456789abcdef", "sha256": "%s"}}' % (b"0" * 64)
    async with talking(answering(other)) as (_, client):
        with pytest.raises(DigestMismatch):
            await client.create(FIELDS, image)


@on_both_backends
async def test_an_md5_alone_proves_nothing_and_is_no_error(image: Path) -> None:
    async with talking(answering(b'{"image": {"checksum": "0123456789abcdef0123456789abcdef"}}')) as (_, client):
        await client.create(FIELDS, image)


@on_both_backends
async def test_a_digest_that_the_caller_knows_goes_along(image: Path) -> None:
    async with talking(answering(RECORD)) as (fake, client):
        await client.create(FIELDS, image, sha256=hashlib.sha256(DATA).hexdigest())
        with pytest.raises(BadRequest):
            await client.create(FIELDS, image, sha256="abc")
    assert fake.asked[0].headers["repr-digest"] == digest_of(DATA)


@on_both_backends
async def test_metadata_alone_is_sent_without_a_body() -> None:
    async with talking(answering(b'{"image": {"_id": "x"}}')) as (fake, client):
        await client.create(FIELDS | {"location": "http://example.org/i"})
    assert fake.asked[0].headers["content-length"] == "0"
    assert fake.asked[0].headers["x-image-meta-location"] == "http://example.org/i"
    assert "expect" not in fake.asked[0].headers


@pytest.mark.parametrize("fields", [{"na me": "x"}, {"": "x"}, {"name:": "x"}, {"name": "a\r\nb: c"}, {"name": "\0"}])
@on_both_backends
async def test_what_no_header_can_carry_is_refused_unsent(fields: dict[str, str]) -> None:
    async with talking() as (fake, client):
        with pytest.raises(BadRequest):
            await client.create(fields)
        with pytest.raises(BadRequest):
            await client.create(fields, blocks())
    assert fake.asked == []


@on_both_backends
async def test_an_empty_file_is_refused_unsent(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    async with talking() as (fake, client):
        with pytest.raises(VisorError, match="empty"):
            await client.create(FIELDS, tmp_path / "empty")
        with pytest.raises(FileNotFoundError):
            await client.create(FIELDS, tmp_path / "missing")
    assert fake.asked == []


@on_both_backends
async def test_an_upload_is_never_redirected(image: Path) -> None:
    async with gateway() as elsewhere, talking(refusing(307, location=elsewhere.url)) as (_, client):
        with pytest.raises(RedirectRefused):
            await client.create(FIELDS, image)
    assert elsewhere.asked == []


@on_both_backends
async def test_an_upload_to_nobody_is_unreachable(image: Path) -> None:
    async with gateway() as fake:
        pass
    async with Client(fake.url, timing=QUICK) as client:
        with pytest.raises(Unreachable, match="Connection refused"):
            await client.create(FIELDS, image)


@on_both_backends
async def test_an_answer_that_is_no_http_is_told_as_such(image: Path) -> None:
    async def babbles(connection: Connection) -> None:
        await connection.head()
        await connection.raw(b"SSH-2.0-whatever\r\n\r\n")

    async with talking(babbles) as (_, client):
        with pytest.raises(ProtocolViolation):
            await client.create(FIELDS, image)


@on_both_backends
async def test_a_cancelled_upload_ends_its_connection_and_its_source() -> None:
    closed: list[bool] = []
    ended = anyio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(65536)
        finally:
            closed.append(True)

    async def takes(connection: Connection) -> None:
        await connection.head()
        await connection.ask_for_body()
        try:
            await connection.body()
        except Exception:
            ended.set()

    async with talking(takes) as (_, client):
        with anyio.CancelScope() as scope:
            await client.create(FIELDS, endless(), progress=lambda done, size: scope.cancel() if done else None)
        assert scope.cancelled_caught
        await ended.wait()
    assert closed == [True]


def test_a_body_of_a_file_begins_where_the_file_stands(image: Path) -> None:
    with image.open("rb", buffering=0) as file:
        file.seek(17, io.SEEK_SET)
        assert FileBody(file).size == len(DATA) - 17
