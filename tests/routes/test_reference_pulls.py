"""Pulls of images that another server keeps, over real sockets: spliced, or copied and hashed, whatever it does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from faulty_origin import Asked, Close, Drip, Reset, Stall, Step, head, whole
from reference_world import DATA, REPR_DIGEST, SHA256, SIZE, UNVERIFIED, World, cut_at, finish, once, world

from visor_gateway.store.contract import Direct
from visor_gateway.transfer import splice
from visor_gateway.transfer.copier import Copier
from visor_gateway.transfer.splice import Splicer


@pytest.fixture
async def verifying(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        yield made


@pytest.fixture
async def trusting(tmp_path: Path) -> AsyncGenerator[World]:
    async with world(tmp_path, **UNVERIFIED) as made:
        yield made


@pytest.fixture(params=[{}, UNVERIFIED], ids=["verifying", "trusting"])
async def either(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncGenerator[World]:
    async with world(tmp_path, **request.param) as made:
        yield made


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many bytes were offered to the splicer and to the copier."""
    counts = {"splice": 0, "copy": 0}

    def counting(cls: type, name: str) -> None:
        real: Callable[..., Awaitable[bool]] = getattr(cls, name)

        async def counted(self: Any, *args: Any) -> bool:
            counts[name] += next(arg.length for arg in args if isinstance(arg, Direct))
            return await real(self, *args)

        monkeypatch.setattr(cls, name, counted)

    counting(Splicer, "splice")
    counting(Copier, "copy")
    return counts


# --- the digest of a reference ---------------------------------------------------------------------------------------


async def test_the_first_complete_read_pins_the_digest(verifying: World) -> None:
    image = await verifying.refer()
    part = await verifying.pull(image, range="bytes=5-9")
    assert (part.status, part.body, part.headers.get("etag")) == (206, DATA[5:10], '"v1"')
    first = await verifying.pull(image)
    assert (first.status, first.body, first.headers.get("etag")) == (200, DATA, '"v1"')
    assert "repr-digest" not in first.headers
    for headers in ({}, {"range": "bytes=5-9"}):
        later = await verifying.pull(image, **headers)
        assert (later.headers["etag"], later.headers["repr-digest"]) == (f'"{SHA256.hexdigest()}"', REPR_DIGEST)
    record = await verifying.gateway.services.images.get(image)
    assert record is not None
    assert (record.sha256, record.checksum, record.size) == (SHA256.hexdigest(), "v1", SIZE)


@pytest.mark.parametrize("etag", ['W/"v1"', None])
async def test_without_a_strong_validator_there_is_no_etag_until_the_digest_is_known(
    verifying: World, etag: str | None
) -> None:
    verifying.origin.etag = etag
    image = await verifying.refer()
    assert "etag" not in (await verifying.pull(image)).headers
    assert (await verifying.pull(image)).headers["etag"] == f'"{SHA256.hexdigest()}"'


async def test_a_broken_first_read_pins_nothing(verifying: World) -> None:
    verifying.origin.etag = None
    image = await verifying.refer()
    verifying.origin.answer = once(cut_at(SIZE - 1, Reset()))
    broken = await verifying.pull(image)
    assert broken.cut
    assert len(broken.body) < SIZE
    record = await verifying.gateway.services.images.get(image)
    assert record is not None
    assert record.sha256 is None


async def test_a_body_of_unknown_size_pins_size_and_digest_at_its_end(verifying: World) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (DATA[:100_000], DATA[100_000:300_000]))

    def chunked(asked: Asked) -> list[Step]:
        start = head(200, transfer_encoding="chunked")
        return [start] if asked.method == "HEAD" else [start, chunks, b"0\r\n\r\n"]

    verifying.origin.answer = chunked
    image = await verifying.refer()
    reply = await verifying.pull(image)
    assert (reply.status, reply.headers.get("transfer-encoding"), reply.cut) == (200, "chunked", False)
    record = await verifying.gateway.services.images.get(image)
    assert record is not None
    assert (record.size, record.sha256) == (300_000, hashlib.sha256(DATA[:300_000]).hexdigest())
    later = await verifying.pull(image)
    assert (later.headers["content-length"], later.body) == ("300000", DATA[:300_000])


# --- how bytes move --------------------------------------------------------------------------------------------------


async def test_all_of_an_image_is_hashed_unless_the_operator_trusts_origins(
    verifying: World, moved: dict[str, int]
) -> None:
    image = await verifying.pinned()
    assert (await verifying.pull(image)).body == DATA
    assert moved["splice"] == 0
    assert SIZE < moved["copy"] < 2 * SIZE  # the last blocks are never moved unseen


async def test_with_trust_the_kernel_moves_them(trusting: World, moved: dict[str, int]) -> None:
    image = await trusting.pinned()
    copied = moved["copy"]
    assert copied > 0  # the first read pins in any case
    assert (await trusting.pull(image)).body == DATA
    assert moved["copy"] == copied
    assert SIZE - (1 << 20) < moved["splice"] < SIZE


async def test_a_range_is_moved_by_the_kernel_and_is_exactly_its_bytes(verifying: World, moved: dict[str, int]) -> None:
    image = await verifying.refer()
    for first, last in ((1, SIZE - 1), (1_000_000, 4_999_999)):
        reply = await verifying.pull(image, range=f"bytes={first}-{last}")
        assert (reply.status, reply.body) == (206, DATA[first : last + 1])
    assert moved["splice"] > 7_000_000
    assert moved["copy"] == 0


async def test_several_ranges_come_from_the_origin_one_after_the_other(verifying: World) -> None:
    image = await verifying.refer()
    reply = await verifying.pull(image, range="bytes=0-2000000,3000000-5999999")
    assert reply.status == 206
    assert DATA[:2_000_001] in reply.body
    assert DATA[3_000_000:6_000_000] in reply.body


async def test_a_connection_whose_body_was_read_whole_serves_the_next_pull(either: World) -> None:
    image = await either.pinned()
    for headers in ({}, {"range": "bytes=7-3000000"}, {}):
        assert (await either.pull(image, **headers)).status in (200, 206)
    assert either.origin.connections == 1


async def test_an_origin_that_ignores_ranges_is_read_up_to_the_offset(verifying: World) -> None:
    image = await verifying.refer()
    verifying.origin.answer = lambda asked: whole(DATA, etag='"v1"') if asked.method == "GET" else None
    reply = await verifying.pull(image, range="bytes=2000000-4999999")
    assert (reply.status, reply.body) == (206, DATA[2_000_000:5_000_000])


async def test_many_clients_that_read_nothing_hold_no_other_up(trusting: World) -> None:
    """More of them than there are large pipes."""
    image = await trusting.pinned()
    stalled = [await trusting.ask(image, range="bytes=1-") for _ in range(50)]
    with trio.fail_after(60):
        while len(trusting.gateway.services.hub.live()) < 50:
            await trio.lowlevel.checkpoint()
    assert (await trusting.pull(image)).body == DATA
    for stream in stalled:
        await trio.aclose_forcefully(stream)


# --- origins that break ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Close(), Reset()])
async def test_a_broken_body_is_continued_and_the_client_only_waits(either: World, end: Step) -> None:
    image, id = await either.pinned(), str(uuid4())
    either.origin.answer = once(cut_at(2_000_000, end), cut_at(1_500_000, end, start=2_000_000))
    reply = await either.pull(image, x_transfer_id=id)
    assert (reply.status, reply.body, reply.cut) == (200, DATA, False)
    assert (await either.transfer(id)).attempt >= 3
    assert [asked.headers.get("if-match") for asked in either.origin.asked[-2:]] == ['"v1"', '"v1"']


async def test_a_first_read_is_continued_under_a_strong_validator(verifying: World) -> None:
    image = await verifying.refer()
    verifying.origin.answer = once(cut_at(2_000_000, Close()))
    assert (await verifying.pull(image)).body == DATA
    record = await verifying.gateway.services.images.get(image)
    assert record is not None
    assert record.sha256 == SHA256.hexdigest()


@pytest.mark.parametrize("extra", [{}, UNVERIFIED], ids=["verifying", "trusting"])
async def test_a_silent_origin_is_left_and_asked_again(
    extra: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice, "LOOK_SECONDS", 0.02)
    async with world(tmp_path, VISOR_GATEWAY__SERVER__STALL_TIMEOUT="0.3", **extra) as made:
        image = await made.pinned()
        made.origin.answer = once(cut_at(2_000_000, Stall()))
        reply = await made.pull(image)
        assert (reply.body, reply.cut) == (DATA, False)


@pytest.mark.parametrize("etag", ['W/"v1"', None])
async def test_without_a_validator_a_range_that_breaks_ends_in_a_reset(either: World, etag: str | None) -> None:
    either.origin.etag = etag
    image = await either.refer()
    either.origin.answer = once(cut_at(2_000_000, Reset(), start=1, etag=etag or "-"))
    reply = await either.pull(image, range="bytes=1-")
    assert reply.cut
    assert reply.body == DATA[1 : len(reply.body) + 1]
    assert len(reply.body) < SIZE - 1


async def test_a_length_that_is_too_long_never_ends_as_a_success(tmp_path: Path) -> None:
    """The origin announces more than it has, again and again."""
    async with world(tmp_path, VISOR_GATEWAY__STORES__RETRY_TIMEOUT="0.2") as made:
        image = await made.pinned()
        short = [head(200, content_length=SIZE, etag='"v1"'), DATA[: SIZE - 10], Close()]
        made.origin.answer = lambda asked: short if asked.span == (0, SIZE - 1) else [Close()]
        reply = await made.pull(image)
        assert (reply.status, reply.cut) == (200, True)
        assert len(reply.body) < SIZE


async def test_a_body_that_drips_arrives_in_order(either: World) -> None:
    image = await either.pinned()
    either.origin.answer = once([head(200, content_length=SIZE, etag='"v1"'), Drip(DATA, 40_001)])
    reply = await either.pull(image)
    assert (reply.body, reply.cut) == (DATA, False)


async def test_bytes_behind_the_announced_length_reach_nobody(either: World) -> None:
    image = await either.pinned()
    surplus = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    either.origin.answer = once([head(200, content_length=SIZE, etag='"v1"'), DATA + surplus])
    for _ in range(2):
        assert (await either.pull(image)).body == DATA
    assert either.origin.connections == 2  # the one with more in it is not used again


@pytest.mark.parametrize("scheme", ["loop", "endless"])
async def test_an_origin_that_never_comes_to_a_body_is_given_up(verifying: World, scheme: str) -> None:
    image = await verifying.pinned()
    if scheme == "loop":
        verifying.origin.answer = lambda asked: [head(302, location=asked.target, content_length=0)]
    else:
        verifying.origin.answer = lambda asked: [
            head(200)[:-2],
            *(b"x-more: " + b"a" * 1000 + b"\r\n" for _ in range(99)),
        ]
    reply = await verifying.pull(image)
    assert (reply.status, "retry-after" in reply.headers) == (503, True)


async def test_a_client_whose_socket_is_not_lent_gets_the_same(either: World, moved: dict[str, int]) -> None:
    """Over TLS, for one."""
    image = await either.refer()
    for _ in range(2):
        reply = await either.gateway.call("GET", f"/images/{image}")
        assert (reply.status, reply.body) == (200, DATA)
    assert reply.headers["repr-digest"] == REPR_DIGEST
    either.origin.answer = once(cut_at(2_000_000, Close()))
    assert (await either.gateway.call("GET", f"/images/{image}")).body == DATA
    assert moved == {"splice": 0, "copy": 0}


# --- origins that change ---------------------------------------------------------------------------------------------


OTHER = DATA[:-1] + bytes([DATA[-1] ^ 1])


@pytest.mark.parametrize("change", ["etag", "size", "weak"])
async def test_a_change_before_the_first_byte_is_502(either: World, change: str) -> None:
    image = await either.pinned()
    if change == "etag":
        either.origin.etag = '"v2"'
    elif change == "weak":
        either.origin.answer = lambda asked: whole(DATA, etag='W/"v1"')
    else:
        either.origin.answer = lambda asked: whole(DATA + b"more", etag='"v1"')
    reply = await either.pull(image)
    assert (reply.status, reply.cut) == (502, False)
    assert "etag" not in reply.headers
    assert "canary" not in str(reply.headers) + reply.body.decode()


@pytest.mark.parametrize("second", [[head(412, content_length=0)], whole(DATA, etag='"v2"'), whole(DATA + b"+")])
async def test_a_change_in_the_middle_is_a_reset_and_bytes_never_mix(either: World, second: list[Step]) -> None:
    image = await either.pinned()
    either.origin.answer = once(cut_at(2_000_000, Close()), second, second, second)
    reply = await either.pull(image)
    assert reply.cut
    assert len(reply.body) <= 2_000_000
    assert reply.body == DATA[: len(reply.body)]


async def test_other_bytes_under_the_same_validator_never_arrive_whole(verifying: World) -> None:
    image, id = await verifying.pinned(), str(uuid4())
    verifying.origin.body = OTHER
    reply = await verifying.pull(image, x_transfer_id=id)
    assert reply.cut
    assert len(reply.body) < SIZE
    transfer = await verifying.transfer(id)
    with trio.fail_after(60):
        await transfer.ended.wait()
    assert (transfer.state, "digest differs" in (transfer.error or "")) == ("failed", True)


async def test_of_two_first_reads_with_other_bytes_one_is_whole(verifying: World) -> None:
    """The origin has no validator, and changes between the two."""
    verifying.origin.etag = None
    image = await verifying.refer()
    slow = await verifying.ask(image)  # takes nothing: its first read is under way
    with trio.fail_after(60):
        while not verifying.gateway.services.hub.live():
            await trio.lowlevel.checkpoint()
    transfer = verifying.gateway.services.hub.live()[0]
    with trio.fail_after(60):
        while not transfer.meter.moved:
            await trio.lowlevel.checkpoint()
    verifying.origin.body = OTHER
    second = await verifying.pull(image)
    assert (second.body, second.cut) == (OTHER, False)
    first = await finish(slow)
    assert (first.cut, len(first.body) < SIZE) == (True, True)


# --- cancelling and watching -----------------------------------------------------------------------------------------


async def test_a_cancelled_pull_is_a_reset_and_leaves_nothing(either: World) -> None:
    image = await either.pinned()
    files = len(os.listdir("/proc/self/fd"))
    transfer = await either.cancelled(image)
    with trio.fail_after(60):
        while len(os.listdir("/proc/self/fd")) > files:
            await trio.lowlevel.checkpoint()
    assert transfer.state == "cancelled"
    assert transfer.meter.bytes < SIZE


async def test_a_wait_for_the_origin_is_booked_as_such(either: World) -> None:
    image, id = await either.pinned(), str(uuid4())
    either.origin.answer = once([head(200, content_length=SIZE, etag='"v1"'), DATA[:2_000_000], Stall()])
    stream = await either.ask(image, x_transfer_id=id)
    transfer = await either.transfer(id)
    received = 0
    with trio.fail_after(60):
        while received < 2_000_000:
            received += len(await stream.receive_some(1 << 17))
        while not transfer.meter.waited["store"]:
            await trio.lowlevel.checkpoint()
            transfer.meter.sample()
    await trio.aclose_forcefully(stream)
