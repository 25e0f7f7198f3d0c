"""Readers of one object share what is open; each has a descriptor of its own, and sees what it would see alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from store_suite import drain, open_descriptors, put

from visor_gateway.errors import ObjectChanged, ObjectMissing, StoreUnreachable
from visor_gateway.store.file import FileReadStream, FileStore
from visor_gateway.store.filecalls import FileCalls
from visor_gateway.store.objectkey import ObjectKey

CONTENT = os.urandom(300_000)


class Counted:
    """The system's calls; `objects` tells how often an object was opened by its name."""

    def __init__(self, *, is_prompt: bool = True, before_open: Callable[[], None] = lambda: None) -> None:
        self.objects = 0
        self._before_open = before_open
        self.calls = replace(FileCalls(), open=self._open, is_prompt=lambda file: is_prompt)

    def _open(self, path: Any, flags: int, *more: Any, **named: Any) -> int:
        if not flags & (os.O_DIRECTORY | os.O_CREAT | os.O_WRONLY):
            self.objects += 1
            self._before_open()
        return os.open(path, flags, *more, **named)


async def stored(directory: Path, counted: Counted) -> tuple[FileStore, str]:
    store = FileStore("file", directory, block_size=10_000, calls=counted.calls)
    await store.check()
    location, _ = await put(store, CONTENT)
    counted.objects = 0
    return store, location


def file_of(directory: Path, location: str) -> Path:
    return directory / str(ObjectKey.from_location(location))


async def test_who_comes_while_an_object_is_read_opens_nothing(tmp_path: Path) -> None:
    counted = Counted()
    store, location = await stored(tmp_path, counted)
    before = open_descriptors()
    first = await store.open_read(location)
    second = await store.open_read(location, 1000, 5000)
    assert counted.objects == 1
    assert first.file != second.file
    assert await drain(second) == CONTENT[1000:6000]
    await second.aclose()
    third = await store.open_read(location)
    await first.aclose()  # the others read on without who opened it
    assert await drain(third) == CONTENT
    await third.aclose()
    assert counted.objects == 1
    assert open_descriptors() == before
    await (await store.open_read(location)).aclose()
    assert counted.objects == 2


async def test_many_who_come_at_once_wait_for_one_open(tmp_path: Path) -> None:
    counted = Counted()
    store, location = await stored(tmp_path, counted)
    streams: list[FileReadStream] = []

    async def open_one() -> None:
        streams.append(await store.open_read(location))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(open_one)
    assert counted.objects == 1
    for stream in streams:
        assert await drain(stream) == CONTENT
        await stream.aclose()


async def test_an_open_that_fails_fails_nobody_else(tmp_path: Path) -> None:
    failures = [OSError(errno.EMFILE, "none left")]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    counted = Counted(before_open=fail_once)
    store, location = await stored(tmp_path, counted)
    outcomes: list[str] = []

    async def open_one() -> None:
        try:
            stream = await store.open_read(location)
        except StoreUnreachable:
            outcomes.append("failed")
        else:
            outcomes.append("opened")
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(open_one)
    assert sorted(outcomes) == ["failed"] + ["opened"] * 4


async def test_who_is_cancelled_before_it_opened_leaves_the_open_to_the_next(tmp_path: Path) -> None:
    store, location = await stored(tmp_path, Counted())
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.open_read(location)
    assert scope.cancelled_caught
    stream = await store.open_read(location)
    assert await drain(stream) == CONTENT
    await stream.aclose()


async def test_a_deleted_object_is_missing_also_while_somebody_reads_it(tmp_path: Path) -> None:
    store, location = await stored(tmp_path, Counted())
    stream = await store.open_read(location)
    await store.delete(location)
    with pytest.raises(ObjectMissing):
        await store.open_read(location)
    assert await drain(stream) == CONTENT
    await stream.aclose()


async def test_an_object_that_was_written_to_is_not_the_expected_one_for_who_shares_it(tmp_path: Path) -> None:
    store, location = await stored(tmp_path, Counted())
    stream = await store.open_read(location)
    file = file_of(tmp_path, location)
    with file.open("r+b") as handle:
        handle.write(b"x")
    os.utime(file, ns=(1, 1))
    with pytest.raises(ObjectChanged):
        await store.open_read(location, expected=stream.info)
    with pytest.raises(ObjectChanged):
        await stream.check()
    await stream.aclose()


async def test_what_is_read_but_once_is_not_shared_from_then_on(tmp_path: Path) -> None:
    counted = Counted()
    store, location = await stored(tmp_path, counted)
    scrubbed = await store.open_read(location)
    scrubbed.read_once()
    other = await store.open_read(location)
    assert counted.objects == 2
    for stream in (scrubbed, other):
        assert await drain(stream) == CONTENT
        await stream.aclose()


async def test_where_a_file_system_may_keep_one_waiting_each_opens_for_itself(tmp_path: Path) -> None:
    counted = Counted(is_prompt=False)
    store, location = await stored(tmp_path, counted)
    before = open_descriptors()
    streams = [await store.open_read(location) for _ in range(3)]
    assert counted.objects == 3
    for stream in streams:
        await stream.check()
        assert await drain(stream) == CONTENT
        await stream.aclose()
    assert open_descriptors() == before
