"""A download ends with the right bytes under the right name, or with neither."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import pytest
from fake_gateway import QUICK, Connection, gateway, on_both_backends, part, refusing, talking, whole

from visor_gateway.client import (
    Client,
    ConnectionBroken,
    DigestMismatch,
    Forbidden,
    ImageChanged,
    NoBytes,
    ProtocolViolation,
    RedirectRefused,
    TargetBusy,
    Timing,
    Unreachable,
)
from visor_gateway.client.part import PartFile

DATA = os.urandom(300_000)
OTHER = os.urandom(200_000)


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def leave_part(
    target: Path, data: bytes, url: str, *, image: str = "i", size: int | None = None, sidecar: str | None = None
) -> None:
    """What a killed download leaves."""
    Path(f"{target}.part").write_bytes(data)
    validator = {"uri": f"{url}/images/{image}", "etag": '"one"', "size": size, "sha256": None}
    Path(f"{target}.part.json").write_text(json.dumps(validator) if sidecar is None else sidecar)


@on_both_backends
async def test_a_whole_image_is_saved_and_verified(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    async with talking(whole(DATA)) as (fake, client):
        done = await client.download("i", tmp_path / "x", progress=lambda *at: seen.append(at))
    assert (tmp_path / "x").read_bytes() == DATA
    assert left(tmp_path) == ["x"]
    assert (done.size, done.verified, done.resumed_at) == (len(DATA), True, 0)
    assert done.record == {"_id": "the-id", "status": "available", "size": len(DATA)}
    assert seen[0] == (0, len(DATA))
    assert seen[-1] == (len(DATA), len(DATA))
    assert "range" not in fake.asked[0].headers
    assert fake.asked[0].headers["accept-encoding"] == "identity"


@on_both_backends
async def test_a_cut_is_continued_under_the_same_validator(tmp_path: Path) -> None:
    scripts = whole(DATA, sent=100_000), part(DATA, 100_000, sent=50_000), part(DATA, 150_000)
    async with talking(*scripts) as (fake, client):
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert [asked.headers.get("range") for asked in fake.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert [asked.headers.get("if-range") for asked in fake.asked] == [None, '"one"', '"one"']
    assert len({asked.headers["x-transfer-id"] for asked in fake.asked}) == 3


async def what_is_asked(connection: Connection) -> None:
    """The whole image, or the part that is asked for."""
    asked = await connection.head()
    first = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    place = {"content_range": f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"} if "range" in asked.headers else {}
    await connection.begin(206 if place else 200, etag='"one"', content_length=str(len(DATA) - first), **place)
    await connection.raw(DATA[first:])


@on_both_backends
async def test_a_reset_connection_is_continued_whatever_the_reset_destroyed(tmp_path: Path) -> None:
    async def resets(connection: Connection) -> None:
        await whole(DATA, sent=170_000)(connection)
        await connection.reset()

    async with talking(resets, what_is_asked) as (_fake, client):
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


@on_both_backends
async def test_what_an_earlier_process_left_is_continued(tmp_path: Path) -> None:
    async with talking(part(DATA, 123_456)) as (fake, client):
        leave_part(tmp_path / "x", DATA[:123_456], fake.url)
        done = await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert done.resumed_at == 123_456
    assert left(tmp_path) == ["x"]


@on_both_backends
async def test_the_digest_of_the_first_answer_counts_where_a_part_tells_none(tmp_path: Path) -> None:
    wrong = DATA[:100] + b"?" + DATA[101:]
    scripts = whole(DATA, sent=10), part(wrong, 10, repr_digest="")
    async with talking(*scripts) as (_fake, client):
        with pytest.raises(DigestMismatch):
            await client.download("i", tmp_path / "x")
    assert left(tmp_path) == []


@on_both_backends
async def test_a_200_to_a_range_starts_over_and_is_never_appended(tmp_path: Path) -> None:
    async with talking(whole(OTHER, etag='"two"')) as (fake, client):
        leave_part(tmp_path / "x", DATA[:1000], fake.url)
        done = await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == OTHER
    assert done.resumed_at == 0
    assert fake.asked[0].headers["if-range"] == '"one"'


@on_both_backends
async def test_an_image_that_changed_between_tries_is_fetched_anew(tmp_path: Path) -> None:
    scripts = whole(DATA, sent=5000), whole(OTHER, etag='"two"', sent=7000), part(OTHER, 7000, etag='"two"')
    async with talking(*scripts) as (_fake, client):
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == OTHER


@on_both_backends
async def test_a_part_of_another_state_is_refused_and_nothing_is_mixed(tmp_path: Path) -> None:
    async with talking(part(OTHER, 1000, etag='"two"')) as (fake, client):
        leave_part(tmp_path / "x", DATA[:1000], fake.url)
        with pytest.raises(ProtocolViolation):
            await client.download("i", tmp_path / "x")
    assert (tmp_path / "x.part").read_bytes() == DATA[:1000]


@pytest.mark.parametrize(
    ("headers", "first"),
    [
        ({}, 999),
        ({"content_range": "bytes 1000-1001/300000"}, 1000),
        ({"content_range": "bytes */300000"}, 1000),
        ({"content_range": "bytes=1000-299999/300000"}, 1000),
        ({"content_range": "bytes 1000-299999/*"}, 1000),
        ({"content_encoding": "gzip"}, 1000),
    ],
)
@on_both_backends
async def test_a_part_that_contradicts_itself_or_the_request_is_refused(
    tmp_path: Path, headers: dict[str, str], first: int
) -> None:
    async with talking(part(DATA, first, **headers)) as (fake, client):
        leave_part(tmp_path / "x", DATA[:1000], fake.url)
        with pytest.raises(ProtocolViolation):
            await client.download("i", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@on_both_backends
async def test_a_shorter_part_than_asked_for_is_followed_by_the_next(tmp_path: Path) -> None:
    scripts = part(DATA, 1000, last=4999), part(DATA, 5000)
    async with talking(*scripts) as (fake, client):
        leave_part(tmp_path / "x", DATA[:1000], fake.url)
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize(
    "left_behind", [{"sidecar": "{"}, {"sidecar": ""}, {"image": "another"}, {"url": "http://elsewhere"}], ids=str
)
@on_both_backends
async def test_a_part_of_something_else_is_not_continued(tmp_path: Path, left_behind: dict[str, str]) -> None:
    async with talking(what_is_asked) as (fake, client):
        leave_part(tmp_path / "x", OTHER, **{"url": fake.url} | left_behind)
        await client.download("i", tmp_path / "x")
    assert "range" not in fake.asked[0].headers
    assert (tmp_path / "x").read_bytes() == DATA


@on_both_backends
async def test_bytes_without_a_strong_validator_are_never_continued(tmp_path: Path) -> None:
    scripts = whole(DATA, etag='W/"weak"', sent=4000), whole(OTHER, etag='W/"weak"')
    async with talking(*scripts) as (fake, client):
        await client.download("i", tmp_path / "x")
    assert "range" not in fake.asked[1].headers
    assert (tmp_path / "x").read_bytes() == OTHER


@on_both_backends
async def test_a_part_file_that_was_whole_already_is_checked_and_finished(tmp_path: Path) -> None:
    async with talking(whole(DATA, sent=0)) as (fake, client):
        leave_part(tmp_path / "x", DATA, fake.url, size=len(DATA))
        await client.download("i", tmp_path / "x")
    assert fake.asked[0].method == "HEAD"
    assert (tmp_path / "x").read_bytes() == DATA


@on_both_backends
async def test_a_part_file_that_was_whole_of_an_older_image_is_fetched_anew(tmp_path: Path) -> None:
    scripts = whole(OTHER, etag='"two"', sent=0), whole(OTHER, etag='"two"')
    async with talking(*scripts) as (fake, client):
        leave_part(tmp_path / "x", DATA, fake.url, size=len(DATA))
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == OTHER


@on_both_backends
async def test_a_part_that_is_too_long_starts_over(tmp_path: Path) -> None:
    scripts = refusing(416, content_range="bytes */200000"), whole(OTHER, etag='"two"')
    async with talking(*scripts) as (fake, client):
        leave_part(tmp_path / "x", DATA, fake.url)
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == OTHER


@on_both_backends
async def test_a_wrong_digest_removes_every_byte(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"what was there before")
    async with talking(whole(DATA, repr_digest="sha-256=:" + "A" * 43 + "=:")) as (_fake, client):
        with pytest.raises(DigestMismatch):
            await client.download("i", tmp_path / "x")
    assert left(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"what was there before"


@on_both_backends
async def test_an_image_without_a_known_digest_is_saved_and_said_to_be_unverified(tmp_path: Path) -> None:
    async with talking(whole(DATA, repr_digest="")) as (_fake, client):
        done = await client.download("i", tmp_path / "x")
    assert not done.verified


@on_both_backends
async def test_a_chunked_image_ends_with_its_last_chunk_and_not_with_the_connection(tmp_path: Path) -> None:
    async def chunked(connection: Connection, end: bytes) -> None:
        await connection.head()
        await connection.begin(200, transfer_encoding="chunked")
        await connection.raw(b"3e8\r\n" + DATA[:1000] + b"\r\n" + end)

    async def cut(connection: Connection) -> None:
        await chunked(connection, b"")

    async def ended(connection: Connection) -> None:
        await chunked(connection, b"0\r\n\r\n")

    async with talking(cut, ended) as (_fake, client):
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA[:1000]


@on_both_backends
async def test_an_answer_that_only_the_end_of_the_connection_ends_is_refused(tmp_path: Path) -> None:
    async def endless(connection: Connection) -> None:
        await connection.head()
        await connection.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + DATA[:100])

    async with talking(endless) as (_fake, client):
        with pytest.raises(ProtocolViolation):
            await client.download("i", tmp_path / "x")
    assert left(tmp_path) == []


@on_both_backends
async def test_a_gateway_that_always_cuts_at_one_place_is_given_up_and_the_part_kept(tmp_path: Path) -> None:
    scripts = (whole(DATA, sent=5000), *[part(DATA, 5000, sent=0)] * QUICK.retries)
    async with talking(*scripts) as (fake, client):
        with pytest.raises(ConnectionBroken):
            await client.download("i", tmp_path / "x")
        assert fake.left == 0
    assert (tmp_path / "x.part").read_bytes() == DATA[:5000]


@on_both_backends
async def test_starting_over_again_and_again_is_no_progress(tmp_path: Path) -> None:
    scripts = [whole(DATA, etag=f'"{number}"', sent=5000) for number in range(QUICK.retries + 1)]
    async with talking(*scripts) as (fake, client):
        with pytest.raises(ConnectionBroken):
            await client.download("i", tmp_path / "x")
        assert fake.left == 0


@on_both_backends
async def test_a_gateway_that_is_busy_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    async with talking(refusing(503, retry_after="0"), whole(DATA)) as (_fake, client):
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


@on_both_backends
async def test_a_refusal_in_the_middle_is_told_and_the_part_kept(tmp_path: Path) -> None:
    async with talking(whole(DATA, sent=5000), refusing(403)) as (_fake, client):
        with pytest.raises(Forbidden, match=r"^No\.$"):
            await client.download("i", tmp_path / "x")
    assert left(tmp_path) == ["x.part", "x.part.json"]


@on_both_backends
async def test_a_redirect_is_never_followed(tmp_path: Path) -> None:
    async with gateway() as elsewhere:
        script = refusing(302, location=f"{elsewhere.url}/images/i?sig=s3cret")
        async with talking(script) as (_, client):
            with pytest.raises(RedirectRefused) as caught:
                await client.download("i", tmp_path / "x")
    assert elsewhere.asked == []
    assert "s3cret" not in caught.value.message
    assert left(tmp_path) == []


@on_both_backends
async def test_a_record_without_bytes_is_no_empty_image(tmp_path: Path) -> None:
    script = refusing(200, b"", x_image_meta_status="locked")
    async with talking(script) as (_fake, client):
        with pytest.raises(NoBytes, match="locked"):
            await client.download("i", tmp_path / "x")
    assert left(tmp_path) == []


@on_both_backends
async def test_a_gateway_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    async with gateway() as fake:
        url = fake.url
    async with Client(url, timing=Timing(pause=60.0)) as client:
        with pytest.raises(Unreachable):
            await client.download("i", tmp_path / "x")
    assert left(tmp_path) == []


@on_both_backends
async def test_a_stalled_gateway_is_left_and_asked_again(tmp_path: Path) -> None:
    async def stalls(connection: Connection) -> None:
        await whole(DATA, sent=5000)(connection)
        await anyio.sleep_forever()

    async with talking(stalls, part(DATA, 5000), timing=Timing(stall=0.2, pause=0.0)) as (_fake, client):
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


@on_both_backends
async def test_a_cancelled_download_can_be_continued(tmp_path: Path) -> None:
    scope = anyio.CancelScope()

    async def stalls(connection: Connection) -> None:
        await whole(DATA, sent=150_000)(connection)
        await anyio.sleep_forever()

    def enough(done: int, size: int | None) -> None:
        if done == 150_000:
            scope.cancel()

    # The last bytes before a stall are written when it is noticed.
    async with talking(stalls, part(DATA, 150_000), timing=Timing(stall=0.2)) as (_, client):
        with scope:
            await client.download("i", tmp_path / "x", progress=enough)
        assert scope.cancelled_caught
        assert left(tmp_path) == ["x.part", "x.part.json"]
        await client.download("i", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


@on_both_backends
async def test_two_downloads_never_write_one_file(tmp_path: Path) -> None:
    busy = PartFile.open(tmp_path / "x")
    try:
        async with talking() as (_fake, client):
            with pytest.raises(TargetBusy):
                await client.download("i", tmp_path / "x")
    finally:
        busy.close()
    assert left(tmp_path) == []


@on_both_backends
async def test_a_part_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "x.part").symlink_to(tmp_path / "precious")
    async with talking() as (_fake, client):
        with pytest.raises(OSError, match="symbolic links"):
            await client.download("i", tmp_path / "x")
    assert (tmp_path / "precious").read_bytes() == b"precious"


class Taken:
    """A writer that takes a little at a time."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: memoryview) -> int:
        self.data += data[:70_000]
        return min(len(data), 70_000)


@on_both_backends
async def test_a_stream_gets_every_byte_once_over_a_cut() -> None:
    taken = Taken()
    async with talking(whole(DATA, sent=100_000), part(DATA, 100_000)) as (_fake, client):
        done = await client.download_to("i", taken)
    assert taken.data == DATA
    assert done.verified


@on_both_backends
async def test_a_stream_is_never_given_a_second_beginning() -> None:
    taken = Taken()
    async with talking(whole(DATA, sent=1000), whole(OTHER, etag='"two"')) as (_fake, client):
        with pytest.raises(ImageChanged):
            await client.download_to("i", taken)
    assert taken.data == DATA[:1000]


@on_both_backends
async def test_a_stream_with_wrong_bytes_ends_in_an_error() -> None:
    async with talking(whole(DATA, repr_digest="sha-256=:" + "A" * 43 + "=:")) as (_fake, client):
        with pytest.raises(DigestMismatch):
            await client.download_to("i", Taken())
