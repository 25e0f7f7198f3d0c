"""The store in memory is held to the same contract as the others, and its faults do what they say."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from memory_store import Faults, MemoryStore
from store_suite import StoreSuite, Subject, drain, new_key, put, read

from visor_gateway.errors import StoreFull, StoreUnreachable
from visor_gateway.store.contract import Store


class MemorySubject(Subject):
    store: MemoryStore

    def residue(self) -> list[str]:
        return [*self.store.partial, *["an open stream"] * self.store.open_streams]


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    async def subject(self) -> Subject:
        return MemorySubject(MemoryStore())


def test_it_is_a_store() -> None:
    _: Store = MemoryStore()


async def test_a_write_fails_at_the_offset_that_was_named() -> None:
    store = MemoryStore(faults=Faults(write_fails_at=10, error=StoreFull("full")))
    writer = await store.open_write(new_key())
    await writer.write(bytes(10))
    with pytest.raises(StoreFull):
        await writer.write(b"x")
    await writer.abort()
    assert not store.partial


async def test_a_read_brings_what_is_before_the_offset_at_which_it_fails() -> None:
    store = MemoryStore(block_size=4, faults=Faults(read_fails_at=6))
    stream = await store.open_read(store.put(new_key(), b"0123456789"))
    assert [await stream.receive_some(), await stream.receive_some()] == [b"0123", b"45"]
    with pytest.raises(StoreUnreachable):
        await stream.receive_some()
    await stream.aclose()


async def test_a_stalled_read_goes_on_when_it_is_let() -> None:
    faults = Faults(read_stalls_at=3)
    store = MemoryStore(faults=faults)
    stream = await store.open_read(store.put(new_key(), b"0123456789"))
    assert await stream.receive_some() == b"012"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, stream)
        await faults.stalled.wait()
        faults.resume.set()
    assert store.open_streams == 0


async def test_a_stalled_write_and_a_stalled_commit_can_be_cancelled() -> None:
    for faults in (Faults(write_stalls_at=3), Faults(commit_stalls=True)):
        store = MemoryStore(faults=faults)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, store, b"0123456789")
            await faults.stalled.wait()
            nursery.cancel_scope.cancel()
        assert not store.objects


async def test_a_slow_store_takes_its_time_for_each_block(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore(block_size=5, faults=Faults(seconds_per_block=2))
    location, _ = await put(store, b"0123456789")
    assert await read(store, location) == b"0123456789"
    assert trio.current_time() == pytest.approx(2 + 2 * 2 + 2)


async def test_the_other_faults_are_raised_where_they_say() -> None:
    error = StoreUnreachable("gone")
    store = MemoryStore(faults=Faults(commit_error=error))
    with pytest.raises(StoreUnreachable):
        await put(store, b"x")
    store.faults = Faults(open_error=error)
    with pytest.raises(StoreUnreachable):
        await store.check()
    store.faults = Faults(abort_error=error)
    key = next(iter(store.partial))
    with pytest.raises(StoreUnreachable):
        await store.abandon(key)
    assert key in store.partial
