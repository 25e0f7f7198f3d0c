"""The healing read: where it goes on after a failure, when it gives up, and what it never joins."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from faulty_origin import drained
from memory_store import Kept, MemoryStore

from visor_gateway.errors import ObjectChanged, ObjectMissing, StoreError, StoreFull, StoreUnreachable
from visor_gateway.store.contract import ObjectInfo
from visor_gateway.transfer.setbacks import Candidate, Setbacks
from visor_gateway.transfer.transfer import Transfer
from visor_gateway.transfer.upstream import PROGRESS, Upstream

BODY = os.urandom(300_000)
BLOCK = 64 * 1024


class Told:
    """A transfer, and what was told of it; `then` runs with each."""

    def __init__(self) -> None:
        self.incidents: list[str] = []
        self.times: list[float] = []
        self.then: Callable[[str], None] = lambda incident: None
        self.transfer = Transfer(
            id="t", kind="pull", image="i", store="a", client="c", user="u", size=len(BODY), offset=0
        )
        self.transfer.told_by(self._tell)

    def _tell(self, incident: str) -> None:
        self.incidents.append(incident)
        self.times.append(trio.current_time())
        self.then(incident)


@pytest.fixture
def told() -> Told:
    return Told()


def kept(store: MemoryStore, body: bytes = BODY, **options: Any) -> Candidate:
    """A location that holds `body`, as its record describes it."""
    location = store.put(f"{uuid.uuid4()}/{uuid.uuid4()}", body)
    info = store.objects[location.removeprefix("memory:///")].info
    return Candidate(store, location, info, **options)


def read(told: Told, *candidates: Candidate, offset: int = 0, length: int | None = None, **options: Any) -> Upstream:
    options = {"random": lambda: 1.0, **options}
    return Upstream(candidates, told.transfer, offset, length, **options)


# --- well ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, len(BODY)), (7, 100_000), (len(BODY), 0), (5, 0)])
async def test_the_first_location_is_read(told: Told, offset: int, length: int | None) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    upstream = read(told, kept(a), kept(b), offset=offset, length=length)
    end = len(BODY) if length is None else offset + length
    assert await drained(upstream) == BODY[offset:end]
    assert (upstream.position, upstream.end) == (end, end)
    assert (len(a.reads), b.reads, told.incidents, told.transfer.attempt) == (1, [], [], 1)
    assert a.open_streams == 0


async def test_bytes_that_others_move_are_booked(told: Told) -> None:
    a = MemoryStore("a")
    upstream = read(told, kept(a))
    stream = await upstream.open()
    assert upstream.stream is stream
    assert upstream.direct() is None
    moved = len(await stream.receive_some())
    upstream.advance(moved)
    assert await drained(upstream) == BODY[moved:]


async def test_another_range_is_read_next(told: Told) -> None:
    a = MemoryStore("a")
    upstream = read(told, kept(a), length=10)
    assert await upstream.receive_some() == BODY[:10]
    await upstream.turn_to(50, 20)
    assert await drained(upstream) == BODY[50:70]
    assert [(offset, length) for _, offset, length in a.reads] == [(0, 10), (50, 20)]
    assert a.open_streams == 0


# --- opening -------------------------------------------------------------------------------------


async def test_opening_tries_each_location_once_and_at_once(told: Told, autojump_clock: trio.testing.MockClock) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    a.faults.open_error = StoreUnreachable("away")
    setbacks = Setbacks()
    candidates = kept(a), kept(b)
    upstream = read(told, *candidates, setbacks=setbacks)
    await upstream.open()
    assert upstream.candidate.store is b
    assert await drained(upstream) == BODY
    assert setbacks.ordered(candidates) == [candidates[1], candidates[0]]
    assert (trio.current_time(), told.incidents) == (0, [])


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ([ObjectChanged("a"), StoreUnreachable("b")], "b"),
        ([ObjectChanged("a"), ObjectChanged("b")], "a"),
        ([StoreUnreachable("a"), ObjectMissing("b")], "a"),
    ],
)
async def test_what_opening_raises_says_whether_trying_again_can_help(
    told: Told, errors: list[StoreError], raised: str
) -> None:
    stores = [MemoryStore(name) for name in "ab"]
    for store, error in zip(stores, errors, strict=True):
        store.faults.open_error = error
    upstream = read(told, *map(kept, stores))
    with pytest.raises(StoreError, match=raised):
        await upstream.open()
    assert upstream.stream is None


async def test_a_changed_object_is_passed_over_before_the_first_byte(told: Told) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    first, second = kept(a), kept(b)
    a.put(first.location.removeprefix("memory:///"), bytes(len(BODY)))
    assert await drained(read(told, first, second)) == BODY
    with pytest.raises(ObjectChanged):
        await read(told, first).open()


# --- healing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, BLOCK, 100_000, len(BODY) - 1])
async def test_another_location_goes_on_at_once_where_one_broke(
    told: Told, at: int, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    a.faults.read_fails_at = at
    upstream = read(told, kept(a), kept(b))
    assert await drained(upstream) == BODY
    assert [offset for _, offset, _ in b.reads] == [at]
    assert trio.current_time() == 0
    assert told.incidents == ["retrying", "resumed"]
    assert told.transfer.attempt == 2
    assert a.open_streams == b.open_streams == 0


async def test_a_single_location_is_tried_again_with_growing_delays(
    told: Told, autojump_clock: trio.testing.MockClock
) -> None:
    a = MemoryStore("a")
    a.faults.read_fails_at = 100_000

    def then(incident: str) -> None:
        a.faults.read_fails_at, a.faults.open_error = None, StoreUnreachable("away")
        if told.transfer.attempt == 6:
            a.faults.open_error = None

    told.then = then
    assert await drained(read(told, kept(a))) == BODY
    assert told.times == [0, 0.5, 1.5, 3.5, 7.5, 15.5]
    assert told.incidents == ["retrying"] * 5 + ["resumed"]
    assert a.open_streams == 0


async def test_delays_have_full_jitter_and_an_upper_bound(told: Told, autojump_clock: trio.testing.MockClock) -> None:
    a = MemoryStore("a")
    a.faults.open_error = StoreUnreachable("away")
    drawn = iter([0.5, 0.0, 1.0, 0.25, *[1.0] * 9])
    with pytest.raises(StoreUnreachable):
        await drained(read(told, kept(a), random=lambda: next(drawn)))
    # `open` draws the first, `heal` another for the same failure.
    assert told.times[:6] == [0, 0, 2, 3, 11, 21]


async def test_two_locations_take_turns(told: Told, autojump_clock: trio.testing.MockClock) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    candidates = kept(a), kept(b)
    opened: list[str] = []
    for store in (a, b):
        store.faults.read_fails_at = 1000

    def then(incident: str) -> None:
        for store in (a, b):
            store.faults.open_error = StoreUnreachable(store.name)

    told.then = then
    with pytest.raises(StoreUnreachable):
        await drained(read(told, *candidates, setbacks=_Recording(opened)))
    assert opened[:6] == ["a", "b", "a", "b", "a", "b"]


class _Recording(Setbacks):
    def __init__(self, failed: list[str]) -> None:
        super().__init__()
        self._failed = failed

    def note(self, candidate: Candidate, error: StoreError) -> None:
        self._failed.append(candidate.store.name)


async def test_a_read_without_a_byte_for_the_time_is_given_up(
    told: Told, autojump_clock: trio.testing.MockClock
) -> None:
    a = MemoryStore("a")
    a.faults.read_fails_at = 100_000
    received = bytearray()
    with pytest.raises(StoreUnreachable):
        await drained(read(told, kept(a), retry_timeout=20), received)
    assert received == BODY[:100_000]
    assert trio.current_time() == 20
    assert a.open_streams == 0


async def test_the_time_begins_anew_with_each_byte(told: Told, autojump_clock: trio.testing.MockClock) -> None:
    body = BODY[:10_000]
    a = MemoryStore("a", block_size=1000)
    a.faults.read_fails_at = 1000

    def then(incident: str) -> None:
        if incident == "retrying" and len(told.incidents) % 3 == 0:
            assert a.faults.read_fails_at is not None
            a.faults.read_fails_at += 1000

    told.then = then
    assert await drained(read(told, kept(a, body), retry_timeout=30)) == body
    assert trio.current_time() > 90


async def test_progress_makes_delays_small_again(told: Told, autojump_clock: trio.testing.MockClock) -> None:
    body = bytes(4 * PROGRESS)
    a = MemoryStore("a", block_size=PROGRESS)
    a.faults.read_fails_at = PROGRESS

    def then(incident: str) -> None:
        if incident == "retrying":
            assert a.faults.read_fails_at is not None
            a.faults.read_fails_at += PROGRESS

    told.then = then
    assert await drained(read(told, kept(a, body))) == body
    assert told.times == [0, 0.5, 0.5, 1, 1, 1.5]


async def test_without_time_each_location_is_tried_once(told: Told, autojump_clock: trio.testing.MockClock) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    a.faults.read_fails_at = b.faults.read_fails_at = 100_000
    received = bytearray()
    with pytest.raises(StoreUnreachable):
        await drained(read(told, kept(a), kept(b), retry_timeout=0), received)
    assert received == BODY[:100_000]
    assert (trio.current_time(), len(a.reads), len(b.reads)) == (0, 1, 1)


async def test_a_location_that_is_not_to_be_retried_is_left_for_good(
    told: Told, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    a.faults.read_fails_at = 1000
    with pytest.raises(StoreUnreachable):
        await drained(read(told, kept(a, retried=False)))
    assert (trio.current_time(), told.incidents) == (0, [])
    assert await drained(read(told, kept(a, retried=False), kept(b))) == BODY


async def test_a_try_that_hangs_ends_with_the_time(told: Told, autojump_clock: trio.testing.MockClock) -> None:
    a = MemoryStore("a")
    a.faults.read_fails_at = 1000
    candidate = kept(a)
    upstream = read(told, candidate, retry_timeout=20)
    open_read = a.open_read

    async def hanging(*arguments: Any, **options: Any) -> Any:
        if a.reads:
            await trio.sleep_forever()
        return await open_read(*arguments, **options)

    a.open_read = hanging  # type: ignore[method-assign]
    with pytest.raises(StoreUnreachable, match="does not answer"):
        await drained(upstream)
    assert trio.current_time() == 20


# --- what is never joined --------------------------------------------------------------------------


async def test_bytes_of_a_changed_object_are_never_joined(told: Told, autojump_clock: trio.testing.MockClock) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    for others in ((), (kept(b),)):
        first = kept(a)
        a.faults.read_fails_at = 100_000
        told.then = lambda incident, first=first: a.put(first.location.removeprefix("memory:///"), bytes(len(BODY)))  # type: ignore[misc]
        received = bytearray()
        if others:
            assert await drained(read(told, first, *others), received) == BODY
        else:
            with pytest.raises(ObjectChanged):
                await drained(read(told, first), received)
            assert received == BODY[:100_000]


async def test_a_change_that_is_noticed_while_reading_is_final(
    told: Told, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    a.faults.read_fails_at, a.faults.error = 100_000, ObjectChanged("changed under the reader")
    received = bytearray()
    with pytest.raises(ObjectChanged):
        await drained(read(told, kept(a), kept(b)), received)
    assert (received, b.reads) == (BODY[:100_000], [])
    # Who compares the digest of the whole finds out whether what came was right.
    assert await drained(read(told, kept(a), kept(b), verified=True)) == BODY


def unmarked(store: MemoryStore) -> Candidate:
    """A location without a validator."""
    candidate = kept(store)
    key = candidate.location.removeprefix("memory:///")
    store.objects[key] = Kept(BODY, ObjectInfo(size=len(BODY)), 0)
    return candidate._replace(expected=ObjectInfo(size=len(BODY)))


@pytest.mark.parametrize("verified", [False, True])
async def test_without_a_validator_a_break_is_final_unless_the_whole_is_verified(
    told: Told, verified: bool, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = MemoryStore("a"), MemoryStore("b")
    a.faults.read_fails_at = 100_000
    for candidates in ((unmarked(a),), (kept(a, retried=False), unmarked(b))):
        told.then = lambda incident: setattr(a.faults, "read_fails_at", None)
        a.faults.read_fails_at = 100_000
        upstream = read(told, *candidates, verified=verified)
        if verified:
            assert await drained(upstream) == BODY
        else:
            with pytest.raises(StoreUnreachable):
                await drained(upstream)


async def test_without_a_validator_what_broke_before_its_first_byte_is_tried_again(
    told: Told, autojump_clock: trio.testing.MockClock
) -> None:
    a = MemoryStore("a")
    a.faults.read_fails_at = 0
    told.then = lambda incident: setattr(a.faults, "read_fails_at", None)
    assert await drained(read(told, unmarked(a))) == BODY


async def test_what_the_first_answer_told_is_expected_of_the_next(
    told: Told, autojump_clock: trio.testing.MockClock
) -> None:
    a = MemoryStore("a")
    unknown = kept(a)._replace(expected=ObjectInfo(size=None))
    a.faults.read_fails_at = 100_000
    upstream = read(told, unknown)
    await upstream.receive_some()
    assert upstream.info.validator is not None
    assert upstream.end == len(BODY)
    a.put(unknown.location.removeprefix("memory:///"), bytes(len(BODY)))
    with pytest.raises(ObjectChanged):
        await drained(upstream)


@pytest.mark.parametrize("error", [ObjectMissing("gone"), StoreFull("odd")])
async def test_a_location_without_the_object_is_not_asked_again(
    told: Told, error: StoreError, autojump_clock: trio.testing.MockClock
) -> None:
    a = MemoryStore("a")
    a.faults.read_fails_at = 100_000
    told.then = lambda incident: setattr(a.faults, "open_error", error)
    with pytest.raises(type(error)):
        await drained(read(told, kept(a)))
    tries = told.transfer.attempt - 1
    assert (tries == 1) is isinstance(error, ObjectMissing)


# --- cancelling ------------------------------------------------------------------------------------


async def test_a_cancelled_read_closes_what_it_opened_wherever_it_is(autojump_clock: trio.testing.MockClock) -> None:
    for seconds in (0, 0.1, 0.6, 2, 7):
        told, a = Told(), MemoryStore("a")
        a.faults.read_fails_at = 100_000
        upstream = read(told, kept(a))
        with trio.move_on_after(seconds) as scope:
            await drained(upstream)
        assert scope.cancelled_caught
        assert a.open_streams == 0
        await upstream.aclose()
