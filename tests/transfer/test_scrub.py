"""Scrub: rot is found, and what is right is left available."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
import trio
from ingest_setting import Blocks, Setting, setting

from visor_gateway.errors import MetadataUnavailable, ObjectChanged
from visor_gateway.image import Image
from visor_gateway.store.file import FileStore
from visor_gateway.store.filecalls import FileCalls
from visor_gateway.transfer import scrub as module
from visor_gateway.transfer.scrub import PASS_SECONDS, Plan, Progress, Scrub

DATA = os.urandom(1_300_000)
FAST = Plan(interval=0, bytes_per_s=1 << 40)


@pytest.fixture
async def s(tmp_path: Path) -> AsyncGenerator[Setting, None]:
    async with setting(tmp_path) as made:
        yield made


def scrub_of(s: Setting, plan: Plan = FAST, store: FileStore | None = None) -> Scrub:
    return Scrub(s.metadata.images, {"file": (store or s.store, plan)}, s.metrics)


async def stored(s: Setting, content: bytes = DATA) -> tuple[Image, Path]:
    before = set(s.files())
    image = await s.push(await s.locked(), Blocks([content]))
    (file,) = set(s.files()) - before
    return image, file


async def record(s: Setting, image: Image) -> Image:
    found = await s.metadata.images.get(image.id)
    assert found is not None
    return found


def counted(s: Setting, outcome: str) -> float | None:
    return s.metrics.registry.get_sample_value("visor_scrubbed_images_total", {"outcome": outcome})


def flip(file: Path) -> None:
    """Flip a bit as rot does: nothing but the byte is another."""
    before = file.stat()
    with file.open("r+b") as handle:
        handle.seek(700_000)
        byte = handle.read(1)[0]
        handle.seek(700_000)
        handle.write(bytes([byte ^ 4]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_an_image_that_is_right_is_remembered_as_scrubbed(s: Setting) -> None:
    image, _ = await stored(s)
    assert await scrub_of(s).scrub(image.id) == "good"
    found = await record(s, image)
    assert found.scrubbed_at is not None
    assert (found.bad_since, found.validator) == (None, image.validator)
    assert counted(s, "good") == 1


async def test_a_flipped_bit_is_found_and_refused_until_the_bytes_are_right_again(s: Setting) -> None:
    image, file = await stored(s)
    scrub = scrub_of(s)
    flip(file)
    assert await scrub.scrub(image.id) == "bad"
    assert (await record(s, image)).bad_since is not None
    for known in (image, await record(s, image)):
        with pytest.raises(ObjectChanged, match="damaged"):
            scrub.demand_not_condemned(known)
    flip(file)
    assert await scrub.scrub(image.id) == "good"
    found = await record(s, image)
    scrub.demand_not_condemned(found)
    # The file's times are others than at the upload; they count from now on.
    assert found.validator == (await s.store.stat(image.location or "")).validator != image.validator


@pytest.mark.parametrize("size", [0, 5, len(DATA) + 1])
async def test_an_image_of_another_size_is_bad_without_being_read(s: Setting, size: int) -> None:
    image, file = await stored(s)
    os.truncate(file, size)
    assert await scrub_of(s).scrub(image.id) == "bad"


async def test_an_image_that_can_not_be_read_is_neither_good_nor_bad(s: Setting) -> None:
    image, file = await stored(s)
    file.unlink()
    assert await scrub_of(s).scrub(image.id) == "failed"
    found = await record(s, image)
    assert (found.scrubbed_at, found.bad_since) == (None, None)
    assert counted(s, "failed") == 1


async def test_a_disk_that_fails_ends_the_scrub_of_one_image_and_no_other(s: Setting) -> None:
    image, _ = await stored(s)

    def broken(*_: object) -> int:
        raise OSError(5, "")

    store = FileStore("file", s.directory, calls=FileCalls(preadv=broken))
    assert await scrub_of(s, store=store).scrub(image.id) == "failed"
    assert await scrub_of(s).scrub(image.id) == "good"


async def test_a_file_that_is_written_to_during_the_scrub_is_not_taken_for_right(s: Setting) -> None:
    image, file = await stored(s)

    def touching(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        os.utime(file, ns=(1, offset))
        return os.preadv(fd, views, offset, flags)

    store = FileStore("file", s.directory, calls=FileCalls(preadv=touching))
    assert await scrub_of(s, store=store).scrub(image.id) == "failed"
    assert (await record(s, image)).scrubbed_at is None


async def test_there_is_nothing_to_scrub_in_what_has_no_bytes_or_is_gone(s: Setting) -> None:
    locked = await s.locked()
    image, _ = await stored(s)
    elsewhere = Scrub(s.metadata.images, {}, s.metrics)
    assert await scrub_of(s).scrub(locked.id) is None
    assert await scrub_of(s).scrub("no-such-image") is None
    assert await elsewhere.scrub(image.id) is None
    assert [counted(s, outcome) for outcome in ("good", "bad", "failed")] == [None] * 3


async def test_bytes_come_from_the_disk_once_and_leave_the_page_cache_as_it_was(s: Setting) -> None:
    image, _ = await stored(s)
    advised: list[tuple[int, int, int]] = []

    def cold(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT and offset >= 600_000:
            raise BlockingIOError(errno.EAGAIN, "")
        return os.preadv(fd, views, offset)

    calls = FileCalls(preadv=cold, fadvise=lambda _, *rest: advised.append(rest))
    store = FileStore("file", s.directory, block_size=300_000, calls=calls)
    assert await scrub_of(s, store=store).scrub(image.id) == "good"
    assert advised[0] == (0, 0, os.POSIX_FADV_RANDOM)
    # What was cached before stays.
    dropped = [(offset, 300_000, os.POSIX_FADV_DONTNEED) for offset in (600_000, 900_000)]
    assert advised[1:] == [*dropped, (1_200_000, 100_000, os.POSIX_FADV_DONTNEED)]


async def test_a_scrub_reads_no_faster_than_it_may(s: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = await stored(s)
    waited: list[float] = []

    async def sleep_until(deadline: float) -> None:
        waited.append(deadline)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(module.trio, "sleep_until", sleep_until)
    began = trio.current_time()
    assert await scrub_of(s, Plan(interval=0, bytes_per_s=100_000)).scrub(image.id) == "good"
    assert len(waited) == 3
    assert waited[-1] - began >= len(DATA) / 100_000


# --- the service ---------------------------------------------------------------------------------


class Watched(Scrub):
    """Tells what it scrubbed."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.done: list[str] = []
        self.progresses: list[Progress] = []
        self.turned = trio.Event()

    async def scrub(self, image_id: str) -> module.Outcome | None:
        outcome = await super().scrub(image_id)
        self.done.append(image_id)
        self.turned.set()
        return outcome

    async def until(self, enough: Callable[[], bool]) -> None:
        while not enough():
            self.turned = trio.Event()
            await self.turned.wait()


def watched(s: Setting, interval: float) -> Watched:
    plan = Plan(interval=interval, bytes_per_s=1 << 40)
    return Watched(s.metadata.images, {"file": (s.store, plan)}, s.metrics)


async def test_what_is_asked_for_is_scrubbed_once_and_what_is_due_too(s: Setting) -> None:
    (one, _), (two, _) = await stored(s), await stored(s)
    service = watched(s, interval=0)
    service.ask([two.id, one.id, two.id])
    assert service.progress == Progress(waiting=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.serve)
        with trio.fail_after(60):
            await service.until(lambda: len(service.done) == 2)
            service.ask([one.id])
            await service.until(lambda: len(service.done) == 3)
        nursery.cancel_scope.cancel()
    assert service.done == [two.id, one.id, one.id]


async def test_images_whose_time_has_come_are_scrubbed_and_no_others(s: Setting) -> None:
    image, _ = await stored(s)
    due, early, off = watched(s, interval=0.000001), watched(s, interval=3600), watched(s, interval=0)
    asked = await s.locked()
    early.ask([asked.id])
    off.ask([asked.id])
    async with trio.open_nursery() as nursery:
        for service in (due, early, off):
            nursery.start_soon(service.serve)
        with trio.fail_after(60):
            for service in (due, early, off):
                await service.until(lambda service=service: bool(service.done))  # type: ignore[misc]
        nursery.cancel_scope.cancel()
    assert (due.done, early.done, off.done) == ([image.id], [asked.id], [asked.id])


async def test_a_database_that_is_away_puts_the_scrub_off(s: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = await stored(s)
    service = watched(s, interval=0.000001)

    async def away(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise MetadataUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(s.metadata.images, "scrubbed_before", away)
        patch.setattr(s.metadata.images, "get", away)
        assert await service._due() == []
        assert await service.scrub(image.id) == "failed"
    assert await service._due() == [image.id]
    assert PASS_SECONDS >= 60


async def test_a_mark_that_can_not_be_stored_is_kept_in_mind(s: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    image, file = await stored(s)
    flip(file)
    scrub = scrub_of(s)

    async def away(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise MetadataUnavailable("away")

    monkeypatch.setattr(s.metadata.images, "judge", away)
    assert await scrub.scrub(image.id) == "failed"
    with pytest.raises(ObjectChanged):
        scrub.demand_not_condemned(await record(s, image))
