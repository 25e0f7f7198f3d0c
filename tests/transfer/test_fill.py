"""Fills over an origin that breaks: readers only wait, and get the right bytes or no end."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import trio
from faulty_origin import Asked, Close, Origin, Reset, Stall, Step, head

from visor_gateway.errors import ObjectChanged, StoreError
from visor_gateway.image import Image
from visor_gateway.meta.contract import ImageRepository
from visor_gateway.metrics import Metrics
from visor_gateway.outbound import LocationPolicy, Outbound
from visor_gateway.store.cachedir import CacheDirectory
from visor_gateway.store.cachefiles import CacheFiles
from visor_gateway.store.contract import ObjectInfo, ReadStream
from visor_gateway.store.http import HttpStore
from visor_gateway.transfer.cache import Cache
from visor_gateway.transfer.engine import Engine
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.setbacks import Candidate
from visor_gateway.transfer.transfer import Transfer
from visor_gateway.transfer.upstream import Upstream

DATA = os.urandom(4 << 20)
PIECE = 64 * 1024


class Images:
    """The only question that a cache has."""

    def __init__(self) -> None:
        self.image: Image | None = None

    async def get(self, image_id: str) -> Image | None:
        return self.image


class Stand:
    """A cache over one origin on loopback."""

    def __init__(self, cache: Cache, hub: Hub, store: HttpStore, image: Image, location: str) -> None:
        self.cache = cache
        self.hub = hub
        self.image = image
        self._candidate = Candidate(store, location, ObjectInfo(size=image.size, validator=image.validator))

    async def read(self, transfer: Transfer, offset: int, length: int | None, verified: bool) -> ReadStream:
        upstream = Upstream(
            [self._candidate], transfer, offset, length, verified=verified, retry_timeout=20, random=lambda: 0.0
        )
        await upstream.open()
        return upstream

    async def pull(self) -> bytes:
        """What one client gets. Raises what its pull fails of."""
        transfer = Transfer(id=str(uuid4()), kind="pull", image="", store="http", client="x", user=None, size=None)
        stream = await self.cache.open(self.image, self.read, transfer, 0, len(DATA))
        assert stream is not None
        try:
            received = bytearray()
            while block := await stream.receive_some():
                received += block
            return bytes(received)
        finally:
            await stream.aclose()

    async def pulls(self, count: int) -> list[bytes | StoreError]:
        got: list[bytes | StoreError] = []

        async def one() -> None:
            try:
                got.append(await self.pull())
            except StoreError as error:
                got.append(error)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(one)
            while self.hub.live():
                await trio.lowlevel.checkpoint()
        return got

    @property
    def follows(self) -> bool:
        """Whether it serves readers from the fill of another process."""
        return any(fill._follows and fill._readers for fill in self.cache._fills)

    @property
    def fill(self) -> Transfer:
        (fill,) = self.hub.ended()
        return fill


@asynccontextmanager
async def standing(tmp_path: Path, origin: Origin, image: Image | None = None) -> AsyncGenerator[Stand]:
    async with origin.listening() as port, process(tmp_path, port, image or image_of(origin)) as stand:
        yield stand


def image_of(origin: Origin) -> Image:
    return Image(
        id=str(uuid4()),
        name="disk",
        architecture="x86_64",
        owner="admin",
        created_at=datetime.now(UTC),
        status="available",
        store="http",
        size=len(DATA),
        sha256=sha256(DATA).hexdigest(),
        validator=origin.etag,
    )


@asynccontextmanager
async def process(tmp_path: Path, port: int, image: Image) -> AsyncGenerator[Stand]:
    """What one process of a gateway has: locks tell its open files from those of others as they do between real ones.
    Cancelled, it ends as a process does that is stopped."""
    async with trio.open_nursery() as nursery:
        outbound = Outbound(LocationPolicy(deny_private=False), stall_timeout=0.5)
        hub, metrics, images = Hub(), Metrics(), Images()
        engine = Engine(hub, metrics)
        await nursery.start(engine.serve)
        files = CacheFiles(CacheDirectory(tmp_path / "cache", max_bytes=100 << 20))
        cache = Cache(files, engine, cast(ImageRepository, images), metrics)
        await cache.prepare()
        images.image = image
        try:
            yield Stand(cache, hub, HttpStore(outbound), image, f"http://127.0.0.1:{port}/disk")
        finally:
            nursery.cancel_scope.cancel()
            with trio.move_on_after(5, shield=True):
                await outbound.aclose()


def broken(times: int, end: Step) -> Callable[[Asked], Iterable[Step] | None]:
    """An origin that sends a piece and breaks, so many times; then it behaves."""
    left = times

    def answer(asked: Asked) -> Iterable[Step] | None:
        nonlocal left
        if not left:
            return None
        left -= 1
        first = asked.span[0] if asked.span else 0
        marks = f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"
        status = 206 if asked.span else 200
        return [
            head(status, content_length=len(DATA) - first, content_range=marks, etag='"v1"'),
            DATA[first : first + PIECE],
            end,
        ]

    return answer


@pytest.mark.parametrize(
    ("times", "end"), [(20, Reset()), (20, Close()), (2, Stall())], ids=["reset", "short", "stall"]
)
async def test_an_origin_that_breaks_is_healed_once_for_all_readers(tmp_path: Path, times: int, end: Step) -> None:
    origin = Origin(DATA, answer=broken(times, end))
    async with standing(tmp_path, origin) as stand:
        assert await stand.pulls(8) == [DATA] * 8
        assert (stand.fill.state, stand.fill.attempt) == ("finished", 1 + times)
        asked = len(origin.asked)
        assert asked == 1 + times
        # From where it broke, and only while it is the same object.
        assert all(each.headers["if-match"] == '"v1"' and each.span for each in origin.asked[1:])
        assert await stand.pull() == DATA
        assert len(origin.asked) == asked


async def test_an_origin_that_ignores_ranges_is_read_up_to_the_mark(tmp_path: Path) -> None:
    begun = broken(1, Reset())

    def answer(asked: Asked) -> Iterable[Step]:
        return begun(asked) or [head(200, content_length=len(DATA), etag='"v1"'), DATA]

    async with standing(tmp_path, Origin(DATA, answer=answer)) as stand:
        assert await stand.pulls(3) == [DATA] * 3


async def test_an_origin_that_changed_ends_every_reader_and_mixes_no_bytes(tmp_path: Path) -> None:
    origin = Origin(DATA)
    begun = broken(1, Reset())

    def answer(asked: Asked) -> Iterable[Step] | None:
        steps = begun(asked)
        if steps is None:
            origin.etag = '"v2"'
        return steps

    origin.answer = answer
    async with standing(tmp_path, origin) as stand:
        assert [type(each) for each in await stand.pulls(5)] == [ObjectChanged] * 5
        # Who looked for an entry for longer than that took has begun one of its own.
        assert {each.state for each in stand.hub.ended()} == {"failed"}
        assert not list((tmp_path / "cache").glob("*.*"))


async def test_one_wrong_bit_gives_nobody_the_end_and_makes_no_entry(tmp_path: Path) -> None:
    wrong = bytearray(DATA)
    wrong[len(DATA) // 3] ^= 1
    async with standing(tmp_path, Origin(bytes(wrong))) as stand:
        assert [type(each) for each in await stand.pulls(5)] == [ObjectChanged] * 5
        assert not list((tmp_path / "cache").glob("*.*"))


async def test_a_disk_that_takes_no_more_costs_no_reader_a_byte(tmp_path: Path) -> None:
    """They go on from the store, with a digest of what is in the file."""
    origin = Origin(DATA)
    async with standing(tmp_path, origin) as stand:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
        try:
            assert await stand.pulls(3) == [DATA] * 3
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (stand.fill.state, stand.fill.error) == ("failed", "The cache failed: File too large")
        assert [each.span and each.span[0] for each in origin.asked[1:]] == [3 << 20] * 3
        assert not list((tmp_path / "cache").glob("*.*"))


async def test_a_disk_that_takes_no_more_still_hides_no_wrong_bit(tmp_path: Path) -> None:
    wrong = bytearray(DATA)
    wrong[7] ^= 1
    async with standing(tmp_path, Origin(bytes(wrong))) as stand:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
        try:
            assert [type(each) for each in await stand.pulls(3)] == [ObjectChanged] * 3
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_a_cancelled_fill_ends_its_readers_and_leaves_nothing(tmp_path: Path) -> None:
    async with standing(tmp_path, Origin(DATA, answer=broken(1, Stall()))) as stand:
        async with trio.open_nursery() as nursery:
            got: list[Any] = []

            async def pull() -> None:
                got.extend(await stand.pulls(2))

            nursery.start_soon(pull)
            while not any(each.waiters == 2 and each.meter.moved for each in stand.hub.live()):
                await trio.lowlevel.checkpoint()
            for each in stand.hub.live():
                each.cancel("request")
        assert [isinstance(each, StoreError) for each in got] == [True, True]
        assert not list((tmp_path / "cache").glob("*.*"))
        assert await stand.pull() == DATA


async def test_who_comes_while_a_fill_is_being_cancelled_begins_anew(tmp_path: Path) -> None:
    async with standing(tmp_path, Origin(DATA, answer=broken(1, Stall()))) as stand:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stand.pull)
            while not any(each.meter.moved for each in stand.hub.live()):
                await trio.lowlevel.checkpoint()
            (fill,) = stand.hub.live()
            nursery.cancel_scope.cancel()
        assert fill.cancel_reason == "unneeded"
        with trio.fail_after(60):
            assert await stand.pull() == DATA


# --- several processes ---------------------------------------------------------------------------


@asynccontextmanager
async def two_processes(tmp_path: Path, origin: Origin) -> AsyncGenerator[tuple[Stand, Stand]]:
    image = image_of(origin)
    async with (
        origin.listening() as port,
        process(tmp_path, port, image) as first,
        process(tmp_path, port, image) as second,
    ):
        yield first, second


async def begun(stand: Stand) -> Transfer:
    """The fill of a process, once bytes are committed."""
    with trio.fail_after(60):
        while True:
            for each in stand.hub.live():
                if each.meter.moved:
                    return each
            await trio.lowlevel.checkpoint()


def slowly(asked: Asked) -> Iterable[Step]:
    """An origin that is silent for a moment in the middle, so that others come in time."""
    half = len(DATA) // 2
    first = asked.span[0] if asked.span else 0
    if first:
        yield head(
            206,
            content_length=len(DATA) - first,
            content_range=f"bytes {first}-{len(DATA) - 1}/{len(DATA)}",
            etag='"v1"',
        )
        yield DATA[first:]
        return
    yield head(200, content_length=len(DATA), etag='"v1"')
    yield DATA[:half]
    yield Stall()


async def test_processes_share_one_read_of_the_store(tmp_path: Path) -> None:
    origin = Origin(DATA, answer=slowly)
    async with two_processes(tmp_path, origin) as (first, second), trio.open_nursery() as nursery:
        got: list[list[bytes | StoreError]] = []

        async def pulls(stand: Stand) -> None:
            got.append(await stand.pulls(10))

        nursery.start_soon(pulls, first)
        await begun(first)
        nursery.start_soon(pulls, second)
        with trio.fail_after(60):
            while len(got) < 2:
                await trio.lowlevel.checkpoint()
        assert got == [[DATA] * 10] * 2
        # One read, which broke once; and one transfer, of the process that fills.
        assert len(origin.asked) == 2
        assert (len(first.hub.ended()), len(second.hub.ended())) == (1, 0)
        assert await second.pull() == DATA
        assert len(list((tmp_path / "cache").glob("*.*"))) == 2


async def test_a_fill_whose_process_is_gone_is_adopted(tmp_path: Path) -> None:
    """From where it was, with the digest of all that is there."""
    origin, image = Origin(DATA, answer=slowly), image_of(Origin())
    async with origin.listening() as port, process(tmp_path, port, image) as second, trio.open_nursery() as nursery:
        got: list[bytes | StoreError] = []

        async def pulls() -> None:
            got.extend(await second.pulls(5))

        with trio.CancelScope() as scope:
            async with process(tmp_path, port, image) as first, trio.open_nursery() as inner:
                inner.start_soon(first.pull)
                await begun(first)
                nursery.start_soon(pulls)
                while len(list((tmp_path / "cache").glob("*.progress"))) != 1 or not second.follows:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        with trio.fail_after(60):
            while not got:
                await trio.lowlevel.checkpoint()
        assert got == [DATA] * 5
        assert second.fill.state == "finished"
        assert origin.asked[-1].span is not None
        assert origin.asked[-1].span[0] > 0


async def test_a_fill_that_fails_fails_in_every_process(tmp_path: Path) -> None:
    wrong = bytearray(DATA)
    wrong[7] ^= 1
    half = len(DATA) // 2
    origin = Origin(
        bytes(wrong),
        answer=lambda asked: (
            None if asked.span else [head(200, content_length=len(DATA), etag='"v1"'), wrong[:half], Stall()]
        ),
    )
    async with two_processes(tmp_path, origin) as (first, second), trio.open_nursery() as nursery:
        got: list[list[bytes | StoreError]] = []

        async def pulls(stand: Stand) -> None:
            got.append(await stand.pulls(3))

        nursery.start_soon(pulls, first)
        await begun(first)
        nursery.start_soon(pulls, second)
        with trio.fail_after(60):
            while len(got) < 2:
                await trio.lowlevel.checkpoint()
        assert [type(each) for each in got[0] + got[1]] == [ObjectChanged] * 6
        assert not list((tmp_path / "cache").glob("*.*"))


async def test_a_fill_that_others_follow_goes_on_without_readers_of_its_own(tmp_path: Path) -> None:
    origin = Origin(DATA, answer=broken(2, Stall()))
    async with two_processes(tmp_path, origin) as (first, second), trio.open_nursery() as nursery:
        got: list[bytes | StoreError] = []

        async def pulls() -> None:
            got.extend(await second.pulls(2))

        async with trio.open_nursery() as inner:
            inner.start_soon(first.pull)
            fill = await begun(first)
            nursery.start_soon(pulls)
            while not second.follows:
                await trio.lowlevel.checkpoint()
            inner.cancel_scope.cancel()
        with trio.fail_after(60):
            await fill.ended.wait()
            while not got:
                await trio.lowlevel.checkpoint()
        assert (fill.state, got) == ("finished", [DATA] * 2)
