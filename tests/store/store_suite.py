"""The contract of stores as tests. A store's test file makes a class of `StoreSuite` that gives it a `Subject`.

Every test ends with no descriptor, no task and no partial object left.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import strategies as st

from visor_gateway.errors import ObjectChanged, ObjectExists, ObjectMissing, StoreError
from visor_gateway.store.contract import ObjectInfo, ReadStream, Store

MIB = 1 << 20


class Subject:
    """A store under test, and what the suite can't know of it.

    Attributes:
        store: The store; it holds nothing yet.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def residue(self) -> list[str]:
        """What is left of attempts that are neither committed nor under way, and all else that should not be there."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Wait until nothing runs behind the caller's back."""


def new_key(image_id: str | None = None) -> str:
    return f"{image_id or uuid.uuid4()}/{uuid.uuid4()}"


def open_descriptors() -> dict[str, str]:
    """The process's descriptors and what they are; the one that lists them is gone by then."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


@asynccontextmanager
async def leaving_nothing(subject: Subject) -> AsyncGenerator[None, None]:
    """Fail if the body ends well and leaves a descriptor, a task or a partial object."""
    descriptors = open_descriptors()
    tasks = trio.lowlevel.current_statistics().tasks_living
    yield  # ruff: ignore[fallible-context-manager]
    with trio.fail_after(60):
        await subject.settle()
    assert subject.residue() == []
    assert open_descriptors().items() - descriptors.items() == set()
    # Fewer, where the fixtures that came before have ended by now.
    assert trio.lowlevel.current_statistics().tasks_living <= tasks


async def put(store: Store, content: bytes, key: str | None = None) -> tuple[str, ObjectInfo]:
    writer = await store.open_write(key or new_key(), size=len(content))
    await writer.write(content)
    return writer.location, await writer.commit()


async def drain(stream: ReadStream) -> bytes:
    """All that a stream brings; it is closed."""
    content = bytearray()
    try:
        while block := await stream.receive_some():
            content += block
    finally:
        await stream.aclose()
    return bytes(content)


async def read(store: Store, location: str, offset: int = 0, length: int | None = None) -> bytes:
    return await drain(await store.open_read(location, offset, length))


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task is about to go on for the n-th time: at its next checkpoint it is cancelled."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, steps: int) -> None:
        self._task = task
        self._scope = scope
        self._left = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cancelled_after(steps: int, body: Callable[[], Awaitable[None]]) -> bool:
    """Run `body`, cancelled once it has gone on `steps` times. Returns whether the cancellation stopped it."""
    with trio.CancelScope() as scope:
        if steps == 0:
            scope.cancel()
        instrument = _CancelAt(trio.lowlevel.current_task(), scope, steps)
        trio.lowlevel.add_instrument(instrument)
        try:
            await body()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


async def cancelled_everywhere(body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` again and again, cancelled one checkpoint later each time, until it ends undisturbed."""
    steps = 0
    while await cancelled_after(steps, body):
        steps += 1
        assert steps < 500


class StoreSuite:
    """What every store that can be written to promises."""

    @pytest.fixture
    async def subject(self) -> Subject:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, subject: Subject) -> AsyncGenerator[Store, None]:
        await subject.store.check()
        async with leaving_nothing(subject):
            yield subject.store

    # --- writing and reading ----------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3 * MIB + 1])
    async def test_what_was_committed_is_read(self, store: Store, size: int) -> None:
        content = os.urandom(size)
        location, info = await put(store, content)
        assert info.size == size
        assert await store.stat(location) == info
        assert await read(store, location) == content

    async def test_pieces_are_kept_in_order_whatever_they_are(self, store: Store) -> None:
        writer = await store.open_write(new_key())
        buffer = bytearray(b"buffer")
        for piece in (b"bytes", bytearray(b"array"), memoryview(b"xviewx")[1:-1], b"", buffer):
            await writer.write(piece)
        buffer[:] = b"reused"  # the caller's again once `write` has returned
        await writer.write(buffer)
        assert (await writer.commit()).size == 26
        assert await read(store, writer.location) == b"bytesarrayviewbufferreused"

    @pytest.mark.parametrize("size", [0, 5, 10_000_000, None])
    async def test_the_size_that_was_announced_changes_no_object(self, store: Store, size: int | None) -> None:
        writer = await store.open_write(new_key(), size=size)
        await writer.write(b"twelve bytes")
        assert (await writer.commit()).size == 12
        assert await read(store, writer.location) == b"twelve bytes"

    async def test_the_location_is_known_from_the_start_and_names_the_key(self, store: Store) -> None:
        key = new_key()
        writer = await store.open_write(key)
        location = writer.location
        assert location.endswith(key)
        assert "://" in location
        await writer.commit()
        assert writer.location == location

    async def test_the_validator_tells_objects_apart_and_stays(self, store: Store) -> None:
        first, info = await put(store, b"the same")
        _, other = await put(store, b"the same")
        assert info.validator
        assert info.validator != other.validator
        stream = await store.open_read(first)
        assert stream.info == info
        await stream.aclose()
        assert await store.stat(first) == info

    async def test_any_range_is_read(self, store: Store) -> None:
        content = os.urandom(300_000)
        location, _ = await put(store, content)
        for offset, length in [
            (0, 1),
            (299_999, 1),
            (299_999, None),
            (300_000, None),
            (300_000, 0),
            (7, 0),
            (7, 200_000),
        ]:
            end = 300_000 if length is None else offset + length
            assert await read(store, location, offset, length) == content[offset:end]

    @pytest.mark.parametrize(("offset", "length"), [(0, 11), (5, 6), (11, None), (11, 0), (-1, None), (0, -1), (10, 1)])
    async def test_a_range_outside_the_object_is_refused(self, store: Store, offset: int, length: int | None) -> None:
        location, _ = await put(store, b"ten bytes.")
        with pytest.raises(StoreError):
            await store.open_read(location, offset, length)

    async def test_only_the_expected_object_is_opened(self, store: Store) -> None:
        location, info = await put(store, b"content")
        for expected in (info, ObjectInfo(size=None), ObjectInfo(size=7)):
            assert await drain(await store.open_read(location, 2, 3, expected=expected)) == b"nte"
        for expected in (ObjectInfo(size=8), ObjectInfo(size=7, validator='"another"')):
            with pytest.raises(ObjectChanged):
                await store.open_read(location, 2, 3, expected=expected)

    async def test_the_end_of_a_range_is_told_again_and_again(self, store: Store) -> None:
        location, _ = await put(store, b"content")
        stream = await store.open_read(location)
        assert bytes(await stream.receive_some()) == b"content"
        assert await stream.receive_some() == b""
        assert await stream.receive_some() == b""
        await stream.aclose()

    async def test_a_stream_may_be_closed_early_and_twice(self, store: Store) -> None:
        location, _ = await put(store, bytes(MIB))
        stream = await store.open_read(location)
        await stream.receive_some()
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(StoreError):
            await stream.receive_some()

    async def test_many_readers_of_one_object_do_not_disturb_each_other(self, store: Store) -> None:
        content = os.urandom(MIB)
        location, _ = await put(store, content)

        async def reader(offset: int) -> None:
            assert await read(store, location, offset) == content[offset:]

        async with trio.open_nursery() as nursery:
            for offset in range(0, MIB, MIB // 10):
                nursery.start_soon(reader, offset)

    # --- nothing by halves ------------------------------------------------------------------------

    async def test_nothing_is_visible_before_commit(self, store: Store) -> None:
        writer = await store.open_write(new_key(), size=7)
        await writer.write(b"content")
        with pytest.raises(ObjectMissing):
            await store.stat(writer.location)
        with pytest.raises(ObjectMissing):
            await store.open_read(writer.location)
        await writer.abort()

    @pytest.mark.parametrize("pieces", [0, 1, 3])
    async def test_an_abort_leaves_nothing_and_may_be_repeated(self, store: Store, pieces: int) -> None:
        writer = await store.open_write(new_key(), size=3 * MIB)
        for _ in range(pieces):
            await writer.write(bytes(MIB))
        await writer.abort()
        await writer.abort()
        with pytest.raises(ObjectMissing):
            await store.stat(writer.location)
        assert await store.leftovers(0) == []

    async def test_nothing_can_be_written_after_the_end(self, store: Store) -> None:
        committed, aborted = await store.open_write(new_key()), await store.open_write(new_key())
        await committed.commit()
        await aborted.abort()
        for writer in (committed, aborted):
            with pytest.raises(StoreError):
                await writer.write(b"more")
            with pytest.raises(StoreError):
                await writer.commit()

    async def test_an_abort_after_a_commit_that_returned_keeps_the_object(self, store: Store) -> None:
        writer = await store.open_write(new_key())
        await writer.write(b"content")
        await writer.commit()
        await writer.abort()
        assert await read(store, writer.location) == b"content"

    async def test_an_object_that_exists_is_never_overwritten(self, store: Store) -> None:
        key = new_key()
        location, info = await put(store, b"first", key)
        with pytest.raises(ObjectExists):
            await put(store, b"second", key)
        assert await read(store, location) == b"first"
        assert await store.stat(location) == info

    async def test_attempts_at_one_image_do_not_touch_each_other(self, store: Store) -> None:
        image_id = str(uuid.uuid4())
        first, second = await store.open_write(new_key(image_id)), await store.open_write(new_key(image_id))
        await first.write(b"first")
        await second.write(b"second")
        await first.abort()
        await second.commit()
        third = await store.open_write(new_key(image_id))
        await third.abort()
        assert await read(store, second.location) == b"second"

    async def test_racing_attempts_at_one_image_all_end_well(self, store: Store) -> None:
        image_id = str(uuid.uuid4())
        kept: list[str] = []

        async def attempt(number: int) -> None:
            writer = await store.open_write(new_key(image_id))
            await writer.write(b"content")
            if number % 3 == 0:
                await writer.commit()
                kept.append(writer.location)
            else:
                await writer.abort()

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(attempt, number)
        for location in kept:
            assert await read(store, location) == b"content"
            await store.delete(location)

    # --- removing ---------------------------------------------------------------------------------

    async def test_a_delete_removes_the_object_and_no_other(self, store: Store) -> None:
        image_id = str(uuid.uuid4())
        gone, _ = await put(store, b"gone", new_key(image_id))
        kept, _ = await put(store, b"kept", new_key(image_id))
        await store.delete(gone)
        await store.delete(gone)
        with pytest.raises(ObjectMissing):
            await store.stat(gone)
        with pytest.raises(ObjectMissing):
            await store.open_read(gone)
        assert await read(store, kept) == b"kept"

    async def test_a_read_that_began_runs_to_its_end_after_the_delete(self, store: Store) -> None:
        content = os.urandom(2 * MIB)
        location, _ = await put(store, content)
        stream = await store.open_read(location)
        begun = bytes(await stream.receive_some())
        await store.delete(location)
        assert begun + await drain(stream) == content

    async def test_abandon_removes_an_attempt_committed_or_not(self, store: Store) -> None:
        for commit in (True, False):
            key = new_key()
            writer = await store.open_write(key)
            await writer.write(b"content")
            if commit:
                await writer.commit()
            await store.abandon(key)
            await store.abandon(key)
            with pytest.raises(ObjectMissing):
                await store.stat(writer.location)
            await writer.abort()
        await store.abandon(new_key())

    async def test_an_attempt_that_was_abandoned_can_not_commit(self, store: Store) -> None:
        key = new_key()
        writer = await store.open_write(key)
        await writer.write(b"content")
        await store.abandon(key)
        with pytest.raises(StoreError):
            await writer.commit()
        await writer.abort()
        with pytest.raises(ObjectMissing):
            await store.stat(writer.location)

    async def test_leftovers_are_the_keys_of_what_is_old_enough(self, store: Store) -> None:
        committed, begun = new_key(), new_key()
        location, _ = await put(store, b"content", committed)
        writer = await store.open_write(begun)
        await writer.write(b"content")
        assert set(await store.leftovers(0)) == {committed, begun}
        assert await store.leftovers(3600) == []
        await writer.abort()
        await store.delete(location)
        assert await store.leftovers(0) == []

    async def test_what_is_no_location_of_this_store_has_no_object(self, store: Store) -> None:
        location, _ = await put(store, b"content")
        for wrong in ("", "nonsense", "other://x/y", location + "x", location[:-1], new_key(), location.upper()):
            with pytest.raises(ObjectMissing):
                await store.stat(wrong)
            with pytest.raises(ObjectMissing):
                await store.open_read(wrong)
            await store.delete(wrong)
        assert await read(store, location) == b"content"

    async def test_a_check_leaves_nothing(self, store: Store) -> None:
        await store.check()
        assert await store.leftovers(0) == []

    # --- cancellation -----------------------------------------------------------------------------

    async def test_a_write_cancelled_anywhere_leaves_nothing_or_the_whole(self, store: Store, subject: Subject) -> None:
        content = os.urandom(100_000)

        async def attempt() -> None:
            key, committed = new_key(), False
            try:
                writer = await store.open_write(key, size=len(content))
            except BaseException:
                assert key not in subject.residue()
                raise
            try:
                await writer.write(content[:50_000])
                await writer.write(content[50_000:])
                await writer.commit()
                committed = True
            finally:
                with trio.move_on_after(10, shield=True):
                    if not committed:
                        await writer.abort()
                    await self._is_whole_or_missing(store, writer.location, content, committed=committed)
                    await store.delete(writer.location)
            await trio.lowlevel.checkpoint()

        await cancelled_everywhere(attempt)
        assert await store.leftovers(0) == []

    async def _is_whole_or_missing(self, store: Store, location: str, content: bytes, *, committed: bool) -> None:
        if committed:
            assert await read(store, location) == content
        else:
            with pytest.raises(ObjectMissing):
                await store.stat(location)

    async def test_a_read_cancelled_anywhere_leaves_no_descriptor(self, store: Store) -> None:
        content = os.urandom(3 * MIB)
        location, _ = await put(store, content)

        async def attempt() -> None:
            assert await read(store, location) == content

        await cancelled_everywhere(attempt)

    async def test_every_other_call_may_be_cancelled_anywhere(self, store: Store) -> None:
        location, _ = await put(store, b"content")
        key = new_key()

        async def attempt() -> None:
            await store.check()
            await store.stat(location)
            await store.leftovers(0)
            await store.abandon(key)
            with pytest.raises(StoreError):
                await store.open_read(location, 100)
            await store.delete(location)

        await cancelled_everywhere(attempt)
        assert await store.leftovers(0) == []


#: Keys and locations that try to leave the store.
HOSTILE = [
    "..",
    "../..",
    "/etc/passwd",
    "../../etc/passwd",
    "{image}/..",
    "{image}/../{image}/{attempt}",
    "./{image}/{attempt}",
    "{image}//{attempt}",
    "{image}/{attempt}/",
    "{image}/{attempt}.partial",
    "{image}/{attempt}\n",
    "{image}/{attempt}\0",
    " {image}/{attempt}",
    "{image}%2F{attempt}",
    "%2e%2e/{attempt}",
    "{image}\\{attempt}",
    "{image}/{attempt}?x",
    "{image}/{attempt}#x",
    "{image}",
    "{attempt}",
    "",
]
hostile_text = st.one_of(st.text(max_size=80), st.text(alphabet="./%0123456789abcdef-", max_size=80))
