"""Which locations failed lately. Sans-IO.

An image may have several locations; a read begins at the first of them. One that failed a moment ago would cost every
read its timeout again, so it is asked last for a while. Nothing is kept of it over a restart: the order of the
locations is what the owner chose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from ..errors import StoreError, StoreUnreachable
from ..store.contract import ObjectInfo, Store

SETBACK_SECONDS: Final = 30.0


class Candidate(NamedTuple):
    """One location of an image's bytes.

    Attributes:
        store: The store that it belongs to.
        location: The object's URI.
        expected: What the record says of the object there; None fields expect nothing.
        retried: Whether a read that failed here may be tried again here. A file that can't be read stays so.
        attempt_id: The attempt that wrote the object, where one did.
    """

    store: Store
    location: str
    expected: ObjectInfo
    retried: bool = True
    attempt_id: str | None = None


class Setbacks:
    """The recent failures of one daemon's stores.

    A store that can't be reached fails with all of its locations; references have an origin each.

    Args:
        seconds: For how long a failure counts.
        now: The clock, in seconds.
    """

    def __init__(self, *, seconds: float = SETBACK_SECONDS, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._over_at: dict[tuple[str, str], float] = {}  # in the order of their ends

    def ordered(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The candidates in their order, those that failed lately behind the others."""
        self._forget()
        if not self._over_at:
            return list(candidates)
        return sorted(candidates, key=lambda candidate: any(key in self._over_at for key in _keys(candidate)))

    def note(self, candidate: Candidate, error: StoreError) -> None:
        """Remember that a read failed."""
        self._forget()
        of_store, of_location = _keys(candidate)
        key = of_store if isinstance(error, StoreUnreachable) and candidate.store.writable else of_location
        self._over_at.pop(key, None)
        self._over_at[key] = self._now() + self._seconds

    def clear(self, candidate: Candidate) -> None:
        """Remember that bytes came."""
        for key in _keys(candidate):
            self._over_at.pop(key, None)

    def _forget(self) -> None:
        now = self._now()
        while self._over_at and (oldest := next(iter(self._over_at))) and self._over_at[oldest] <= now:
            del self._over_at[oldest]


def _keys(candidate: Candidate) -> tuple[tuple[str, str], tuple[str, str]]:
    return (candidate.store.name, ""), (candidate.store.name, candidate.location)
