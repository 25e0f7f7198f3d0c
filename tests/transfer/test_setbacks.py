"""What failed lately is asked last, for a while."""

from __future__ import annotations

from memory_store import MemoryStore

from visor_gateway.errors import ObjectChanged, StoreUnreachable
from visor_gateway.store.contract import ObjectInfo
from visor_gateway.transfer.setbacks import SETBACK_SECONDS, Candidate, Setbacks


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def candidate(name: str, location: str = "memory:///a", *, writable: bool = True) -> Candidate:
    store = MemoryStore(name)
    store.writable = writable
    return Candidate(store, location, ObjectInfo(size=None))


def test_a_failed_location_is_last_until_it_is_forgotten() -> None:
    clock = Clock()
    setbacks = Setbacks(now=clock)
    a, b, c = candidate("a"), candidate("b"), candidate("c")
    assert setbacks.ordered([a, b, c]) == [a, b, c]
    setbacks.note(a, ObjectChanged("changed"))
    assert setbacks.ordered([a, b, c]) == [b, c, a]
    clock.time += 1
    setbacks.note(b, StoreUnreachable("away"))
    assert setbacks.ordered([a, b, c]) == [c, a, b]
    clock.time += SETBACK_SECONDS - 1
    assert setbacks.ordered([a, b, c]) == [a, c, b]
    clock.time += 1
    assert setbacks.ordered([a, b, c]) == [a, b, c]


def test_bytes_that_came_clear_a_failure() -> None:
    setbacks = Setbacks()
    a, b = candidate("a"), candidate("b")
    setbacks.note(a, StoreUnreachable("away"))
    setbacks.clear(a)
    assert setbacks.ordered([a, b]) == [a, b]


def test_a_store_that_is_away_is_away_for_every_image() -> None:
    setbacks = Setbacks()
    a, b = candidate("a", "memory:///one"), candidate("b")
    setbacks.note(candidate("a", "memory:///two"), StoreUnreachable("away"))
    assert setbacks.ordered([a, b]) == [b, a]
    setbacks.clear(a)
    setbacks.note(candidate("a", "memory:///two"), ObjectChanged("changed"))
    assert setbacks.ordered([a, b]) == [a, b]


def test_references_fail_one_by_one() -> None:
    setbacks = Setbacks()
    one, two = (candidate("http", f"http://{name}.example/", writable=False) for name in ("one", "two"))
    other = candidate("b")
    setbacks.note(one, StoreUnreachable("away"))
    assert setbacks.ordered([one, two, other]) == [two, other, one]
